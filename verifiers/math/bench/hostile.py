r"""Hostile inputs, generated: a response that costs a grader seconds, gigabytes or its process must cost ours neither.

Every class below was met in the wild or found by reading a grader: unbounded integers, factorials and power towers that
are evaluated, parsers that recurse, regular expressions that backtrack, solvers that never end. The inputs are the same
on every machine. They carry no label: any verdict is right that comes in time and leaves the worker alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from verifiers.errors import did_you_mean
from verifiers.math.bench.cases import Case

Input = tuple[str, str, str]  # what it is, gold, response
_CLASSES: dict[str, Callable[[], Iterator[Input]]] = {}
_BILLION = "10^{9}"


def hostile_cases(category: str | None = None) -> list[Case]:
    """All inputs, or those of one category (``dos_digits``, ...). Raises ValueError for an unknown one."""
    if category is not None and category not in _CLASSES:
        raise ValueError(f"no hostile category '{category}': {did_you_mean(category, _CLASSES)}")
    return [
        Case(
            id=f"generated-{name}-{number:02d}",
            gold=gold,
            response=response,
            label=None,
            category=name,
            source="generated",
            why=what,
        )
        for name, build in _CLASSES.items()
        if category in (None, name)
        for number, (what, gold, response) in enumerate(build(), start=1)
    ]


def hostile_categories() -> list[str]:
    return list(_CLASSES)


def _class(build: Callable[[], Iterator[Input]]) -> Callable[[], Iterator[Input]]:
    _CLASSES[f"dos_{build.__name__.strip('_')}"] = build
    return build


def _boxed(content: str) -> str:
    return f"The answer is $\\boxed{{{content}}}$."


def _nested(opening: str, inner: str, closing: str, depth: int) -> str:
    return opening * depth + inner + closing * depth


@_class
def _digits() -> Iterator[Input]:
    yield "a sum of 5000 ones", "5000", _boxed("+".join("1" * 5_000))
    yield "a sum of 3000 x", "3000x", _boxed("+".join("x" * 3_000))
    yield "an integer of 10,000 digits, equal", "1" * 10_000, _boxed("1" * 10_000)
    yield "an integer of 100,000 digits", "1", _boxed("7" * 100_000)
    yield "a decimal of 50,000 places", "0.1", _boxed("0." + "1" * 50_000)
    yield "a fraction of two integers of 20,000 digits", "1", _boxed(f"\\frac{{{'3' * 20_000}}}{{{'9' * 20_000}}}")
    yield "exponent of a float beyond the range", "1", _boxed("1e999999999")
    yield "scientific notation with a huge exponent", "1", _boxed("1.5\\times 10^{123456789}")
    yield "a number in an absurd base", "1", _boxed("1" * 5_000 + "_{2}")


@_class
def _factorial() -> Iterator[Input]:
    yield "factorial of a billion", "1", _boxed(f"({_BILLION})!")
    yield "factorial of 10^8", "1", _boxed("100000000!")
    yield "factorial of a factorial", "1", _boxed("((1000!)!)!")
    yield "two factorials that differ", "\\frac{1}{2004!}", _boxed("\\frac{1}{2006!}")
    yield "a huge binomial", "1", _boxed(f"\\binom{{{_BILLION}}}{{5\\cdot 10^{{8}}}}")
    yield "a limit of factorials", "1", _boxed("\\lim_{n\\to\\infty} \\frac{n!}{n^{n-1}}")
    yield "500 factorial signs", "1", _boxed("3" + "!" * 500)


@_class
def _power() -> Iterator[Input]:
    for tower in ("9^{9^{9^9}}", "10^{10^{100}}", "2^{10^{10^{10}}}", "(-1)^{10^{30}}", "7^{7^{7^{7}}} \\bmod 10"):
        yield "a power tower", "1", _boxed(tower)
    yield "a tower in a fraction", "5", _boxed("\\frac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}")
    yield "equal towers", "2^{2^{100}}", _boxed("2^{2^{100}}")
    yield "a power that does not fit", "2^{2^{64}}-1", _boxed("2^{2^{64}}-1")
    yield "a power of a billion", "1", _boxed(f"2^{{{_BILLION}}}")
    yield "a negative power of a billion", "0", _boxed(f"2^{{-{_BILLION}}}")
    yield "a fractional power of a large number", "1", _boxed("(10^{4000}+1)^{1/7}")
    yield "powers of a surd that cancel", "0", _boxed("(1+\\sqrt{2})^{100000}-(1+\\sqrt{2})^{100000}")
    yield "a polynomial of degree 500", "1", _boxed("(x+1)^{500}-(x+1)^{499}(x+1)+1")
    yield "a plain text power tower", "1", _boxed("**".join(["9"] * 6))


@_class
def _nesting() -> Iterator[Input]:
    yield "500 parentheses", "1", _boxed(_nested("(", "1", ")", 500))
    yield "20,000 parentheses", "1", _boxed(_nested("(", "1", ")", 20_000))
    yield "400 sines", "x", _boxed(_nested("\\sin(", "x", ")", 400))
    yield "300 roots", "2", _boxed(_nested("\\sqrt{", "2", "}", 300))
    yield "a tower of 400 x", "1", _boxed(_nested("x^{", "x", "}", 400))
    yield "a continued fraction of depth 200", "1", _boxed(_nested("\\frac{1}{1+", "1", "}", 200))
    yield "a continued fraction of depth 5000", "1", _boxed(_nested("\\frac{1}{1+", "1", "}", 5_000))
    yield "5000 minus signs", "1", _boxed("-" * 5_000 + "1")
    yield "1000 absolute values", "1", _boxed(_nested("|", "1", "|", 1_000))
    yield "3000 boxes in one another", "1", _nested("\\boxed{", "1", "}", 3_000)
    yield "2000 nested sets", "1", _boxed(_nested("\\{", "1", "\\}", 2_000))


@_class
def _regex() -> Iterator[Input]:
    yield "a run of slashes", "1", "1/" * 20_000
    yield "unclosed \\text", "1", "\\text{" * 10_000 + "1"
    yield "an anchor 30,000 times", "1", "the answer is " * 30_000
    yield (
        "a chain of thought of 200 kB",
        "7",
        "Wait, let me recompute. $\\frac{3}{7} + \\sqrt{3}$ = 12." * 4_000 + "\\boxed{7}",
    )
    yield "100,000 letters in unclosed mathematics", "1", "answer is $" + "a" * 100_000
    yield "4000 boxes", "7", "\n".join(f"So $x_{{{k}}} = {k}$ and \\boxed{{{k}}}" for k in range(4_000))
    yield "20,000 opened displays", "1", "\\[" * 20_000
    yield "60,000 numbers without a statement", "1", "1 " * 60_000
    yield "20,000 decimals", "1", "0.5 " * 20_000
    yield "100,000 spaces before the answer", "1", "The answer is" + " " * 100_000 + "1"
    yield "20,000 unclosed <think>", "1", "<think>" * 20_000 + "\\boxed{1}"
    yield "50,000 dollar signs", "1", "$" * 50_000
    yield "a comma list without numbers", "1", _boxed("," * 50_000)
    yield "thousands separators without end", "1", _boxed("1" + ",000" * 20_000)


@_class
def _solve() -> Iterator[Input]:
    yield "roots of unity as a set", "\\{x: x^{99}=1\\}", _boxed("\\{x \\mid x^{99}-1=0\\}")
    yield (
        "trigonometric powers",
        "\\sin^{40}(x)+\\cos^{40}(x)",
        _boxed("\\left(\\frac{1-\\cos(2x)}{2}\\right)^{20}+\\left(\\frac{1+\\cos(2x)}{2}\\right)^{20}"),
    )
    yield "a transcendental inequality", "0<x<1", _boxed("\\tan(\\sin(\\cos(x^{x}))) < \\Gamma(x)^{x!}")
    yield "an equation of degree 40", "x^{40}+x+1=0", _boxed("x^{40}+x^{3}+1=0")
    yield "an inequality of degree 60", "x^{60}-x^{7}+1>0", _boxed("(-\\infty,\\infty)")
    yield "nested radicals", "1", _boxed("\\sqrt[3]{" * 12 + "2+\\sqrt{5}" + "}" * 12)
    yield (
        "an expression in 40 variables",
        "1",
        _boxed("+".join(f"\\frac{{x_{{{k}}}}}{{x_{{{k + 1}}}+1}}" for k in range(40))),
    )


@_class
def _unicode() -> Iterator[Input]:
    yield "5000 superscripts", "2", _boxed("²" * 5_000)
    yield "5000 emoji", "2", _boxed("😀" * 5_000)
    yield "10,000 combining accents", "2", _boxed("2" + "\u0301" * 10_000)
    yield "right-to-left marks around digits", "12", _boxed("\u202e12\u202c" * 2_000)
    yield "5000 fraction characters", "1", _boxed("½" * 5_000)
    yield "ligatures that expand", "1", _boxed("\ufdfa" * 5_000)
    yield "control characters", "1", _boxed("".join(map(chr, range(1, 32))) * 200)
    yield "a lone surrogate", "1", _boxed("\ud800")


@_class
def _sums() -> Iterator[Input]:
    yield "a sum of a billion terms", "1", _boxed(f"\\sum_{{k=1}}^{{{_BILLION}}} k^{{k}}")
    yield "a product of a billion terms", "1", _boxed(f"\\prod_{{k=1}}^{{{_BILLION}}} k")
    yield "ten sums in one another", "1", _boxed("".join(f"\\sum_{{i_{{{k}}}=1}}^{{1000}} " for k in range(10)) + "i_0")
    yield "an improper integral", "0", _boxed("\\int_0^\\infty \\frac{\\sin(x^3)\\ln(1+x^2)}{\\cosh(x)+x^5} dx")
    yield "a geometric sum", "\\frac{x^{30}-1}{x-1}", _boxed("\\sum_{k=0}^{29} x^k")
    yield "300 linear factors", "1", _boxed("\\cdot ".join(f"(x+{k})" for k in range(300)))
    yield "a derivative of high order", "1", _boxed("\\frac{d^{500}}{dx^{500}} e^{x^2}\\sin(x)^{x}")


@_class
def _matrix() -> Iterator[Input]:
    symbols = "\\\\".join("&".join(f"x_{{{12 * i + j}}}+{i}" for j in range(12)) for i in range(12))
    numbers = "\\\\".join("&".join(str(i * j) for j in range(100)) for i in range(100))
    yield "a symbolic matrix power", "1", _boxed(f"\\begin{{pmatrix}}{symbols}\\end{{pmatrix}}^{{12}}")
    yield "a matrix of 100 x 100", "1", _boxed(f"\\begin{{pmatrix}}{numbers}\\end{{pmatrix}}")
    yield "a matrix to a huge power", "1", _boxed("\\begin{pmatrix}2&1\\\\1&1\\end{pmatrix}^{10^{9}}")
    yield "a determinant with symbols", "1", _boxed(f"\\det\\begin{{pmatrix}}{symbols}\\end{{pmatrix}}")
    yield "1000 matrices begun", "1", _boxed("\\begin{pmatrix}" * 1_000)


@_class
def _lists() -> Iterator[Input]:
    ascending = ",".join(map(str, range(3_000)))
    descending = ",".join(map(str, range(3_000, 0, -1)))
    yield "3000 elements, one differing", ascending, _boxed(descending)
    yield "1000 symbolic elements", "x", _boxed(",".join(f"x^{{{k}}}+\\sqrt{{{k}}}" for k in range(1_000)))
    yield (
        "200 equal expressions in another order",
        ",".join(f"\\sqrt{{{k}}}+x" for k in range(200)),
        _boxed(",".join(f"x+\\sqrt{{{k}}}" for k in reversed(range(200)))),
    )
    yield "500 intervals", "(0,1)", _boxed("\\cup".join(f"({k},{k}.5)" for k in range(500)))
    yield "30 plus-minus signs", "1", _boxed("\\pm ".join(["0"] + [f"\\sqrt{{{k}}}" for k in range(2, 32)]))
    yield "a chain of 2000 inequalities", "x>0", _boxed("<".join(f"x_{{{k}}}" for k in range(2_000)))
    yield "a chain of 5000 equal signs", "1", _boxed("=".join("1" * 5_000))


@_class
def _macros() -> Iterator[Input]:
    yield "10,000 \\left", "1", _boxed("\\left(" * 10_000 + "1")
    yield "20,000 thin spaces", "1", _boxed("1" + "\\," * 20_000)
    yield "5000 unknown macros", "1", _boxed("\\foo" * 5_000)
    yield "3000 \\frac without arguments", "1", _boxed("\\frac" * 3_000)
    yield "3000 bold macros in one another", "1", _boxed(_nested("\\mathbf{", "1", "}", 3_000))
    yield "2000 colours", "1", _boxed(_nested("\\color{red}{", "1", "}", 2_000))
    yield "a macro that defines itself", "1", _boxed("\\def\\a{\\a\\a}\\a")
    yield "50,000 backslashes", "1", _boxed("\\" * 50_000)


@_class
def _braces() -> Iterator[Input]:
    yield "100,000 opening braces", "1", "\\boxed{" + "{" * 100_000
    yield "100,000 closing braces", "1", "\\boxed{1" + "}" * 100_000
    yield "20,000 boxes never closed", "1", "\\boxed{" * 20_000
    yield "crossed brackets", "1", _boxed("([{" * 2_000 + "1" + ")]}" * 2_000)
    yield "a box with escaped braces only", "1", "\\boxed{" + "\\{\\}" * 20_000
