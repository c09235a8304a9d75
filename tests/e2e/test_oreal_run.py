"""OREAL's recipe end to end, small: it trains, its checkpoint is whole, and a resumed run is the same bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTokenClassification

from trainer import cli

pytestmark = pytest.mark.e2e

STEPS = 4
# one bit, answered at once: the small warm start guesses, so that most groups have both outcomes
DATA = "{kind: chain, count: 60, part: all, min_operands: 5, max_operands: 5, modulus: 2, direct_share: 1.0}"
SMALL = [
    "hardware.threads=1", f"data.train={DATA}", "data.eval=[]", "eval.every_steps=null", f"warm_start.source={DATA}",
    "warm_start.steps=30", "warm_start.examples_per_step=12", "rollout.prompts_per_step=6",
    "rollout.samples_per_prompt=4", "rollout.max_response_tokens=8", f"train.steps={STEPS}", "checkpoint.every_steps=2",
    "sources.1.warmup_steps=1", "record.tensorboard=false",
]  # fmt: skip


def run(folder: Path, *overrides: str) -> Path:
    assert cli.main(["train", "oreal_chain", f"run.dir={folder}", *SMALL, *overrides]) == 0
    return folder / "oreal_chain"


def metrics(run_folder: Path) -> list[dict]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("oreal"))


def weights(run_folder: Path) -> dict[str, bytes]:
    last = run_folder / "checkpoints" / f"step-{STEPS:06d}"
    return {str(p.relative_to(last)): p.read_bytes() for p in sorted(last.rglob("*.safetensors"))}


def test_the_policy_waits_while_its_reward_model_learns(uninterrupted: Path) -> None:
    first, second = metrics(uninterrupted)[1:3]
    assert "policy/loss" not in first
    assert first["token_credit/loss"] > 0
    assert second["policy/grad_norm"] > 0
    assert second["token_credit/included_share"] <= 0.5


@pytest.mark.invariance
def test_a_resumed_run_is_the_uninterrupted_one(uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "oreal_chain")
    shutil.rmtree(tmp_path / "oreal_chain" / "checkpoints" / f"step-{STEPS:06d}")
    (tmp_path / "oreal_chain" / "summary.json").unlink()
    resumed = run(tmp_path)
    assert (resumed / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    assert len(weights(resumed)) == 2
    assert weights(resumed) == weights(uninterrupted)


def test_the_reward_model_is_exported_with_the_checkpoint(uninterrupted: Path) -> None:
    folder = uninterrupted / "checkpoints" / f"step-{STEPS:06d}" / "sources" / "token_credit" / "model"
    model = AutoModelForTokenClassification.from_pretrained(folder)
    assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 1)


def test_difficulty_is_balanced_by_repetition_and_survives_a_checkpoint(tmp_path: Path) -> None:
    bands = "[{low: 0.0, high: 0.5, times: 3}, {low: 0.5, high: 1.1, times: 1}]"
    balanced = [f"data.difficulty={{low: 0.0, high: 1.0, probe_samples: 1, repeat: {bands}}}", "train.steps=2"]
    made = run(tmp_path, *balanced)
    state = torch.load(made / "checkpoints" / "step-000002" / "state.pt", weights_only=False)
    kept = state["kept_examples"]
    assert {kept.count(name) for name in kept} == {1, 3}
    assert state["sampler"]["num_examples"] == len(kept)
    assert run(tmp_path, *balanced) == made
