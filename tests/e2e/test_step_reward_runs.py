"""Runs with step and outcome reward models: they start, and a resumed run is the uninterrupted one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import assert_resumed_is_whole
from trainer import cli

pytestmark = [pytest.mark.e2e, pytest.mark.invariance]

SMALL = [
    "hardware.threads=1", "warm_start.steps=8", "warm_start.source.count=400", "data.train.count=400",
    "data.eval.0.source.count=200", "data.eval.0.source.max_examples=8", "rollout.prompts_per_step=4",
    "rollout.samples_per_prompt=2", "rollout.max_response_tokens=20", "eval.every_steps=5",
    "checkpoint.every_steps=1", "record.tensorboard=false",
]  # fmt: skip
TRAIN = ["sources.1.train={prompts: 8, steps: 3, solutions_per_step: 4}"]
CASES = {
    "clip_delta_chain": ["sources.1.refine={kind: clip_delta, eta: running_mean}"],
    "step_prm_chain": [*TRAIN, "sources.1.update_every=2", "sources.1.monte_carlo.completions=2"],
    "orm_chain": [*TRAIN, "sources.1.update_every=2"],
}


def run(folder: Path, recipe: str, steps: int, overrides: list[str]) -> list[dict]:
    command = ["train", recipe, f"run.dir={folder}", "name=it", *SMALL, *overrides, f"train.steps={steps}"]
    assert cli.main(command) == 0
    return [json.loads(line) for line in (folder / "it" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("recipe", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, recipe: str) -> None:
    whole = run(tmp_path / "whole", recipe, 4, CASES[recipe])
    run(tmp_path / "parts", recipe, 2, CASES[recipe])
    parts = run(tmp_path / "parts", recipe, 4, CASES[recipe])
    kind = {"clip_delta_chain": "step_oracle", "step_prm_chain": "step_prm", "orm_chain": "orm"}[recipe]
    for shared in assert_resumed_is_whole(whole, parts)[1:]:
        assert f"{kind}/mean_score" in shared
    weights = f"it/checkpoints/step-000004/sources/{kind}/scorer/model.safetensors"
    if kind != "step_oracle":
        assert [f"{kind}/loss" in line for line in whole[1:]] == [False, True, False, True]
        assert f"{kind}/trained/loss" in whole[1]
        assert (tmp_path / "whole" / weights).read_bytes() == (tmp_path / "parts" / weights).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", CASES)
def test_the_recipe_as_it_stands_learns(tmp_path: Path, recipe: str) -> None:
    assert cli.main(["train", recipe, f"run.dir={tmp_path}"]) == 0
    summary = json.loads((tmp_path / recipe / "summary.json").read_text())
    accuracy = summary["evaluations"]["chain/avg@4"]
    assert accuracy["after"]["value"] > accuracy["before"]["value"] + 0.1
