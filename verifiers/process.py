"""One worker process as its parent sees it: pipes that never block, frames, the last words of the dead.

A frame is a big-endian 32-bit length, then JSON: no pickle, nothing of `multiprocessing`, no signals. POSIX only.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any

HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 64 * 2**20
_READ_BYTES = 2**16
_STDERR_TAIL_BYTES = 2_000


class Ending(StrEnum):
    REPLY = "reply"
    TIMEOUT = "timeout"  # no reply within the limit; the worker was killed
    MEMORY = "memory"  # killed from outside, which is what the kernel does when memory runs out
    CRASH = "crash"  # the worker died


def encode(message: Mapping[str, Any]) -> bytes:
    """One frame. Raises TypeError or ValueError for other than plain JSON data."""
    body = json.dumps(message).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(body)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return HEADER.pack(len(body)) + body


class FrameReader:
    """Frames out of a byte stream. Raises ValueError for what is not one."""

    def __init__(self) -> None:
        self._data, self._at = bytearray(), 0

    def feed(self, data: bytes) -> None:
        del self._data[: self._at]
        self._data += data
        self._at = 0

    def messages(self) -> Iterator[dict[str, Any]]:
        """The complete frames so far."""
        while len(self._data) >= self._at + HEADER.size:
            (length,) = HEADER.unpack_from(self._data, self._at)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            end = self._at + HEADER.size + length
            if len(self._data) < end:
                return
            body, self._at = self._data[self._at + HEADER.size : end], end
            yield json.loads(body)


class WorkerProcess:
    """``python -m verifiers.worker`` with its pipes; used by one thread."""

    def __init__(self) -> None:
        # A file, not a pipe: nobody has to drain it, and the last words of a dead worker can still be read.
        self._stderr = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed by `kill`)
        fcntl.fcntl(self._stderr, fcntl.F_SETFL, os.O_APPEND)  # so that truncating it leaves no hole
        self.process = subprocess.Popen(
            # -P: a file in the working directory must not shadow a module. A session of its own: Ctrl-C is for the
            # trainer to handle, and the worker's own children die with it.
            [sys.executable, "-P", "-m", "verifiers.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            start_new_session=True,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                # glibc would reserve 64 to 128 MiB for the watchdog thread, out of the address space a case may use.
                "MALLOC_ARENA_MAX": "1",
            },
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        self.stdin_fd, self.stdout_fd = self._stdin.fileno(), self._stdout.fileno()
        os.set_blocking(self.stdin_fd, False)
        os.set_blocking(self.stdout_fd, False)
        self._outbox = bytearray()
        self._reader = FrameReader()
        self.bytes_queued = self.bytes_sent = 0

    def queue(self, frames: bytes) -> None:
        """Have these bytes sent by `flush`."""
        self._outbox += frames
        self.bytes_queued += len(frames)

    def flush(self) -> bool:
        """Send what the pipe takes; True when something was sent. A worker that died meanwhile is for `read` to
        find."""
        sent_before = self.bytes_sent
        with suppress(BlockingIOError, BrokenPipeError):
            while self._outbox:
                # the view must be gone before the bytearray can shrink
                with memoryview(self._outbox) as view, view[:_READ_BYTES] as head:
                    sent = os.write(self.stdin_fd, head)
                del self._outbox[:sent]
                self.bytes_sent += sent
        return self.bytes_sent > sent_before

    @property
    def has_unsent(self) -> bool:
        return bool(self._outbox)

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """(the messages that have arrived, whether the worker lives and speaks the protocol)."""
        messages: list[dict[str, Any]] = []
        try:
            while data := os.read(self.stdout_fd, _READ_BYTES):
                self._reader.feed(data)
                messages += self._reader.messages()
        except BlockingIOError:
            return messages, True
        except ValueError:
            pass
        return messages, False

    def describe_death(self) -> tuple[Ending, str]:
        """Why a worker that closed its pipe did so (it is waited for)."""
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return Ending.CRASH, f"the worker broke off the protocol; {self.stderr_tail()}"
        if code == -signal.SIGKILL:
            return Ending.MEMORY, "the worker was killed from outside, most likely because memory ran out"
        how = f"was ended by {signal_name(-code)}" if code < 0 else f"exited with code {code}"
        return Ending.CRASH, f"the worker {how}; {self.stderr_tail()}"

    def stderr_tail(self) -> str:
        size = os.fstat(self._stderr.fileno()).st_size
        tail = os.pread(self._stderr.fileno(), _STDERR_TAIL_BYTES, max(0, size - _STDERR_TAIL_BYTES))
        return f"its standard error ends:\n{tail.decode(errors='replace').strip() or '(empty)'}"

    def end(self) -> None:
        """SIGKILL the process and its children, and reap it; what it has written can still be read."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):  # it is dead and not yet reaped
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def kill(self) -> None:
        """`end` it and close the pipes."""
        self.end()
        self._close_files()

    def abandon(self) -> None:
        """In a forked child: close our copies of the pipes, so that the worker still notices its parent's death."""
        self.process.returncode = 0  # not ours to wait for
        self._close_files()

    def _close_files(self) -> None:
        for file in (self._stdin, self._stdout, self._stderr):
            file.close()


def signal_name(number: int) -> str:
    """``SIGSEGV``; a real-time signal has a number only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
