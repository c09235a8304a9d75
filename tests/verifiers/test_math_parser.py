r"""How an answer is read: its form, and the limits that keep every text cheap."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from verifiers.math.lexer import MAX_CHARS, MAX_DIGITS, MAX_TOKENS
from verifiers.math.parser import parse
from verifiers.math.syntax import NotCovered, Num, Unreadable, depth, show, walk
from verifiers.math.verifier import read


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (r"\frac12", "(1/2)"),
        (r"\dfrac{1}{2}", "(1/2)"),
        (r"\frac123", "((1/2)*3)"),
        (r"2\frac13", "7/3"),
        ("1 1/2", "3/2"),
        ("x^10", "(x^10)"),
        (r"\sqrt12", "root(12, 2)"),
        (r"\sqrt[3]{x}", "root(x, 3)"),
        ("1,234,567", "1234567"),
        (r"1{,}000", "1000"),
        ("1.5e3", "1500"),
        (r"0.\overline{27}", "3/11"),
        ("1101_2", "13"),
        ("FF_{16}", "255"),
        (r"50\%", "50%"),
        (r"90^\circ", "90 [deg]"),
        ("5 cm", "5 [cm]"),
        (r"5\text{ cm}^2", "5 [cm ^ 2]"),
        ("x = 5", "x = 5"),
        ("1 < x \\le 2", "1 < x <= 2"),
        ("(1, 2)", "(1, 2)"),
        ("[0, 1)", "[0, 1)"),
        ("]0, 1[", "]0, 1["),
        (r"\{1, 2\}", "{1, 2}"),
        ("1, 2", "list(,: 1; 2)"),
        (r"1 \text{ or } 2", "list(or: 1; 2)"),
        (r"\{x \mid x > 0\}", "{x | x > 0}"),
        (r"(0,1)\cup(2,3)", "((0, 1) ∪ (2, 3))"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[1, 2; 3, 4]"),
        (r"\langle 1, 2\rangle", "(1, 2)"),
        ("2:3", "2 : 3"),
        (r"3 \pm 2", "(3 ± 2)"),
        (r"\sin^2 x", "(sin(x)^2)"),
        (r"\log_2 8", "log(2, 8)"),
        ("f(x)", "f(x)"),
        (r"\text{Yes}", "'Yes'"),
        ("½", "(1/2)"),
        ("√5", "root(5, 2)"),
        ("x²", "(x^2)"),
        ("−３", "-3"),
    ],
)
def test_a_text_is_read_as_it_is_meant(text: str, form: str) -> None:
    assert show(parse(text)) == form


def test_a_decimal_keeps_its_places_and_its_exact_value() -> None:
    assert parse("0.50") == Num(Fraction(1, 2), 2)
    assert parse(".5") == Num(Fraction(1, 2), 1)
    assert parse("2") == Num(Fraction(2))


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "1 +", "(1", "1)", r"\frac{1}", r"\{1", "x^2^3", "1 = ", "|1", r"\sqrt", "1 2", "((", r"\left(1",
     "=",
     "15_{ten}", "12_2", r"\begin{pmatrix}1&2\\3\end{pmatrix}", 'len("abc")', "1 if x else 2"],
)  # fmt: skip
def test_what_is_no_mathematics_is_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        parse(text)


@pytest.mark.parametrize("text", [r"\int_0^1 x\,dx", r"\sum_{k=1}^n k", r"\lim_{x\to 0} x", r"\unknownmacro"])
def test_what_the_grammar_leaves_to_the_slow_path_is_not_covered(text: str) -> None:
    with pytest.raises(NotCovered):
        parse(text)
    assert not read(text).covered


# Every row below once cost a RecursionError, a hang or seconds.
NESTED = {
    "fonts in one another": r"\mathbf{" * 2_000 + "1" + "}" * 2_000,
    "text and fractions in one another": r"\text{\frac{1}{" * 800 + "1" + "}}" * 800,
    "powers written with stars": "**".join(["2"] * 3_000),
    "factorials of factorials": "3" + "!" * 500,
    "fractions without brackets": "/".join(["3"] * 6_000),
    "degrees of degrees": "5" + r"\circ" * 3_000,
    "a thousand plus-minus signs": r"\pm ".join(["1"] * 3_000),
    "parentheses": "(" * 6_000 + "1" + ")" * 6_000,
    "sets": r"\{" * 5_000 + "1" + r"\}" * 5_000,
    "roots without braces": r"\sqrt " * 5_000 + "2",
    "subscripts that open": "x_{" * 4_000,
}


@pytest.mark.parametrize("text", [pytest.param(text, id=what) for what, text in NESTED.items()])
def test_deep_nesting_is_unreadable_at_once(text: str) -> None:
    started = time.process_time()
    with pytest.raises(Unreadable):
        parse(text)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("before", ["1*", "1/", "x^", "2**", ""])
def test_a_run_of_signs_is_one_sign_however_long(before: str) -> None:
    """Every sign but a leading one once cost a level of recursion."""
    assert parse(f"{before}{'-' * 9_001}1") == parse(f"{before}-1")
    assert parse(f"{before}{'-+' * 4_000}1") == parse(f"{before}+1")


@pytest.mark.parametrize("text", ["or all", "and then 5", "or maybe", "and so on", "OR AND OR", "and and"])
def test_a_text_that_begins_with_a_separator_word_ends(text: str) -> None:
    """'or all' once made the parser wait for ever."""
    read(text)


def test_a_form_is_never_deeper_than_recursion_allows() -> None:
    shallow = "/".join(["3"] * 90)
    assert depth(parse(shallow)) == 90
    with pytest.raises(Unreadable, match="levels"):
        parse("/".join(["3"] * 200))


@pytest.mark.parametrize(
    "text",
    [
        "7" * (MAX_CHARS + 1),
        "1" * (MAX_DIGITS + 1),
        "1e99999",
        r"1.5\times10^{3}" + "0" * MAX_DIGITS,
        "x+" * MAX_TOKENS + "x",
        "ﷺ" * 5_000,  # each becomes eighteen characters
    ],
)
def test_what_passes_a_limit_is_unreadable(text: str) -> None:
    reading = read(text)
    assert reading.form is None or not any(isinstance(n, Num) and n.value > 10**5_000 for n in walk(reading.form))


def test_a_number_of_more_digits_than_python_prints_is_shown_in_hexadecimal() -> None:
    """1e5000 once raised ValueError when its verdict was written."""
    assert show(parse("1e5000")).startswith("0x")
    assert show(parse("1e-5000")).startswith("0x1/0x")


def test_a_lone_surrogate_is_a_name_like_any_other() -> None:
    """It once raised UnicodeEncodeError when the expression was evaluated."""
    assert read("1500\\mathbb{\udc95R}").form is not None


@pytest.mark.parametrize(("text", "several"), [("100,200", 2), ("1,234", 2), ("(1,234)", 2)])
def test_a_comma_between_digits_can_be_read_both_ways(text: str, several: int) -> None:
    assert show(parse(text, thousands=False)).count(";") + show(parse(text, thousands=False)).count(", ") == several - 1
    if not text.startswith("("):
        assert show(parse(text)) == text.replace(",", "")
