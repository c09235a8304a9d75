"""`countdown`: problems are solvable, demonstrations are right, and the oracle knows when the target is lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Example, Message, load_examples
from data.countdown import check_steps
from verifiers.countdown import CountdownVerifier
from verifiers.errors import ConfigError, DataError
from verifiers.verdict import Status, VerifyRequest

OPTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "max_numbers": st.integers(3, 5),
        "max_value": st.sampled_from([5, 20, 99]),
        "operators": st.sampled_from(["+-", "+-*", "+-*/"]),
        "use_all": st.booleans(),
    }
)


def load(**options) -> list[Example]:
    return load_examples("countdown", options, key="data.train")


def problem(numbers: list[int], target: int, use_all: bool = False) -> Example:
    gold = {"numbers": numbers, "target": target, "solution": ""}
    return Example("x", (Message("user", "?"),), gold, meta={"task": "countdown", "use_all": use_all})


def labels_of(example: Example, response: str) -> list[tuple[bool, bool]]:
    return [(label.follows, label.on_track) for label in check_steps(example, response)]


@settings(max_examples=60, deadline=None)
@given(OPTIONS)
def test_every_demonstration_verifies_and_is_labelled_all_correct(options):
    verifier = CountdownVerifier(CountdownVerifier.Options(use_all=True))
    for example in load(count=4, **options):
        assert verifier.verify(VerifyRequest(example.solution, example.gold)).status is Status.CORRECT
        labels = check_steps(example, example.solution)
        assert all(label.correct and not label.first_error for label in labels)
        assert len(labels) == len(example.gold["numbers"])


@settings(max_examples=100, deadline=None)
@given(OPTIONS, st.data())
def test_a_changed_digit_is_the_first_error_at_exactly_its_line(options, data):
    (example,) = load(count=1, **options)
    last_line = example.solution.rindex("#")  # the answer may be changed into another right one
    positions = [i for i, c in enumerate(example.solution[:last_line]) if c.isdigit()]
    position = data.draw(st.sampled_from(positions))
    digit = data.draw(st.sampled_from([d for d in "123456789" if d != example.solution[position]]))
    response = example.solution[:position] + digit + example.solution[position + 1 :]
    labels = check_steps(example, response)
    (wrong,) = [label for label in labels if label.first_error]
    assert wrong.start <= position < wrong.end
    assert all(label.correct for label in labels if label.end <= wrong.start)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789+-*/()#=\n ", max_size=60) | st.text(max_size=60))
def test_any_text_is_labelled_and_the_spans_partition_it(response):
    labels = check_steps(problem([3, 7, 25], 46), response)
    assert "".join(label.text for label in labels) == response
    assert all(response[label.start : label.end] == label.text for label in labels)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("3*7=21\n25+21=46\n#25+3*7", [(True, True)] * 3),
        ("#3*7+25", [(True, True)]),
        ("3*7=22\n25+22=47\n#3*7+25", [(False, False), (False, False), (True, True)]),
        ("3+7=10\n10+25=35", [(True, False), (True, False)]),  # legal steps that lose the target
        ("3*8=24", [(False, False)]),  # 8 is not at hand
        ("3*7=21\n3+25=28", [(True, True), (False, False)]),  # 3 is used up
        ("25/7=3", [(False, False)]),  # does not come out even
        ("7/0=0", [(False, False)]),
        ("3-25=-22\n7*-22=-154", [(True, False), (True, False)]),
        ("#3*7+25\n3*7=21\n#3*7+25", [(True, True), (False, False), (False, True)]),
        ("#3*7+26", [(False, False)]),
        ("3*7", [(False, False)]),
        ("", []),
    ],
)
def test_line_labels(response, expected):
    assert labels_of(problem([3, 7, 25], 46), response) == expected


def test_negative_numbers_at_hand_can_lead_to_the_target():
    assert labels_of(problem([3, 7, 25], 21), "3-7=-4\n25+-4=21\n#25+(3-7)") == [(True, True)] * 3


def test_the_search_uses_fractions_because_answers_may():
    example = problem([3, 3, 4, 8, 12], 24, use_all=True)
    assert labels_of(example, "12-4=8\n#8/(3-8/3)") == [(True, True), (False, False)]
    assert labels_of(example, "12-4=8\n#8/(3-(12-4)/3)") == [(True, True)] * 2  # the only way on
    assert labels_of(example, "12-4=8\n8-8=0") == [(True, True), (True, False)]
    small = problem([1, 2, 3, 5, 5], 24, use_all=True)
    assert labels_of(small, "2+3=5\n#5*(5-1/(2+3))") == [(True, True)] * 2


def test_use_all_decides_whether_numbers_may_be_left():
    assert labels_of(problem([3, 7, 25], 21), "3*7=21\n#3*7") == [(True, True)] * 2
    assert labels_of(problem([3, 7, 25], 21, use_all=True), "3*7=21\n#3*7") == [(True, False), (False, False)]


def test_problems_are_distinct_deterministic_and_never_trivial():
    first = load(count=300)
    assert first == load(count=300)
    assert len({e.content_key() for e in first}) == 300
    assert all(e.gold["target"] not in e.gold["numbers"] for e in first)
    assert {e.id for e in first} != {e.id for e in load(count=300, seed=1)}


def test_numbers_and_targets_stay_within_the_options():
    for example in load(count=200, min_numbers=2, max_numbers=5, max_value=9, max_target=30):
        gold = example.gold
        assert 2 <= len(gold["numbers"]) <= 5
        assert gold["numbers"] == sorted(gold["numbers"])
        assert all(1 <= n <= 9 for n in gold["numbers"])
        assert 1 <= gold["target"] <= 30
        assert example.question == f"{' '.join(map(str, gold['numbers']))} make {gold['target']}:"


def test_more_problems_than_there_are_is_a_data_error():
    with pytest.raises(DataError, match="cannot make 1000 distinct examples"):
        load(count=1000, max_value=2, max_numbers=3, operators="+")


@pytest.mark.parametrize(
    "bad", [{"operators": "^"}, {"min_numbers": 5}, {"max_numbers": 6}, {"count": 0}, {"max_valu": 3}]
)
def test_impossible_options_are_config_errors(bad):
    with pytest.raises(ConfigError, match=r"data\.train"):
        load(**({"count": 5} | bad))
