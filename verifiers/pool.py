"""Worker processes that can be killed: a hard wall-clock limit, a memory cap, and a crash that costs one call only.

Each worker is ``python -m verifiers.worker`` and talks length-prefixed JSON over its standard pipes (no pickle, nothing
of `multiprocessing`, no signal handlers or alarms), so a pool behaves the same in the main thread, in other threads,
under asyncio (`asyncio.to_thread`) and in a forked child, which starts workers of its own. POSIX only.

One thread per worker waits for it. Calls of all users queue first in, first out; waiting in the queue and starting a
worker do not count against a call's time limit.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from verifiers.errors import VerifierError

HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 64 * 2**20
STARTUP_TIMEOUT_S = 60.0
_STDERR_TAIL_BYTES = 2_000
_STDERR_MAX_BYTES = 2**20
_READ_BYTES = 2**16


class Ending(StrEnum):
    REPLY = "reply"
    TIMEOUT = "timeout"  # no reply within the limit; the worker was killed
    MEMORY = "memory"  # killed from outside, which is what the kernel does when memory runs out
    CRASH = "crash"  # the worker died


@dataclass(frozen=True, slots=True)
class CallResult:
    """How one call ended. reply: the worker's message (REPLY only). detail: for a person. milliseconds: wall time."""

    ending: Ending
    reply: Mapping[str, Any] = field(default_factory=dict)
    detail: str = ""
    milliseconds: float = 0.0


def encode(message: Mapping[str, Any]) -> bytes:
    """One frame: big-endian 32-bit length, then JSON. Raises TypeError or ValueError for other than plain JSON data."""
    body = json.dumps(message).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(body)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return HEADER.pack(len(body)) + body


class Pool:
    """Up to `workers` processes, started on first need with the message `setup` and reused until `close`.

    timeout_s: wall seconds for one call. key: the recipe key, for messages.
    """

    def __init__(self, setup: Mapping[str, Any], *, timeout_s: float, workers: int, key: str):
        self._setup = encode(setup)
        self._timeout_s, self._num_workers, self._key = timeout_s, workers, key
        self._live: set[_Worker] = set()
        self._idle: deque[_Worker] = deque()
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False
        self._finalizer = weakref.finalize(self, _kill_all, self._live)  # also runs at interpreter exit
        _POOLS.add(self)

    def run(self, frames: Sequence[bytes]) -> list[CallResult]:
        """Make the calls (frames from `encode`) and return their results in order. Thread safe.

        Raises `VerifierError` if a worker cannot start.
        """
        with self._lock:
            self._require_open()
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._num_workers, thread_name_prefix="verifier-pool")
            executor = self._executor
        return list(executor.map(self._call, frames))

    def close(self) -> None:
        """Kill the workers. Calls under way in other threads raise RuntimeError."""
        with self._lock:
            self._closed = True
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)
        for worker in list(self._live):
            worker.end()  # its thread, if one is waiting for it, wakes up and closes the pipes
        if executor is not None:
            executor.shutdown(wait=True)
        _kill_all(self._live)
        self._idle.clear()

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("this verifier pool is closed")

    def _call(self, frame: bytes) -> CallResult:
        worker = self._idle_worker() or self._start_worker()
        started = time.monotonic()
        keep = False
        try:
            worker.send(frame, started + self._timeout_s)
            reply = worker.receive(started + self._timeout_s)
            keep = not reply.get("retire", False)
            return CallResult(Ending.REPLY, reply, milliseconds=1000 * (time.monotonic() - started))
        except TimeoutError:
            ending, detail = Ending.TIMEOUT, f"no verdict within {self._timeout_s:g} s"
        except (EOFError, OSError, ValueError):
            self._require_open()  # else it was `close` that killed it
            ending, detail = worker.describe_death()
        finally:
            if keep:
                worker.trim_stderr()
                self._idle.append(worker)
            else:
                self._discard(worker)
        return CallResult(ending, detail=detail, milliseconds=1000 * (time.monotonic() - started))

    def _idle_worker(self) -> _Worker | None:
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                return None
            if worker.process.poll() is None:
                return worker
            self._discard(worker)  # it died between calls: no call has to pay for that

    def _start_worker(self) -> _Worker:
        deadline = time.monotonic() + STARTUP_TIMEOUT_S
        worker = None
        try:
            with self._lock:
                self._require_open()
                worker = _Worker()
                self._live.add(worker)
            worker.send(self._setup, deadline)
            worker.receive(deadline)
            return worker
        except (EOFError, OSError, ValueError) as error:
            self._require_open()
            raise self._start_error(worker, error) from error

    def _start_error(self, worker: _Worker | None, error: Exception) -> VerifierError:
        if worker is None:
            cause = str(error)
        elif isinstance(error, TimeoutError):
            cause = f"not ready within {STARTUP_TIMEOUT_S:g} s; {worker.stderr_tail()}"
            self._discard(worker)
        else:
            cause = worker.describe_death()[1]
            self._discard(worker)
        return VerifierError(
            f"The verifier's worker process cannot start: {cause}",
            where=self._key,
            why="without it no response can be judged",
            fix="see the worker's last words above; a missing package or a broken verifier class is the usual cause",
        )

    def _discard(self, worker: _Worker) -> None:
        worker.kill()
        with self._lock:
            self._live.discard(worker)

    def _forget_workers(self) -> None:
        """In a forked child: the workers, threads and locks are the parent's."""
        self._lock = threading.Lock()
        self._executor = None
        self._idle.clear()
        for worker in self._live:
            worker.abandon()
        self._live.clear()


