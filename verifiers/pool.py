"""Worker processes that can be killed: a hard wall-clock limit, a memory cap, and a crash that costs one call only.

Each worker is ``python -m verifiers.worker`` (see `verifiers.process`). One thread of the parent talks to all of them,
so a pool behaves the same in the main thread, in other threads, under asyncio and in a forked child, which starts
workers of its own.

Calls are pipelined: a worker is handed about `_AHEAD_S` of work at once and answers each call by itself. The limit of a
call runs from the moment the worker turned to it: its arrival, or the answer before it. When a worker is killed or
dies, the call it was at is charged, and those it had not begun go to other workers. Concurrent callers take turns.
Waiting for a turn and starting a worker do not count against a call's limit.
"""

from __future__ import annotations

import asyncio
import os
import queue
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from verifiers.errors import VerifierError
from verifiers.process import Ending, WorkerProcess, encode

STARTUP_TIMEOUT_S = 60.0
_AHEAD_S = 0.01  # work handed to a worker at once: much more than a round trip, little enough to share out
_MAX_AHEAD = 128
_NAP_S = (0.0005, 0.003)  # least and longest pause between two looks at cheap answers
_FIRST_GUESS_S = 0.01


@dataclass(frozen=True, slots=True)
class CallResult:
    """How one call ended. reply: the worker's message (REPLY only). detail: for a person. milliseconds: wall time."""

    ending: Ending
    reply: Mapping[str, Any] = field(default_factory=dict)
    detail: str = ""
    milliseconds: float = 0.0


Finished = list[tuple[int, CallResult]]


class Pool:
    """Up to `workers` processes, started on first need with the message `setup` and reused until `close`.

    timeout_s: wall seconds for one call. key: the recipe key, for messages. Thread safe. Every way to make calls takes
    frames from `encode`, raises `VerifierError` if a worker cannot start, and RuntimeError once the pool is closed.
    """

    def __init__(self, setup: Mapping[str, Any], *, timeout_s: float, workers: int, key: str):
        self._make = lambda: _Dispatcher(encode(setup), timeout_s, workers, key)
        self._lock = threading.Lock()
        self._dispatcher: _Dispatcher | None = None
        self._finalizer: weakref.finalize | None = None
        self._closed = False
        _POOLS.add(self)

    def submit(self, frames: Sequence[bytes]) -> Callable[[], list[CallResult]]:
        """Start the calls and return at once; the function returned waits for their results, in order."""
        job = _Job(frames)
        self._start(job)
        return job.wait

    def run(self, frames: Sequence[bytes]) -> list[CallResult]:
        """Make the calls and return their results in order."""
        return self.submit(frames)()

    def stream(self, frames: Sequence[bytes]) -> Iterator[tuple[int, CallResult]]:
        """(index, result) of each call as it ends. Calls not begun are withdrawn when the iterator is closed."""
        batches: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        job = _Job(frames, batches.put)
        self._start(job)
        try:
            left = len(frames)
            while left:
                batch = batches.get()
                if not batch:
                    job.wait()  # raises
                yield from batch
                left -= len(batch)
        finally:
            job.cancelled = True

    async def arun(self, frames: Sequence[bytes]) -> list[CallResult]:
        """`run` without blocking the event loop. Calls not begun are withdrawn when the task is cancelled."""
        results: list[CallResult | None] = [None] * len(frames)
        async for i, result in self.astream(frames):
            results[i] = result
        return [result for result in results if result is not None]

    async def astream(self, frames: Sequence[bytes]) -> AsyncIterator[tuple[int, CallResult]]:
        """`stream` without blocking the event loop."""
        loop = asyncio.get_running_loop()
        batches: asyncio.Queue[Finished] = asyncio.Queue()

        def hand_over(batch: Finished) -> None:
            with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                loop.call_soon_threadsafe(batches.put_nowait, batch)

        job = _Job(frames, hand_over)
        self._start(job)
        try:
            left = len(frames)
            while left:
                batch = await batches.get()
                if not batch:
                    job.wait()  # raises
                for item in batch:
                    yield item
                left -= len(batch)
        finally:
            job.cancelled = True

    def warm(self) -> None:
        """Start all workers and wait until they are ready."""
        job = _Job([])
        self._start(job, warm=True)
        job.wait()

    def close(self) -> None:
        """Kill the workers. Calls under way in other threads raise RuntimeError."""
        with self._lock:
            self._closed = True
            if self._finalizer is not None:
                self._finalizer()

    def _start(self, job: _Job, warm: bool = False) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("this verifier pool is closed")
            if self._dispatcher is None or self._dispatcher.is_over:
                self._dispatcher = self._make()
                self._finalizer = weakref.finalize(self, self._dispatcher.stop)  # also runs at interpreter exit
            self._dispatcher.submit(job, warm)

    def _forget_workers(self) -> None:
        """In a forked child: the workers, the thread and the locks are the parent's."""
        self._lock = threading.Lock()
        if self._finalizer is not None:
            self._finalizer.detach()
        if self._dispatcher is not None:
            self._dispatcher.abandon()
        self._dispatcher = self._finalizer = None


