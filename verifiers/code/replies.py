"""What the trusted parent reads from the sandbox's processes, besides plain data (see `inside.plain`): how a run ended,
what a zygote or the launcher answers, how a step of tests that run apart came out.

All of it is hostile: a program that took over its zygote could write any of these. Every function here raises
`BadReply` and nothing else; a message is at most `MAX_MESSAGE_BYTES` long, and takes memory in proportion to that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

MAX_MESSAGE_BYTES = 1 << 16
STOPPED = ("", "killed", "wall", "files")
STEPS = ("passed", "wrong", "error", "unsupported")


class BadReply(ValueError):
    """Not what this process may say."""


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended. ready: it was locked in when it did. note: the program's last words. stopped: why the zygote
    ended it, one of `STOPPED`. status: exit code, or the number of the signal that ended it, negative."""

    ready: bool
    note: str
    stopped: str = ""
    status: int = 0
    cpu_s: float = 0.0


def read_end(message: bytes) -> End:
    fields = _fields(message, {"ready": bool, "note": str, "stopped": str, "status": int, "cpu_s": float})
    if fields["stopped"] not in STOPPED or not -64 <= fields["status"] <= 255:
        raise BadReply("not an end of a run")
    return End(**fields)


def read_greeting(message: bytes) -> tuple[list[str], int]:
    """Of a zygote that is ready: the packages that cannot be imported, and the kernel's version of Landlock."""
    fields = _fields(message, {"missing": list, "landlock": int})
    if any(type(name) is not str for name in fields["missing"]):
        raise BadReply("not a greeting")
    return fields["missing"], fields["landlock"]


def read_started(message: bytes) -> int:
    """The process id of a zygote that the launcher has started. `BadReply` also if it says that it could not."""
    try:
        pid = _fields(message, {"pid": int})["pid"]
    except BadReply:
        raise BadReply(_fields(message, {"error": str})["error"]) from None
    if pid <= 0:
        raise BadReply("not a process")
    return pid


def read_step(line: bytes) -> tuple[str, str]:
    """(one of `STEPS`, words) of a step of tests that run apart."""
    step = _fields(line, {"done": list})["done"]
    if [type(part) for part in step] != [str, str] or step[0] not in STEPS:
        raise BadReply("not a step")
    return step[0], step[1]


def _fields(message: bytes, kinds: dict[str, type]) -> dict[str, Any]:
    """The object in the message, which has these keys, with values of exactly these types, and no others."""
    if len(message) > MAX_MESSAGE_BYTES:
        raise BadReply("too long")
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, too many digits, nested too deep
        raise BadReply(type(error).__name__) from None
    if type(fields) is not dict or {key: type(value) for key, value in fields.items()} != kinds:
        raise BadReply("not what it should say")
    return fields
