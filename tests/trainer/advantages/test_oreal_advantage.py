"""OREAL's advantages: the table of the specification, who counts in the means, and the loop around them."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.example import Example, Message
from prm.signal import Kept, Signal
from tests.helpers import make_config, make_learner, random_trajectories, update_gradients
from trainer.advantages.base import ADVANTAGES, AdvantageInputs
from trainer.advantages.oreal import OrealOptions, oreal_advantage
from trainer.collect import Rollouts
from trainer.combinations import check_objective
from trainer.learner import TrainingBatch
from trainer.loop import policy_waits_steps
from trainer.weigh import weigh
from verifiers.errors import ConfigError
from verifiers.options import parse_options
from verifiers.verdict import Status, Verdict

PLAIN: dict[str, Any] = {"positive_coef": 1.0, "negative_coef": 1.0}


def inputs(reward: list[float], length: list[int] | None = None, included: list[bool] | None = None, **more: Any):
    reward_N = torch.tensor(reward, dtype=torch.float32)
    length_N = torch.tensor(length or [1] * len(reward))
    who = None if included is None else torch.tensor(included)
    group_N = torch.zeros(len(reward), dtype=torch.long)
    return AdvantageInputs(reward_N, group_N, length_N, correct_N=reward_N > 0, included_N=who, **more)


def unscaled(reward: list[float], **options: Any) -> list[float]:
    """A_i alone: one class at a time has N / N+ = 1."""
    given = inputs(reward)
    out = torch.zeros(len(reward))
    for side in (given.reward_N > 0, given.reward_N <= 0):
        alone = replace(given, included_N=side)
        out = torch.where(side, oreal_advantage(alone, OrealOptions(**(PLAIN | options))), out)
    return out.tolist()


# ---- reshaping ---------------------------------------------------


def test_rewards_of_0_and_1_become_the_judges_signs_before_the_leave_one_out_mean() -> None:
    assert unscaled([1, 0, 0, 1]) == pytest.approx([4 / 3, -4 / 3, -4 / 3, 4 / 3])
    assert unscaled([1, 1, 1, 0]) == pytest.approx([2 / 3, 2 / 3, 2 / 3, -2])
    assert unscaled([1, -1, -1, 1], signed=False) == pytest.approx([4 / 3, -4 / 3, -4 / 3, 4 / 3])


def test_signs_double_leave_one_out_advantages_and_leave_standardised_ones() -> None:
    reward = [1.0, 0, 0, 0, 1, 1]
    assert unscaled(reward) == pytest.approx([2 * a for a in unscaled(reward, signed=False)])
    grpo = unscaled(reward, shaping="grpo")
    assert grpo == pytest.approx(unscaled(reward, shaping="grpo", signed=False), rel=1e-5)


@pytest.mark.parametrize("reward", [[1.0] * 4, [0.0] * 4])
@pytest.mark.parametrize("shaping", ["rloo", "grpo"])
def test_a_group_of_one_outcome_has_no_advantage_and_divides_by_nothing(reward: list[float], shaping: Any) -> None:
    assert oreal_advantage(inputs(reward), OrealOptions(shaping=shaping)).tolist() == [0.0] * 4


def test_without_reshaping_the_advantage_is_the_sign() -> None:
    assert unscaled([1, 0, 0, 1], shaping="none") == [1, -1, -1, 1]


def test_cloning_takes_correct_responses_as_they_are_and_reshapes_wrong_ones() -> None:
    assert unscaled([1, 1, 1, 0], pos_mult_adv=False) == pytest.approx([1, 1, 1, -2])


# ---- means of the classes ----------------------------------------


def test_every_class_has_the_mean_over_its_own_tokens() -> None:
    """With reduce=token a token weighs advantage / N: correct ones c+ A / N+, wrong ones c- A / N-."""
    given = inputs([1, 0, 0, 1], [2, 3, 4, 1])
    found = oreal_advantage(given, OrealOptions(pos_mult_adv=False)) / 10
    assert found.tolist() == pytest.approx([1 / 3, -0.5 * 4 / 3 / 7, -0.5 * 4 / 3 / 7, 1 / 3])


def test_only_those_who_take_part_are_counted_and_the_whole_group_is_the_baseline() -> None:
    given = inputs([1, 1, 1, 0], [2, 3, 4, 5], included=[False, True, False, True])
    found = oreal_advantage(given, OrealOptions())
    assert found[1].item() == pytest.approx(2 / 3 * 8 / 3)
    assert found[3].item() == pytest.approx(-2 * 0.5 * 8 / 5)
    of_the_pair = oreal_advantage(inputs([1, 0], [3, 5]), OrealOptions())  # the trap: reshaping after the choice
    assert of_the_pair[0].item() == pytest.approx(2 * 8 / 3)


def test_tool_tokens_are_not_counted() -> None:
    mask = torch.tensor([1, 0, 1, 1, 1]).bool()
    given = inputs([1, 0], [3, 2], mask_R=mask)
    advantage = ADVANTAGES.get("oreal").compute(given, OrealOptions(shaping="none", **PLAIN))
    assert advantage.tolist() == pytest.approx([4 / 2, 0, 4 / 2, -4 / 2, -4 / 2])


@pytest.mark.parametrize("reward", [[1.0, 1.0], [0.0, 0.0]])
def test_a_batch_of_one_class_is_finite(reward: list[float]) -> None:
    found = oreal_advantage(inputs(reward), OrealOptions(shaping="none"))
    assert found.tolist() == ([1.0, 1.0] if reward[0] else [-0.5, -0.5])
    nobody = oreal_advantage(inputs(reward, included=[False, False]), OrealOptions(shaping="none"))
    assert nobody.tolist() == [0.0, 0.0]


def test_other_reductions_are_refused() -> None:
    with pytest.raises(ConfigError, match="reduce=token"):
        check_objective(make_config({"objective.advantage": {"kind": "oreal"}, "objective.reduce": "sequence"}))
    check_objective(make_config({"objective.advantage": {"kind": "oreal"}}))


# ---- in the trainer ----------------------------------------------


def session(sources: list[Any], **advantage: Any) -> Any:
    config = make_config({
        "objective.advantage": {"kind": "oreal", **advantage},
        "sources": [{"kind": "rule"} for _ in sources],
    })  # fmt: skip
    estimator = ADVANTAGES.get("oreal")
    return SimpleNamespace(config=config, advantage=estimator, critic=None, shapings=[], sources=sources,
                           advantage_options=parse_options(estimator.options, advantage))  # fmt: skip


def kept(correct: list[bool], samples: int) -> Kept:
    trajectories = random_trajectories(len(correct) // samples, samples)
    verdicts = [Verdict(float(c), Status.CORRECT if c else Status.WRONG) for c in correct]
    examples = [Example(t.example_id, (Message("user", "?"),), "1") for t in trajectories]
    return Kept(trajectories, examples, torch.tensor([v.score for v in verdicts]), verdicts, 0)


def weighed(included: list[bool] | None, weight: float = 1.0) -> TrainingBatch:
    batch = kept([True, True, True, False], 4)
    weights = [torch.full((t.num_response_tokens,), weight) for t in batch.trajectories]
    who = None if included is None else torch.tensor(included)
    signals = [Signal(batch.outcome_N, labels={"verdict": batch.verdicts}),
               Signal(torch.zeros(4), token_weight=weights, included_N=who)]  # fmt: skip
    sources = [SimpleNamespace(phase="judge"), SimpleNamespace(phase="credit")]
    return weigh(session(sources), batch, signals)[0]


def test_a_source_leaves_responses_out_after_the_reshaping_and_its_weights_multiply() -> None:
    batch = weighed([True, False, False, True], 0.25)
    assert batch.included_N.tolist() == [True, False, False, True]
    plus, minus = (batch.trajectories[i].num_response_tokens for i in (0, 3))
    assert batch.advantages[0].tolist() == pytest.approx([0.25 * 2 / 3 * (plus + minus) / plus] * plus)
    assert batch.advantages[3].tolist() == pytest.approx([-0.25 * 2 * 0.5 * (plus + minus) / minus] * minus)


def test_without_weights_only_the_kl_is_left() -> None:
    overrides = {"objective.loss": {"kind": "reinforce"}, "objective.kl.coef": 0.5}
    batch = weighed(None, 0.0)
    moved = make_learner(overrides)
    with torch.no_grad():
        for p in moved.model.parameters():
            p.add_(0.01)
    found, _ = update_gradients(moved, batch)
    assert any(bool(g.abs().max() > 1e-6) for g in found.values())
    at_reference, _ = update_gradients(make_learner(overrides), batch)  # pi == ref: k3 has no gradient
    assert all(float(g.abs().max()) < 1e-6 for g in at_reference.values())


@pytest.mark.invariance
def test_the_gradient_does_not_depend_on_micro_batches() -> None:
    overrides = {"objective.loss": {"kind": "reinforce"}, "objective.kl.coef": 0.1}
    whole, _ = update_gradients(make_learner(overrides, double=True), weighed([True, False, True, True]))
    for max_tokens in (1, 25):
        learner = make_learner(overrides | {"train.max_tokens_per_microbatch": max_tokens}, double=True)
        found, _ = update_gradients(learner, weighed([True, False, True, True]))
        for name, gradient in whole.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-9, rtol=1e-9)


def test_those_who_take_no_part_cost_no_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner({"objective.kl.coef": 0.1})
    seen: list[int] = []
    pack = learner._pack

    def count(sequences: Any) -> Any:
        seen.append(len(sequences))
        return pack(sequences)

    monkeypatch.setattr(learner, "_pack", count)
    learner.update(weighed([True, False, False, True]))
    assert set(seen) == {2}


def test_the_policy_waits_for_the_slowest_of_those_that_learn_beside_it() -> None:
    sources = [SimpleNamespace(warmup_steps=0), SimpleNamespace(warmup_steps=3)]
    alone = SimpleNamespace(config=make_config(), sources=sources)
    assert policy_waits_steps(alone) == 3  # type: ignore[arg-type]
    critic = {"critic": {"optim": {"lr": 1e-3}, "warmup_steps": 4}}
    beside = SimpleNamespace(config=make_config(critic), sources=sources)
    assert policy_waits_steps(beside) == 4  # type: ignore[arg-type]


def test_a_wait_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave no round"):
        make_config({"sources": [{"kind": "rule"}, {"kind": "token_credit", "warmup_steps": 10}]})


def test_shuffled_outcomes_leave_no_verdict_to_learn_from() -> None:
    batch = kept([True, False], 2)
    verdicts = Signal(batch.outcome_N, labels={"verdict": batch.verdicts})
    swapped = batch.outcome_N.flip(0)
    made = Rollouts(batch.trajectories, batch.examples, [verdicts], swapped, [0, 1], 0, 1, 0, shuffled=True)
    assert made.what_is_kept(0).correct_N.tolist() == [False, True]


@pytest.mark.parametrize("bands", [[(0.0, 0.5), (0.4, 0.8)], [(0.5, 0.5)], [(0.8, 0.2)]])
def test_bands_to_repeat_that_overlap_or_are_empty_are_refused(bands: list[tuple[float, float]]) -> None:
    repeat = [{"low": low, "high": high, "times": 2} for low, high in bands]
    with pytest.raises(ConfigError, match="must not be empty or overlap"):
        make_config({"data.difficulty": {"low": 0.0, "high": 1.0, "probe_samples": 2, "repeat": repeat}})
