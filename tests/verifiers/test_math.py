r"""Kind `math`: verdicts, profiles, what a person is shown, broken golds, caches."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest

from tests.verifiers.math_pairs import VERIFIER, box, judge
from verifiers import BadGold, Runner, Status, VerifyRequest
from verifiers.math.bench.cases import SHIPPED_CASES, load_cases
from verifiers.math.verifier import MathVerifier
from verifiers.verdict import Verdict

CASES = [case for case in load_cases(SHIPPED_CASES) if case.gold]


def verifier(**options: Any) -> MathVerifier:
    return MathVerifier(MathVerifier.Options(**options))


STRICT = verifier(profile="strict")


@pytest.fixture(scope="module")
def runner():
    with Runner("math", {}, workers=1, timeout_s=20.0) as shared:  # a loaded machine must not fail a test
        yield shared


# Verdicts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer", "status"),
    [
        (r"\frac{1}{2}", "0.5", Status.CORRECT),
        (r"\frac{1}{2}", "0.4", Status.WRONG),
        (r"\frac{1}{2}", r"\frac", Status.WRONG),
        (r"\frac{1}{2}", "", Status.NO_ANSWER),
        (42, "42", Status.CORRECT),
        (0.25, r"\frac14", Status.CORRECT),
        ("$5$", "5", Status.CORRECT),
        (r"\boxed{5}", "5", Status.CORRECT),
    ],
)
def test_a_verdict_has_a_status_and_the_score_that_goes_with_it(gold: Any, answer: str, status: Status) -> None:
    verdict = judge(gold, answer)
    assert verdict.status is status
    assert verdict.score == float(status is Status.CORRECT)


def test_evidence_names_the_rule_the_answer_and_the_gold() -> None:
    evidence = r"different values: answer '\\frac{2}{4}' (the last box), gold '\\frac{1}{3}'"
    assert judge(r"\frac{1}{3}", r"\frac{2}{4}").evidence == evidence


def test_evidence_is_short_however_long_the_answer() -> None:
    assert len(judge("1", "7+" * 5_000 + "7").evidence) < 1_000


def test_what_the_grammar_does_not_cover_goes_to_sympy_in_the_worker(runner: Runner) -> None:
    integral = r"\int_0^1 x^2\,dx"
    same, other = runner.verify([VerifyRequest(box(r"\frac{1}{3}"), integral), VerifyRequest(box("1"), integral)])
    assert (same.status, other.status) == (Status.CORRECT, Status.WRONG)
    assert "sympy" in same.evidence
    assert "sympy" in other.evidence


def test_an_unevaluated_integral_is_no_answer_to_a_plain_gold() -> None:
    assert judge(r"\frac{1}{3}", r"\int_0^1 x^2\,dx").status is Status.WRONG


def test_the_kind_in_a_worker_says_what_it_says_here(runner: Runner) -> None:
    chosen = random.Random(0).sample(CASES, 40)
    requests = [VerifyRequest(case.response, case.gold) for case in chosen]
    here = [VERIFIER.verify(request) for request in requests]
    assert [_told(verdict) for verdict in runner.verify(requests)] == [_told(verdict) for verdict in here]


def _told(verdict: Verdict) -> tuple[float | None, Status, str, str | None]:
    return verdict.score, verdict.status, verdict.evidence, verdict.answer


# Profiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer", "lenient", "strict"),
    [
        (r"10\text{ cm}", "10", True, False),
        (r"10\text{ cm}", r"10\text{ cm}", True, True),
        (r"10\text{ cm}", r"10\text{ m}", False, False),
        (r"1\text{ m}", r"100\text{ cm}", True, False),
        ("10", r"10\text{ cm}", True, True),
        ("1,2", "2,1", True, False),
        ("1,2", "1,2", True, True),
        (r"\{1,2\}", r"\{2,1\}", True, True),
        ("(1,2)", "(2,1)", False, False),
        (r"\frac12", "0.5", True, True),
    ],
)
def test_the_strict_profile_wants_the_unit_and_the_order(gold: str, answer: str, lenient: bool, strict: bool) -> None:
    assert judge(gold, answer).score == float(lenient)
    assert judge(gold, answer, STRICT).score == float(strict)


def test_an_option_given_outright_wins_over_the_profile() -> None:
    assert judge(r"10\text{ cm}", "10", verifier(profile="strict", units="optional")).score == 1.0
    assert judge(r"10\text{ cm}", "10", verifier(units="required")).score == 0.0
    assert judge("1,2", "2,1", verifier(profile="strict", order="any")).score == 1.0
    assert judge("1,2", "2,1", verifier(order="given")).score == 0.0
    request = VerifyRequest("The answer is 5.", "5")
    assert verifier(profile="strict", unboxed="accept").verify(request).score == 1.0
    assert verifier(unboxed="reject").verify(request).status is Status.NO_ANSWER


def test_an_answer_longer_than_the_option_allows_is_not_read() -> None:
    short = verifier(max_answer_chars=10)
    assert judge("5", "5", short).status is Status.CORRECT
    verdict = judge("5", "5" + " " * 10 + "+0", short)
    assert verdict.status is Status.NO_ANSWER
    assert "10 characters" in verdict.evidence


# What a person is shown ----------------------------------------------------------------------------------------------


def test_explain_shows_both_forms_and_the_rule_that_decided() -> None:
    rows = VERIFIER.explain(VerifyRequest(box(r"\frac{2}{4}"), r"50\%"))
    assert rows == {
        "gold": r"50\%",
        "gold read as": "50%",
        "answer found": "the last box",
        "answer": r"\frac{2}{4}",
        "answer read as": "(2/4)",
        "decided by": "equal values",
    }


def test_explain_says_why_something_cannot_be_read() -> None:
    rows = VERIFIER.explain(VerifyRequest(box(r"\frac{2}{"), "5"))
    assert rows["answer found"] == "the last box is empty or never closed"
    assert "answer" not in rows
    assert "not readable" in VERIFIER.explain(VerifyRequest(box("(2"), "5"))["answer read as"]


def test_explain_and_verify_agree_on_every_shipped_case() -> None:
    for case in random.Random(1).sample(CASES, 100):
        request = VerifyRequest(case.response, case.gold)
        rows, verdict = VERIFIER.explain(request), VERIFIER.verify(request)
        assert verdict.evidence.startswith(rows.get("decided by", rows["answer found"]))


@pytest.mark.parametrize(
    "answers",
    [
        ["1/2", r"\frac{2}{4}", "0.5", r"50\%", "x = 0.5", r"\dfrac12", "0.50"],
        [r"\sqrt{8}", r"2\sqrt2", r"\sqrt{2}\cdot 2", r"2^{3/2}"],
        ["1,2", "2,1", r"\{1,2\}", r"2 \text{ and } 1", "x=2, x=1"],
        ["x>2", r"\{x \mid x>2\}", "2<x"],
        ["(1,2)", r"\left(1, \frac{4}{2}\right)"],
        [r"\text{Yes}", "yes", r"\text{YES}"],
        ["x^2-1", "(x-1)(x+1)", "-1+x^2"],
        ["5", r"5\text{ cm}", "x=5", "5.0"],
        [r"1000", "1,000", r"10^3", "1e3"],
    ],
)
def test_equal_answers_have_one_canonical_text(answers: list[str]) -> None:
    assert len({judge("7", answer).answer for answer in answers}) == 1


def test_different_answers_have_different_canonical_texts() -> None:
    answers = ["1", "2", "1/2", "x", "y", "x+1", "(1,2)", "(2,1)", r"\{1,2\}", "x>1", r"x\ge1", "1:2:3", r"\text{no}",
               r"\sqrt2", "1.4142", r"\pi", r"\infty", "1,1,2", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"]  # fmt: skip
    assert len({judge("7", answer).answer for answer in answers}) == len(answers)


def test_what_cannot_be_read_is_counted_by_its_words() -> None:
    assert judge("7", r"\foo{1}   x").answer == judge("8", r"\foo{1} x").answer == r"\foo{1} x"
    assert VERIFIER.verify(VerifyRequest("nothing", "5")).answer in (None, "nothing")
    assert VERIFIER.verify(VerifyRequest(r"\boxed{", "5")).answer is None


# Golds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gold", ["", " ", "$$", r"\boxed{}", None, True, [1], {"a": 1}, float("nan"), float("inf")])
def test_a_gold_that_cannot_be_read_is_our_fault_and_never_a_reward(gold: Any) -> None:
    for response in (box("5"), box(""), "", str(gold)):
        with pytest.raises(BadGold):
            VERIFIER.verify(VerifyRequest(response, gold))
    with pytest.raises(BadGold):
        VERIFIER.gold_response(gold, {})


def test_an_integer_of_more_digits_than_python_prints_is_a_bad_gold() -> None:
    with pytest.raises(BadGold):
        VERIFIER.verify(VerifyRequest(box("5"), 10 ** (sys.get_int_max_str_digits() + 1)))


def test_a_bad_gold_is_a_verdict_without_a_score(runner: Runner) -> None:
    (verdict,) = runner.verify([VerifyRequest(box("5"), "")])
    assert (verdict.score, verdict.status) == (None, Status.BAD_GOLD)


@pytest.mark.parametrize("gold", [5, -0.5, "$5$", r"\boxed{5}", r"x \in [0, 1)", r"12.5\%", r"\text{Paris}", "a, b"])
def test_gold_response_is_correct_for_its_gold(gold: Any) -> None:
    assert VERIFIER.verify(VerifyRequest(VERIFIER.gold_response(gold, {}), gold)).status is Status.CORRECT


def test_gold_response_is_correct_for_the_gold_of_every_shipped_case() -> None:
    golds = {case.gold for case in CASES}
    wrong = [
        gold
        for gold in golds
        if VERIFIER.verify(VerifyRequest(VERIFIER.gold_response(gold, {}), gold)).status is not Status.CORRECT
    ]
    assert not wrong


# Caches --------------------------------------------------------------------------------------------------------------


def test_caches_change_no_verdict() -> None:
    """In any order, cold and warm, one verifier says what a new one says."""
    chosen = random.Random(2).sample(CASES, 120)
    requests = [VerifyRequest(case.response, case.gold) for case in chosen]
    alone = [verifier().verify(request) for request in requests]
    shared = verifier()
    for order in (requests, requests[::-1], requests):
        verdicts = {id(request): shared.verify(request) for request in order}
        assert [verdicts[id(request)] for request in requests] == alone


def test_two_verifiers_with_other_options_do_not_share_what_they_remember() -> None:
    for _ in range(2):
        assert judge("1,2", "2,1").score == 1.0
        assert judge("1,2", "2,1", STRICT).score == 0.0


def test_the_same_words_in_a_box_and_outside_are_two_answers() -> None:
    """Outside a box they may be a sentence that names a value; what is remembered of one is not the other's."""
    words = "the number of eggs is 18"
    for _ in range(2):
        assert VERIFIER.verify(VerifyRequest(f"The answer is: {words}", "18")).score == 1.0
        assert judge("18", words).score == 0.0
