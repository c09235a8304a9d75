"""Kind `choice`: where a label may be read, and where it may not."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers import BadGold, Runner, Status, VerifyRequest

TEXTS = {"choices": ["12", "15", "Paris", "a bird"]}


def judge(response, gold, meta=None, **options):
    with Runner("choice", options) as runner:
        return runner.verify([VerifyRequest(response, gold, meta or {})])[0]


@pytest.mark.parametrize(
    "response",
    [
        "(B)", "B.", "**B**", "so\n\nB", r"\boxed{B}", r"\boxed{\text{B}}",
        r"\boxed{\text{(B)}}", r"$\boxed{\textbf{B}}$",
        r"\boxed{\textbf{(B) } 12}", r"\boxed{(B)\ 5}", r"\boxed{b}", r"\boxed{B) 15}", r"\boxed{\mathrm{(B)}}",
        r"\boxed{Ⓑ}", "\\[\n\\boxed{(B)}\n\\]", "<answer>B</answer>",
        r"<answer>\boxed{B}</answer>", "<answer> (B) </answer>",
        r"<answer>B</answer> \boxed{B}", "The correct answer is (B).", "The answer is B.",
        "**Answer:** B", "**Answer: B**",
        "Answer: (B)", "The correct option is B", "The answer is option B.", "The best choice is $\\text{(B)}$.",
        "The answer is B. 15", "The answer is B) 15.",
        "The answer is B because 3 > 2. I hope it is correct.", "The answer is (B) Lyon.", "Final answer: (b)",
        "The answer is A. That fails.\n\nThe answer is B.",
        r"<think>\boxed{A}</think> \boxed{B}", r"\boxed{A}. No: \boxed{B}",
    ],
)  # fmt: skip
def test_the_label_is_read_in_every_accepted_form(response):
    verdict = judge(response, "B")
    assert (verdict.status, verdict.score, verdict.answer) == (Status.CORRECT, 1.0, "B")
    assert judge(response, "A").status is Status.WRONG


@pytest.mark.parametrize(
    "response",
    [
        "A bird", "I think a", "So (A) is wrong", "(A) is wrong", "A", r"<think>\boxed{A}", r"\boxed{}", r"\boxed{A",
        "<answer>A", "The answer is A bird", "The answer is not A", "The answer isn't A", "The answer is a.",
        "The answer is either A or B.", "The answer is B, not A.", "Option A: 3\nOption B: 4", "",
    ],
)  # fmt: skip
def test_no_letter_is_picked_out_of_prose_or_of_what_is_not_finished(response):
    verdict = judge(response, "A", profile="lenient" if response != "A" else "strict")
    assert (verdict.status, verdict.score, verdict.answer) == (Status.NO_ANSWER, 0.0, None)


@pytest.mark.parametrize(
    "response",
    [
        "The answer is A or B", "The answer is A, B", r"\boxed{A or B}", r"\boxed{\text{A or B}}",
        r"\boxed{A, B}", r"\boxed{A/B}",
        r"\boxed{AB}", r"\boxed{(A) and (B)}", r"\boxed{A} or \boxed{B}",
        r"\boxed{A}, \boxed{B}", r"<answer>A</answer>\boxed{B}",
        "Answer: A. Wait, (B)", "The answer is A. Actually I doubt it.", "The answer is A. The answer is B.",
        "The answer is (A) or (B).", r"\boxed{(A) or (B)}", r"\boxed{(A) unless x = 0}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("gold", ["A", "B"])
def test_an_answer_that_does_not_commit_is_wrong(response, gold):
    assert judge(response, gold).status is Status.WRONG


def test_an_options_text_stands_for_it_if_it_is_the_text_of_one_option():
    assert judge(r"\boxed{15}", "B", TEXTS).score == 1.0
    assert judge(r"\boxed{$15$}", "B", TEXTS).score == 1.0
    assert judge("So it is\nparis.", "C", TEXTS).score == 1.0
    assert judge("The answer is a bird", "D", TEXTS).score == 1.0
    assert judge(r"\boxed{15}", "B").status is Status.NO_ANSWER
    assert judge(r"\boxed{15}", "B", {"choices": ["15", "15"]}).status is Status.NO_ANSWER
    assert judge(r"\boxed{4}", "B", {"choices": ["3", "4", "5"]}).answer == "B"


def test_a_label_with_another_options_text_contradicts_itself():
    for gold in "AB":
        assert judge(r"\boxed{(A) 15}", gold, TEXTS).status is Status.WRONG
    assert judge(r"\boxed{(A) 12}", "A", TEXTS).score == 1.0
    assert judge("(C) Paris", "C", TEXTS).score == 1.0


@pytest.mark.parametrize(
    "choices", [["x", "y"], {"A": "x", "B": "y"}, {"label": ["A", "B"], "text": ["x", "y"]}, {"1": "x", "2": "y"}]
)
def test_every_form_of_the_options_gives_labels_and_texts(choices):
    second = "2" if "1" in choices else "B"
    assert judge(r"\boxed{y}", second, {"choices": choices}).answer == second
    assert judge(f"\\boxed{{({second})}}", 1, {"choices": choices}).score == 1.0
    assert judge(f"\\boxed{{({second})}}", 2, {"choices": choices}, first_index=1).score == 1.0
    assert judge(r"\boxed{Z}", second, {"choices": choices}).status is Status.WRONG


def test_several_labels_are_a_set_with_the_option_multiple():
    for response in (r"\boxed{A, C}", r"\boxed{C, A}", r"\boxed{AC}", r"\boxed{(A) and (C)}", r"\boxed{A}, \boxed{C}"):
        assert judge(response, "AC", multiple=True).answer == "A, C"
        assert judge(response, ["A", "C"], multiple=True).score == 1.0
        assert judge(response, "A", multiple=True).score == 0.0
        assert judge(response, "ABC", multiple=True).score == 0.0
    assert judge(r"\boxed{A or C}", "AC", multiple=True).status is Status.WRONG
    assert judge(r"\boxed{A}", "A", multiple=True).score == 1.0


def test_the_strict_profile_demands_a_box_or_a_tag():
    assert judge("The answer is (B).", "B", profile="strict").status is Status.NO_ANSWER
    assert judge(r"\boxed{B}", "B", profile="strict").score == 1.0
    assert judge("<answer>B</answer>", "B", profile="strict").score == 1.0


@pytest.mark.parametrize(
    ("gold", "meta"),
    [(None, {}), ("", {}), (True, {}), ("12", {}), (26, {}), (-1, {}), (1.0, {}), ("AC", {}), ("E", TEXTS), (4, TEXTS),
     ("A", {"choices": []}), ("A", {"choices": "x"}),
     ("A", {"choices": {"AA": "x"}}), ("A", {"choices": {"a": "x", "A": "y"}}),
     (["A", 1], {}), ("A or B", {})],
)  # fmt: skip
def test_a_gold_that_names_no_option_is_a_bad_gold(gold, meta):
    assert judge(r"\boxed{A}", gold, meta).status is Status.BAD_GOLD
    with Runner("choice", {}) as runner, pytest.raises(BadGold):
        runner.gold_response(gold, meta)


@given(st.sets(st.sampled_from("ABCDEFGHIJ"), min_size=1), st.sampled_from(["lenient", "strict"]))
def test_the_perfect_response_is_correct(labels, profile):
    with Runner("choice", {"multiple": True, "profile": profile}) as runner:
        response = runner.gold_response(sorted(labels), {})
        assert runner.verify([VerifyRequest(response, sorted(labels))])[0].score == 1.0


FRAGMENTS = st.sampled_from(["A", "(B)", r"\boxed{", "}", "<answer>", "</answer>", "<think>",
                             "The answer is ", " or ", "\n\n", "$",
                             r"\text{", ", ", "Ⓒ", "\ud800", "ﷺ", "*", "x"])  # fmt: skip


@given(st.lists(FRAGMENTS | st.text(max_size=5), max_size=30).map("".join), st.booleans(), st.booleans())
def test_no_response_is_a_fault_and_at_most_one_gold_is_right(response, multiple, known):
    meta = TEXTS if known else {}
    scores = []
    for gold in "ABCD":
        verdict = judge(response, gold, meta, multiple=multiple)
        assert verdict.score is not None
        scores.append(verdict.score)
    assert sum(scores) <= 1


@pytest.mark.parametrize(
    "unit",
    [
        "(A) ",
        "The answer is A. ",
        r"\boxed{A}, ",
        "<answer>",
        "A or ",
        "\\text",
        "answer: *",
        "\n",
        "{",
        " answer ****:",
    ],
)
def test_a_hundred_kilobytes_take_less_than_a_second(unit):
    started = time.perf_counter()
    assert judge(unit * (100_000 // len(unit)), "A", TEXTS).score is not None
    assert time.perf_counter() - started < 1


def test_the_explanation_shows_the_parsed_forms():
    with Runner("choice", {}) as runner:
        rows = runner.explain(VerifyRequest(r"\boxed{\text{B}}", 1, TEXTS))
    assert rows == {"options": "A, B, C, D", "gold": "B", "place": r"\text{B}", "answer": "B"}
