"""Programs against tests: what each test came to. The comparison happens here, in the trusted parent."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from verifiers.code.asserts import Call, SplitAssert, split
from verifiers.code.box import Ended, Outcome
from verifiers.code.cases import AssertTests, FunctionTests, StdinTests
from verifiers.code.compare import same_output, same_value
from verifiers.code.inside import plain
from verifiers.code.session import Session
from verifiers.errors import BadGold
from verifiers.verdict import Status

_MAX_SHOWN_CHARS = 200
_STATUS = {
    Ended.ERROR: Status.ERROR_IN_PROGRAM,
    Ended.TIMEOUT: Status.TIMEOUT,
    Ended.MEMORY: Status.MEMORY,
    Ended.OUTPUT_LIMIT: Status.OUTPUT_LIMIT,
}
_NOT_PLAIN = object()


@dataclass(frozen=True, slots=True)
class TestResult:
    """One test. words: what went wrong, for a person."""

    status: Status
    words: str = ""

    @property
    def passed(self) -> bool:
        return self.status is Status.CORRECT


_PASSED = TestResult(Status.CORRECT)


def grade_stdin(
    session: Session, program: str, tests: StdinTests, tolerance: float, *, all_needed: bool
) -> list[TestResult]:
    """One result a test that was run. With `all_needed` the first failure ends it; a test that runs into a limit always
    does, so that a program which hangs does so once."""
    results = []
    for text, expected in zip(tests.inputs, tests.outputs, strict=True):
        outcome = session.run_stdin(program, text)
        results.append(_stdin_result(outcome, expected, tolerance))
        if not results[-1].passed and (all_needed or outcome.ended not in (Ended.FINISHED, Ended.ERROR)):
            break
    return results


def _stdin_result(outcome: Outcome, expected: str, tolerance: float) -> TestResult:
    if outcome.ended is not Ended.FINISHED:
        return _ended(outcome)
    actual = outcome.output.decode("utf-8", "replace")
    if same_output(actual, expected, tolerance):
        return _PASSED
    return TestResult(Status.WRONG, f"expected {_show(expected)}, got {_show(actual)}")


def grade_functions(session: Session, program: str, tests: FunctionTests, tolerance: float) -> list[TestResult]:
    """One result a call."""
    outputs = tests.outputs if tests.outputs is not None else _reference_outputs(session, tests)
    second = tests.alternatives if tests.alternatives is not None else outputs
    tolerance = tolerance if tests.tolerance is None else max(tolerance, tests.tolerance)
    calls = [Call(tests.name, arguments, {}) for arguments in tests.arguments]
    results = []
    for reply, *accepted in zip(_make_calls(session, program, calls), outputs, second, strict=True):
        if isinstance(reply, TestResult):
            results.append(reply)
        elif any(same_value(reply, expected, tolerance) for expected in accepted):
            results.append(_PASSED)
        else:
            results.append(TestResult(Status.WRONG, f"expected {_show(accepted[0])}, got {_show(reply)}"))
    return results


def _reference_outputs(session: Session, tests: FunctionTests) -> tuple[Any, ...]:
    calls = [Call(tests.name, arguments, {}) for arguments in tests.arguments]
    replies = _make_calls(session, tests.reference or "", calls, "judge")
    failed = [reply for reply in replies if isinstance(reply, TestResult)]
    if failed:
        raise BadGold(f"The reference solution does not answer all inputs: {failed[0].words}.")
    return tuple(replies)


def _make_calls(session: Session, program: str, calls: Sequence[Call], role: str = "program") -> list[Any]:
    """For each call the value it returned, or the `TestResult` of one that returned none."""
    try:
        frames = [call.frame() for call in calls]
    except plain.Unsupported as error:
        raise BadGold(f"A test's arguments cannot be sent to the program: {error}.") from error
    outcome = session.run_calls(program, frames, role=role)
    decoder = plain.Decoder()
    replies = [_reply(decoder, line) for line in outcome.output.split(b"\n", len(calls))[: len(calls)] if line]
    missing = _ended(outcome) if outcome.ended is not Ended.FINISHED else TestResult(Status.WRONG, "no result")
    return replies + [missing] * (len(calls) - len(replies))


def _reply(decoder: plain.Decoder, line: bytes) -> Any:
    try:
        key, content = decoder.reply(line)
    except plain.BadFrame as error:
        return TestResult(Status.WRONG, f"the result is not plain data, or too much of it: {error}")
    if key == "v":
        return content
    if key == "x":
        return TestResult(Status.WRONG, f"the result is a {_show(content)}, not plain data")
    return _raised(content)


def grade_asserts(session: Session, program: str, tests: AssertTests) -> list[TestResult]:
    """One result a test. Tests that can be split are made of calls and judged here; the others, and those whose calls
    return what is not plain data, run beside the program in a sandbox of their own."""
    names, only_named = tests.candidate_names, bool(tests.given)
    parts = [None if tests.setup else split(test, names, only_named=only_named) for test in tests.tests]
    results: list[TestResult | None] = _grade_split(session, program, parts)
    rest = [i for i, result in enumerate(results) if result is None]
    if rest:
        header = {"given": tests.given, "setup": tests.setup, "tests": [tests.tests[i] for i in rest],
                  "candidate_names": list(tests.candidate_names)}  # fmt: skip
        for i, result in zip(rest, _grade_apart(session, program, header), strict=True):
            results[i] = result
    return [result for result in results if result is not None]


def _grade_split(session: Session, program: str, parts: Sequence[SplitAssert | None]) -> list[TestResult | None]:
    calls = [call for part in parts if part is not None for call in part.calls]
    replies = iter(_make_calls(session, program, calls) if calls else ())
    results: list[TestResult | None] = []
    for part in parts:
        if part is None:
            results.append(None)
            continue
        values = [next(replies) for _ in part.calls]
        failed = [value for value in values if isinstance(value, TestResult)]
        if failed and all(f.words.endswith("not plain data") for f in failed):
            results.append(None)
        elif failed:
            results.append(failed[0])
        elif part.holds(values):
            results.append(_PASSED)
        else:
            results.append(TestResult(Status.WRONG, f"the assertion fails for {_show(values)}"))
    return results


def _grade_apart(session: Session, program: str, header: dict[str, Any]) -> list[TestResult]:
    steps, outcome = session.run_judge(program, header)
    count = len(header["tests"])
    if any(kind == "unsupported" for kind, _ in steps):
        raise BadGold(next(words for kind, words in steps if kind == "unsupported"))
    results = [_judged(kind, words) for kind, words in steps]
    setup, results = results[:1], results[1:]
    if setup and not setup[0].passed:
        return setup * count
    missing = _ended(outcome) if outcome.ended is not Ended.FINISHED else TestResult(Status.WRONG, "no result")
    return results + [missing] * (count - len(results))


def _judged(kind: str, words: str) -> TestResult:
    if kind == "passed":
        return _PASSED
    return _raised(words) if kind == "error" else TestResult(Status.WRONG, _show(words))


def _raised(words: str) -> TestResult:
    """What the program raised."""
    return TestResult(Status.MEMORY if words.startswith("MemoryError") else Status.ERROR_IN_PROGRAM, _show(words))


def _ended(outcome: Outcome) -> TestResult:
    return TestResult(_STATUS[outcome.ended], _show(outcome.note) if outcome.note else str(outcome.ended))


_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _MAX_SHOWN_CHARS
_SHOWN.maxlong = 60


def _show(value: Any) -> str:
    """Short, and printable whatever it is."""
    try:
        return _SHOWN.repr(value).encode("ascii", "backslashreplace").decode()[: 2 * _MAX_SHOWN_CHARS]
    except ValueError:  # an integer with more digits than Python prints
        return f"a very long {type(value).__name__}"
