r"""What holds for every answer: a comparison has no direction, format is no value, nothing raises or takes long."""

from __future__ import annotations

import re
import string
import time
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.verifiers.math_pairs import VERIFIER, judge
from verifiers.errors import BadGold
from verifiers.math import slow
from verifiers.math.bench.cases import SHIPPED_CASES, load_cases
from verifiers.math.compare import Profile, compare, has_direction
from verifiers.math.parser import parse
from verifiers.math.syntax import Node
from verifiers.math.verifier import read
from verifiers.verdict import Status, VerifyRequest

CASES = [case for case in load_cases(SHIPPED_CASES) if case.gold]
LENIENT = Profile()
BUDGET_S = 4.0  # of CPU; the bar is 1 s, a test machine may be slow and busy
RELAXED = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True, scope="module")
def _sympy_stays_in_the_workers() -> Iterator[None]:
    """It has no limit of its own: only the pool may ask it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slow, "worth_asking", lambda gold, answer: False)
        yield


# Generated answers ---------------------------------------------------------------------------------------------------

integers = st.integers(-50, 50)
letters = st.sampled_from(["x", "y", "n", r"\pi", "e", r"\theta"])


def _combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    two = st.tuples(inner, inner)
    return st.one_of(
        two.map(lambda p: f"({p[0]})+({p[1]})"),
        two.map(lambda p: f"({p[0]})-({p[1]})"),
        two.map(lambda p: f"({p[0]})({p[1]})"),
        two.map(lambda p: rf"\frac{{{p[0]}}}{{{p[1]}}}"),
        st.tuples(inner, st.integers(-3, 4)).map(lambda p: f"({p[0]})^{{{p[1]}}}"),
        inner.map(lambda a: rf"\sqrt{{{a}}}"),
        inner.map(lambda a: rf"\left|{a}\right|"),
        st.tuples(st.sampled_from(["sin", "cos", "ln", "arctan"]), inner).map(lambda p: rf"\{p[0]}({p[1]})"),
    )


scalars = st.recursive(integers.map(str) | letters, _combined, max_leaves=5)
constants = st.recursive(integers.map(str) | st.just(r"\pi"), _combined, max_leaves=4)
lists = st.lists(scalars, min_size=2, max_size=4)
intervals = st.tuples(st.sampled_from("(["), integers, integers, st.sampled_from(")]")).map(
    lambda p: f"{p[0]}{min(p[1:3])},{max(p[1:3]) + 1}{p[3]}"
)
answers = st.one_of(
    scalars,
    lists.map(lambda items: r"\{" + ", ".join(items) + r"\}"),
    lists.map(lambda items: "(" + ", ".join(items) + ")"),
    st.lists(intervals, min_size=1, max_size=3).map(r"\cup".join),
    st.tuples(scalars, scalars).map(lambda p: rf"\begin{{pmatrix}}{p[0]}\\{p[1]}\end{{pmatrix}}"),
    st.tuples(integers, integers).map(lambda p: f"{p[0]}:{p[1]}"),
)


def form_of(text: str) -> Node:
    form = read(text).form
    assert form is not None, f"{text}: {read(text).error}"
    return form


# Symmetry ------------------------------------------------------------------------------------------------------------


@RELAXED
@given(answers, answers)
def test_comparison_is_symmetric(first: str, second: str) -> None:
    a, b = form_of(first), form_of(second)
    assert compare(a, b, LENIENT).equal == compare(b, a, LENIENT).equal


def test_comparison_is_symmetric_on_the_shipped_cases() -> None:
    checked = 0
    for case in CASES:
        if "\\boxed{" not in case.response:
            continue
        a, b = read(case.gold).form, read(VERIFIER.explain(VerifyRequest(case.response, "1")).get("answer", "")).form
        if a is None or b is None or has_direction(a) or has_direction(b):
            continue
        checked += 1
        assert compare(a, b, LENIENT).equal == compare(b, a, LENIENT).equal, case.id
    assert checked > 100


@RELAXED
@given(answers)
def test_an_answer_equals_itself(text: str) -> None:
    assert compare(form_of(text), form_of(text), LENIENT).equal
    assert judge(text, text).status is Status.CORRECT


@RELAXED
@given(answers, answers)
def test_the_canonical_texts_of_unequal_values_differ(first: str, second: str) -> None:
    """A majority vote never counts two values as one (where both are defined)."""
    a, b = judge("1", first), judge("1", second)
    if a.answer == b.answer:
        assert judge(first, second).status is Status.CORRECT or "[" in str(a.answer)


# Values --------------------------------------------------------------------------------------------------------------


@RELAXED
@given(constants, st.integers(1, 40))
def test_no_answer_equals_itself_plus_something(text: str, offset: int) -> None:
    assume(judge(text, f"{text}+0").score == 1.0)  # it has a value
    assert judge(text, f"({text})+{offset}").status is Status.WRONG
    assert judge(text, rf"({text})-\frac{{{offset}}}{{1000}}").status is Status.WRONG


def _spellings(value: Fraction) -> list[str]:
    top, bottom = value.numerator, value.denominator
    sign, whole, rest = "-" * (value < 0), abs(top) // bottom, abs(top) % bottom
    found = [
        f"{top}/{bottom}",
        rf"\frac{{{top}}}{{{bottom}}}",
        rf"\dfrac{{{3 * top}}}{{{3 * bottom}}}",
        rf"-\frac{{{-top}}}{{{bottom}}}",
        rf"\left(\frac{{{top}}}{{{bottom}}}\right)",
        f"x={top}/{bottom}",
        rf"{top}\cdot{bottom}^{{-1}}",
    ]
    if rest and whole:
        found.append(rf"{sign}{whole}\frac{{{rest}}}{{{bottom}}}")
    if 10**6 % bottom == 0:
        decimal = f"{sign}{abs(value) // 1}." + f"{abs(value) % 1 * 10**6 // 1:06d}"
        found += [decimal, decimal.rstrip("0") + "0", rf"{float(value * 100):.6f}\%"]
    if bottom == 1:
        found += [f"{top:,}", f"{top:,}".replace(",", "{,}"), f"{top:,}".replace(",", r"\,")]
    return found


@RELAXED
@given(
    st.one_of(
        st.integers(-(10**9), 10**9).map(Fraction),
        st.fractions(-1_000, 1_000, max_denominator=60),
        st.tuples(st.integers(-(10**6), 10**6), st.integers(0, 4)).map(lambda p: Fraction(p[0], 10 ** p[1])),
    ),
    st.data(),
)
def test_a_rational_number_is_one_in_all_its_spellings(value: Fraction, data: st.DataObject) -> None:
    spellings = _spellings(value)
    gold, answer = data.draw(st.sampled_from(spellings)), data.draw(st.sampled_from(spellings))
    verdict = judge(gold, answer)
    assert verdict.status is Status.CORRECT, verdict.evidence
    assert judge(gold, data.draw(st.sampled_from(_spellings(value + Fraction(1, 7))))).status is Status.WRONG


# Formatting ----------------------------------------------------------------------------------------------------------


def dressed(text: str, harmless: list, *, period: bool) -> str:
    """The text in other clothes. A period comes last, and `$` only outside."""
    for change in harmless:
        text = change(text)
    return f"{text}." if period else text


_ENDS_IN_EXPONENT = re.compile(r"e\d+$")
_HARMLESS = [
    lambda t: f" {t} ",
    lambda t: f"${t}$",
    lambda t: f"{{{t}}}",
    lambda t: rf"\displaystyle {t}",
    lambda t: rf"\,{t}\,",
    lambda t: rf"\boxed{{{t}}}",
    lambda t: rf"{t}\quad",
    lambda t: rf"\boldsymbol{{{t}}}",
    lambda t: t.replace(r"\frac{", r"\dfrac{"),
    lambda t: t.replace(r"\frac{", r"\tfrac{"),
    lambda t: t.replace(r"\le ", r"\leq ").replace(r"\ge ", r"\geq "),
    lambda t: (
        t.replace("(", r"\left(").replace(")", r"\right)") if t.count("(") == t.count(")") and "[" not in t else t
    ),
    lambda t: t.replace("+", " + ").replace(",", ", ") if not any(c.isdigit() for c in t) else t.replace("+", " + "),
    lambda t: t.replace(r"\cdot", r"\times"),
]


@settings(RELAXED, max_examples=400)
@given(st.sampled_from(CASES), st.lists(st.sampled_from(_HARMLESS), min_size=1, max_size=3), st.booleans())
def test_harmless_latex_flips_no_verdict(case, harmless, period: bool) -> None:
    shown = VERIFIER.explain(VerifyRequest(case.response, case.gold)).get("answer")
    assume(shown is not None and "boxed" in case.response and "\\left" not in shown and "\\big" not in shown.lower())
    after = dressed(shown, harmless, period=period)
    assume("$" not in after.strip(" .")[1:-1] and after.count("{") == after.count("}"))
    assume(case.category != "choice" and "*" not in shown and not _ENDS_IN_EXPONENT.search(shown))
    verdict = judge(case.gold, after)
    assert verdict.status is judge(case.gold, shown).status, f"{case.gold} <- {shown} | {after}: {verdict.evidence}"


@RELAXED
@given(answers, st.lists(st.sampled_from(_HARMLESS), min_size=1, max_size=4), st.booleans())
def test_harmless_latex_changes_no_form(text: str, harmless, period: bool) -> None:
    after = dressed(text, harmless, period=period)
    assume("$" not in after.strip(" .")[1:-1])
    assert compare(parse(text), parse(after), LENIENT).equal, after


# Any text ------------------------------------------------------------------------------------------------------------

_FRAGMENTS = [
    r"\frac",
    r"\sqrt",
    r"\left(",
    r"\right)",
    r"\{",
    r"\}",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "^",
    "_",
    "&",
    r"\\",
    "$",
    "%",
    r"\text{",
    r"\mathrm{",
    r"\boxed{",
    r"\begin{pmatrix}",
    r"\end{pmatrix}",
    r"\begin{cases}",
    r"\pm",
    r"\cup",
    r"\in",
    r"\infty",
    r"\cdot",
    r"\le",
    r"\ge",
    r"\ne",
    "=",
    "<",
    ">",
    "!",
    "|",
    ",",
    ";",
    ":",
    ".",
    "'",
    '"',
    "-",
    "+",
    "/",
    "*",
    "1",
    "0.5",
    "x",
    "e",
    "i",
    r"\pi",
    r"\sin",
    r"\log",
    r"\ln",
    "f(x)",
    "10^{9}",
    "999999999",
    " ",
    "\n",
    "and",
    "or",
    "the answer is ",
    "####",
    "<think>",
    "</think>",
    "½",
    "²",
    "√",
    "∞",
    "−",
    "１",
    "\udcfc",
    "\0",
    r"\pmod",
    "cm",
    "not ",
]
fragments = st.lists(st.sampled_from(_FRAGMENTS), max_size=25).map("".join)
mutated = st.tuples(st.sampled_from(CASES), st.integers(0, 200), st.integers(0, 30), fragments).map(
    lambda p: p[0].response[: p[1]] + p[3] + p[0].response[p[1] + p[2] :]
)
repeated = st.tuples(fragments, fragments.filter(bool), st.integers(1, 2_000), fragments).map(
    lambda p: (p[0] + p[1] * p[2] + p[3])[:100_000]
)
anything = st.one_of(fragments, mutated, repeated, st.text(max_size=300), st.text(string.printable, max_size=300))


def assert_survives(gold: str, response: str) -> None:
    started = time.process_time()
    verdict = VERIFIER.verify(VerifyRequest(response, gold))
    assert time.process_time() - started < BUDGET_S, f"{gold!r} <- {response[:200]!r}"
    assert verdict.status in (Status.CORRECT, Status.WRONG, Status.NO_ANSWER)
    assert verdict.score == float(verdict.status is Status.CORRECT)


@settings(RELAXED, max_examples=300)
@given(st.sampled_from(CASES), anything)
def test_no_response_raises_or_takes_long(case, response: str) -> None:
    assert_survives(case.gold, response)


@settings(RELAXED, max_examples=200)
@given(st.sampled_from(CASES), anything)
def test_no_boxed_answer_raises_or_takes_long(case, answer: str) -> None:
    assert_survives(case.gold, rf"So $\boxed{{{answer}}}$.")


@settings(RELAXED, max_examples=150)
@given(anything)
def test_no_gold_raises_anything_but_bad_gold(gold: str) -> None:
    try:
        assert_survives(gold, r"\boxed{1}")
    except BadGold:
        with pytest.raises(BadGold):
            VERIFIER.gold_response(gold, {})


@settings(RELAXED, max_examples=100)
@given(st.sampled_from(CASES), anything)
def test_a_second_verdict_is_the_first(case, response: str) -> None:
    request = VerifyRequest(response, case.gold)
    assert VERIFIER.verify(request) == VERIFIER.verify(request)
