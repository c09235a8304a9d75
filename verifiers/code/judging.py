"""One response against one problem: what the program is, what its tests come to, and what that is worth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from verifiers.code.cases import AssertTests, FunctionTests, Problem, StdinTests
from verifiers.code.extract import Extracted, Source, extract_program
from verifiers.code.grade import TestResult, grade_asserts, grade_functions, grade_stdin
from verifiers.code.readers import read_problem
from verifiers.code.session import DeadlinePassed, Session
from verifiers.code.walls import Tier
from verifiers.options import Options
from verifiers.verdict import Status, Verdict, VerifyRequest

IS_PROGRAM = "response_is_program"
"""In a request's meta data: the response is the program, and nothing is extracted from it."""

OUT_OF_TIME = Verdict(None, Status.TIMEOUT, "not judged: the time for the batch was over")

Tests = StdinTests | FunctionTests | AssertTests


class Judging(Options):
    """How a response is judged, wherever its program runs.

    credit: "all_or_nothing"; "share" of the tests passed; "first_k", the share of the first `first_k` tests (the others
    are not run). program: what of a response is the program (see `extract`). output_kb: KiB that a run may write.
    float_tolerance: relative or absolute, for floats in outputs and returned values (assert tests say themselves).
    """

    credit: Literal["all_or_nothing", "share", "first_k"] = "all_or_nothing"
    first_k: int = Field(default=10, ge=1)
    program: Source = "fenced_or_text"
    output_kb: int = Field(default=4096, ge=1)
    float_tolerance: float = Field(default=1e-6, ge=0)


def judge_response(session: Session, judging: Judging, request: VerifyRequest) -> Verdict:
    """Raises `BadGold`, and `SandboxFault` if the sandbox failed twice."""
    problem = read_problem(request.gold)
    found = _program_of(request, judging.program)
    if found.program is None:
        return Verdict(0.0, Status.NO_ANSWER, found.how)
    tests, total = _tests_that_count(problem.tests, judging)
    try:
        results = _grade(session, complete(found.program, problem), tests, judging)
    except DeadlinePassed:
        return OUT_OF_TIME
    return _verdict(results, total, found.how, session.tier, judging.credit)


def complete(program: str, problem: Problem) -> str:
    """The program to run: a continuation gets its prompt, a whole function gets the prompt's imports and helpers."""
    if not problem.entry_point:
        return program
    definition = re.compile(rf"^(?:async +)?def +{re.escape(problem.entry_point)}\b", re.MULTILINE)
    if not definition.search(program):
        return problem.prompt + program
    before = definition.search(problem.prompt)
    return problem.prompt[: before.start()] + "\n" + program if before else program


def _program_of(request: VerifyRequest, source: Source) -> Extracted:
    if not request.meta.get(IS_PROGRAM):
        return extract_program(request.response, source)
    if not request.response.strip():
        return Extracted(None, "no program: it is empty")
    return Extracted(request.response, "the program as given")


def _tests_that_count(tests: Tests, judging: Judging) -> tuple[Tests, int]:
    k = judging.first_k if judging.credit == "first_k" else None
    if isinstance(tests, StdinTests):
        tests = StdinTests(tests.inputs[:k], tests.outputs[:k])
        return tests, len(tests.inputs)
    if isinstance(tests, FunctionTests):
        outputs, second = tests.outputs, tests.alternatives
        tests = FunctionTests(tests.name, tests.arguments[:k], None if outputs is None else outputs[:k],
                              None if second is None else second[:k], tests.reference, tests.tolerance)  # fmt: skip
        return tests, len(tests.arguments)
    tests = AssertTests(tests.tests[:k], tests.given, tests.setup, tests.candidate_names)
    return tests, len(tests.tests)


def _grade(session: Session, program: str, tests: Tests, judging: Judging) -> list[TestResult]:
    if isinstance(tests, StdinTests):
        all_needed = judging.credit == "all_or_nothing"
        return grade_stdin(session, program, tests, judging.float_tolerance, all_needed=all_needed)
    if isinstance(tests, FunctionTests):
        return grade_functions(session, program, tests, judging.float_tolerance)
    return grade_asserts(session, program, tests)


def _verdict(results: Sequence[TestResult], total: int, how: str, tier: Tier, credit: str) -> Verdict:
    """results: of the tests that were run, in order; those not run did not pass."""
    passed = sum(result.passed for result in results)
    walls = "NO ISOLATION" if tier is Tier.UNSAFE else f"tier {tier}"
    evidence = f"{walls}; {how}; {passed} of {total} tests passed"
    if passed == total:
        return Verdict(1.0, Status.CORRECT, evidence)
    number, first = next((i, result) for i, result in enumerate(results, start=1) if not result.passed)
    score = 0.0 if credit == "all_or_nothing" else passed / total
    return Verdict(score, first.status, f"{evidence}; test {number}: {first.status}: {first.words}")
