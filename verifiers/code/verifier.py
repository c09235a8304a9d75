"""Kind ``code``: programs against tests, in a sandbox.

The gold holds the tests: ``{"type": "stdin_stdout", "inputs", "outputs"}``, ``{"type": "functional", "fn_name",
"inputs", "outputs"}``, ``{"type": "assert", "asserts"}``, or a row of HumanEval, MBPP, EvalPlus, APPS, TACO,
CodeContests or LiveCodeBench as published.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, Literal

from pydantic import Field

from verifiers.code.box import Limits
from verifiers.code.judging import IS_PROGRAM, Judging, complete, judge_response
from verifiers.code.readers import read_problem
from verifiers.code.sandbox import Sandbox
from verifiers.code.session import Session
from verifiers.errors import BadGold, NoReference
from verifiers.rows import RowError
from verifiers.runner import judge
from verifiers.verdict import VERIFIERS, Verdict, VerifyRequest

SECRET_ENV = "ASSAY_SANDBOX_SECRET"
_SOLUTION_FIELDS = ("solution", "canonical_solution", "code")


@VERIFIERS.register("code")
class CodeVerifier:
    """Runs the program of a response. The sandbox is started, and attacked to see that it holds, when this is built;
    `close` ends it. Raises `VerifierError` where no isolation works."""

    isolated = False  # it has processes of its own,
    takes_limits = True  # and so is built with the runner's limits
    default_timeout_s = 5.0
    default_memory_mb = 1024

    class Options(Judging):
        """packages: import names that programs may use besides the standard library. isolation: "auto" is the strongest
        that works; "unsafe" runs programs with your files, keys and network within their reach. batch_timeout_s: a
        batch that takes longer ends then; what is not judged by then has no score. servers: urls of `assay
        serve-sandbox`, which then run all programs. secret_env: the environment variable with their secret. servers_ca:
        file with the certificates to trust instead of the system's."""

        packages: list[str] = ["numpy"]  # noqa: RUF012 (pydantic copies it)
        isolation: Literal["auto", "namespaces", "landlock", "unsafe"] = "auto"
        batch_timeout_s: float | None = Field(default=None, gt=0)
        servers: list[str] = []  # noqa: RUF012
        secret_env: str = SECRET_ENV
        servers_ca: str | None = None

    def __init__(
        self,
        options: Options,
        *,
        timeout_s: float = default_timeout_s,
        memory_mb: int = default_memory_mb,
        workers: int = 2,
        key: str = "verifier",
    ):
        """timeout_s: CPU seconds of one run, rounded up to whole ones; the wall-clock limit is twice that and one more.
        memory_mb: MiB of address space beyond what the loaded interpreter takes. workers: programs at one time. key:
        the recipe key, for messages."""
        self.options = options
        self.limits = Limits(timeout_s, memory_mb, options.output_kb)
        self._deadline = math.inf  # by `time.monotonic`
        self._sandbox = self._servers = None
        if options.servers:
            from verifiers.code.servers import Servers, secret_of  # brings an HTTP client

            self._servers = Servers(
                options.servers, secret=secret_of(options.secret_env, f"{key}.secret_env"), ca_file=options.servers_ca,
                isolation=options.isolation, packages=options.packages, key=key,
            )  # fmt: skip
        else:
            self._sandbox = Sandbox(
                workers=workers, packages=options.packages, isolation=options.isolation, limits=self.limits, key=key
            )

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox of this machine; there is none with `servers`."""
        assert self._sandbox is not None
        return self._sandbox

    @classmethod
    def request_of(cls, row: Mapping[str, Any]) -> VerifyRequest:
        """A row of `assay verify`: ``code``, or ``response``, from which the program is extracted; ``tests`` or
        ``gold``. Raises `BadGold` or `RowError`."""
        field = "code" if row.get("code") is not None else "response"
        if not isinstance(row.get(field), str):
            raise RowError("The row has neither 'code' nor 'response' that is a string.")
        if row.get("tests") is None and row.get("gold") is None:
            raise BadGold("The row has no 'tests'.")
        tests = row["gold"] if row.get("tests") is None else row["tests"]
        return VerifyRequest(row[field], tests, {IS_PROGRAM: True} if field == "code" else {})

    def verify(self, request: VerifyRequest) -> Verdict:
        if self._servers is not None:
            return self._servers.judge(request, self._order(), self._deadline)
        session = Session(self.sandbox, self.limits, self._deadline)
        return judge_response(session, self.options, request)

    def verify_many(self, requests: Sequence[VerifyRequest]) -> list[Verdict]:
        """One verdict per request, in order; `workers` at a time. A fault is a verdict without a score."""
        return self.submit(requests)()

    def submit(self, requests: Sequence[VerifyRequest]) -> Callable[[], list[Verdict]]:
        """Begin, and return at once; the function returned waits for the verdicts, in order."""
        futures = self._begin(requests)
        return lambda: [future.result() for future in futures]

    def stream(self, requests: Sequence[VerifyRequest]) -> Iterator[tuple[int, Verdict]]:
        """(index, verdict) of each request as it is judged. What has not begun when the iterator is closed never
        does."""
        numbers = {future: number for number, future in enumerate(self._begin(requests))}
        try:
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        finally:
            for future in numbers:
                future.cancel()

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        """The reference solution, from the gold or the meta data ("solution", or the dataset's own name for it). Raises
        `NoReference` if there is none."""
        problem = read_problem(gold)
        for fields in (gold, meta):
            for name in _SOLUTION_FIELDS:
                if isinstance(fields.get(name), str):
                    return f"```python\n{complete(fields[name], problem)}\n```"
        raise NoReference(
            "The gold has no reference solution.",
            fix=f"add one to the gold or the meta data (it is looked for as {', '.join(_SOLUTION_FIELDS)})",
        )

    def close(self) -> None:
        if self._sandbox is not None:
            self._sandbox.close()

    def _order(self) -> dict[str, Any]:
        fields = self.options.model_dump(include=set(Judging.model_fields))
        return {**fields, "timeout_s": self.limits.timeout_s, "memory_mb": self.limits.memory_mb}

    def _begin(self, requests: Sequence[VerifyRequest]) -> list[Future[Verdict]]:
        limit_s = self.options.batch_timeout_s
        batch = copy.copy(self)  # of the same sandbox
        batch._deadline = math.inf if limit_s is None else time.monotonic() + limit_s
        at_one_time = self.sandbox.workers if self._servers is None else self._servers.slots
        executor = ThreadPoolExecutor(at_one_time, thread_name_prefix="code")
        futures = [executor.submit(judge, batch, request) for request in requests]
        executor.shutdown(wait=False)  # its threads end with the last request
        return futures
