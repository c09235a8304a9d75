"""The launcher: a small process with a clean environment that starts the zygotes, so that the trainer need not fork,
and that ends them when the trainer dies, however it dies.

Standard library only. Started by path with FOLDER and TRAINER_PID as arguments, and the control socket as its standard
input. FOLDER is removed at the end. Orders, one message each: {"start": argv, "environment": {...}, "home": folder}
with the zygote's end of its control socket and a file for its standard error, answered by {"pid": n} (the launcher's
own id is added to argv); {"end": pid}, which also removes its home, answered by {}.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

# By path: this interpreter knows nothing of the project.
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "inside"))
import scratch  # pyright: ignore[reportMissingImports]

_CONTROL_FD = 0
_MAX_MESSAGE_BYTES = 1 << 16


def main(folder: str, trainer_pid: int) -> None:
    control = socket.socket(fileno=_CONTROL_FD)
    started: dict[int, str] = {}
    try:
        trainer = os.pidfd_open(trainer_pid)
        if os.getppid() != trainer_pid:
            return
        poll = select.poll()
        poll.register(control, select.POLLIN)
        poll.register(trainer, select.POLLIN)
        while trainer not in [descriptor for descriptor, _ in poll.poll()]:
            message, descriptors, _, _ = socket.recv_fds(control, _MAX_MESSAGE_BYTES, 2)
            if not message:
                return
            control.send(json.dumps(_obey(json.loads(message), descriptors, started)).encode())
    except (ProcessLookupError, BrokenPipeError, ConnectionResetError):
        return  # the trainer has gone
    finally:
        for pid in list(started):
            _end(pid, started)
        scratch.remove(folder)


def _obey(order: dict[str, Any], descriptors: list[int], started: dict[int, str]) -> dict[str, Any]:
    if "end" in order:
        _end(order["end"], started)
        return {}
    control, stderr = descriptors
    null = os.open(os.devnull, os.O_RDWR)
    argv = [*order["start"], str(os.getpid())]
    files = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, stderr, 2),
             (os.POSIX_SPAWN_DUP2, control, 3)]  # fmt: skip
    try:
        pid = os.posix_spawn(argv[0], argv, order["environment"], file_actions=files, setsid=True)
    except OSError as error:
        return {"error": str(error)}
    finally:
        for descriptor in (null, control, stderr):
            os.close(descriptor)
    started[pid] = order["home"]
    return {"pid": pid}


def _end(pid: int, started: dict[int, str]) -> None:
    if pid not in started:
        return
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with suppress(OSError):  # what a dying run wrote just now is removed with FOLDER
        scratch.remove(started.pop(pid))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
