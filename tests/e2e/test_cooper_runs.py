"""Runs with a VerifyRM, with Cooper, an ensemble and the hybrid: they start, and a resumed run is the uninterrupted
one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import assert_resumed_is_whole
from trainer import cli

pytestmark = [pytest.mark.e2e, pytest.mark.invariance]

SMALL = [
    "hardware.threads=1", "warm_start.steps=4", "warm_start.source.count=400", "data.train.count=400",
    "data.eval.0.source.count=200", "data.eval.0.source.max_examples=4", "rollout.prompts_per_step=3",
    "rollout.samples_per_prompt=2", "rollout.max_response_tokens=16", "eval.every_steps=5",
    "checkpoint.every_steps=1", "record.tensorboard=false",
]  # fmt: skip
TRAIN = "{prompts: 6, steps: 2, solutions_per_step: 4}"
CASES = {
    "cooper_chain": [f"sources.1.train={TRAIN}"],
    "hybrid_chain": [f"sources.0.model.train={TRAIN}"],
    "ensemble_chain": ["sources.1.calibrate={prompts: 6}", *(f"sources.1.members.{k}.train={TRAIN}" for k in range(3))],
}
MODELS = {"cooper_chain": ["cooper/scorer"], "hybrid_chain": ["hybrid/model_scorer"],
          "ensemble_chain": ["ensemble/member0_scorer", "ensemble/member2_scorer"]}  # fmt: skip


def run(folder: Path, recipe: str, steps: int, overrides: list[str]) -> list[dict]:
    command = ["train", recipe, f"run.dir={folder}", "name=it", *SMALL, *overrides, f"train.steps={steps}"]
    assert cli.main(command) == 0
    return [json.loads(line) for line in (folder / "it" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("recipe", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, recipe: str) -> None:
    whole = run(tmp_path / "whole", recipe, 3, CASES[recipe])
    run(tmp_path / "parts", recipe, 2, CASES[recipe])
    parts = run(tmp_path / "parts", recipe, 3, CASES[recipe])
    kind = recipe.removesuffix("_chain")
    for shared in assert_resumed_is_whole(whole, parts)[1:]:
        assert any(name.startswith(f"{kind}/") for name in shared)
    for model in MODELS[recipe]:
        weights = f"it/checkpoints/step-000003/sources/{model}/model.safetensors"
        assert (tmp_path / "whole" / weights).read_bytes() == (tmp_path / "parts" / weights).read_bytes()


def test_a_trained_verify_rm_is_a_source_with_its_own_tokenizer_and_stays_as_it_is(tmp_path: Path) -> None:
    small = ["hardware.threads=1", "data.train.count=200", "data.eval.0.source.count=100", "train.steps=2",
             "train.examples_per_step=4", "eval.every_steps=2", f"run.dir={tmp_path}", "name=rm"]  # fmt: skip
    assert cli.main(["train", "verify_rm_chain", *small]) == 0
    folder = tmp_path / "rm" / "checkpoints" / "step-000002"
    assert "answers/false_accept" in (tmp_path / "rm" / "metrics.jsonl").read_text()
    asked = {"question": "1+2*3=", "gold_answer": "4", "completion": "3*3\n4\n#4", "gold_correct": True}
    bench = tmp_path / "verifybench.jsonl"
    bench.write_text(json.dumps(asked) + "\n" + json.dumps(asked | {"completion": "#3", "gold_correct": False}) + "\n")
    assert cli.main(["bench", "rm", "--verifybench", str(bench), "--model", str(folder), "--out", str(tmp_path)]) == 0
    assert "verify_rm" in (tmp_path / "report.md").read_text()
    frozen = [f"sources=[{{kind: rule, weight: 0.0}}, {{kind: verify_rm, path: {folder}}}]"]
    lines = run(tmp_path / "rl", "quickstart", 2, frozen)
    assert 0 < lines[1]["verify_rm/score_mean"] < 1
    after = tmp_path / "rl" / "it" / "checkpoints" / "step-000002" / "sources" / "verify_rm" / "scorer"
    assert (after / "model.safetensors").read_bytes() == (folder / "hf" / "model.safetensors").read_bytes()
    learning = [f"sources=[{{kind: rule, weight: 0.0}}, {{kind: cooper, path: {folder}, optim: {{lr: 1e-3}}, "
                "assistant: {kind: corrupt}}]"]  # fmt: skip
    run(tmp_path / "cooper", "quickstart", 1, learning)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", CASES)
def test_the_recipe_as_it_stands_learns_and_under_permuted_rewards_it_does_not(tmp_path: Path, recipe: str) -> None:
    def accuracy(name: str, *changes: str) -> dict[str, float]:
        assert cli.main(["train", recipe, f"run.dir={tmp_path}", f"name={name}", *changes]) == 0
        found = json.loads((tmp_path / name / "summary.json").read_text())["evaluations"]["chain/avg@4"]
        return {when: found[when]["value"] for when in ("before", "after")}

    learnt, control = accuracy("learnt"), accuracy("permuted", "train.shuffle_rewards=true")
    assert learnt["before"] == control["before"]
    assert learnt["after"] > max(learnt["before"], control["after"]) + 0.1


@pytest.mark.slow
def test_the_verify_rm_recipe_as_it_stands_learns(tmp_path: Path) -> None:
    assert cli.main(["train", "verify_rm_chain", f"run.dir={tmp_path}"]) == 0
    last = [json.loads(line) for line in (tmp_path / "verify_rm_chain" / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["answers/accuracy"] > last["answers/majority_accuracy"] + 0.1
