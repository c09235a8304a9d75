"""The program of a worker process: ``python -m verifiers.worker``, started by `verifiers.pool`.

It reads one set-up message, builds the verifier, answers "ready", then judges requests one at a time until its standard
input ends, which is also what happens when the parent dies.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
from pathlib import Path
from typing import Any, BinaryIO

from verifiers.errors import BadGold
from verifiers.pool import HEADER, encode
from verifiers.runner import describe_error, judge
from verifiers.verdict import VERIFIERS, Status, Verifier, VerifyRequest

# The parent kills at the time limit; this much later the worker ends itself, in case the parent is gone.
_ORPHAN_GRACE_S = 10.0
_STATM = Path("/proc/self/statm")


def main() -> None:
    requests, replies = _take_over_standard_pipes()
    faulthandler.enable()
    setup = _read(requests)
    if setup is None:
        return
    verifier_class = VERIFIERS.get(setup["kind"])
    verifier = verifier_class(verifier_class.Options.model_validate_json(setup["options_json"]))
    _cap_memory(setup["memory_mb"])
    replies.write(encode({"ready": True}))
    while (message := _read(requests)) is not None:
        # A watchdog thread in C: it needs neither a signal nor the interpreter lock, which a long C call may hold.
        faulthandler.dump_traceback_later(setup["timeout_s"] + _ORPHAN_GRACE_S, exit=True)
        reply = _answer(verifier, message)
        faulthandler.cancel_dump_traceback_later()
        replies.write(encode(reply))


def _answer(verifier: Verifier, message: dict[str, Any]) -> dict[str, Any]:
    if message["call"] == "gold_response":
        try:
            return {"text": verifier.gold_response(message["gold"], message["meta"])}
        except BadGold as error:
            return {"bad_gold": str(error)}
        except Exception as error:  # noqa: BLE001 (handed to the parent, which raises it)
            return {"fault": describe_error(error)}
    request = VerifyRequest(message["response"], message["gold"], message["meta"], message["example_id"])
    verdict = judge(verifier, request)
    return {
        "score": verdict.score,
        "status": verdict.status,
        "evidence": verdict.evidence,
        "milliseconds": verdict.milliseconds,
        "answer": verdict.answer,
        "retire": verdict.status is Status.MEMORY,  # a process that ran out of memory is not to be trusted
    }


def _take_over_standard_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep the pipes for the protocol, and give libraries that read or print /dev/null instead."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return os.fdopen(requests, "rb"), os.fdopen(replies, "wb", buffering=0)


def _read(requests: BinaryIO) -> dict[str, Any] | None:
    header = requests.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    body = requests.read(length)
    return json.loads(body) if len(body) == length else None


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
