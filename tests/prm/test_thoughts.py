"""Steps that are an exact partition, replies that are read or refused, and a label for every token."""

import json
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prm.steps import StepOptions, Steps, StepSplitter
from prm.thoughts import (
    cuts_at_markers,
    cuts_at_separators,
    label_tokens,
    matched_steps_reply,
    merge,
    parse_markers,
    parse_matched_steps,
    parse_wrong_steps,
    steps_of,
    think_end,
    wrong_steps_reply,
)
from tests.helpers import EOS, tokenizer

LINE = re.compile(r"\n")
SPLITTER = StepSplitter(StepOptions(), tokenizer())


def ids_of(text):
    return [*tokenizer()(text, add_special_tokens=False)["input_ids"], EOS]


# ---- where thinking ends -----------------------------------------


@pytest.mark.parametrize(
    ("text", "thinking"),
    [
        ("<think>a\nb</think>\n4", "<think>a\nb"),
        ("a</think>b</think>4", "a</think>b"),
        ("a\nb", None),  # the thinking never ended
        ("a</think>  \n", None),  # it ended, and nothing was answered
        ("</think>4", ""),
        ("", None),
    ],
)
def test_the_answer_is_what_follows_the_thinking(text, thinking):
    end = think_end(text, "after_think", LINE)
    assert (None if end is None else text[:end]) == thinking


@pytest.mark.parametrize(
    ("text", "thinking"),
    [("1+2\n3\n#3", "1+2\n3\n"), ("1+2\n#3\n", "1+2\n"), ("1+2\n\n#3 \n \n", "1+2\n\n"), ("#3", ""), (" \n", None)],
)
def test_or_it_is_the_last_step_that_has_text(text, thinking):
    end = think_end(text, "last_step", LINE)
    assert (None if end is None else text[:end]) == thinking


# ---- steps -------------------------------------------------------


def test_markers_are_where_the_steps_begin():
    thinking = "First I add. Then\nI multiply. Wait, I add again."
    cuts = cuts_at_markers(thinking, ["First I add", "Then\nI", "Wait,"])
    assert [thinking[a:b] for a, b in zip([0, *cuts], [*cuts, len(thinking)], strict=True)] == [
        "First I add. ", "Then\nI multiply. ", "Wait, I add again.",
    ]  # fmt: skip
    assert cuts_at_markers(thinking, [" First "]) == []
    assert cuts_at_markers("\n" + thinking, ["First"]) == []


@pytest.mark.parametrize(
    "markers",
    [["Then"], ["First", "Wait", "Then"], ["First", "Then I multiply"], ["First", "First"], ["First", ""], []],
    ids=["does not begin there", "wrong order", "not what was written", "named twice", "empty", "none"],
)
def test_markers_that_give_no_partition_are_refused(markers):
    assert cuts_at_markers("First I add. Then\nI multiply. Wait, I add again.", markers) is None


@given(st.text("ab \n", min_size=1, max_size=30), st.data())
def test_steps_are_a_partition_of_text_and_tokens(text, data):
    end = data.draw(st.integers(0, len(text)))
    cuts = data.draw(st.sets(st.integers(1, max(1, end)), max_size=5).map(lambda s: sorted(c for c in s if c < end)))
    ids = ids_of(text)
    steps = steps_of(SPLITTER, text, ids, cuts, end)
    assert "".join(text[a:b] for a, b in steps.spans) == text
    assert [a for a, _ in steps.spans][1:] == sorted({*cuts, end} - {0, len(text)})
    assert len(steps.of_token) == len(ids)
    # each character is one token here; the end of sequence belongs to the last step
    of_character = [next(k for k, (a, b) in enumerate(steps.spans) if a <= i < b) for i in range(len(text))]
    assert steps.of_token[:-1] == of_character
    assert steps.of_token[-1] == len(steps) - 1


@given(st.text("ab\n", max_size=20))
def test_separators_cut_inside_the_thinking_only(thinking):
    cuts = cuts_at_separators(thinking, LINE)
    assert cuts == [i for i in range(1, len(thinking)) if thinking[i - 1] == "\n"]


# ---- labels ------------------------------------------------------


@given(st.lists(st.booleans(), max_size=12))
def test_thoughts_are_maximal_runs_that_cover_the_steps(labels):
    thoughts = merge(labels)
    assert [t.is_key for t in thoughts for _ in range(t.first, t.last + 1)] == labels
    assert all(a.is_key != b.is_key and a.last + 1 == b.first for a, b in pairwise(thoughts))


def test_every_token_has_the_label_of_its_step():
    steps = Steps([(0, 2), (2, 3), (3, 5)], [2, 3, 6])
    assert torch.equal(label_tokens(steps, [True, False, True], 6), torch.tensor([1, 1, 0, 1, 1, 1]))


