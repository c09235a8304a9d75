"""Conciseness: acceptance facts of the reward function, the guard, and what becomes of a level nobody can read."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data import load_examples
from data.example import Message
from data.labelled import LabelledResponse
from data.template import TemplateOptions
from prm.conciseness import (
    LEVELS,
    LOWEST,
    ConcisenessModel,
    ConcisenessSource,
    annealed,
    conciseness_reward,
    level_metrics,
    parse_level,
    pass_rate,
)
from prm.reward_model import FitContext, TooLong
from prm.signal import Kept
from rollout.options import WriterConfig
from tests.helpers import make_config, source_context, tokenizer, trajectory
from trainer.advantages.grpo import GrpoOptions, grpo_advantage
from verifiers.errors import ConfigError, DataError, RunError
from verifiers.options import parse_options
from verifiers.runner import Runner
from verifiers.verdict import Status, Verdict

GRID = [0.1, 0.4, 1.0]
CHAIN = load_examples("chain", {"count": 4, "min_operands": 4, "max_operands": 4, "modulus": 5}, key="data")


def reward(r, c, s, d, alpha):
    one = torch.tensor([r], dtype=torch.float64)
    return float(conciseness_reward(one, torch.tensor([c], dtype=torch.float64), s, torch.tensor([d]), alpha))


# ---- acceptance facts --------------------------------------------


def test_1_a_wrong_answer_earns_nothing_however_concise():
    assert {reward(0.0, c, s, d, 3.0) for c, s, d in itertools.product(GRID, GRID, GRID)} == {0.0}


@pytest.mark.parametrize(("s", "d", "alpha"), [(0.5, 0.5, 0.0), (0.0, 0.0, 3.0)])
def test_2_without_alpha_or_coefficients_the_reward_is_the_outcome(s, d, alpha):
    assert reward(1.0, 0.7, s, d, alpha) == 1.0


def test_3_the_worked_example():
    assert reward(1.0, 0.5, 0.25, 0.25, 1.0) == pytest.approx(1.25)


def test_4_it_rises_with_level_annealing_and_difficulty_and_right_beats_wrong():
    assert reward(1.0, 0.5, 0.3, 0.3, 2.0) < reward(1.0, 0.6, 0.3, 0.3, 2.0)
    assert reward(1.0, 0.5, 0.3, 0.3, 2.0) < reward(1.0, 0.5, 0.4, 0.3, 2.0)
    assert reward(1.0, 0.5, 0.3, 0.3, 2.0) < reward(1.0, 0.5, 0.3, 0.4, 2.0)
    assert reward(1.0, 0.1, 0.0, 0.0, 2.0) > reward(0.0, 1.0, 1.0, 1.0, 2.0)


def test_5_it_stays_within_its_bounds():
    for r, c, s, d in itertools.product([0.0, 0.5, 1.0], [float(x) for x in LEVELS], GRID, GRID):
        low, high = (r * (1 + x * 3.0 * (s + d)) for x in (0.1, 1.0))
        assert low - 1e-6 <= reward(r, c, s, d, 3.0) <= high + 1e-6


def kept(right, texts=None, groups=None, step=0, outcome=None):
    texts = texts or ["#1"] * len(right)
    groups = groups or [0] * len(right)
    verdicts = [Verdict(float(r), Status.CORRECT if r else Status.WRONG) for r in right]
    outcome_N = torch.tensor([float(r) for r in right] if outcome is None else outcome)
    trajectories = [trajectory([5], [6, 7], group, text=text) for text, group in zip(texts, groups, strict=True)]
    return Kept(trajectories, [CHAIN[g] for g in groups], outcome_N, verdicts, step)


def source(**options):
    context = source_context(Runner("exact", {}), make_config({"train.steps": 10}))
    return ConcisenessSource(parse_options(ConcisenessSource.Options, options), context)


LONG, SHORT = "1\n1\n1\n#1", "#1"  # levels 0.5 and 1


def total(source_, kept_):
    return kept_.outcome_N + source_.credit(kept_).outcome_N


def advantage(reward_N, kept_, **options):
    return grpo_advantage(reward_N, kept_.group_N, GrpoOptions(**options))


def test_6_an_all_wrong_group_has_no_advantages():
    some = kept([False] * 3, [LONG, SHORT, ""])
    assert advantage(total(source(alpha=3.0, all_correct="pay"), some), some).tolist() == [0.0, 0.0, 0.0]


def test_7_an_all_right_group_of_equal_levels_has_no_advantages():
    some = kept([True] * 3, [LONG] * 3)
    assert advantage(total(source(alpha=3.0, all_correct="pay"), some), some).tolist() == [0.0, 0.0, 0.0]


def test_7_dividing_by_the_standard_deviation_hides_alpha_in_all_right_groups_and_the_guards_break_it():
    some = kept([True] * 3, [LONG, SHORT, SHORT])

    def of(alpha, all_correct, **options):
        return advantage(total(source(alpha=alpha, all_correct=all_correct), some), some, **options)

    weak, strong = (of(alpha, "pay", eps=1e-12) for alpha in (0.01, 3.0))
    torch.testing.assert_close(weak, strong, rtol=1e-3, atol=1e-4)  # the trap: any alpha is full pressure
    assert float(strong.abs().max()) > 1
    assert of(3.0, "skip").tolist() == [0.0, 0.0, 0.0]
    assert float(of(0.01, "pay", normalize_std=False).abs().max()) < 0.01
    assert float(of(0.01, "pay", eps=0.1).abs().max()) < 0.1


# ---- the source --------------------------------------------------


def test_mixed_groups_are_paid_by_annealing_and_pass_rate():
    some = kept([True, True, False, True], [LONG, SHORT, SHORT, SHORT], [0, 0, 0, 1], step=5)
    found = source(alpha=2.0, s_max=0.4, difficulty=0.6).credit(some)
    s, d = 0.4 * (1 - 5 / 10), 0.6 * 2 / 3
    assert found.outcome_N.tolist() == pytest.approx([2 * 0.5 * (s + d), 2 * 1.0 * (s + d), 0.0, 0.0])
    assert found.labels["level"] == [0.5, 1.0, None, None]  # the last group is all right
    assert found.metrics["s"] == pytest.approx(s)
    assert found.metrics["all_correct_share"] == 0.25


def test_the_additive_form_pays_wrong_but_short_answers():
    some = kept([True, False], [LONG, ""])
    added = total(source(form="additive", alpha=3.0), some).tolist()
    assert added == pytest.approx([1 + 3 * 0.5, 3 * 1.0])
    assert added[1] > added[0]  # answering nothing beats a right answer: the route to collapse
    multiplied = total(source(alpha=3.0), some).tolist()
    assert multiplied[0] > multiplied[1] == 0.0


def test_an_outcome_below_zero_is_refused():
    with pytest.raises(RunError, match="between 0 and 1"):
        source().credit(kept([True, False], outcome=[1.0, -1.0]))


def test_without_a_model_only_data_with_a_level_by_program_is_taken():
    context = source_context(Runner("exact", {}))
    context.train_examples = [type(CHAIN[0])("x", (Message("user", "?"),), "1")]
    with pytest.raises(ConfigError, match="example 'x'"):
        ConcisenessSource(ConcisenessSource.Options(), context)


def test_annealing_runs_from_s_max_to_nothing():
    assert [annealed(0.5, step, 10) for step in (0, 5, 10, 20)] == [0.5, 0.25, 0.0, 0.0]


def test_pass_rates_are_those_of_the_groups():
    rates = pass_rate(torch.tensor([True, False, True, True]), torch.tensor([7, 7, 2, 7]))
    assert rates.tolist() == pytest.approx([2 / 3, 2 / 3, 1.0, 2 / 3])


# ---- the model that writes -----------------------------------------


@pytest.mark.parametrize(
    ("text", "level"),
    [("0.7", 0.7), (" 1.0\n", 1.0), ("Conciseness: 0.3.", 0.3), ("1", 1.0), ("0.1", 0.1), ("", None), ("high", None),
     ("0.7 or 0.8", None), ("0.7/1.0", None), ("7", None), ("0.05", None), ("-0.5", None), ("1.1", None)],
)  # fmt: skip
def test_levels_are_read_or_not_at_all(text, level):
    assert parse_level(text) == level


@given(st.text())
def test_a_level_that_is_read_is_in_range_whatever_the_text(text):
    level = parse_level(text)
    assert level is None or 0.1 <= level <= 1.0


def crm(max_tokens=64):
    context = FitContext(tokenizer(), TemplateOptions(kind="plain"), max_tokens, 0, WriterConfig())
    return ConcisenessModel(ConcisenessModel.Options(prompt="{question}\n{response}\n@"), context)


def response(label, text="#7"):
    return LabelledResponse("r", (Message("user", "3+4="),), text, label)


def test_a_response_is_asked_about_without_its_gold_answer():
    (ids,) = crm().encode(response(0.7))
    assert tokenizer().decode(ids.prompt_ids, skip_special_tokens=True) == "3+4=\n#7\n@"
    assert tokenizer().decode(ids.response_ids, skip_special_tokens=True) == "0.7"


def test_braces_in_a_response_are_text():
    (ids,) = crm().encode(response(1.0, "{question} {x}"))
    assert "{question} {x}" in tokenizer().decode(ids.prompt_ids)


@pytest.mark.parametrize("label", [0.0, 0.75, 1.1, 7.0])
def test_a_label_that_is_no_level_is_an_error(label):
    with pytest.raises(DataError, match="is no level"):
        crm().encode(response(label))


def test_too_long_is_said():
    with pytest.raises(TooLong):
        crm(max_tokens=8).encode(response(0.7))


def test_a_level_that_cannot_be_read_is_the_lowest_and_counted(monkeypatch):
    asked, some = source(alpha=1.0, s_max=1.0, difficulty=0.0), kept([True, True, True, False])
    asked.model, asked.kind = object(), crm()
    monkeypatch.setattr(asked.kind, "write", lambda model, responses: ["0.5", "no idea", None])
    found = asked.credit(some)
    assert found.labels["level"] == [0.5, LOWEST, LOWEST, None]
    assert found.outcome_N.tolist() == pytest.approx([0.5, 0.1, 0.1, 0.0])
    assert found.metrics["unparsable_share"] == pytest.approx(1 / 3)
    assert found.metrics["too_long_share"] == pytest.approx(1 / 3)


def test_metrics_count_the_unreadable_as_the_lowest():
    found = level_metrics([0.5, None, 0.9], [0.5, 0.5, 1.0], [10, 20, 5])
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["near_accuracy"] == pytest.approx(2 / 3)
    assert found["unparsable_share"] == pytest.approx(1 / 3)
    assert found["majority_accuracy"] == pytest.approx(2 / 3)
    assert found["mean_gap"] == pytest.approx((0 + 0.4 + 0.1) / 3)
