"""`Watchdog`: no rank waits forever for one that is gone.

A process that was killed closes its connections, and the others hear of it at once. One that is frozen, or behind a cut
cable, does not: its peers would wait in a collective. So a thread of every rank says "alive" in the launcher's store,
with what the rank is doing, and reads what the others said; one that says nothing for `silence_timeout_s` ends the job,
with its name, what it did last, and the stacks of the one that noticed. The process ends at once (exit status 75: try
again later); the launcher ends the others, and resuming starts from the last whole checkpoint.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from rollout.world import World

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h


class Watchdog:
    """Use as a context manager around everything that may wait. end: called with the message, from a thread."""

    def __init__(self, world: World, silence_timeout_s: float, end: Callable[[str], None] | None = None):
        self.world, self.silence_timeout_s = world, silence_timeout_s
        self._end = end or _end_process
        self._period_s = min(5.0, silence_timeout_s / 6)
        self._stop = threading.Event()
        now = time.monotonic()
        self._said: dict[int, tuple[str, float]] = {r: ("", now) for r in range(world.size) if r != world.rank}
        self._store_answered = now
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Watchdog:
        if self.world.size > 1:
            self._where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            for target in (self._talk, self._watch):
                thread = threading.Thread(target=target, name=f"assay-watchdog-{target.__name__}", daemon=True)
                thread.start()
                self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=2 * self._period_s)

    def report(self) -> str:
        """One line for each other rank: what it said last, and how long ago."""
        now = time.monotonic()
        return "; ".join(f"rank {r} {_doing(said)}, heard of {now - at:.0f} s ago"
                         for r, (said, at) in sorted(self._said.items()))  # fmt: skip

    def _talk(self) -> None:
        """Say "alive" and hear the others; a store that does not answer is seen by `_watch`."""
        host, _, port = self._where.rpartition(":")
        run = os.environ.get("TORCHELASTIC_RUN_ID", ""), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        prefix, count = f"assay/{'/'.join(run)}", 0
        store = None
        while not self._stop.wait(self._period_s if count else 0):
            count += 1
            try:
                if store is None:
                    patience = timedelta(seconds=self.silence_timeout_s)
                    store = TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=patience)
                store.set(f"{prefix}/{self.world.rank}", json.dumps({"count": count, **self.world.state}))
                for rank in self._said:
                    key = f"{prefix}/{rank}"
                    said = store.get(key).decode() if store.check([key]) else ""
                    if said != self._said[rank][0]:
                        self._said[rank] = said, time.monotonic()
                self._store_answered = time.monotonic()
            except (dist.DistError, RuntimeError):  # refused or timed out; `_watch` counts the seconds
                store = None

    def _watch(self) -> None:
        period_s, before = self._period_s, time.monotonic()
        while not self._stop.wait(period_s):
            now = time.monotonic()
            if now - before > self.silence_timeout_s / 2:  # it was this process that slept: hear the others anew
                self._said = {rank: (said, now) for rank, (said, _) in self._said.items()}
                self._store_answered = now
            before = now
            silent = {r: now - at for r, (_, at) in self._said.items() if now - at > self.silence_timeout_s}
            alone = now - self._store_answered
            if alone > self.silence_timeout_s:
                self._end(f"rank {self.world.rank} lost contact with the launcher's store at {self._where} "
                          f"{alone:.0f} s ago (the network, or the first node, is gone). {self._own()}")  # fmt: skip
            elif silent:
                names = "; ".join(
                    f"rank {r} {_doing(self._said[r][0])}, silent for {s:.0f} s" for r, s in silent.items()
                )
                self._end(f"no sign of life: {names}. {self._own()}")

    def _own(self) -> str:
        waits = self.world.state.get("waits_for")
        own = f"in step {self.world.state.get('step', '?')}, {self.world.state.get('phase', 'start')}"
        return (f"Seen by rank {self.world.rank} {own}" + (f", which waits for {waits}" if waits else "")
                + ". The job ends; the same command resumes from the last checkpoint.")  # fmt: skip


def _doing(said: str) -> str:
    if not said:
        return "(never heard of)"
    state = json.loads(said)
    where = f"({state.get('host', '?')}, pid {state.get('pid', '?')})"
    return f"{where} last heard in step {state.get('step', '?')}, {state.get('phase', 'start')}"


def _end_process(message: str) -> None:
    sys.stderr.write(f"assay: {message}\n")
    sys.stderr.flush()
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    os._exit(EXIT_STATUS)
