"""`combine`: weights, gates, faults of parts, golds of parts, and isolation that stays with each part."""

import time

import pytest

from verifiers import BadGold, ConfigError, Runner, Status, VerifyRequest

EXACT = {"kind": "exact", "marker": "####"}
BRACKETS = {"kind": "hostile_kinds:Wrapping"}
COMMANDED = {"kind": "hostile_kinds:Commanded"}


def combined(parts, **limits):
    return Runner("combine", {"parts": parts}, **limits)


def judge(parts, response, gold="42", **limits):
    with combined(parts, **limits) as runner:
        (verdict,) = runner.verify([VerifyRequest(response, gold)])
    return verdict


@pytest.mark.parametrize(
    ("response", "score", "status"),
    [
        ("<#### 42>", 0.2 / 1.2, Status.WRONG),  # the bracket is part of the answer
        ("<\n#### 42\n>", 1.0, Status.CORRECT),
        ("#### 42", 1.0 / 1.2, Status.CORRECT),
        ("#### 41", 0.0, Status.WRONG),
        ("nothing", 0.0, Status.NO_ANSWER),
    ],
)
def test_the_score_is_the_weighted_mean_and_the_first_part_decides(response, score, status):
    verdict = judge({"answer": EXACT, "format": BRACKETS | {"weight": 0.2}}, response)
    assert verdict.score == pytest.approx(score)
    assert verdict.status is status


def test_all_parts_right_is_exactly_one():
    weights = {"a": 0.1, "b": 0.7, "c": 0.3}
    assert judge({n: EXACT | {"weight": w} for n, w in weights.items()}, "#### 42").score == 1.0


def test_parts_and_answer_are_in_the_verdict_and_named_in_the_evidence():
    verdict = judge({"answer": EXACT, "format": BRACKETS | {"weight": 0.5, "gate": True}}, "#### 42")
    assert verdict.parts == {"answer": 1.0, "format": 0.0}
    assert verdict.answer == "42"
    assert "answer: 1 (weight 1), correct" in verdict.evidence
    assert "format: 0 (weight 0.5, gate shut), wrong: looked for brackets" in verdict.evidence
    assert verdict.milliseconds > 0


def test_a_shut_gate_takes_everything_and_a_right_answer_is_not_called_correct():
    parts = {"answer": EXACT, "format": BRACKETS | {"weight": 0.0, "gate": True}}
    assert [(v.score, v.status) for v in (judge(parts, "#### 42"), judge(parts, "<\n#### 42\n>"))] == [
        (0.0, "wrong"),
        (1.0, "correct"),
    ]


def test_a_gate_may_ask_for_a_least_score():
    with pytest.raises(ConfigError, match=r"verifier\.parts\.graded\.gate"):
        combined({"graded": COMMANDED | {"gate": {"below": 2.0}}})
    with combined({"graded": COMMANDED | {"gate": {"below": 0.5}}}, workers=1) as runner:
        requests = [VerifyRequest(f"graded {score}", "") for score in (0.25, 0.5, 1.0)]
        assert [v.score for v in runner.verify(requests)] == [0.0, 0.5, 1.0]


def test_another_part_may_decide():
    parts = {"format": BRACKETS | {"weight": 0.2}, "answer": EXACT | {"decides": True}}
    verdict = judge(parts, "#### 42")
    assert (verdict.status, verdict.answer) == (Status.CORRECT, "42")


@pytest.mark.parametrize(("response", "status"), [("raises x", "verifier_fault"), ("sleep 60", "timeout")])
def test_a_part_that_cannot_judge_makes_the_whole_unscored_with_its_status(response, status):
    parts = {"format": BRACKETS, "answer": COMMANDED | {"weight": 0.5}}
    verdict = judge(parts, response, timeout_s=0.4, workers=1)
    assert (verdict.score, verdict.status) == (None, status)
    assert verdict.evidence.startswith("answer could not judge: ")
    assert verdict.parts == {"format": 0.0, "answer": None}


