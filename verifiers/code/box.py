"""Parent side of the sandbox's processes: `Launcher`, `Box` (one zygote) and `Run` (one program in it)."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from verifiers.code import replies, walls
from verifiers.code.replies import BadReply, End
from verifiers.process import signal_name

START_TIMEOUT_S = 60.0
_GRACE_S = 10.0  # beyond a run's own limit: then the zygote itself hangs
_READ_BYTES = 1 << 18


class SandboxFault(Exception):
    """The sandbox, not the program, failed. One retry, then the response is not judged."""


class Ended(StrEnum):
    """How a run ended. FAULT is ours, all else the program's."""

    FINISHED = "finished"
    ERROR = "error"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_LIMIT = "output_limit"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one run. timeout_s: CPU seconds, rounded up to whole ones (the wall-clock limit is twice that and one second,
    for a program that waits instead of computing). memory_mb: MiB of address space beyond what the loaded interpreter
    takes. output_kb: KiB of output. max_wall_s: a lower wall-clock limit."""

    timeout_s: float = 5.0
    memory_mb: int = 1024
    output_kb: int = 4096
    max_wall_s: float = math.inf

    @property
    def cpu_s(self) -> int:
        return max(1, -int(-self.timeout_s // 1))

    @property
    def wall_s(self) -> float:
        return min(2 * self.timeout_s + 1, self.max_wall_s)


@dataclass(frozen=True, slots=True)
class Outcome:
    """note: the program's last words, not to be trusted. output: what it wrote, for the kinds that answer in one go."""

    ended: Ended
    output: bytes = b""
    note: str = ""


class Launcher:
    """The process that starts zygotes. Raises `SandboxFault` if it cannot start. Thread safe."""

    def __init__(self, folder: Path):
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The socket goes to the launcher as its standard input, which needs no code between fork and exec.
        argv = [walls.interpreter(), *walls.PYTHON_FLAGS, str(Path(__file__).with_name("launcher.py"))]
        self._process = subprocess.Popen(
            [*argv, str(folder), str(os.getpid())],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=walls.environment(),
            start_new_session=True,
        )
        theirs.close()
        self._control = mine
        self._lock = threading.Lock()

    def start(self, argv: list[str], control: socket.socket, stderr: BinaryIO, home: Path) -> int:
        """Start a zygote; its process id."""
        order = json.dumps({"start": argv, "environment": walls.environment(), "home": str(home)}).encode()
        with self._lock:
            reply = self._ask(order, [control.fileno(), stderr.fileno()])
        try:
            return replies.read_started(reply)
        except BadReply as error:
            raise SandboxFault(f"cannot start {argv[0]}: {error}") from error

    def end(self, pid: int) -> None:
        """Kill a zygote and what it started, and remove its folder."""
        with self._lock, contextlib.suppress(SandboxFault):  # a launcher that has gone took its zygotes along
            self._ask(json.dumps({"end": pid}).encode(), [])

    def close(self) -> None:
        """End the launcher, and with it everything it started; returns when all of it is gone."""
        self._control.close()
        try:
            self._process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def has_died(self) -> bool:
        return self._process.poll() is not None

    def abandon(self) -> None:
        """In a forked child: it is the parent's."""
        self._process.returncode = 0
        self._control.close()

    def _ask(self, order: bytes, descriptors: list[int]) -> bytes:
        try:
            socket.send_fds(self._control, [order], descriptors)
            return _receive(self._control, START_TIMEOUT_S)
        except OSError as error:
            raise SandboxFault(f"the launcher of the sandbox has died ({error})") from error


class Box:
    """One zygote. Raises `SandboxFault` if it cannot start; used by one thread at a time. home: its folder in the
    sandbox's, which the launcher removes with it."""

    def __init__(self, launcher: Launcher, argv: list[str], home: Path, description: dict[str, Any]):
        self._launcher = launcher
        self.runs = 0
        self.broken = False
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid: int | None = None
        with tempfile.TemporaryFile(buffering=0) as stderr:
            try:
                with theirs:
                    self._pid = launcher.start(argv, theirs, stderr, home)
                self.control.send(json.dumps(description).encode())
                self.missing_packages, self.landlock_abi = replies.read_greeting(
                    _receive(self.control, START_TIMEOUT_S)
                )
            except (OSError, SandboxFault, BadReply) as error:
                self.close()
                words = os.pread(stderr.fileno(), 2_000, 0).decode(errors="replace").strip()
                raise SandboxFault(words or str(error)) from error

    def close(self) -> None:
        self.broken = True
        self.control.close()
        if self._pid is not None:
            self._launcher.end(self._pid)
            self._pid = None

    def abandon(self) -> None:
        self.broken = True
        self.control.close()