class _Job:
    """The calls of one caller. hand_over: is given each batch of finished calls as it comes, and an empty one when the
    job failed; None collects."""

    def __init__(self, frames: Sequence[bytes], hand_over: Callable[[Finished], None] | None = None):
        self.pending = deque(enumerate(frames))
        self.cancelled = False
        self._left = len(frames)
        self._results: list[CallResult | None] = [None] * (0 if hand_over else len(frames))
        self._hand_over = hand_over
        self._ended = threading.Event()
        self._error: Exception | None = None

    def deliver(self, finished: Finished) -> None:
        if self._ended.is_set():
            return
        self._left -= len(finished)
        if self._hand_over is not None:
            self._hand_over(finished)
        else:
            for i, result in finished:
                self._results[i] = result
        if not self._left:
            self._ended.set()

    def fail(self, error: Exception) -> None:
        if self._ended.is_set():
            return
        self._error, self.cancelled = error, True
        self._ended.set()
        if self._hand_over is not None:
            self._hand_over([])

    def wait(self) -> list[CallResult]:
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return [result for result in self._results if result is not None]


_Call = tuple[_Job, int, bytes]


class _Worker(WorkerProcess):
    """A worker process and the calls it holds, the one it is at first."""

    def __init__(self, setup: bytes):
        super().__init__()
        self.ready = False
        self.calls: deque[tuple[_Call, int]] = deque()  # with the number of bytes sent once its frame is
        self.turned_s = time.monotonic()  # when it turned to what it is at
        self.queue(setup)
        self.send()

    def hand(self, calls: Sequence[_Call]) -> None:
        if not self.calls:
            self.turned_s = time.monotonic()
        end = self.bytes_queued
        for call in calls:
            end += len(call[2])
            self.calls.append((call, end))
        self.queue(b"".join(frame for _, _, frame in calls))
        self.send()

    def send(self) -> None:
        still_arriving = not self.calls or self.bytes_sent < self.calls[0][1]
        if self.flush() and still_arriving:
            self.turned_s = time.monotonic()


