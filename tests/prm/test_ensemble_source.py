"""Reward ensembles in the loop: one scale, the objectives, and what cannot be judged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prm.signal import SOURCES, Signal, Source
from tests.prm.test_cooper import kept_groups
from tests.prm.test_step_scorer import answered, chain, context
from verifiers.errors import ConfigError, RunError
from verifiers.options import Options, parse_options
from verifiers.runner import Runner

FIXED = "tests.prm.test_ensemble_source:Fixed"


def digits(trajectory: Any) -> float:
    return float(sum(int(c) for c in trajectory.text if c.isdigit()))


class Fixed(Source):
    """scale * (sum of the digits) + shift; NaN for the sum `silent_at`. Counts what it learns from."""

    class Options(Options):
        scale: float = 1.0
        shift: float = 0.0
        silent_at: int = -1

    def __init__(self, options: Any, context: Any):
        super().__init__(options, context)
        self.learnt = 0

    def score(self, trajectories, examples):
        n = torch.tensor([digits(t) for t in trajectories])
        outcome = torch.where(n == self.options.silent_at, torch.nan, self.options.scale * n + self.options.shift)
        return Signal(outcome, labels={"digits": n.tolist()}, metrics={"mean": float(n.mean())})

    def learn(self, kept, signal):
        assert signal.labels["digits"] == [digits(t) for t in kept.trajectories]
        assert signal.outcome_N.shape == (len(kept.trajectories),)
        self.learnt += 1
        return {"learnt": float(self.learnt)}

    def state_dict(self):
        return {"learnt": self.learnt}

    def load_state_dict(self, state):
        self.learnt = state["learnt"]


@pytest.fixture(scope="module")
def runner():
    with Runner("exact", {"marker": "#", "numeric": True}) as made:
        yield made


def ensemble(runner: Runner, members: list[dict[str, Any]], start: bool = True, **options: Any) -> Any:
    cls = SOURCES.get("ensemble")
    given = {"members": [{"kind": FIXED, **m} for m in members], "calibrate": None, **options}
    made = cls(parse_options(cls.Options, given, "sources.0"), context(runner, chain(12)))
    if start:
        made.start_from({})
    return made


def asked(*sums: int) -> tuple[list[Any], list[Any]]:
    examples = chain(len(sums))
    return [answered(e, "1" * n, g) for g, (e, n) in enumerate(zip(examples, sums, strict=True))], examples


@pytest.mark.parametrize(
    ("objective", "expected"),
    [({"objective": "mean"}, 2.0), ({"objective": "wco"}, 1.0), ({"objective": "uwo", "coef": 1.0}, 1.0),
     ({"objective": "uwo", "coef": 1.0, "ddof": 0}, 4 / 3)],
)  # fmt: skip
def test_the_outcome_is_the_objective_of_the_members_scores(runner, objective, expected):
    made = ensemble(runner, [{"shift": -9.0}, {"shift": -8.0}, {"shift": -7.0}], **objective)
    assert made.score(*asked(10)).outcome_N.tolist() == pytest.approx([expected])


def test_a_minimum_of_members_on_two_scales_is_that_of_the_larger_scale_until_they_are_calibrated(runner):
    members = [{"scale": 1.0}, {"scale": -100.0}]
    raw = ensemble(runner, members, objective="wco").score(*asked(3, 6))
    assert raw.outcome_N.tolist() == [-300, -600]  # the second member alone
    made = ensemble(runner, members, objective="wco", calibrate={"prompts": 12})
    assert made.std_K[1] == pytest.approx(100 * float(made.std_K[0]), rel=1e-5)
    scores = torch.tensor(made.score(*asked(3, 6)).labels["member_scores"])
    torch.testing.assert_close(scores[:, 0], -scores[:, 1])


def test_a_member_without_spread_cannot_be_calibrated(runner):
    with pytest.raises(RunError, match="member1 gives the same score"):
        ensemble(runner, [{}, {"scale": 0.0}], calibrate={"prompts": 12})


def test_what_one_member_cannot_judge_nobody_judges(runner):
    signal = ensemble(runner, [{}, {"silent_at": 4}], objective="wco").score(*asked(3, 4))
    assert signal.outcome_N.isnan().tolist() == [False, True]


def test_health_says_how_far_the_members_disagree_and_what_it_costs(runner):
    made = ensemble(runner, [{}, {"shift": 2.0}], objective="wco")
    metrics = made.score(*asked(3, 6)).metrics
    assert metrics["penalty"] == pytest.approx(1)
    assert metrics["disagreement"] == pytest.approx(2**0.5)
    assert metrics["member_correlation"] == pytest.approx(1)
    assert metrics["member1/mean"] == 4.5


def test_members_that_learn_get_what_they_said_themselves(runner):
    made, kept = ensemble(runner, [{}, {}]), kept_groups([[True, False], [False, True]])
    signal = made.score(kept.trajectories, kept.examples)
    assert made.learn(kept, signal.select(range(4))) == {"member0/learnt": 1.0, "member1/learnt": 1.0}


def test_scale_and_members_are_in_the_state(runner):
    made = ensemble(runner, [{}, {"scale": 2.0}], calibrate={"prompts": 12})
    made.members.sources["member1"].learnt = 5
    other = ensemble(runner, [{}, {"scale": 2.0}], start=False, calibrate={"prompts": 12})
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.std_K, made.std_K)
    assert other.members.sources["member1"].learnt == 5
    assert torch.equal(other.score(*asked(3, 6)).outcome_N, made.score(*asked(3, 6)).outcome_N)


def test_learned_members_are_in_the_checkpoint_under_their_names(runner):
    cls = SOURCES.get("ensemble")
    train = {"prompts": 4, "steps": 1, "solutions_per_step": 4}
    member = {"kind": "verify_rm", "train": train, "optim": {"lr": 1e-3}}
    options = {"members": [member, member | {"member": 1}], "calibrate": None}
    made = cls(parse_options(cls.Options, options, "s"), context(runner, chain(12)))
    assert list(made.models()) == ["member0_scorer", "member1_scorer"]


def of_one(runner: Runner, member: dict[str, Any]) -> Any:
    cls = SOURCES.get("ensemble")
    return cls(parse_options(cls.Options, {"members": [member]}, "s"), context(runner, chain(12)))


@pytest.mark.parametrize("member", [{}, {"kind": "nothing"}, {"kind": FIXED, "typo": 1}, {"kind": "implicit"}])
def test_members_are_checked_before_compute(runner, member):
    with pytest.raises(ConfigError):
        of_one(runner, member)


def test_a_member_that_gives_credit_is_refused(runner):
    with pytest.raises(ConfigError, match="does not judge"):
        of_one(runner, {"kind": "step_oracle"})
