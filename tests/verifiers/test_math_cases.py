"""The accuracy bar of the kind `math`, on the shipped cases.

A case that fails here is a bug of the verifier, or a label to dispute in data/assets/math_cases/disputed.jsonl with a
reason (which does not change the count).
"""

from __future__ import annotations

from collections import Counter

import pytest

from verifiers.math.bench.cases import SHIPPED_CASES, SHIPPED_DISPUTES, Case, load_cases, load_disputes
from verifiers.math.bench.statistics import Agreement, Outcome, Rate, agreement
from verifiers.runner import Runner
from verifiers.verdict import Verdict, VerifyRequest

Judged = list[tuple[Case, Verdict]]
CASES = load_cases(SHIPPED_CASES)
SIZES = Counter(case.category for case in CASES)


@pytest.fixture(scope="module")
def judged() -> Judged:
    requests = [VerifyRequest(case.response, case.gold, example_id=case.id) for case in CASES]
    with Runner("math", {}) as runner:
        return list(zip(CASES, runner.verify(requests), strict=True))


def measured(judged: Judged) -> Agreement:
    return agreement(
        Outcome(bool(case.label), None if verdict.score is None else verdict.score >= 0.5, str(verdict.status))
        for case, verdict in judged
    )


def value(rate: Rate) -> float:
    assert rate.value is not None
    return rate.value


def failures(judged: Judged) -> str:
    """What pytest shows: every case that does not agree."""
    return "\n".join(
        f"{case.id}: gold {case.gold!r}, label {case.label}, {verdict.status}: {verdict.evidence[:200]}"
        for case, verdict in judged
        if verdict.score is None or (verdict.score >= 0.5) != case.label
    )


def test_the_shipped_cases_are_labelled_and_sorted() -> None:
    assert all(case.label is not None for case in CASES)
    assert [case.id for case in CASES] == [case.id for case in sorted(CASES, key=lambda one: (one.category, one.id))]


def test_every_dispute_is_about_a_shipped_case() -> None:
    load_disputes(SHIPPED_DISPUTES, CASES)


def test_ninety_seven_percent_of_all_cases_agree_and_an_unjudged_one_does_not(judged: Judged) -> None:
    assert value(measured(judged).agreement) >= 0.97, failures(judged)


def test_at_most_one_percent_of_the_wrong_answers_pass(judged: Judged) -> None:
    assert value(measured(judged).false_positives) <= 0.01, failures(judged)


def test_at_most_four_percent_of_the_right_answers_are_refused(judged: Judged) -> None:
    assert value(measured(judged).false_negatives) <= 0.04, failures(judged)


@pytest.mark.parametrize("category", sorted(name for name, size in SIZES.items() if size >= 10))
def test_nine_of_ten_agree_in_every_category(judged: Judged, category: str) -> None:
    chosen = [(case, verdict) for case, verdict in judged if case.category == category]
    assert value(measured(chosen).agreement) >= 0.9, failures(chosen)