class _Dispatcher:
    """Owns the workers. Everything below `_loop` runs in its one thread; callers hand jobs in through `_inbox`."""

    def __init__(self, setup: bytes, timeout_s: float, num_workers: int, key: str):
        self._setup, self._timeout_s, self._num_workers, self._key = setup, timeout_s, num_workers, key
        self._workers: list[_Worker] = []
        self._ring: deque[_Job] = deque()  # jobs with calls that no worker holds, taking turns
        self._warming: list[_Job] = []
        self._inbox: deque[tuple[_Job, bool]] = deque()
        self._mean_s = _FIRST_GUESS_S  # of a call, lately
        self._stopping = self.is_over = False
        self._wake_fd, self._waker_fd = os.pipe()
        os.set_blocking(self._wake_fd, False)
        os.set_blocking(self._waker_fd, False)
        self._thread = threading.Thread(target=self._run, name="verifier-pool", daemon=True)
        self._thread.start()

    def submit(self, job: _Job, warm: bool) -> None:
        if not job.pending and not warm:
            job.deliver([])
            return
        self._inbox.append((job, warm))
        self._wake()

    def stop(self) -> None:
        self._stopping = True
        self._wake()
        if threading.current_thread() is not self._thread:  # the collector may run this anywhere
            self._thread.join()
        os.close(self._waker_fd)

    def abandon(self) -> None:
        for descriptor in (self._wake_fd, self._waker_fd):
            with suppress(OSError):
                os.close(descriptor)
        for worker in self._workers:
            worker.abandon()

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):
            os.write(self._waker_fd, b"\0")

    # ---- the thread --------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop()
        finally:
            self.is_over = True
            for worker in self._workers:
                worker.kill()
            os.close(self._wake_fd)
            self._take_in()
            self._fail_all(RuntimeError("this verifier pool is closed"))

    def _loop(self) -> None:
        while not self._stopping:
            self._take_in()
            try:
                self._start_workers()
            except OSError as error:
                self._fail_all(self._start_error(str(error)))
            for worker in self._workers:
                if worker.ready:
                    self._fill(worker)
            self._look(self._poll())
            self._nap()

    def _nap(self) -> None:
        """Sleep through half of the work that the least busy worker holds: waking up for each answer would cost both
        sides more than a cheap verdict."""
        held = [len(worker.calls) for worker in self._workers if worker.calls]
        least, longest = _NAP_S
        nap_s = self._mean_s * min(held, default=0) / 2
        if nap_s >= least and min(held) > 1:
            time.sleep(min(nap_s, longest))

    def _take_in(self) -> None:
        while self._inbox:
            job, warm = self._inbox.popleft()
            (self._warming if warm else self._ring).append(job)
        if any(job.cancelled for job in self._ring):
            self._ring = deque(job for job in self._ring if not job.cancelled)

    def _start_workers(self) -> None:
        if self._warming:
            wanted = self._num_workers
        elif self._ring:
            wanted = sum(len(job.pending) for job in self._ring) + sum(len(w.calls) for w in self._workers)
        else:
            return
        while len(self._workers) < min(wanted, self._num_workers):
            self._workers.append(_Worker(self._setup))
        if all(worker.ready for worker in self._workers):
            while self._warming:
                self._warming.pop().deliver([])

    def _fill(self, worker: _Worker) -> None:
        """Hand over more work when half of what was handed over is done, and less of it as the work runs out: a call
        must not wait behind a long one while another worker has nothing to do."""
        if not self._ring:
            return
        waiting = sum(len(job.pending) for job in self._ring)
        ahead = min(_MAX_AHEAD, int(_AHEAD_S / self._mean_s), waiting // (2 * len(self._workers)))
        if len(worker.calls) > ahead // 2:
            return
        room = max(1, ahead) - len(worker.calls)
        calls: list[_Call] = []
        while room > len(calls) and self._ring:
            job = self._ring.popleft()
            while room > len(calls) and job.pending:
                calls.append((job, *job.pending.popleft()))
            if job.pending:
                self._ring.append(job)
        if calls:
            worker.hand(calls)

    def _poll(self) -> dict[int, int]:
        """{descriptor: events}, as soon as something happens or a limit is reached."""
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        limits: list[float] = []
        for worker in self._workers:
            poll.register(worker.stdout_fd, select.POLLIN)
            if worker.has_unsent:
                poll.register(worker.stdin_fd, select.POLLOUT)
            if not worker.ready or worker.calls:
                limits.append(self._limit(worker))
        wait_ms = 1000 * max(0.0, min(limits) - time.monotonic()) + 1 if limits else None
        return dict(poll.poll(wait_ms))

    def _limit(self, worker: _Worker) -> float:
        return worker.turned_s + (self._timeout_s if worker.ready else STARTUP_TIMEOUT_S)

    def _look(self, events: Mapping[int, int]) -> None:
        if self._wake_fd in events:
            os.read(self._wake_fd, 4096)
        for worker in list(self._workers):
            if worker.stdin_fd in events:
                worker.send()
            if worker.stdout_fd in events:
                self._receive(worker)
            elif (not worker.ready or worker.calls) and time.monotonic() >= self._limit(worker):
                self._overrun(worker)

    # ---- what a worker did -------------------------------------------

    def _receive(self, worker: _Worker) -> None:
        replies, alive = worker.read()
        if replies and not worker.ready:
            worker.ready = True
            worker.turned_s = time.monotonic()
            replies = replies[1:]
        self._answer(worker, replies)
        if any(reply.get("retire") for reply in replies):
            self._discard(worker)
        elif not alive:
            ending, detail = worker.describe_death()
            self._lose(worker, ending, detail)

    def _answer(self, worker: _Worker, replies: Sequence[Mapping[str, Any]]) -> None:
        if not replies:
            return
        now = time.monotonic()
        each_s = (now - worker.turned_s) / len(replies)
        worker.turned_s = now
        self._mean_s += 0.3 * (each_s - self._mean_s)
        finished: dict[_Job, Finished] = {}
        for reply in replies:
            (job, index, _), _ = worker.calls.popleft()
            finished.setdefault(job, []).append((index, CallResult(Ending.REPLY, reply, milliseconds=1000 * each_s)))
        for job, results in finished.items():
            job.deliver(results)

    def _overrun(self, worker: _Worker) -> None:
        worker.end()
        replies, _ = worker.read()
        if replies and worker.ready:  # it went on just before it was killed
            self._answer(worker, replies)
            self._discard(worker)
        elif worker.ready:
            self._lose(worker, Ending.TIMEOUT, f"no verdict within {self._timeout_s:g} s")
        else:
            self._lose(worker, Ending.TIMEOUT, f"not ready within {STARTUP_TIMEOUT_S:g} s; {worker.stderr_tail()}")

    def _lose(self, worker: _Worker, ending: Ending, detail: str) -> None:
        """Charge the call the worker was at."""
        if not worker.ready:
            self._discard(worker)
            self._fail_all(self._start_error(detail))
            return
        if worker.calls:
            (job, index, _), _ = worker.calls.popleft()
            spent_s = time.monotonic() - worker.turned_s
            self._mean_s += 0.3 * (spent_s - self._mean_s)
            job.deliver([(index, CallResult(ending, detail=detail, milliseconds=1000 * spent_s))])
        self._discard(worker)

    def _discard(self, worker: _Worker) -> None:
        """End a worker; the calls it had not begun come next."""
        worker.kill()
        self._workers.remove(worker)
        while worker.calls:
            (job, index, frame), _ = worker.calls.pop()
            job.pending.appendleft((index, frame))
            if job not in self._ring:
                self._ring.appendleft(job)

    def _start_error(self, cause: str) -> VerifierError:
        return VerifierError(
            f"The verifier's worker process cannot start: {cause}",
            where=self._key,
            why="without it no response can be judged",
            fix="see the worker's last words above; a missing package or a broken verifier class is the usual cause",
        )

    def _fail_all(self, error: Exception) -> None:
        held = [call[0] for worker in self._workers for call, _ in worker.calls]
        for job in [*self._ring, *self._warming, *held]:
            job.fail(error)
        self._ring.clear()
        self._warming.clear()


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_workers_after_fork() -> None:
    for pool in list(_POOLS):
        pool._forget_workers()


os.register_at_fork(after_in_child=_forget_workers_after_fork)
