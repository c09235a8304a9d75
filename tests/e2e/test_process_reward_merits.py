"""What each learned process reward is for, against the control in which it has nothing to learn from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer import cli

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

COMMON = ["hardware.threads=1", "eval.every_steps=null", "data.eval.0.source.max_examples=8",
          "checkpoint.every_steps=null", "record.tensorboard=false", "record.trajectories=false"]  # fmt: skip


def metrics(folder: Path, recipe: str, *overrides: str) -> list[dict]:
    assert cli.main(["train", recipe, f"run.dir={folder}", "name=it", *COMMON, *overrides]) == 0
    return [json.loads(line) for line in (folder / "it" / "metrics.jsonl").read_text().splitlines()][1:]


@pytest.mark.parametrize(("recipe", "kind"), [("step_prm_chain", "step_prm"), ("orm_chain", "orm")])
def test_a_trained_scorer_ranks_right_above_wrong_and_one_that_did_not_learn_does_not(
    tmp_path: Path, recipe: str, kind: str
) -> None:
    """On fresh samples of the policy; the truth is the generator's program (steps), the verifier (responses)."""
    (trained,) = metrics(tmp_path / "trained", recipe, "train.steps=1")
    (untrained,) = metrics(tmp_path / "untrained", recipe, "train.steps=1", "sources.1.optim.lr=0.0")
    assert untrained[f"{kind}/auc"] == pytest.approx(0.5, abs=0.02)
    assert trained[f"{kind}/auc"] > 0.75


def test_oreals_reward_model_learns_who_is_right_and_not_from_permuted_outcomes(tmp_path: Path) -> None:
    """While the policy waits, so that both see the same responses."""
    overrides = ["train.steps=13", "sources.1.warmup_steps=12"]
    learned = metrics(tmp_path / "learned", "oreal_chain", *overrides)
    permuted = metrics(tmp_path / "permuted", "oreal_chain", *overrides, "train.shuffle_rewards=true")

    def brier(lines: list[dict]) -> float:
        values = [line["token_credit/brier"] for line in lines[8:12]]
        return sum(values) / len(values)

    assert brier(learned) < brier(permuted) - 0.03
