"""The actor of sources beside verl's policy, called without Ray's processes. Needs Ray, not verl.

`tests.helpers` is not imported: verl installs a package `tests`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("ray")

from data.example import Example, Message
from prm.signal import Kept
from rollout.models import load_policy
from rollout.trajectory import Finish, Trajectory
from trainer.checkpoint import export_hf
from trainer.compose import load_recipe
from trainer.learner import Learner
from trainer.verl.beside import _Actor
from verifiers.verdict import Status, Verdict

pytestmark = pytest.mark.unit


def test_a_model_that_learnt_is_the_same_after_its_state_was_saved_and_loaded(tmp_path: Path) -> None:
    orm = "{kind: orm, role: outcome, update_every: 1, optim: {lr: 1e-2}}"
    recipe = load_recipe("quickstart", ["hardware=cpu", "hardware.threads=1", f"sources=[{{kind: rule}}, {orm}]"])
    policy = load_policy(recipe.model, recipe.seed, torch.device("cpu"))
    learner = Learner(recipe, policy, torch.device("cpu"))
    (tmp_path / "policy").mkdir()
    export_hf(tmp_path / "policy", learner, policy.tokenizer)

    examples = [Example("e", (Message("user", "1+1="),), "2")] * 2
    responses = [Trajectory("e", 0, i, [5, 6], [7 + i, 8], [-1.0] * 2, [-1.0] * 2, Finish.LENGTH, "", 0)
                 for i in range(2)]  # fmt: skip
    verdicts = [Verdict(1.0, Status.CORRECT), Verdict(0.0, Status.WRONG)]
    first, again = _Actor(), _Actor()
    assert first.open(recipe, recipe.sources[1], str(tmp_path / "policy")) == "judge"
    again.open(recipe, recipe.sources[1], str(tmp_path / "policy"))
    try:
        kept = Kept(responses, examples, torch.tensor([1.0, 0.0]), verdicts, 0)
        before = first.score(responses, examples)
        assert "loss" in first.learn(kept, before)
        first.save(tmp_path / "saved")
        again.load(tmp_path / "saved")
        learnt = first.score(responses, examples).outcome_N
        assert not torch.equal(learnt, before.outcome_N)
        assert torch.equal(again.score(responses, examples).outcome_N, learnt)
        # the optimizer's moments too: the next update is the same
        for actor in (first, again):
            actor.learn(kept, actor.score(responses, examples))
        assert torch.equal(again.score(responses, examples).outcome_N, first.score(responses, examples).outcome_N)
    finally:
        for actor in (first, again):
            actor.source.context.runner.close()
