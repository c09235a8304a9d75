"""The three forms that tests come in, whatever the dataset's own format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StdinTests:
    """A whole program: text in, text out, a fresh run each."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FunctionTests:
    """One function (or method of a class Solution), called with each list of arguments in one run.

    outputs: what each call must return, as JSON gives it; None if they are what `reference` returns. alternatives:
    second values that are right as well (APPS wraps some in a list). tolerance: of floats; None for the verifier's.
    """

    name: str
    arguments: tuple[list[Any], ...]
    outputs: tuple[Any, ...] | None
    alternatives: tuple[Any, ...] | None = None
    reference: str | None = None
    tolerance: float | None = None


@dataclass(frozen=True, slots=True)
class AssertTests:
    """Assert statements, each a test.

    given: trusted code whose names the tests may use (a prompt's own helper functions). setup: trusted code that runs
    before the tests and may use the candidate (definitions of fixtures, a dataset's `check` function).
    candidate_names: names in the tests that are the candidate's, even if `given` or Python has one of that name. A name
    that nobody defines is the candidate's too.
    """

    tests: tuple[str, ...]
    given: str = ""
    setup: str = ""
    candidate_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """prompt: code that the response may continue; it is put before a program that does not define `entry_point`."""

    tests: StdinTests | FunctionTests | AssertTests
    prompt: str = ""
    entry_point: str = ""
