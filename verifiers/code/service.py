"""The server's side of `assay serve-sandbox`: programs of trainers on other machines, judged here.

A row has ``response``, ``gold`` and ``meta``: {"run": the fields of `Order`} and, if nothing is to be extracted,
{"response_is_program": true}. How to judge comes with each row, because it is the recipe's; the isolation and the
packages are this machine's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from verifiers.code.box import Limits
from verifiers.code.judging import IS_PROGRAM, Judging, judge_response
from verifiers.code.sandbox import Sandbox
from verifiers.code.session import Session
from verifiers.errors import BadGold
from verifiers.options import parse_options
from verifiers.rows import RowError
from verifiers.runner import judge
from verifiers.verdict import Verdict, VerifyRequest

RUN = "run"


class Order(Judging):
    """How a response is judged, and within which limits. budget_s: seconds for all of its tests; if they are over it
    has no score."""

    timeout_s: float = Field(gt=0)
    memory_mb: int = Field(ge=1)
    budget_s: float = Field(gt=0)


def request_of(row: Mapping[str, Any]) -> VerifyRequest:
    """Raises `BadGold` or `RowError`."""
    response, meta = row.get("response"), row.get("meta")
    if not isinstance(response, str):
        raise RowError("The row has no 'response' that is a string.")
    if not isinstance(meta, dict) or not isinstance(meta.get(RUN), dict):
        raise RowError(f"The row's 'meta' has no '{RUN}' that is an object.")
    if "gold" not in row:
        raise BadGold("The row has no 'gold'.")
    return VerifyRequest(response, row["gold"], meta)


class SandboxService:
    """Judges for `VerifierServer`; the sandbox stays the caller's. Thread safe: each row waits for a free worker."""

    kind = "code"

    def __init__(self, sandbox: Sandbox, packages: Sequence[str]):
        self._sandbox, self._packages = sandbox, tuple(packages)

    def info(self) -> dict[str, Any]:
        """What a trainer must know before it sends programs."""
        return {"tier": str(self._sandbox.tier), "workers": self._sandbox.workers, "packages": list(self._packages)}

    def verify(self, requests: Sequence[VerifyRequest]) -> list[Verdict]:
        """One verdict per request, in order. Raises RuntimeError once the sandbox is closed: whatever was found then
        says nothing about the programs."""
        verdicts = [judge(_Ordered(self._sandbox), request) for request in requests]
        if self._sandbox.closed:
            raise RuntimeError("the sandbox is closed")
        return verdicts


class _Ordered:
    """A verifier that judges each request as it says itself."""

    isolated = False

    def __init__(self, sandbox: Sandbox):
        self._sandbox = sandbox

    def verify(self, request: VerifyRequest) -> Verdict:
        order = parse_options(Order, request.meta[RUN], key=RUN)
        limits = Limits(order.timeout_s, order.memory_mb, order.output_kb)
        session = Session(self._sandbox, limits, time.monotonic() + order.budget_s)
        meta = {IS_PROGRAM: request.meta.get(IS_PROGRAM)}
        return judge_response(session, order, VerifyRequest(request.response, request.gold, meta, request.example_id))

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        raise BadGold("A sandbox server does not give gold responses.")
