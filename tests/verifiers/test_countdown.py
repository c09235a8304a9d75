"""Kind `countdown`: many right answers, exact arithmetic, no eval."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers import BadGold, Runner, Status, VerifyRequest
from verifiers.countdown import CountdownVerifier, evaluate, literals, parse_expression
from verifiers.verdict import ALWAYS_SCORED

GOLD = {"numbers": [3, 5, 8, 8], "target": 24, "solution": "8*3*(8-5-2)"}


def judge(response, gold=GOLD, **options):
    return CountdownVerifier(CountdownVerifier.Options(**options)).verify(VerifyRequest(response, gold))


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("# 8*3", "correct"),
        ("# 3 * 8", "correct"),
        ("# (8*8-5*8)", "wrong"),  # three eights
        ("# 8+8+3+5", "correct"),
        ("# ((8+8))+(3+5)", "correct"),
        ("# 8*3 = 24", "correct"),
        ("# 8*3=24", "correct"),
        ("# 8*3 = 25", "wrong"),
        ("# 8*3 = ", "wrong"),
        ("# 8*3 = 24 = 24", "wrong"),
        ("# 8*3 = 12*2", "wrong"),
        ("# 8+8+5 = 24", "wrong"),
        ("# 24", "wrong"),
        ("# 12*2", "wrong"),
        ("# 8/(5-5)", "wrong"),  # two fives
        ("# 3/(8-8)", "wrong"),
        ("# 8*3 = 24\n# 8+8", "wrong"),
        ("# 8+8\n# 8*3\nsure", "correct"),
        ("8+8\n8*3\n", "correct"),
        ("8*3\nsure", "no_answer"),
        ("#\n8*3", "no_answer"),
        ("", "no_answer"),
        ("<think># 8*3</think># 8+8", "wrong"),
        ("<think># 8*3", "no_answer"),
        ("# -8+8*3+8", "no_answer"),  # a sign is not an operator
        ("# 8**3", "no_answer"),
        ("# 8//3", "no_answer"),
        ("# 8%3", "no_answer"),
        ("# 8 3", "no_answer"),
        ("# 8(3)", "no_answer"),
        ("# (8*3", "no_answer"),
        ("# ()", "no_answer"),
        ("# 08*3", "no_answer"),
        ("# 8.0*3", "no_answer"),
        ("# 0x8*3", "no_answer"),
        ("# 8_0*3", "no_answer"),
        ("# 8*３", "no_answer"),
        ("# 8,3", "no_answer"),
        ("# True*24", "no_answer"),
        ("# __import__('os').getpid()", "no_answer"),
        ("# 8*3 #", "no_answer"),
    ],
)
def test_what_is_a_right_answer(response, status):
    verdict = judge(response)
    assert verdict.status == status
    assert verdict.score == float(status == "correct")


def test_use_all_demands_every_number():
    assert judge("# 8*3", use_all=True).status == "wrong"
    assert judge("# 8+8+3+5", use_all=True).status == "correct"


def test_intermediate_fractions_are_exact():
    assert judge("# 8/(3-8/3)", {"numbers": [3, 3, 8, 8], "target": 24}, use_all=True).status == "correct"
    assert judge("# 1/3*3", {"numbers": [1, 3, 3], "target": 1}).status == "correct"


def test_evidence_and_canonical_answer():
    verdict = judge("# (8)+5")
    assert verdict.evidence == "(8)+5: is 13, not 24"
    assert verdict.answer == judge("# 8 + 5").answer == "8 + 5"
    assert judge("none").answer is None


@pytest.mark.parametrize(
    "gold",
    [None, "24", [3, 8], {}, {"numbers": [], "target": 1}, {"numbers": [1.5], "target": 1},
     {"numbers": [True], "target": 1}, {"numbers": "12", "target": 1}, {"numbers": [1]},
     {"numbers": [1], "target": "1"}, {"numbers": [1], "target": True}],
)  # fmt: skip
def test_a_gold_that_cannot_be_read_is_our_fault(gold):
    with Runner("countdown", {}) as runner:
        (verdict,) = runner.verify([VerifyRequest("# 1", gold)])
        assert (verdict.score, verdict.status) == (None, Status.BAD_GOLD)
        with pytest.raises(BadGold):
            runner.gold_response(gold, {})


def test_gold_response_gives_the_solution_and_needs_one():
    gold = {"numbers": [3, 8], "target": 24, "solution": "3*8"}
    with Runner("countdown", {}) as runner:
        assert runner.verify([VerifyRequest(runner.gold_response(gold, {}), gold)])[0].status == "correct"
        with pytest.raises(BadGold, match="solution"):
            runner.gold_response({"numbers": [3, 8], "target": 24}, {})


def expressions():
    """(text, value, literals) of expressions of the allowed kind; value None if they divide by zero."""

    def combine(pair):
        (left, a, used), (right, b, more), symbol = pair
        value = None
        if a is not None and b is not None and not (symbol == "/" and b == 0):
            value = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[symbol]()
        return f"({left} {symbol} {right})", value, used + more

    leaf = st.integers(min_value=0, max_value=99).map(lambda n: (str(n), Fraction(n), [n]))
    branch = lambda children: st.tuples(children, children, st.sampled_from("+-*/")).map(combine)  # noqa: E731
    return st.recursive(leaf, branch, max_leaves=8)


@given(expressions())
def test_the_tree_has_the_value_and_the_numbers_of_the_text(expression):
    text, value, used = expression
    tree = parse_expression(text)
    assert tree is not None
    assert sorted(literals(tree)) == sorted(used)
    if value is None:
        with pytest.raises(ZeroDivisionError):
            evaluate(tree)
        assert judge(f"# {text}", {"numbers": used, "target": 1}, use_all=True).status == "wrong"
        return
    assert evaluate(tree) == value
    if value.denominator == 1:
        gold = {"numbers": used, "target": int(value)}
        assert judge(f"# {text} = {value}", gold, use_all=True).status == "correct"
        assert judge(f"# {text}", {**gold, "target": int(value) + 1}).status == "wrong"
        assert judge(f"# {text}", {**gold, "numbers": [*used[1:], 100]}).status == "wrong"


@given(st.text() | st.text(alphabet="0123456789+-*/() =#\n"))
def test_no_text_makes_it_raise(response):
    assert judge(response).status in ALWAYS_SCORED
    assert judge("# " + response).status in ALWAYS_SCORED


@pytest.mark.parametrize("piece", ["9", "(", ")", "9*", "9**", "-", "((9)", "#", "\n", " ", "=", "9/0+", "1+("])
def test_hostile_text_is_judged_quickly(piece):
    started = time.process_time()
    for size in (150, 199, 100_000):
        for tail in ("", "9", ")" * 99):
            assert judge("# " + piece * (size // len(piece)) + tail).score == 0.0
    assert (time.process_time() - started) / 9 < 0.1