def test_a_part_that_only_observes_may_fail():
    verdict = judge({"format": BRACKETS, "watched": COMMANDED | {"weight": 0.0}}, "raises x", workers=1)
    assert (verdict.score, verdict.status) == (0.0, "wrong")
    assert "watched: not judged (weight 0), verifier_fault: LookupError" in verdict.evidence


def test_a_part_may_read_one_entry_of_the_gold():
    parts = {"number": EXACT | {"gold_key": "number"}, "word": {"kind": "exact", "marker": "is:", "gold_key": "word"}}
    response = "is: yes\n#### 42"
    assert judge(parts, response, {"number": "42", "word": "yes"}).score == 1.0
    assert judge(parts, response, {"number": "42", "word": "no"}).score == 0.5
    for gold in ({"number": "42"}, "42"):
        verdict = judge(parts, response, gold)
        assert (verdict.score, verdict.status) == (None, Status.BAD_GOLD)
        assert "word" in verdict.evidence or "number" in verdict.evidence


@pytest.mark.parametrize("kind", ["hostile_kinds:Wrapping", "hostile_kinds:IsolatedWrapping"])
def test_the_gold_response_is_wrapped_by_the_parts_that_can(kind):
    with combined({"format": {"kind": kind}, "answer": COMMANDED | {"weight": 0.0}}, workers=1) as runner:
        text = runner.gold_response("42", {})
        assert text == "<echo 42>"
        assert runner.verify([VerifyRequest(text, "42")])[0].status is Status.CORRECT


def test_a_gold_response_that_fails_a_part_is_a_bad_gold():
    parts = {"answer": EXACT, "format": BRACKETS | {"weight": 0.1}}
    with combined(parts) as runner, pytest.raises(BadGold, match="fails the part 'answer'"):
        runner.gold_response("42", {})  # "<#### 42>": the bracket spoils the answer


def test_an_explanation_shows_the_rows_of_every_part_and_the_sum():
    with combined({"why": {"kind": "hostile_kinds:InProcessExplained"}, "answer": EXACT}) as runner:
        rows = runner.explain(VerifyRequest("echo x", "42"))
    assert list(rows)[:2] == ["why: second", "why: first"]
    assert rows["combined"].startswith("correct, score 0.25")
    assert "answer: 0" in rows["parts"]


def test_parts_run_at_the_same_time_and_in_batches():
    parts = {"a": COMMANDED, "b": COMMANDED}
    with combined(parts, workers=1, timeout_s=5.0) as runner:
        runner.warm()
        started = time.monotonic()
        verdicts = runner.verify([VerifyRequest("sleep 0.3", "")] * 2)
        assert time.monotonic() - started < 1.0
    assert [v.score for v in verdicts] == [1.0, 1.0]


def test_combinations_may_be_nested():
    inner = {"kind": "combine", "parts": {"a": EXACT, "b": BRACKETS}, "weight": 1.0}
    assert judge({"inner": inner, "c": BRACKETS}, "#### 42").score == 0.25


@pytest.mark.parametrize(
    ("parts", "fragments"),
    [
        ({}, ["verifier.parts", "at least 1"]),
        ({"a": EXACT | {"weight": 0.0}}, ["all weights are 0"]),
        ({"a": EXACT | {"weight": -1.0}}, ["verifier.parts.a.weight"]),
        ({"a": EXACT | {"decides": True}, "b": EXACT | {"decides": True}}, ["one part decides", "a, b"]),
        ({"a": {"kind": "exakt"}}, ["verifier.parts.a.kind", "did you mean 'exact'"]),
        ({"a": EXACT | {"maker": "#"}}, ["verifier.parts.a.maker", "did you mean 'marker'"]),
    ],
)
def test_a_wrong_part_is_named_with_its_key(parts, fragments):
    with pytest.raises(ConfigError) as caught:
        combined(parts)
    for fragment in fragments:
        assert fragment in str(caught.value)
