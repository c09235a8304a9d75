"""The slow path: sympy, by way of math-verify's LaTeX parser, for what the grammar here does not cover.

Its "equal" is accepted only if both sides were consumed whole and are of one type. It runs in the worker process, which
the pool kills at the time limit.
"""

from __future__ import annotations

import re

MAX_CHARS = 300
# What asks to be evaluated first is no final answer, and is what hangs a computer algebra system.
_UNEVALUATED = re.compile(r"\\(?:i*int|oint|sum|prod|lim|limsup|liminf|frac\s*\{\s*d)(?![A-Za-z])")
_BIG_POWER = re.compile(r"\^\s*\{?\s*\(?\s*\d{3,}|!|\^\s*\{[^{}]*\^")
_SHORT_FRACTION = re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)")  # \frac13, which the parser does not know
_WORDS = re.compile(r"\\(?:text|mbox|textbf)\b")


def warm() -> None:
    """Import what is slow to import, so that no answer is charged for it."""
    import math_verify.grader  # noqa: F401
    from latex2sympy2_extended import latex2sympy

    latex2sympy("1")


def worth_asking(gold: str, answer: str) -> bool:
    """Whether the slow path may be asked: both short, no words, nothing that explodes, and no unevaluated integral or
    sum in the answer unless the gold has one too."""
    for text in (gold, answer):
        if len(text) > MAX_CHARS or _BIG_POWER.search(text) or _WORDS.search(text) or not text.isascii():
            return False
    return bool(_UNEVALUATED.search(gold)) or not _UNEVALUATED.search(answer)


def equal(gold: str, answer: str) -> bool | None:
    """None if either side cannot be read whole or they are of different types."""
    import sympy
    from latex2sympy2_extended import latex2sympy
    from math_verify.grader import sympy_expr_eq

    forms = []
    for text in (gold, answer):
        try:
            forms.append(latex2sympy(_SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)))
        except (MemoryError, RecursionError):
            raise
        except Exception:  # noqa: BLE001 (an ANTLR parser: whatever it raises means that it cannot read the text)
            return None
    first, second = forms
    for kind in (sympy.MatrixBase, sympy.Set, sympy.logic.boolalg.Boolean, sympy.Expr):
        if isinstance(first, kind) or isinstance(second, kind):
            if not (isinstance(first, kind) and isinstance(second, kind)):
                return None
            if kind is sympy.Expr and (first.free_symbols ^ second.free_symbols):
                return False
            return bool(sympy_expr_eq(first, second, float_rounding=15, numeric_precision=40, strict=True))
    return None
