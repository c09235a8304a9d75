"""Uploads, through the real client, to a server that speaks the hub's API."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.export.hub import CHUNK, TOKEN, Hub, Repository
from trainer import cli
from trainer.export.upload import Destination, upload
from verifiers.errors import ConfigError, RunError

REPO = "org/small"
SHARDS = ["--max-shard-size", "300KB"]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def without_gitattributes(repository: Repository) -> dict[str, bytes]:
    return {path: content for path, content in repository.files.items() if path != ".gitattributes"}


def send(hub: Hub, folder: Path, **destination: Any) -> str:
    to = Destination(REPO, **{"public": False, "endpoint": hub.url, **destination})
    return upload(folder, to, "an export", lambda line: None)


def test_a_private_repository_receives_every_file_in_one_commit(hub, runs, export):
    folder = export(runs("quickstart"), "--to", REPO, "--tag")
    repository = hub.repositories[REPO]
    assert repository.private
    assert without_gitattributes(repository) == contents(folder)
    assert len(repository.commits) == 1
    assert repository.tags == {"step-2": repository.head}


def test_public_only_when_asked(hub, exported):
    send(hub, exported(), public=True)
    assert not hub.repositories[REPO].private


def test_large_files_travel_in_parts(hub, exported):
    send(hub, exported())
    size = (exported() / "model.safetensors").stat().st_size
    assert len(hub.parts_received) == -(-size // CHUNK) > 1


def test_a_dry_run_sends_nothing(hub, runs, export, capsys):
    export(runs("quickstart"), "--to", REPO, "--dry-run", "--tag")
    assert hub.requests == []
    out = capsys.readouterr().out
    assert f"would be one commit in {REPO} (private), tagged step-2" in out
    assert "model.safetensors" in out


def test_without_a_destination_nothing_is_sent(hub, runs, export):
    export(runs("quickstart"))
    assert hub.requests == []


def test_a_network_that_fails_in_mid_upload_costs_only_what_was_not_there_yet(hub, exported):
    folder = exported(*SHARDS)
    hub.drop_after = 3
    with pytest.raises(RunError, match="broke off") as broken:
        send(hub, folder)
    assert "run the same command again" in str(broken.value)
    assert hub.repositories[REPO].commits == []
    arrived = set(hub.stored)
    assert len(arrived) == 3
    hub.drop_after = None
    hub.parts_received.clear()
    send(hub, folder)
    assert without_gitattributes(hub.repositories[REPO]) == contents(folder)
    assert len(hub.repositories[REPO].commits) == 1
    again = set(hub.parts_received)
    assert not again & arrived
    assert again | arrived == set(hub.stored)


def test_a_file_that_broke_off_between_its_parts_is_not_taken_for_stored(hub, exported):
    hub.drop_after = 2
    with pytest.raises(RunError, match="broke off"):
        send(hub, exported())
    assert hub.stored == {}
    hub.drop_after = None
    send(hub, exported())
    assert without_gitattributes(hub.repositories[REPO]) == contents(exported())


def test_a_failure_of_the_commit_itself_sends_no_large_file_twice(hub, exported):
    folder = exported(*SHARDS)
    hub.drop_after = len(list(folder.glob("*.safetensors")))
    with pytest.raises(RunError, match="broke off"):
        send(hub, folder)
    hub.drop_after = None
    hub.parts_received.clear()
    send(hub, folder)
    assert hub.parts_received == []
    assert len(hub.repositories[REPO].commits) == 1


def test_a_later_step_of_the_same_run_replaces_the_earlier_and_its_shards(hub, exported):
    send(hub, exported("--step", "1", *SHARDS), tag="step-1")
    send(hub, exported(), tag="step-2")
    repository = hub.repositories[REPO]
    assert without_gitattributes(repository) == contents(exported())
    assert repository.tags.keys() == {"step-1", "step-2"}
    assert len(repository.commits) == 2


def test_the_same_export_twice_is_one_commit(hub, exported):
    for _ in range(2):
        send(hub, exported(), tag="step-2")
    assert len(hub.repositories[REPO].commits) == 1


@pytest.mark.parametrize("there", [{"weights.bin": b"x"}, {"README.md": b"mine"}])
def test_other_content_is_not_replaced(hub, exported, there):
    hub.repositories[REPO] = Repository(private=True, files=dict(there))
    with pytest.raises(RunError, match="holds something else"):
        send(hub, exported())
    assert hub.repositories[REPO].files == there


def test_another_model_of_the_same_run_is_other_content(hub, exported, tmp_path):
    send(hub, exported())
    critic = Path(shutil.copytree(exported(), tmp_path / "critic"))
    path = critic / "assay" / "export.json"
    path.write_text(path.read_text().replace('"model": "policy"', '"model": "critic"'))
    with pytest.raises(RunError, match="model policy"):
        send(hub, critic)


def test_who_can_see_a_repository_is_not_changed(hub, exported):
    hub.repositories[REPO] = Repository(private=False)
    with pytest.raises(RunError, match=r"is public.*was to be private"):
        send(hub, exported())
    hub.repositories[REPO] = Repository(private=True)
    with pytest.raises(RunError, match=r"is private.*was to be public"):
        send(hub, exported(), public=True)
    assert hub.repositories[REPO].commits == []


def test_without_a_token_nothing_is_begun(hub, runs, export, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(RunError, match="no token") as error:
        export(runs("quickstart"), "--to", REPO)
    assert "hf auth login" in str(error.value)
    assert hub.requests == []
    assert not (tmp_path / "out").exists()


def test_a_token_that_may_not_write_is_said_and_not_shown(hub, exported, monkeypatch):
    other = "hf_" + "another0token" * 3
    monkeypatch.setenv("HF_TOKEN", other)
    with pytest.raises(RunError, match="refused") as error:
        send(hub, exported())
    assert other not in str(error.value)
    assert error.value.__suppress_context__


@pytest.mark.parametrize("name", ["small", "a/b/c", "org/bad name", "org/", "-org/x--y"])
def test_a_name_that_cannot_be_is_refused_first(hub, runs, export, name):
    with pytest.raises(ConfigError, match="not the name of a repository"):
        export(runs("quickstart"), f"--to={name}")
    assert hub.requests == []


def test_a_file_that_is_not_on_the_hub_as_it_was_checked_is_noticed(hub, exported, tmp_path):
    folder = Path(shutil.copytree(exported(), tmp_path / "changed"))
    with (folder / "config.json").open("a") as file:
        file.write(" ")  # after the check
    with pytest.raises(RunError, match=r"config\.json is not on the hub as it was sent"):
        send(hub, folder)


def test_the_token_is_in_no_file_body_message_or_record(hub, run, export, capfd):
    folder = export(run, "--to", REPO)
    assert ("POST", "/api/models/org/small/commit/main") in hub.requests
    assert not any(TOKEN.encode() in body for body in hub.bodies)
    assert not any(TOKEN.encode() in c for c in [*contents(folder).values(), *contents(run).values()])
    captured = capfd.readouterr()
    assert TOKEN not in captured.out + captured.err


@pytest.mark.e2e
def test_the_command_itself(hub, run, tmp_path):
    """As a user starts it, the token in huggingface_hub's own store."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text(TOKEN)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trainer.cli", "export", str(run), "--to", REPO]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/{REPO} (private)" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    folder = run / "exports" / "policy-step-000002"
    assert without_gitattributes(hub.repositories[REPO]) == contents(folder)
    downloaded = _snapshot(environment, tmp_path / "got")
    assert contents(folder).items() <= downloaded.items()


def _snapshot(environment: dict[str, str], to: Path) -> dict[str, bytes]:
    code = f"import huggingface_hub; huggingface_hub.snapshot_download({REPO!r}, local_dir={str(to)!r})"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60, capture_output=True)
    shutil.rmtree(to / ".cache", ignore_errors=True)
    return contents(to)


def test_a_mistake_is_a_message_and_exit_code_2(hub, run, capsys):
    assert cli.main(["export", str(run), "--what", "polcy"]) == 2
    assert "did you mean 'policy'" in capsys.readouterr().err