class _Worker:
    """One child process and its pipes; used by one thread at a time."""

    def __init__(self) -> None:
        # A file, not a pipe: nobody has to drain it, and the last words of a dead worker can still be read.
        self._stderr = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed by `kill`)
        fcntl.fcntl(self._stderr, fcntl.F_SETFL, os.O_APPEND)  # so that `trim_stderr` leaves no hole
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
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)

    def send(self, frame: bytes, deadline: float) -> None:
        """Raises TimeoutError, or OSError if the worker is dead."""
        rest = memoryview(frame)
        while rest:
            _wait(self._stdin.fileno(), select.POLLOUT, deadline)
            rest = rest[os.write(self._stdin.fileno(), rest) :]

    def receive(self, deadline: float) -> Mapping[str, Any]:
        """Raises TimeoutError, EOFError if the worker dies, ValueError if it does not speak the protocol."""
        (length,) = HEADER.unpack(self._read(HEADER.size, deadline))
        if length > MAX_FRAME_BYTES:
            raise ValueError(f"a reply of {length} bytes")
        return json.loads(self._read(length, deadline))

    def _read(self, length: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < length:
            _wait(self._stdout.fileno(), select.POLLIN, deadline)
            chunk = os.read(self._stdout.fileno(), min(length - len(data), _READ_BYTES))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)

    def describe_death(self) -> tuple[Ending, str]:
        """Why a worker that closed its pipe did so (it is waited for, and killed if it lives on)."""
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return Ending.CRASH, f"the worker broke off the protocol; {self.stderr_tail()}"
        if code == -signal.SIGKILL:
            return Ending.MEMORY, "the worker was killed from outside, most likely because memory ran out"
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return Ending.CRASH, f"the worker {how}; {self.stderr_tail()}"

    def stderr_tail(self) -> str:
        size = os.fstat(self._stderr.fileno()).st_size
        tail = os.pread(self._stderr.fileno(), _STDERR_TAIL_BYTES, max(0, size - _STDERR_TAIL_BYTES))
        return f"its standard error ends:\n{tail.decode(errors='replace').strip() or '(empty)'}"

    def trim_stderr(self) -> None:
        """Keep a chatty library from filling the disk over a long run."""
        if os.fstat(self._stderr.fileno()).st_size > _STDERR_MAX_BYTES:
            os.ftruncate(self._stderr.fileno(), 0)

    def end(self) -> None:
        """SIGKILL the process and its children, and reap it."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):  # it is dead and not yet reaped
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def kill(self) -> None:
        """`end` it and close the pipes: for its owner."""
        self.end()
        self._close_files()

    def abandon(self) -> None:
        """In a forked child: close our copies of the pipes, so that the worker still notices its parent's death."""
        self.process.returncode = 0  # not ours to wait for
        self._close_files()

    def _close_files(self) -> None:
        for file in (self._stdin, self._stdout, self._stderr):
            file.close()


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
        raise TimeoutError


def _kill_all(workers: set[_Worker]) -> None:
    for worker in list(workers):
        worker.kill()
    workers.clear()


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_workers_after_fork() -> None:
    for pool in list(_POOLS):
        pool._forget_workers()


os.register_at_fork(after_in_child=_forget_workers_after_fork)
