"""The zygote: an interpreter with its libraries loaded, from which each run is cloned. It sees no test, no expected
value and no secret; the parent can tell it to start a run and to kill it.

Standard library only. Started by path, with the launcher's process id as argument and the control socket as
descriptor 3.
"""

from __future__ import annotations

import _sitebuiltins
import builtins
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import kernel
import light_threading  # noqa: F401 (before anything else imports `threading`)
import plain  # noqa: F401 (loaded here, so that runs need not)
import program
import scratch

sys.path.pop(0)

_CONTROL_FD = 3
LIBRARIES = ("array", "ast", "bisect", "cmath", "collections", "copy", "datetime", "dataclasses", "decimal", "enum",
              "fractions", "functools", "hashlib", "heapq", "io", "itertools", "json", "math", "operator", "queue",
              "random", "re", "statistics", "string", "textwrap", "threading", "time", "typing")  # fmt: skip
_SCRATCH_CHECK_S = 0.05
_MAX_MESSAGE_BYTES = 1 << 16
_NOTE_BYTES = 1024


def main() -> None:
    control = socket.socket(fileno=_CONTROL_FD)
    walls = json.loads(control.recv(_MAX_MESSAGE_BYTES))
    walls["seccomp"] = bytes.fromhex(walls["seccomp"])
    if walls["tier"] != "namespaces":
        kernel.die_with_parent(int(sys.argv[1]))
        kernel.hide_from_other_processes()
    kernel.drop_capability_bounds()
    missing = _load(walls)
    abi = kernel.landlock_abi()
    walls["landlock"] = walls["landlock"] and abi > 0
    walls["zygote_pid"] = os.getpid()
    walls["baseline_bytes"] = kernel.address_space_bytes()
    if walls["tier"] != "namespaces":
        walls["home"] = os.path.join(walls["home"], "run")
    program.prepare(walls)
    gc.collect()
    gc.freeze()
    control.send(json.dumps({"missing": missing, "landlock": abi}).encode())
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _MAX_MESSAGE_BYTES, 2)
        if not message:
            return
        if len(descriptors) == 2:  # else a "kill" for a run that has just ended
            control.send(json.dumps(_run(control, json.loads(message), descriptors, walls)).encode())


def _load(walls: dict) -> list[str]:
    """Import what programs commonly use; the names of the packages that cannot be."""
    sys.path.append(walls["packages_folder"])
    for name in LIBRARIES:
        importlib.import_module(name)
    # What `site` would give, which is not imported: it would add the user's packages.
    builtins.exit, builtins.quit = _sitebuiltins.Quitter("exit", "Ctrl-D"), _sitebuiltins.Quitter("quit", "Ctrl-D")
    builtins.help = _sitebuiltins._Helper()
    missing = []
    for name in walls["packages"]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name}: {error}")
    return missing


def _run(control: socket.socket, order: dict, descriptors: list[int], walls: dict) -> dict:
    note_reader, note_writer = os.pipe()
    home = walls["home"]
    isolated = walls["tier"] == "namespaces"
    if not isolated:
        scratch.remove(home)
        os.mkdir(home, 0o700)
    try:
        pid = kernel.clone_into_namespaces() if isolated else os.fork()
        if pid == 0:
            try:
                control.close()
                os.close(note_reader)
                request, output = descriptors
                program.run(request, output, note_writer, walls)
            except BaseException as error:  # noqa: BLE001 (said to the parent, which counts it as our fault)
                program.say_setup_failed(error, note_writer)
            finally:
                os._exit(program.EXIT_ERROR)
        os.close(note_writer)
        stopped = _wait(control, pid, order, None if isolated else home, walls)
        _, status, usage = os.wait4(pid, 0)
        os.set_blocking(note_reader, False)
        try:
            note = os.read(note_reader, _NOTE_BYTES)
        except BlockingIOError:
            note = b""
    finally:
        os.close(note_reader)
        for descriptor in descriptors:
            os.close(descriptor)
        if not isolated:
            scratch.remove(home)
    return {
        "ready": note.startswith(b"+"),
        "note": note.removeprefix(b"+").decode("utf-8", "replace"),
        "stopped": stopped,
        "status": os.waitstatus_to_exitcode(status),
        "cpu_s": usage.ru_utime + usage.ru_stime,
    }


def _wait(control: socket.socket, pid: int, order: dict, home: str | None, walls: dict) -> str:
    """Wait for the run to end, and end it if it must; why it was ended ("" if it was not)."""
    process = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.register(control, select.POLLIN)
    deadline = time.monotonic() + order["wall_s"]
    max_bytes = walls["home_bytes"] + order["stdin_bytes"]
    stopped = ""
    try:
        while not stopped:
            left = deadline - time.monotonic()
            events = [fd for fd, _ in poll.poll(1000 * max(0.0, left if home is None else min(left, _SCRATCH_CHECK_S)))]
            if process in events:
                return ""
            if events:
                if not control.recv(_MAX_MESSAGE_BYTES):
                    os._exit(0)  # the parent has gone; what it started dies with this process
                stopped = "killed"
            elif left <= 0:
                stopped = "wall"
            elif home is not None and scratch.exceeds(home, max_bytes, walls["home_files"]):
                stopped = "files"
        os.kill(pid, signal.SIGKILL)
        return stopped
    finally:
        os.close(process)


if __name__ == "__main__":
    main()
