"""Where an answer stands in a response."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.text import after_last, answer_text, final_boxes

PIECES = st.lists(st.sampled_from(["<think>", "</think>", r"\boxed{", "{", "}", r"\}", "5", " and ", "\\", "x"]))


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        ("<think>a</think>b", "b"),
        ("a<think>b</think>c<think>d</think>e", "ace"),
        ("opened by the prompt</think>b", "b"),
        ("a</think>b</think>c", "c"),
        ("<think>a<think>b</think>c", "c"),
        ("<think>never closed", None),
        ("a<think>b</think>c<think>d", None),
        ("<Think>not the tag</Think>", "<Think>not the tag</Think>"),
    ],
)
def test_thinking_is_not_part_of_the_answer(response, expected):
    assert answer_text(response) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no box", None),
        (r"\boxed{5}", ["5"]),
        (r"\boxed {5}", ["5"]),
        (r"\boxed{ \frac{1}{2} }", [r"\frac{1}{2}"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{1} then \boxed{2}", ["2"]),
        (r"\boxed{1} and \boxed{2}", ["1", "2"]),
        (r"$\boxed{1}$, $\boxed{2}$ or $\boxed{3}$.", ["1", "2", "3"]),
        (r"\(\boxed{1}\) \quad \text{and} \quad \(\boxed{2}\)", ["1", "2"]),
        (r"first \boxed{0}. Then \boxed{1} and \boxed{2}", ["1", "2"]),
        (r"\boxed{5} \boxed{5}", ["5"]),
        (r"\boxed{\boxed{43}}", ["43"]),
        (r"\boxed{}", []),
        (r"\boxed{\frac{1}{2}", []),
        (r"\boxed{1} and \boxed{2", []),
        (r"{ \boxed{5}", ["5"]),
        (r"} } \boxed{5} }", ["5"]),
    ],
)
def test_final_boxes(text, expected):
    assert final_boxes(text) == expected


def test_after_last_marker_up_to_the_end_of_the_line():
    assert after_last("#", "# 1\n## 2 \n3") == "2"
    assert after_last("#", "1") is None
    assert after_last("#", "1 #\n2") == ""


@given(PIECES)
def test_any_nesting_is_read_without_error_and_answers_hold_no_thinking(pieces):
    response = "".join(pieces)
    text = answer_text(response)
    assert text is None or ("<think>" not in response and "</think>" not in response) or len(text) < len(response)
    for box in final_boxes(response) or []:
        assert box in response
