"""Whether an output is the expected one. Both sides are plain data in the trusted parent, the actual one hostile."""

from __future__ import annotations

import math
import re
from typing import Any

_NUMBER = re.compile(r"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})([eE][+-]?\d{1,4})?")


def same_output(actual: str, expected: str, tolerance: float) -> bool:
    """Compare standard output line by line and token by token.

    White space at the ends of lines and of the text, and between tokens, does not count; nor does CRLF. A token whose
    expected form is a number with a point or an exponent may differ by `tolerance`, relative or absolute; all others
    are exact. Takes at most 40 bytes of memory for each byte that the actual output has as UTF-8.
    """
    actual_lines, expected_lines = actual.strip().splitlines(), expected.strip().splitlines()
    if len(actual_lines) != len(expected_lines):
        return False
    return all(_same_line(a, e, tolerance) for a, e in zip(actual_lines, expected_lines, strict=True))


def _same_line(actual: str, expected: str, tolerance: float) -> bool:
    if actual == expected:
        return True
    actual_tokens, expected_tokens = actual.split(), expected.split()
    if len(actual_tokens) != len(expected_tokens):
        return False
    return all(a == e or _close_tokens(a, e, tolerance) for a, e in zip(actual_tokens, expected_tokens, strict=True))


def _close_tokens(actual: str, expected: str, tolerance: float) -> bool:
    if not ("." in expected or "e" in expected or "E" in expected):
        return False
    if not (_NUMBER.fullmatch(expected) and _NUMBER.fullmatch(actual)):
        return False
    return _close(float(actual), float(expected), tolerance)


def same_value(actual: Any, expected: Any, tolerance: float) -> bool:
    """Compare a returned value with one that came from JSON: a tuple may stand for a list, a number is not a boolean,
    floats may differ by `tolerance`, NaN is nothing's equal and infinity only its own."""
    if isinstance(expected, list | tuple):
        return (
            isinstance(actual, list | tuple)
            and len(actual) == len(expected)
            and all(same_value(a, e, tolerance) for a, e in zip(actual, expected, strict=True))
        )
    if isinstance(expected, dict):
        return (
            type(actual) is dict
            and actual.keys() == expected.keys()
            and all(same_value(actual[key], value, tolerance) for key, value in expected.items())
        )
    if type(expected) is float or type(actual) is float:
        return type(actual) in (int, float) and type(expected) in (int, float) and _close(actual, expected, tolerance)
    return type(actual) is type(expected) and actual == expected


def _close(actual: float, expected: float, tolerance: float) -> bool:
    if actual == expected:
        return True
    if not (_is_finite(expected) and _is_finite(actual)):
        return False
    return math.isclose(actual, expected, rel_tol=tolerance, abs_tol=tolerance)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the floats
        return False