class Run:
    """One program in a box, as a context manager: leaving it before `finish` breaks the box. `send` and `read_line`
    while it runs; `finish` for its outcome, once.

    header: see `inside.program`. A run that cannot start counts as ended by a fault.
    """

    def __init__(self, box: Box, header: dict[str, Any], limits: Limits, *, source: str = "", stdin: bytes = b""):
        box.runs += 1
        self._box = box
        self._max_output_bytes = limits.output_kb << 10
        self._deadline = time.monotonic() + limits.wall_s + _GRACE_S
        self._buffer = bytearray()
        self._received = 0
        self._over = False
        self._end: End | None = None
        program = source.encode("utf-8", "surrogatepass")
        header = {**header, "source_bytes": len(program), "stdin_bytes": len(stdin), "cpu_s": limits.cpu_s,
                  "memory_bytes": limits.memory_mb << 20}  # fmt: skip
        self._cpu_s = limits.cpu_s
        self._unsent = memoryview(json.dumps(header).encode() + b"\n" + program + stdin)
        order = {"wall_s": limits.wall_s, "stdin_bytes": len(stdin)}
        self._finished = False
        request, self._writer = os.pipe()
        self._reader, output = os.pipe()
        try:
            os.set_blocking(self._writer, False)
            os.set_blocking(self._reader, False)
            socket.send_fds(box.control, [json.dumps(order).encode()], [request, output])
        except OSError:
            self._fail()
        finally:
            os.close(request)
            os.close(output)
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)
        self._poll.register(box.control, select.POLLIN)
        self._poll.register(self._writer, select.POLLOUT)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._finished:
            self._box.broken = True  # its answer is still to come, and would be taken for that of the next run
        self._close_input()
        os.close(self._reader)

    def send(self, data: bytes) -> None:
        self._unsent = memoryview(bytes(self._unsent) + data)
        if self._writer >= 0:
            self._poll.register(self._writer, select.POLLOUT)

    def read_line(self) -> bytes | None:
        """The next line of output without its end; None if the run ended before one was complete."""
        while b"\n" not in self._buffer:
            if self._end is not None or self._over:
                return None
            self._step()
        end = self._buffer.index(b"\n")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def finish(self) -> Outcome:
        """Wait for the end."""
        while self._end is None:
            self._step()
        self._read()
        self._finished = True
        ended = self._classify(self._end)
        return Outcome(ended, bytes(self._buffer), _words(self._end))

    def close_input(self) -> None:
        """No more will be sent: what waits is sent, then the program's input ends."""
        while self._unsent and self._end is None:
            self._step()
        self._close_input()

    def kill(self) -> None:
        """End it now; `finish` still has to be called."""
        if self._end is None:
            with contextlib.suppress(OSError):
                self._box.control.send(b"kill")

    def _step(self) -> None:
        """Wait for one thing to happen, and see to it."""
        events = self._poll.poll(max(0.0, 1000 * (self._deadline - time.monotonic())))
        if not events:
            self._fail()
        for descriptor, _ in events:
            if descriptor == self._writer:
                self._write()
            elif descriptor == self._reader:
                self._read()
            elif self._end is None:
                try:
                    self._end = replies.read_end(_receive(self._box.control, 0.0))
                    self._read()
                except (OSError, SandboxFault, BadReply):
                    self._fail()

    def _write(self) -> None:
        try:
            if self._unsent:
                self._unsent = self._unsent[os.write(self._writer, self._unsent[:_READ_BYTES]) :]
        except BlockingIOError:
            return
        except OSError:  # it no longer reads
            self._close_input()
            return
        if not self._unsent:
            self._poll.unregister(self._writer)

    def _close_input(self) -> None:
        if self._writer >= 0:
            with contextlib.suppress(KeyError):
                self._poll.unregister(self._writer)
            os.close(self._writer)
            self._writer = -1
        self._unsent = memoryview(b"")

    def _read(self) -> None:
        """Take what is there. When the run has ended all it wrote is there: nothing here waits for the pipe's end,
        which a forked child of the trainer may keep open."""
        while not self._over:
            try:
                data = os.read(self._reader, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                with contextlib.suppress(KeyError):
                    self._poll.unregister(self._reader)
                return
            self._received += len(data)
            if self._received > self._max_output_bytes:
                self._over = True
                self._buffer.clear()
                self._poll.unregister(self._reader)
                self.kill()
            else:
                self._buffer += data

    def _fail(self) -> None:
        self._end = End(ready=False, note="the zygote has died or hangs")
        self._box.broken = True

    def _classify(self, end: End) -> Ended:
        if not end.ready and end.stopped != "killed":
            self._box.broken = True
            return Ended.FAULT
        if self._over or end.stopped == "files":
            return Ended.OUTPUT_LIMIT
        by_limit = end.status in (-signal.SIGKILL, -signal.SIGXCPU) and end.cpu_s > self._cpu_s - 0.5
        if end.stopped == "wall" or by_limit:
            return Ended.TIMEOUT
        if end.status == 0 or end.stopped == "killed":
            return Ended.FINISHED
        if end.status == -signal.SIGKILL:  # by the kernel, whose memory ran out: not the program's doing
            return Ended.FAULT
        return Ended.MEMORY if end.note.startswith("MemoryError") else Ended.ERROR


def _words(end: End) -> str:
    if end.note or end.status >= 0:
        return end.note
    try:
        return f"ended by {signal_name(-end.status)}"
    except ValueError:  # most real-time signals have no name
        return f"ended by signal {-end.status}"


def _receive(control: socket.socket, timeout_s: float) -> bytes:
    """One message. Raises `SandboxFault` if none comes."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    if not poll.poll(1000 * timeout_s):
        raise SandboxFault("no answer in time")
    message = control.recv(replies.MAX_MESSAGE_BYTES)
    if not message:
        raise SandboxFault("it ended at once")
    return message
