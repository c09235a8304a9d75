"""Kind ``code``: programs against tests, in a sandbox.

The gold holds the tests: ``{"type": "stdin_stdout", "inputs", "outputs"}``, ``{"type": "functional", "fn_name",
"inputs", "outputs"}``, ``{"type": "assert", "asserts"}``, or a row of HumanEval, MBPP, EvalPlus, APPS, TACO,
CodeContests or LiveCodeBench as published.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, Literal

from pydantic import Field

from verifiers.code.box import Limits
from verifiers.code.cases import AssertTests, FunctionTests, Problem, StdinTests
from verifiers.code.extract import Source, extract_program
from verifiers.code.grade import TestResult, grade_asserts, grade_functions, grade_stdin
from verifiers.code.readers import read_problem
from verifiers.code.sandbox import Sandbox
from verifiers.code.walls import Tier
from verifiers.errors import BadGold
from verifiers.options import Options as BaseOptions
from verifiers.runner import judge
from verifiers.verdict import VERIFIERS, Status, Verdict, VerifyRequest

_SOLUTION_FIELDS = ("solution", "canonical_solution", "code")


@VERIFIERS.register("code")
class CodeVerifier:
    """Runs the program of a response. The sandbox is started, and attacked to see that it holds, when this is built;
    `close` ends it. Raises `VerifierError` where no isolation works."""

    isolated = False  # it has processes of its own,
    takes_limits = True  # and so is built with the runner's limits

    class Options(BaseOptions):
        """credit: "all_or_nothing"; "share" of the tests passed; "first_k", the share of the first `first_k` tests (the
        others are not run). program: what of a response is the program (see `extract`). output_kb: KiB that a run
        may write.
        packages: import names that programs may use besides the standard library. float_tolerance: relative or
        absolute, for floats in outputs and returned values (assert tests say themselves). isolation: "auto" is the
        strongest that works; "unsafe" runs programs with your files, keys and network within their reach."""

        credit: Literal["all_or_nothing", "share", "first_k"] = "all_or_nothing"
        first_k: int = Field(default=10, ge=1)
        program: Source = "fenced_or_text"
        output_kb: int = Field(default=4096, ge=1)
        packages: list[str] = ["numpy"]  # noqa: RUF012 (pydantic copies it)
        float_tolerance: float = Field(default=1e-6, ge=0)
        isolation: Literal["auto", "namespaces", "landlock", "unsafe"] = "auto"

    def __init__(
        self,
        options: Options,
        *,
        timeout_s: float = 5.0,
        memory_mb: int = 1024,
        workers: int = 2,
        key: str = "verifier",
    ):
        """timeout_s: CPU seconds of one run, rounded up to whole ones; the wall-clock limit is twice that and one more.
        memory_mb: MiB of address space beyond what the loaded interpreter takes. workers: programs at one time. key:
        the recipe key, for messages."""
        self.options = options
        self.sandbox = Sandbox(
            workers=workers,
            packages=options.packages,
            isolation=options.isolation,
            limits=Limits(timeout_s, memory_mb, options.output_kb),
            key=key,
        )

    def verify(self, request: VerifyRequest) -> Verdict:
        problem = read_problem(request.gold)
        found = extract_program(request.response, self.options.program)
        if found.program is None:
            return Verdict(0.0, Status.NO_ANSWER, found.how)
        program = complete(found.program, problem)
        tests, total = self._tests_that_count(problem)
        return self._verdict(self._grade(program, tests), total, found.how)

    def verify_many(self, requests: Sequence[VerifyRequest]) -> list[Verdict]:
        """One verdict per request, in order; `workers` at a time. A fault is a verdict without a score."""
        return self.submit(requests)()

    def submit(self, requests: Sequence[VerifyRequest]) -> Callable[[], list[Verdict]]:
        """Begin, and return at once; the function returned waits for the verdicts, in order."""
        futures = self._begin(requests)
        return lambda: [future.result() for future in futures]

    def stream(self, requests: Sequence[VerifyRequest]) -> Iterator[tuple[int, Verdict]]:
        """(index, verdict) of each request as it is judged."""
        numbers = {future: number for number, future in enumerate(self._begin(requests))}
        for future in as_completed(numbers):
            yield numbers[future], future.result()

    def _begin(self, requests: Sequence[VerifyRequest]) -> list[Future[Verdict]]:
        executor = ThreadPoolExecutor(self.sandbox.workers, thread_name_prefix="code")
        futures = [executor.submit(judge, self, request) for request in requests]
        executor.shutdown(wait=False)  # its threads end with the last request
        return futures

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        """The reference solution, from the gold or the meta data ("solution", or the dataset's own name for it)."""
        problem = read_problem(gold)
        for fields in (gold, meta):
            for name in _SOLUTION_FIELDS:
                if isinstance(fields.get(name), str):
                    return f"```python\n{complete(fields[name], problem)}\n```"
        raise BadGold(
            "The gold has no reference solution.",
            fix=f"add one as 'solution' to the gold or the meta data, or do not check golds (it is looked for as "
            f"{', '.join(_SOLUTION_FIELDS)})",
        )

    def close(self) -> None:
        self.sandbox.close()

    def _tests_that_count(self, problem: Problem) -> tuple[StdinTests | FunctionTests | AssertTests, int]:
        tests = problem.tests
        k = self.options.first_k if self.options.credit == "first_k" else None
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

    def _grade(self, program: str, tests: StdinTests | FunctionTests | AssertTests) -> list[TestResult]:
        tolerance = self.options.float_tolerance
        if isinstance(tests, StdinTests):
            all_needed = self.options.credit == "all_or_nothing"
            return grade_stdin(self.sandbox, program, tests, tolerance, all_needed=all_needed)
        if isinstance(tests, FunctionTests):
            return grade_functions(self.sandbox, program, tests, tolerance)
        return grade_asserts(self.sandbox, program, tests)

    def _verdict(self, results: Sequence[TestResult], total: int, how: str) -> Verdict:
        """results: of the tests that were run, in order; those not run did not pass."""
        passed = sum(result.passed for result in results)
        unsafe = "NO ISOLATION; " if self.sandbox.tier is Tier.UNSAFE else ""
        evidence = f"{unsafe}{how}; {passed} of {total} tests passed"
        if passed == total:
            return Verdict(1.0, Status.CORRECT, evidence)
        number, first = next((i, result) for i, result in enumerate(results, start=1) if not result.passed)
        score = 0.0 if self.options.credit == "all_or_nothing" else passed / total
        return Verdict(score, first.status, f"{evidence}; test {number}: {first.status}: {first.words}")


def complete(program: str, problem: Problem) -> str:
    """The program to run: a continuation gets its prompt, a whole function gets the prompt's imports and helpers."""
    if not problem.entry_point:
        return program
    definition = re.compile(rf"^(?:async +)?def +{re.escape(problem.entry_point)}\b", re.MULTILINE)
    if not definition.search(program):
        return problem.prompt + program
    before = definition.search(problem.prompt)
    return problem.prompt[: before.start()] + "\n" + program if before else program
