"""No token leaves this machine in an export: every file that would be uploaded is searched.

Searched for are the values of the variables of this process that hold secrets by their name, the token of
huggingface_hub's store, the shapes in which well-known services write theirs, and, in texts of the run, whatever is
assigned to a name such as `api_key`. A finding names file, line and kind, never the secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from verifiers.errors import RunError

_NAMES = re.compile(r"TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
_SHORTEST = 8
_CHUNK = 2**20
_SHAPES = {
    "a Hugging Face token": rb"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a GitLab token": rb"\bglpat-[A-Za-z0-9_-]{18,}",
    "an API key (sk-...)": rb"\bsk-(?:[A-Za-z0-9]+-)*[A-Za-z0-9_]{24,}",
    "an AWS access key": rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google API key": rb"\bAIza[A-Za-z0-9_-]{35}",
    "a Slack token": rb"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    "a JSON web token": rb"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": rb"[a-z][a-z0-9+.-]*://[^/\s:@\"']+:[^/\s:@\"']{3,}@",
}
_ASSIGNED = (
    rb"(?i)[\w.-]*(?:token|secret|passw(?:or)?d|credential|api_?key|access_?key|authorization)\w*[\"']?\s*[:=]\s*"
    rb"[\"']?(?:bearer\s+)?(?=[^\s\"',]*[0-9])(?=[^\s\"',]*[A-Za-z])[A-Za-z0-9_\-./+=]{16,}"
)
# what assay wrote; in a tokenizer or a weights file such an assignment is chance
_TEXTS = (".md", ".yaml", ".jsonl", ".svg")


def known_secrets(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """{where it is held: secret} of this process."""
    from huggingface_hub import get_token

    environment = os.environ if environment is None else environment
    out = {
        f"the value of the variable {name}": value.strip()
        for name, value in environment.items()
        # a variable may also name the file that holds the secret
        if _NAMES.search(name) and len(value.strip()) >= _SHORTEST and not os.path.exists(value)
    }
    token = get_token()
    return out | ({"the token of huggingface_hub's store": token} if token else {})


def refuse_secrets(folder: Path, secrets: Mapping[str, str]) -> int:
    """Raise `RunError` if a file below `folder` holds one; the number of files searched."""
    found: list[str] = []
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        name = path.relative_to(folder)
        exact = {kind: re.escape(secret.encode()) for kind, secret in secrets.items()}
        shapes = {} if path.suffix == ".safetensors" else dict(_SHAPES)
        if path.suffix in _TEXTS or path.parent != folder:
            shapes["a value assigned to a secret's name"] = _ASSIGNED
        patterns = {kind: re.compile(pattern) for kind, pattern in {**exact, **shapes}.items()}
        found += [f"{name}: {finding}" for finding in _search(path, patterns)]
    if found:
        raise RunError(
            "The export holds what looks like a secret.",
            where="; ".join(found[:5]),
            why="what is uploaded once must be taken for known to everyone, so nothing is sent",
            fix="take it out of the recipe, the command line or the data that the run was started with (a variable's "
            "name instead of its value), and revoke it if it was ever shared",
        )
    return len(files)


def _search(path: Path, patterns: Mapping[str, re.Pattern[bytes]]) -> list[str]:
    """``line N holds KIND``. Binary files are read in pieces that overlap."""
    if not patterns:
        return []
    if path.suffix != ".safetensors":
        content = path.read_bytes()
        hits = ((kind, pattern.search(content)) for kind, pattern in patterns.items())
        lines = [(content.count(b"\n", 0, hit.start()) + 1, kind) for kind, hit in hits if hit]
        return [f"line {number} holds {kind}" for number, kind in lines]
    found: dict[str, None] = {}
    with path.open("rb") as file:
        before = b""
        while piece := file.read(_CHUNK):
            for kind, pattern in patterns.items():
                if pattern.search(before + piece):
                    found[f"the file holds {kind}"] = None
            before = piece[-4096:]
    return list(found)
