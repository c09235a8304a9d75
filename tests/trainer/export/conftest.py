"""Short real runs to export, made once, and a hub to send them to."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.trainer.export.hub import TOKEN, Hub
from trainer import cli
from trainer.export import add_arguments

SMALL = [
    "hardware.threads=1", "warm_start.steps=4", "warm_start.source.count=200", "data.train.count=200",
    "data.eval.0.source.count=100", "data.eval.0.source.max_examples=8", "rollout.prompts_per_step=4",
    "rollout.samples_per_prompt=2", "rollout.max_response_tokens=16", "eval.every_steps=1", "train.steps=2",
    "checkpoint.every_steps=1", "checkpoint.keep_last=9", "record.tensorboard=false", "name=small",
]  # fmt: skip
# rewards that differ although the model solves nothing
BY_LENGTH = ["objective.shaping=[{kind: cosine, margin_tokens: 0}]", "objective.zero_variance.drop=false",
             "objective.zero_variance.max_refills=0"]  # fmt: skip

Runs = Callable[..., Path]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """runs(recipe, *overrides): the folder of a run of two steps, made once and not to be changed."""
    made: dict[tuple[str, ...], Path] = {}

    def make(recipe: str, *overrides: str) -> Path:
        key = (recipe, *overrides)
        if key not in made:
            folder = tmp_path_factory.mktemp("runs")
            assert cli.main(["train", recipe, f"run.dir={folder}", *SMALL, *BY_LENGTH, *overrides]) == 0
            made[key] = folder / "small"
        return made[key]

    return make


@pytest.fixture(scope="session")
def base(runs: Runs) -> Path:
    """A model folder to start from."""
    return runs("quickstart") / "checkpoints" / "step-000002" / "hf"


@pytest.fixture(scope="session")
def lora_run(runs: Runs, base: Path) -> Path:
    return runs("quickstart", "model.scratch=null", f"model.path={base}", "model.tokenizer=null",
                "model.lora={rank: 4, alpha: 8}", "warm_start=null", "optim.lr=0.05")  # fmt: skip


@pytest.fixture
def run(runs: Runs, tmp_path: Path) -> Path:
    """A run of one's own, to be changed."""
    return Path(shutil.copytree(runs("quickstart"), tmp_path / "runs" / "small"))


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Path]:
    """export(run, *arguments): what the command makes, in a folder of this test."""
    from trainer.export import command

    def make(run_folder: Path, *arguments: str, name: str = "out") -> Path:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        out = tmp_path / name
        assert command.run(parser.parse_args([str(run_folder), "--out", str(out), *arguments])) == 0
        return out

    return make


@pytest.fixture(scope="session")
def exported(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """exported(*arguments): the quickstart run's export for `org/small`, made once and not to be changed."""
    from trainer.export import command

    made: dict[tuple[str, ...], Path] = {}

    def make(*arguments: str) -> Path:
        if arguments not in made:
            parser = argparse.ArgumentParser()
            add_arguments(parser)
            out = tmp_path_factory.mktemp("exported") / "out"
            words = [str(runs("quickstart")), "--to", "org/small", "--dry-run", "--out", str(out), *arguments]
            assert command.run(parser.parse_args(words)) == 0
            made[arguments] = out
        return made[arguments]

    return make


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that the client is logged in to. Its protocol for large files is LFS: xet's storage is not imitated."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub(TOKEN) as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server
