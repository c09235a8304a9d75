"""BRME whole: a Bradley-Terry model, its heads, a policy beside them; each resumed to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.test_fit_runs import POLICY, SMALL, SMALL_MODEL
from trainer import cli

pytestmark = pytest.mark.e2e

OF_FIT = SMALL[len(SMALL_MODEL) :]  # the sizes of stage 2 are those of stage 1's folder


def train(recipe: str, folder: Path, *overrides: str) -> Path:
    assert cli.main(["train", recipe, f"run.dir={folder}", *overrides]) == 0
    return folder / recipe


def without_its_end(run: Path, folder: Path, last: str) -> Path:
    copy = folder / run.name
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / last)
    (copy / "summary.json").unlink()
    return folder


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("bt_rm_chain", tmp_path_factory.mktemp("stage1"), *SMALL) / "checkpoints" / "step-000004"


def stage2_options(stage1: Path) -> list[str]:
    return [*OF_FIT, f"model.path={stage1 / 'hf'}", f"reward_model.stage1={stage1}"]


@pytest.fixture(scope="module")
def stage2(stage1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("brme_rm_chain", tmp_path_factory.mktemp("stage2"), *stage2_options(stage1))


@pytest.mark.invariance
def test_a_resumed_stage_2_draws_the_samples_of_the_uninterrupted_one(
    stage1: Path, stage2: Path, tmp_path: Path
) -> None:
    resumed = train("brme_rm_chain", without_its_end(stage2, tmp_path, "step-000004"), *stage2_options(stage1))
    weights = Path("checkpoints") / "step-000004" / "hf" / "model.safetensors"
    for file in (Path("metrics.jsonl"), weights):
        assert (resumed / file).read_bytes() == (stage2 / file).read_bytes()


@pytest.mark.invariance
def test_a_policy_is_trained_by_the_heads_alone_and_resumes_exactly(stage2: Path, tmp_path: Path) -> None:
    options = [*POLICY, f"sources.1.path={stage2 / 'checkpoints' / 'step-000004'}"]
    whole = train("brme_chain", tmp_path / "whole", *options)
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    mixed = 0.4 * last["brme/nominal_mean"] + 0.6 * last["brme/worst_mean"]
    assert last["reward/mean"] == pytest.approx(mixed, abs=1e-5)
    resumed = train("brme_chain", without_its_end(whole, tmp_path / "cut", "step-000002"), *options)
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