@pytest.mark.parametrize(("labels", "tokens"), [([True, False, True], 5), ([True, False], 6), ([True] * 4, 6)])
def test_labels_that_do_not_cover_every_token_exactly_once_are_refused(labels, tokens):
    with pytest.raises(ValueError, match="labels for 3 steps"):
        label_tokens(Steps([(0, 2), (2, 3), (3, 5)], [2, 3, 6]), labels, tokens)


# ---- replies -----------------------------------------------------


def entry(reflection=5, interval=(2, 4), wrong=(3,)):
    return {"reflection_step": reflection, "error_interval": list(interval), "wrong_steps": list(wrong)}


@pytest.mark.parametrize(
    ("reply", "wrong"),
    [
        ([], set()),
        ([entry()], {3}),
        ([entry(wrong=())], set()),
        ([entry(wrong=(2, 3, 3, 4))], {2, 3, 4}),
        ([entry(), entry(7, (6, 6), (6,))], {3, 6}),  # the answer, step 7, puts it right
        ([entry() | {"why": "it says so"}], {3}),
    ],
)
def test_the_wrong_steps_of_a_right_solution(reply, wrong):
    assert parse_wrong_steps(json.dumps(reply), 6) == wrong


@pytest.mark.parametrize(
    "reply",
    [
        [entry(8)], [entry(0)], [entry(2)], [entry(interval=(0, 4))], [entry(interval=(4, 2))],
        [entry(interval=(2, 7))], [entry(interval=(2, 3, 4))], [entry(interval=(2,))], [entry(wrong=(5,))],
        [entry(wrong=(1,))], [entry(wrong=(3.0,))], [entry(wrong=("3",))], [entry(wrong=(True,))], [entry("5")],
        [entry(5.0)], [entry(), 3], [[3]], [{}], [{"reflection_step": 5}], [entry() | {"wrong_steps": 3}],
        [entry() | {"wrong_steps": None}], {"wrong_steps": [3]}, 3, None,
    ],
)  # fmt: skip
def test_a_reply_that_is_not_what_was_asked_for_names_no_step_at_all(reply):
    assert parse_wrong_steps(json.dumps(reply), 6) is None


@pytest.mark.parametrize(
    ("reply", "matched"),
    [
        ("[]", set()), ("[2, 5, 2]", {2, 5}), ("[7, 1]", {1}), ("[0]", None), ("[8]", None), ("[-1]", None),
        ("[1.0]", None), ("[true]", None), ('["1"]', None), ("[[1]]", None), ("1", None), ("{}", None), ("null", None),
    ],
)  # fmt: skip
def test_the_matched_steps_of_a_wrong_solution(reply, matched):
    assert parse_matched_steps(reply, 6) == matched


@pytest.mark.parametrize(
    ("reply", "matched"),
    [
        ("Steps 2 and 3 are used: [2, 3]", {2, 3}),
        ("I looked at [1].\n```json\n[2, 3]\n```\nThat is all.", {2, 3}),
        ("```\n[1]\n```\nno, rather\n```\n[2]\n```", {2}),
        ("<think>[1] is used, perhaps</think>[2]", {2}),
        ("<think>[1]", None),
        ("[1] or [2]", None),  # two lists: which one is meant cannot be told
        ("[1, 2", None),
        ("none", None),
        ("", None),
    ],
)
def test_where_in_a_reply_the_list_stands(reply, matched):
    assert parse_matched_steps(reply, 6) == matched


@pytest.mark.parametrize("reply", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, "[" + "1" * 10_000 + "]", "[1e999]"])
def test_a_monstrous_reply_is_malformed(reply):
    assert parse_matched_steps(reply, 6) is None
    assert parse_wrong_steps(reply, 6) is None
    assert parse_markers(reply) is None


@given(st.text(max_size=60), st.integers(1, 5))
def test_any_text_is_read_or_refused(text, steps):
    for parse in (parse_wrong_steps, parse_matched_steps):
        found = parse(text, steps)
        assert found is None or found <= set(range(1, steps + 1))
    markers = parse_markers(text)
    assert markers is None or all(isinstance(m, str) for m in markers)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["reflection_step", "error_interval", "wrong_steps"]), inner)
    ),
)


@given(st.lists(JSON, max_size=3), st.integers(1, 5))
def test_any_json_list_is_read_or_refused(value, steps):
    for parse in (parse_wrong_steps, parse_matched_steps):
        found = parse(json.dumps(value), steps)
        assert found is None or all(type(k) is int and 1 <= k <= steps for k in found)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(1, n)))))
def test_replies_that_are_made_are_read(case):
    steps, named = case
    assert parse_wrong_steps(wrong_steps_reply(named), steps) == named
    assert parse_matched_steps(matched_steps_reply(named), steps) == named


def test_a_splitters_reply_is_a_list_of_texts():
    assert parse_markers('["First", "Wait"]') == ["First", "Wait"]
    assert parse_markers('["First", 2]') is None
    assert parse_markers("[]") is None
