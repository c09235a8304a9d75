"""`chain`: the scratchpad is right by construction, and the oracle finds exactly the line that is not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Example, Message, load_examples
from data.chain import Expression, Rule, check_steps
from verifiers.errors import ConfigError, DataError

RULES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "modulus": st.sampled_from([2, 7, 10, 100]),
        "precedence": st.sampled_from(["left_to_right", "standard"]),
        "max_operands": st.integers(3, 6),
    }
)


def load(**options) -> list[Example]:
    return load_examples("chain", options, key="data.train")


def question(expression: str, precedence: str = "left_to_right", modulus: int = 10) -> Example:
    meta = {"task": "chain", "expression": expression, "modulus": modulus, "precedence": precedence}
    return Example(f"chain-{expression}", (Message("user", f"{expression}="),), "?", meta=meta)


def correctness(example: Example, response: str) -> list[bool]:
    return [label.correct for label in check_steps(example, response)]


def test_the_two_rules_differ_where_a_product_comes_late():
    assert Rule(10, "left_to_right").value(Expression.parse("3+4*2")) == 4
    assert Rule(10, "standard").value(Expression.parse("3+4*2")) == 1
    assert [e.text for e in Rule(10, "standard").lines(Expression.parse("1-2*3-4"))] == ["1-6-4", "5-4", "1"]


@settings(max_examples=60, deadline=None)
@given(RULES)
def test_the_standard_rule_agrees_with_python_and_left_to_right_with_nested_brackets(options):
    for example in load(count=5, **options):
        text, modulus = example.meta["expression"], options["modulus"]
        if options["precedence"] == "left_to_right":
            expression = Expression.parse(text)
            text = "(" * len(expression.operators) + str(expression.numbers[0])
            for operator, number in zip(expression.operators, expression.numbers[1:], strict=True):
                text += f"{operator}{number})"
        assert example.gold == str(eval(text) % modulus)


@settings(max_examples=60, deadline=None)
@given(RULES, st.sampled_from([0.0, 0.5, 1.0]))
def test_every_demonstration_is_labelled_all_correct_and_ends_in_the_gold(options, direct_share):
    for example in load(count=6, direct_share=direct_share, **options):
        labels = check_steps(example, example.solution)
        assert all(label.correct and not label.first_error for label in labels)
        assert labels[-1].text == f"#{example.gold}"
        assert len(labels) == (1 if example.meta["direct"] else example.meta["operands"])


@settings(max_examples=150, deadline=None)
@given(RULES, st.data())
def test_a_changed_digit_is_the_first_error_at_exactly_its_line(options, data):
    (example,) = load(count=1, **options)
    positions = [i for i, c in enumerate(example.solution) if c.isdigit()]
    position = data.draw(st.sampled_from(positions))
    digit = data.draw(st.sampled_from([d for d in "0123456789" if d != example.solution[position]]))
    response = example.solution[:position] + digit + example.solution[position + 1 :]
    labels = check_steps(example, response)
    (wrong,) = [label for label in labels if label.first_error]
    assert wrong.start <= position < wrong.end
    assert not wrong.correct
    assert all(label.correct for label in labels if label.end <= wrong.start)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789+-*#=\n x", max_size=60) | st.text(max_size=60))
def test_any_text_is_labelled_and_the_spans_partition_it(response):
    labels = check_steps(question("3+4*2"), response)
    assert "".join(label.text for label in labels) == response
    assert [label.start for label in labels] == [0, *[label.end for label in labels[:-1]]][: len(labels)]
    assert all(response[label.start : label.end] == label.text for label in labels)
    assert sum(label.first_error for label in labels) == (not all(label.correct for label in labels))


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("7*2\n4\n#4", [True, True, True]),
        ("7*2\n4\n#4\n", [True, True, True]),
        ("#4", [True]),
        ("7*2\n#4", [True, True]),
        ("", []),
        ("3+8\n1\n#1", [False, False, False]),  # the other rule: consistent, and wrong from the first line
        ("7*2\n5\n#5", [True, False, False]),
        ("7*2\n5\n4\n#4", [True, False, False, True]),  # the true value again: does not follow from 5
        ("7*2\n7*2\n4\n#4", [True, False, True, True]),  # a repeat is no step
        ("7*2\n14\n#14", [True, False, False]),  # not reduced modulo 10
        ("7*02\n4\n#4", [False, True, True]),
        ("4\n#4", [False, True]),  # two operations at once
        ("#4\n7*2\n4\n#4", [True, False, False, False]),  # nothing may come after the answer
        ("7*2\n\n4\n#4", [True, False, False, True]),
        ("7*2\n4\n#", [True, True, False]),
        ("7*2\n4\n# 4 ", [True, True, True]),
        ("9" * 5000, [False]),
    ],
)
def test_line_labels_left_to_right(response, expected):
    assert correctness(question("3+4*2"), response) == expected


def test_a_consistent_line_after_an_error_follows_but_is_off_track():
    labels = check_steps(question("3+4*2"), "8*2\n6\n#6")
    assert [(label.follows, label.on_track) for label in labels] == [(False, False), (True, False), (True, False)]


def test_a_jump_to_the_right_value_is_on_track_but_does_not_follow():
    (jump, _) = check_steps(question("3+4*2"), "4\n#4")
    assert (jump.follows, jump.on_track) == (False, True)


def test_the_standard_rule_allows_products_in_any_order_and_sums_only_from_the_left():
    example = question("1*2+3*4", "standard")
    assert correctness(example, "2+3*4\n2+2\n4\n#4") == [True] * 4
    assert correctness(example, "1*2+2\n2+2\n4\n#4") == [True] * 4
    assert correctness(example, "1*5*4")[0] is False
    assert correctness(question("9-2+3", "standard"), "9-5\n4\n#4") == [False, False, False]
    assert correctness(question("1+2+3*4", "standard"), "3+3*4\n3+2\n5\n#5") == [True] * 4


def test_examples_are_distinct_deterministic_and_differ_by_seed():
    first, again, other = load(count=500), load(count=500), load(count=500, seed=1)
    assert first == again
    assert len({e.content_key() for e in first}) == 500
    assert {e.id for e in first} != {e.id for e in other}


def test_lengths_have_equal_shares_until_one_is_used_up():
    counts = [e.meta["operands"] for e in load(count=300)]
    assert [counts.count(n) for n in (3, 4, 5)] == [100, 100, 100]
    small = [e.meta["operands"] for e in load(count=200, modulus=2, min_operands=2, max_operands=4)]
    assert [small.count(n) for n in (2, 3, 4)] == [12, 72, 116]


def test_half_of_the_demonstrations_can_answer_directly():
    direct = [e for e in load(count=200, direct_share=0.5) if e.meta["direct"]]
    assert len(direct) == 100
    assert all(e.solution == f"#{e.gold}" for e in direct)


def test_the_whole_space_can_be_used_and_not_one_more():
    options = {"modulus": 2, "min_operands": 2, "max_operands": 3, "operators": "+-"}
    assert len({e.id for e in load(count=40, **options)}) == 40
    with pytest.raises(DataError, match="at most 40"):
        load(count=41, **options)


def test_a_space_beyond_machine_integers_can_be_sampled():
    assert len(load(count=3, modulus=10**6, min_operands=30, max_operands=30)) == 3


@pytest.mark.parametrize(
    "bad",
    [{"operators": "+/"}, {"operators": ""}, {"operators": "++"}, {"min_operands": 6}, {"direct_share": 1.5},
     {"modulus": 1}, {"count": 0}, {"count": "3"}, {"modulo": 7}],
)  # fmt: skip
def test_impossible_options_are_config_errors(bad):
    with pytest.raises(ConfigError, match=r"data\.train"):
        load(**({"count": 5} | bad))


def test_the_oracle_refuses_examples_that_are_not_its_own():
    with pytest.raises(DataError, match="'chain'"):
        check_steps(Example("x", (Message("user", "1+1="),), "2"), "#2")
