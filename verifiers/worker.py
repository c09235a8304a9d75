"""The program of a worker process: ``python -m verifiers.worker``, started by `verifiers.pool`.

It reads one set-up message, builds the verifier, answers "ready", then judges requests one at a time, each with a reply
of its own, until its standard input ends, which is also what happens when the parent dies.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verifiers.errors import BadGold
from verifiers.process import FrameReader, encode
from verifiers.runner import describe_error, explain, judge
from verifiers.verdict import VERIFIERS, Status, Verifier, VerifyRequest

# The parent kills at the time limit; this much later the worker ends itself, in case the parent is gone.
_ORPHAN_GRACE_S = 10.0
_REARM_S = 1.0
_READ_BYTES = 2**18
_STDERR_MAX_BYTES = 2**20
_STATM = Path("/proc/self/statm")


def main() -> None:
    requests_fd, replies_fd = _take_over_standard_pipes()
    faulthandler.enable()
    watchdog = _Watchdog()
    messages = _messages(requests_fd, watchdog)
    setup = next(messages, None)
    if setup is None:
        return
    watchdog.limit_s = setup["timeout_s"] + _ORPHAN_GRACE_S
    verifier_class = VERIFIERS.get(setup["kind"])
    verifier = verifier_class(verifier_class.Options.model_validate_json(setup["options_json"]))
    _cap_memory(setup["memory_mb"])
    _write(replies_fd, encode({"ready": True}))
    for message in messages:
        watchdog.arm()
        _trim_stderr()
        reply = _answer(verifier, message)
        _write(replies_fd, encode(reply))
        if reply.get("retire"):
            return


def _answer(verifier: Verifier, message: dict[str, Any]) -> dict[str, Any]:
    call = message["call"]
    if call == "verify":
        return _verify(verifier, _request(message))
    try:
        if call == "explain":
            return {"rows": explain(verifier, _request(message))}
        if call == "wrap_gold_response":
            return {"text": verifier.wrap_gold_response(message["text"])}  # type: ignore[attr-defined]
        return {"text": verifier.gold_response(message["gold"], message["meta"])}
    except BadGold as error:
        return {"bad_gold": str(error)}
    except Exception as error:  # noqa: BLE001 (handed to the parent, which raises it)
        return {"fault": describe_error(error)}


def _request(message: dict[str, Any]) -> VerifyRequest:
    return VerifyRequest(message["response"], message["gold"], message["meta"], message["example_id"])


def _verify(verifier: Verifier, request: VerifyRequest) -> dict[str, Any]:
    verdict = judge(verifier, request)
    return {
        "score": verdict.score,
        "status": verdict.status,
        "evidence": verdict.evidence,
        "milliseconds": verdict.milliseconds,
        "answer": verdict.answer,
        "parts": dict(verdict.parts),
        "retire": verdict.status is Status.MEMORY,  # a process that ran out of memory is not to be trusted
    }


class _Watchdog:
    """Ends this process when a call runs on and nobody kills it. A thread in C: it needs neither a signal nor the
    interpreter lock, which a long C call may hold. Starting that thread costs more than a cheap verdict, so it is
    started once a second at most."""

    def __init__(self) -> None:
        self.limit_s = 0.0
        self._armed_at: float | None = None

    def arm(self) -> None:
        now = time.monotonic()
        if self._armed_at is None or now - self._armed_at > _REARM_S:
            faulthandler.dump_traceback_later(self.limit_s, exit=True)
            self._armed_at = now

    def disarm(self) -> None:
        if self._armed_at is not None:
            faulthandler.cancel_dump_traceback_later()
            self._armed_at = None


def _take_over_standard_pipes() -> tuple[int, int]:
    """Keep the pipes for the protocol, and give libraries that read or print /dev/null instead."""
    requests_fd, replies_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return requests_fd, replies_fd


def _messages(requests_fd: int, watchdog: _Watchdog) -> Iterator[dict[str, Any]]:
    reader = FrameReader()
    while data := os.read(requests_fd, _READ_BYTES):
        reader.feed(data)
        yield from reader.messages()
        watchdog.disarm()  # the next read may wait for long


def _write(replies_fd: int, frame: bytes) -> None:
    rest = memoryview(frame)
    while rest:
        rest = rest[os.write(replies_fd, rest) :]


def _trim_stderr() -> None:
    """Keep a chatty library from filling the disk over a long run."""
    if os.fstat(2).st_size > _STDERR_MAX_BYTES:
        os.ftruncate(2, 0)


def _cap_memory(memory_mb: int) -> None:
    """Allow `memory_mb` MiB of address space beyond what the loaded verifier takes. Linux only: elsewhere the system
    does not enforce such a limit."""
    if not _STATM.exists():
        return
    used_bytes = int(_STATM.read_text().split()[0]) * resource.getpagesize()
    cap_bytes = used_bytes + memory_mb * 2**20
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or cap_bytes < hard:
        resource.setrlimit(resource.RLIMIT_AS, (cap_bytes, hard))


if __name__ == "__main__":
    main()
