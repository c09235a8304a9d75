"""The trainer's side of `assay serve-sandbox`: programs are sent to the servers that are free and alive.

One exchange judges one response, so verdicts stream back as they are found. An exchange that fails is repeated on
another server; a response that no server judges is a fault, never a 0.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from verifiers.adapters.remote import RemoteRunner, Unanswered
from verifiers.code.judging import IS_PROGRAM, OUT_OF_TIME
from verifiers.code.service import RUN
from verifiers.code.walls import Tier
from verifiers.errors import ConfigError, VerifierError
from verifiers.verdict import Status, Verdict, VerifyRequest

MAX_BUDGET_S = 300.0
MIN_SECRET_CHARS = 16
_GRACE_S = 30.0  # for the way there and back, beyond the time for the tests
_AHEAD = 1  # requests on their way to a server all of whose workers are busy
_DOWN_S = 5.0  # for which a server that failed is not asked
_LOOK_S = 0.5
PATIENCE_S = 30.0  # without an answer of any server
_LOG = logging.getLogger(__name__)


def secret_of(variable: str, where: str) -> str:
    """The secret in an environment variable. Raises `ConfigError` if there is none, or one that can be guessed."""
    secret = os.environ.get(variable, "").strip()
    if len(secret) < MIN_SECRET_CHARS:
        raise ConfigError(
            f"The environment variable {variable} holds no secret of at least {MIN_SECRET_CHARS} characters.",
            where=where,
            why="whoever can guess it runs programs on the sandbox servers",
            fix=f'{variable}=$(python -c "import secrets; print(secrets.token_urlsafe(32))"), the same on all machines',
        )
    return secret


class Servers:
    """urls: as `assay serve-sandbox` prints them. secret: theirs. ca_file: see `RemoteRunner`. isolation, packages:
    what the programs need; a server that has something else is refused. key: the recipe key, for messages. Thread safe.

    Raises `VerifierError` if no server answers, or one refuses us or is not fit.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        secret: str,
        ca_file: str | None,
        isolation: str,
        packages: Sequence[str],
        key: str,
    ):
        self._isolation, self._packages, self._key = isolation, tuple(packages), key
        self.counters: Counter[str] = Counter()  # exchanges, retries, faults
        self._free = threading.Condition()
        self._last_answer = time.monotonic()
        self._servers = [_Server(RemoteRunner(url, token=secret, ca_file=ca_file)) for url in urls]
        causes = [cause for server in self._servers if (cause := self._try_to_meet(server))]
        if len(causes) == len(urls):
            raise VerifierError(
                "No sandbox server answers: " + "; ".join(causes) + ".",
                where=f"{key}.servers",
                why="without one no program can be judged",
                fix="start `assay serve-sandbox` there, and check urls, certificates and firewalls",
            )
        for cause in causes:
            _LOG.warning("a sandbox server does not answer: %s", cause)

    @property
    def slots(self) -> int:
        """Requests that can be on their way at one time."""
        return sum(server.slots for server in self._servers)

    def judge(self, request: VerifyRequest, order: Mapping[str, Any], deadline: float) -> Verdict:
        """order: fields of `service.Order` but the budget. deadline: by `time.monotonic`."""
        causes: list[str] = []
        for attempt in range(max(3, 2 * len(self._servers))):
            if attempt:
                self._count("retries")
            budget_s = min(MAX_BUDGET_S, deadline - time.monotonic())
            if budget_s <= 0:
                return OUT_OF_TIME
            meta = {IS_PROGRAM: bool(request.meta.get(IS_PROGRAM)), RUN: {**order, "budget_s": budget_s}}
            try:
                with self._free_server() as server:
                    return self._ask(server, VerifyRequest(request.response, request.gold, meta), budget_s + _GRACE_S)
            except Unanswered as error:
                causes.append(str(error))
                if not error.may_retry:
                    break
        self._count("faults")
        return Verdict(None, Status.VERIFIER_FAULT, f"no sandbox server gave a verdict: {'; '.join(causes)}")

    def _ask(self, server: _Server, request: VerifyRequest, timeout_s: float) -> Verdict:
        self._count("exchanges")
        try:
            self._meet(server)
            verdict = server.runner.verify_once(request, timeout_s)
        except Unanswered as error:
            if error.may_retry:
                server.is_known = False
                server.down_until = time.monotonic() + _DOWN_S
            raise Unanswered(f"{server.runner.url}: {error}", may_retry=error.may_retry) from error
        self._last_answer = time.monotonic()
        return verdict

    @contextmanager
    def _free_server(self) -> Iterator[_Server]:
        """The least busy of the servers that are up. Raises `Unanswered` if none has been for `PATIENCE_S`."""
        with self._free:
            while (server := self._least_busy()) is None:
                self._free.wait(_LOOK_S)
            server.busy += 1
        try:
            yield server
        finally:
            with self._free:
                server.busy -= 1
                self._free.notify_all()

    def _least_busy(self) -> _Server | None:
        now = time.monotonic()
        up = [server for server in self._servers if server.down_until <= now]
        if not up and now - self._last_answer > PATIENCE_S:
            raise Unanswered(f"none has answered for {PATIENCE_S:g} s", may_retry=False)
        # A server that failed is tried by one request only.
        free = [server for server in up if server.busy < (server.slots if server.is_known else 1)]
        return min(free, key=lambda server: server.busy / server.slots, default=None)

    def _try_to_meet(self, server: _Server) -> str | None:
        """Why it cannot be used now, or None."""
        try:
            self._meet(server)
        except Unanswered as error:
            server.down_until = time.monotonic() + _DOWN_S
            return f"{server.runner.url}: {error}"
        return None

    def _meet(self, server: _Server) -> None:
        """Ask a server that is not known, or was down, what it has: it may have been started anew. Raises `Unanswered`,
        and `VerifierError` if it is not fit."""
        if server.is_known:
            return
        info = server.runner.health()
        try:
            tier, workers, packages = Tier(info["tier"]), int(info["workers"]), frozenset(info["packages"])
        except (KeyError, ValueError, TypeError) as error:
            raise self._unfit(server, f"it is no sandbox server ({error!r})") from error
        missing = sorted(set(self._packages) - packages)
        if missing:
            raise self._unfit(server, f"its programs cannot import {', '.join(missing)}")
        if self._isolation != tier and (self._isolation != "auto" or tier is Tier.UNSAFE):
            raise self._unfit(server, f"its tier is {tier}, and {self._key}.isolation={self._isolation}")
        server.slots = workers + _AHEAD
        server.is_known = True

    def _unfit(self, server: _Server, why: str) -> VerifierError:
        return VerifierError(
            f"The sandbox server {server.runner.url} cannot be used: {why}.", where=f"{self._key}.servers"
        )

    def _count(self, event: str) -> None:
        with self._free:
            self.counters[event] += 1


class _Server:
    def __init__(self, runner: RemoteRunner):
        self.runner = runner
        self.is_known = False
        self.slots, self.busy = 1 + _AHEAD, 0
        self.down_until = 0.0
