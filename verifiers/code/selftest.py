"""The sandbox attacks itself before it is used: a canary file, a listener, a way out by fork, exec, signal or trace."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path

from verifiers.code.box import Box, Ended, Limits, Run
from verifiers.code.inside import plain

_CANARY = "canary-of-the-sandbox"
_EXPECTED = [1, (2, "three")]
ATTACK = """
import ctypes, os, socket

def harmless():
    return [1, (2, "three")]

def attack(file, folder, port, name, memory, parent):
    libc = ctypes.CDLL(None, use_errno=True)
    def fork():
        if os.fork() == 0:
            os._exit(0)
        return True
    def allocate():
        block = bytearray(memory)
        block[::4096] = b"x" * len(block[::4096])
        return True
    def write():
        open(os.path.join(folder, "escaped"), "w").close()
        return True
    def trace():
        return os.getppid() > 0 and libc.ptrace(0x4206, os.getppid(), 0, 0) == 0
    def signal():
        if os.getppid() == 0:
            return False
        os.kill(os.getppid(), 0)
        return True
    def connect(family, address):
        with socket.socket(family) as connection:
            connection.connect(address)
        return True
    attempts = {
        "read a file of the host": lambda: bool(open(file).read()),
        "write a file of the host": write,
        "read /etc/passwd": lambda: bool(open("/etc/passwd").read()),
        "list a folder of the host": lambda: bool(os.listdir(os.path.dirname(file))),
        "read the parent's environment": lambda: bool(open("/proc/%d/environ" % parent, "rb").read()),
        "connect over TCP": lambda: connect(socket.AF_INET, ("127.0.0.1", port)),
        "connect to an abstract socket": lambda: connect(socket.AF_UNIX, "\\\\0" + name),
        "start a process": fork,
        "signal another process": signal,
        "trace another process": trace,
        "make a user namespace": lambda: libc.unshare(0x10000000) == 0,
        "exceed the memory limit": allocate,
        "execute a program": lambda: os.execv("/bin/true", ["true"]),  # last: if it works, nothing comes back
    }
    escaped = []
    for what, attempt in attempts.items():
        try:
            if attempt():
                escaped.append(what)
        except (OSError, MemoryError):
            pass
    return escaped
""".replace("\\\\0", "\\0")


def attack(box: Box, limits: Limits, *, harmless: bool) -> str | None:
    """What is wrong with the walls of this box, or None. harmless: only see that a program runs."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="assay-canary-")))
        file = folder / "canary"
        file.write_text(_CANARY)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        name = f"assay-canary-{os.getpid()}-{os.urandom(8).hex()}"
        abstract.bind("\0" + name)
        abstract.listen()
        memory = (limits.memory_mb + 64) << 20
        arguments = [str(file), str(folder), tcp.getsockname()[1], name, memory, os.getpid()]
        calls = [["call:harmless", [], {}]] + ([] if harmless else [["call:attack", arguments, {}]])
        with Run(box, {"kind": "calls", "keep_objects": False}, limits, source=ATTACK) as run:
            run.send("".join(plain.encode(call) + "\n" for call in calls).encode())
            run.close_input()
            outcome = run.finish()
        written = (folder / "escaped").exists()
    return _judge(outcome.ended, outcome.output, outcome.note, len(calls), written)


def _judge(ended: Ended, output: bytes, note: str, calls: int, written: bool) -> str | None:
    replies = []
    for line in output.splitlines():
        try:
            replies.append(plain.Decoder().reply(line))
        except plain.BadFrame as error:
            return f"a program does not run in it (bad answer: {error})"
    if replies[:1] == [("v", _EXPECTED)] and len(replies) < calls:
        return f"a program that attacks it does not come back ({ended}: {note})"
    if ended is not Ended.FINISHED or len(replies) != calls or replies[0] != ("v", _EXPECTED):
        return f"a program does not run in it ({ended}: {note or replies})"
    if calls > 1 and (written or replies[1] != ("v", [])):
        return f"a program that attacks it gets out: {replies[1][1]}"
    return None
