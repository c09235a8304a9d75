"""HARMO: who is believed, and that a wrong answer never outranks a right one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.example import Example, Message
from prm.hybrid import HybridOptions, route
from prm.signal import SOURCES, Signal, Source
from tests.helpers import source_context, trajectory
from trainer.advantages.grpo import GrpoOptions, grpo_advantage
from trainer.compose import load_recipe
from trainer.shaping.relative_length import RelativeLengthOptions, relative_length_term
from verifiers.errors import ConfigError
from verifiers.options import Options, parse_options
from verifiers.runner import Runner
from verifiers.verdict import Status, Verdict

SAYS = "tests.prm.test_hybrid:Says"


class Says(Source):
    """The same to everything; remembers how many were asked about."""

    class Options(Options):
        value: float = 0.9

    def __init__(self, options: Any, context: Any):
        super().__init__(options, context)
        self.asked = 0

    def score(self, trajectories, examples):
        self.asked += len(trajectories)
        return Signal(torch.full((len(trajectories),), self.options.value))


@pytest.fixture(scope="module")
def runner():
    with Runner("exact", {"marker": "#"}) as made:
        yield made


def hybrid_of(model: dict[str, Any], runner: Runner, **options: Any) -> Any:
    cls = SOURCES.get("hybrid")
    return cls(parse_options(cls.Options, {"model": model, **options}, "sources.0"), source_context(runner))


def hybrid(runner: Runner, value: float = 0.9, **options: Any) -> Any:
    return hybrid_of({"kind": SAYS, "value": value}, runner, **options)


def example(gold: Any = "7", **meta: Any) -> Example:
    return Example("q", (Message("user", "3+4?"),), gold, meta=meta)


def said(*texts: str, tokens: int = 5) -> list[Any]:
    return [trajectory([1], [2] * tokens, text=text, sample=i) for i, text in enumerate(texts)]


def options(**given: Any) -> HybridOptions:
    return parse_options(HybridOptions, {"model": {"kind": SAYS}, **given}, "s")


# ---- who is believed -----------------------------------------------


def test_where_the_rule_reads_both_sides_the_reward_is_the_rule_s_and_the_model_is_not_asked(runner):
    made = hybrid(runner)
    signal = made.score(said("#7", "#8"), [example()] * 2)
    assert signal.outcome_N.tolist() == [1, 0]
    assert made.member.sources["model"].asked == 0
    assert [v.status for v in signal.labels["verdict"]] == [Status.CORRECT, Status.WRONG]


def test_where_no_answer_can_be_read_rule_and_model_share(runner):
    signal = hybrid(runner, unparsed_confidence=0.25).score(said("seven"), [example()])
    assert signal.outcome_N.tolist() == pytest.approx([0.75 * 0.9])
    assert signal.metrics["route/both_share"] == 1


def test_an_open_ended_example_is_the_model_s(runner):
    signal = hybrid(runner).score(said("#8", "#7"), [example(open_ended=True)] * 2)
    assert signal.outcome_N.tolist() == pytest.approx([0.9, 0.9])


def test_a_reference_that_cannot_be_read_is_judged_by_the_model_and_costs_the_response_nothing(runner):
    signal = hybrid(runner).score(said("#8"), [example(gold=True)])
    assert signal.outcome_N.tolist() == pytest.approx([0.9])
    assert signal.metrics["route/model_share"] == 1


def test_a_fault_of_the_verifier_judges_nothing():
    assert route(Verdict(None, Status.VERIFIER_FAULT), example(), options()) == "fault"
    assert route(Verdict(0.0, Status.WRONG), example(), options()) == "both"  # an answer was not read
    assert route(Verdict(0.0, Status.TRUNCATED), example(), options()) == "rule"


def test_what_the_model_cannot_judge_leaves_its_group_only_where_it_is_needed(runner):
    signal = hybrid(runner, value=float("nan")).score(said("#7", "seven"), [example()] * 2)
    assert signal.outcome_N.isnan().tolist() == [False, True]


# ---- the sum -------------------------------------------------------

ROWS = st.lists(st.tuples(st.integers(1, 500), st.booleans(), st.integers(0, 2)), min_size=1, max_size=12)


@settings(deadline=None)
@given(rows=ROWS)
def test_with_the_recipe_s_numbers_a_wrong_answer_of_ideal_length_and_form_never_outranks_a_right_one(rows):
    config = load_recipe("hybrid_math")
    form = config.sources[0].options["format_reward"]
    length, right, group = map(torch.tensor, map(list, zip(*rows, strict=True)))
    o = parse_options(RelativeLengthOptions, config.objective.shaping[0].options, "s")
    term = relative_length_term(length, right, group, o.model_copy(update={"wrong_only": False}))  # the harder case
    assert float((1 + term)[right].min() if bool(right.any()) else 1) > form


def test_a_format_that_is_worth_as_much_as_being_right_is_refused():
    with pytest.raises(ConfigError, match="format_reward"):
        options(format_reward=1.0)


def test_the_parts_are_summed(runner):
    made = hybrid(runner, format={"tags": [], "boxed": True}, format_reward=0.2)
    signal = made.score(said("\\boxed{7}\n#7", "#7"), [example()] * 2)
    assert signal.outcome_N.tolist() == pytest.approx([1.2, 1.0], abs=1e-6)
    assert signal.labels["hybrid_parts"][1] == {"confidence": 1, "rule": 1, "model": None, "format": 0}


def test_the_advantage_without_std_sums_to_0_and_scales_with_the_rewards():
    group, reward = torch.tensor([0, 0, 0]), torch.tensor([1.0, 0.2, 0.0])
    plain = GrpoOptions(normalize_std=False)
    found = grpo_advantage(reward, group, plain)
    assert float(found.sum()) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(grpo_advantage(3 * reward, group, plain), 3 * found)
    torch.testing.assert_close(
        grpo_advantage(3 * reward, group, GrpoOptions()), grpo_advantage(reward, group, GrpoOptions())
    )
