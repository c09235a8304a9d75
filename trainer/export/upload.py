"""Sending a checked folder to the hub: one commit, large files first and one by one.

A large file that has reached the hub's storage stays there whatever happens to the rest, and the client asks before it
sends; so the same command again sends what is missing. Until the commit nothing of it can be seen in the repository.

The token is the one huggingface_hub finds by itself (its own store, or HF_TOKEN). It is handed to nothing but its
client, and cut out of every message.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from verifiers.errors import AssayError, ConfigError, RunError

MANIFEST = "assay/export.json"
_LARGE_BYTES = 2**20
_OF_EVERY_REPOSITORY = {".gitattributes"}
# RuntimeError and ValueError are what the client wraps a broken transfer and a malformed answer in
_TRANSFER_ERRORS = (HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)
class Destination:
    """repo: ``ORG/NAME``. tag: of the commit, or None. endpoint: of the hub; None: huggingface_hub's own."""

    repo: str
    public: bool
    tag: str | None = None
    endpoint: str | None = None


def check_repo_name(repo: str) -> None:
    """Raises `ConfigError`."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise _bad_name(repo) from error
    if repo.count("/") != 1:
        raise _bad_name(repo)


def _bad_name(repo: str) -> ConfigError:
    return ConfigError(f"'{repo}' is not the name of a repository.", where="--to",
                       fix="write ORG/NAME: letters, digits, '-', '_' and '.', at most 96 in all")  # fmt: skip


def hub_token() -> str:
    """Raises `RunError` where there is none. To be asked before the work begins."""
    token = get_token()
    if token is None:
        raise RunError(
            "There is no token for the hub.",
            where="huggingface_hub's store",
            why="uploading needs an account",
            fix="hf auth login, with a token that may write; assay itself never asks for it or keeps it",
        )
    return token


def upload(folder: Path, to: Destination, message: str, say: Callable[[str], None]) -> str:
    """Send every file of `folder` in one commit; the repository's address. Raises `RunError`: no token, refused, other
    content there, or broken off (the same call goes on where it stopped)."""
    token = hub_token()
    api = HfApi(endpoint=to.endpoint, token=token, library_name="assay")
    try:
        return _upload(api, folder, to, message, say)
    except AssayError:
        raise
    except OfflineModeIsEnabled as error:
        raise RunError("huggingface_hub is in offline mode.", where="HF_HUB_OFFLINE",
                       fix="unset it, or leave --to out to export to a folder only") from error  # fmt: skip
    except _TRANSFER_ERRORS as error:
        # `from None`: a traceback must not show what the client was given
        raise _broken_off(error, to.repo, token) from None


def _upload(api: HfApi, folder: Path, to: Destination, message: str, say: Callable[[str], None]) -> str:
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    manifest = json.loads(files[MANIFEST].read_text(encoding="utf-8"))
    stale = sorted(_prepare_repository(api, to, manifest) - set(files))
    additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    large = [a for a in additions if _is_large(files[a.path_in_repo])]
    for number, addition in enumerate(large, start=1):
        api.preupload_lfs_files(to.repo, [addition], free_memory=False)
        say(f"{number} of {len(large)} large files stored: {addition.path_in_repo}")
    operations = [*additions, *(CommitOperationDelete(path_in_repo=name) for name in stale)]
    commit = api.create_commit(to.repo, operations, commit_message=message)
    _check_stored(api, to.repo, manifest["files"])
    if to.tag is not None:
        _move_tag(api, to.repo, to.tag, commit.oid)
    return f"{api.endpoint}/{to.repo}"


def _is_large(path: Path) -> bool:
    return path.suffix == ".safetensors" or path.stat().st_size > _LARGE_BYTES


def _prepare_repository(api: HfApi, to: Destination, manifest: Mapping[str, Any]) -> set[str]:
    """Make the repository, or see that it holds an earlier export of the same model; that export's files."""
    try:
        info = api.repo_info(to.repo)
    except RepositoryNotFoundError:
        api.create_repo(to.repo, private=not to.public, exist_ok=True)
        return set()
    if bool(info.private) == to.public:
        is_now, asked = ("private", "public") if info.private else ("public", "private")
        raise RunError(
            f"The repository {to.repo} is {is_now}, and the export was to be {asked}.",
            where=to.repo,
            why="assay does not change who can see what is already there",
            fix="leave out --public"
            if info.private
            else "give --public, or change it on the hub's settings page first",
        )
    there = set(api.list_repo_files(to.repo)) - _OF_EVERY_REPOSITORY
    if not there:
        return set()
    earlier = _remote_manifest(api, to.repo) if MANIFEST in there else {}
    if earlier.get("identity") != manifest["identity"]:
        holds = ", ".join(f"{k} {v}" for k, v in earlier.get("identity", {}).items()) or ", ".join(sorted(there)[:3])
        raise RunError(
            f"The repository {to.repo} holds something else: {holds}.",
            where=to.repo,
            why="an upload would replace it",
            fix="choose another name with --to, or delete what is there yourself",
        )
    return there & {*earlier["files"], MANIFEST}


def _remote_manifest(api: HfApi, repo: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo, MANIFEST, local_dir=folder)
        return json.loads(Path(path).read_text(encoding="utf-8"))


def _check_stored(api: HfApi, repo: str, files: Mapping[str, Mapping[str, Any]]) -> None:
    """What the hub lists is what was sent, by size, and by hash where it has one."""
    found = {f.path: f for f in api.list_repo_tree(repo, recursive=True) if hasattr(f, "size")}
    for name, sent in files.items():
        there: Any = found.get(name)
        lfs = getattr(there, "lfs", None)
        if there is None or there.size != sent["bytes"] or (lfs is not None and lfs.sha256 != sent["sha256"]):
            raise RunError(f"After the upload {name} is not on the hub as it was sent.", where=repo,
                           fix="run the same command again")  # fmt: skip


def _move_tag(api: HfApi, repo: str, tag: str, commit: str) -> None:
    with contextlib.suppress(RevisionNotFoundError):
        api.delete_tag(repo, tag=tag)
    api.create_tag(repo, tag=tag, revision=commit)


def _broken_off(error: Exception, repo: str, token: str) -> RunError:
    causes: list[BaseException] = [error]
    while (below := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(below)
    status = next((e.response.status_code for e in causes if isinstance(e, HfHubHTTPError)), None)
    text = "; ".join(dict.fromkeys((str(e).strip().splitlines() or [type(e).__name__])[0] for e in causes))
    text = text.replace(token, "(token)").rstrip(".")
    if status in (401, 403):
        return RunError(f"The hub refused: {text}.", where=repo, why="nothing was published",
                        fix="hf auth whoami; the token must be allowed to write to this name")  # fmt: skip
    return RunError(
        f"The upload broke off: {text}.",
        where=repo,
        why="nothing was published: the files appear in one commit, at the end",
        fix="run the same command again: large files that are there already are not sent again",
    )
