"""`Sandbox`: processes that run programs (see `session`) behind walls that were attacked before they are trusted.

The trainer starts one launcher, the launcher one zygote a lane, a zygote one clone a run. A lane serves one thread; its
second zygote, for tests that cannot be split, is started when one comes.
"""

from __future__ import annotations

import logging
import os
import platform
import queue
import sys
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from verifiers.code import selftest, walls
from verifiers.code.box import Box, Launcher, Limits, SandboxFault
from verifiers.code.inside import scratch
from verifiers.code.syscalls import AUDIT_ARCH
from verifiers.code.walls import Tier
from verifiers.errors import VerifierError

T = TypeVar("T")
RUNS_PER_ZYGOTE = 1_000
_LOG = logging.getLogger(__name__)
_CHOICES = (
    "run where user namespaces or Landlock work (a Linux host or virtual machine; in Docker: --security-opt "
    "seccomp=PROFILE that allows unshare and mount, or a kernel with Landlock); or set {key}.isolation=unsafe, which "
    "lets model-written programs reach your files, keys and network"
)


class Sandbox:
    """Programs run here, through a `Session`. Thread safe; a forked child starts processes of its own on first use.

    workers: zygotes, and so programs that run at one time. packages: import names of what programs may import besides
    the standard library. isolation: "auto" (the strongest tier that works), or the tier to insist on. key: for
    messages.

    Raises `VerifierError` where no tier works, naming what is missing. `tier` is the one it has, `reasons` why it has
    not a stronger one.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        packages: Sequence[str] = ("numpy",),
        isolation: str = "auto",
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        key: str = "verifier",
    ):
        _require_linux(key)
        self.limits, self.workers, self._key = limits, workers, key
        self.counters: Counter[str] = Counter()  # runs, retries, faults, zygotes
        self._packages = walls.find_packages(packages, key)
        self._bubblewrap = walls.find_bubblewrap()
        self._lock = threading.Lock()
        self.closed = False
        self._reset()
        self.tier = self._choose_tier([Tier(isolation)] if isolation != "auto" else [Tier.NAMESPACES, Tier.LANDLOCK])
        if self.tier is Tier.UNSAFE:
            _LOG.warning("%s.isolation=unsafe: model-written programs run with your files, keys and network", key)
        _LOG.info("sandbox tier: %s", self.tier)
        _SANDBOXES.add(self)

    # --- processes

    def close(self) -> None:
        """End every process. Runs under way in other threads raise RuntimeError."""
        with self._lock:
            self.closed = True
            launcher, self._launcher = self._launcher, None
        self._detach_finalizer()
        if launcher is not None:
            launcher.close()
        # Lanes in use are closed by their threads, which find their zygotes gone.
        idle = []
        with suppress(queue.Empty):
            while True:
                idle.append(self._lanes.get_nowait())
        for lane in idle:
            lane.abandon()
            self._lanes.put(lane)

    def start_box(self, tier: Tier, *, with_packages: bool = True) -> Box:
        """A zygote of this tier, with the packages loaded or only at hand."""
        with self._lock:
            if self.closed:
                raise RuntimeError("this sandbox is closed")
            launcher, folder = self._ensure_launcher()
            self.counters["zygotes"] += 1
            home = folder / f"home-{self.counters['zygotes']}"
        home.mkdir(mode=0o700)
        argv = walls.command(tier, self._packages, self._bubblewrap)
        box = Box(launcher, argv, home, walls.describe(tier, self._packages, folder, home, with_packages))
        if box.missing_packages:
            box.close()
            raise SandboxFault(f"cannot be imported in the sandbox: {'; '.join(box.missing_packages)}")
        return box

    def mentions_packages(self, source: str) -> bool:
        return any(package.name in source for package in self._packages)

    def _choose_tier(self, tiers: Sequence[Tier]) -> Tier:
        self.reasons = reasons = list[str]()
        for tier in tiers:
            try:
                reason = self._try_tier(tier)
            except SandboxFault as fault:
                reason = str(fault)
            if reason is None:
                return tier
            reasons.append(f"{tier}: {reason}")
        self.close()
        raise VerifierError(
            "Code rewards need isolation, and it does not work here: " + "; ".join(reasons) + ".",
            where=f"{self._key}.isolation",
            why="a program written by a model may read your keys, change your files or kill the run",
            fix=_CHOICES.format(key=self._key),
        )

    def _try_tier(self, tier: Tier) -> str | None:
        """Why this tier cannot be used, or None."""
        if tier is Tier.NAMESPACES and self._bubblewrap is None:
            return "bubblewrap is not installed (pip install 'assay-rl[code]', or your system's package 'bubblewrap')"
        if tier is Tier.NAMESPACES and walls.interpreter().startswith("/tmp/"):
            return "Python itself stands under /tmp, which a run covers with its own"
        box = self.start_box(tier)
        try:
            if tier is Tier.LANDLOCK and box.landlock_abi == 0:
                return "the kernel has no Landlock, or it is switched off"
            return selftest.attack(box, self.limits, harmless=tier is Tier.UNSAFE)
        finally:
            box.close()

    def _ensure_launcher(self) -> tuple[Launcher, Path]:
        if self._launcher is not None and self._launcher.has_died():
            self._detach_finalizer()
            self._launcher.close()
            scratch.remove(str(self._folder))
            self._launcher = None
        if self._launcher is None:
            folder = Path(tempfile.mkdtemp(prefix="assay-sandbox-"))
            walls.make_folder(folder, self._packages)
            self._launcher, self._folder = Launcher(folder), folder
            self._finalizer = weakref.finalize(self, self._launcher.close)
        return self._launcher, self._folder

    def _detach_finalizer(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()

    def _reset(self) -> None:
        self._launcher: Launcher | None = None
        self._folder = Path()
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._lanes: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        self._all_lanes = [Lane(self) for _ in range(self.workers)]
        for lane in self._all_lanes:
            self._lanes.put(lane)

    def _forget_processes(self) -> None:
        """In a forked child: they are the parent's."""
        self._lock = threading.Lock()
        self._detach_finalizer()
        for lane in self._all_lanes:
            lane.abandon()
        if self._launcher is not None:
            self._launcher.abandon()
        self._reset()

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        lane = self._lanes.get()
        try:
            yield lane
        finally:
            self._lanes.put(lane)

    def with_lane(self, job: Callable[[Lane], T]) -> T:
        """Do it, and once more with a fresh zygote if the sandbox fails. Raises `SandboxFault` if it fails again."""
        with self._lane() as lane:
            self._count("runs")
            try:
                return job(lane)
            except SandboxFault:
                if self.closed:
                    lane.abandon()
                    raise RuntimeError("this sandbox is closed") from None
                self._count("retries")
            try:
                lane.discard()
                return job(lane)
            except SandboxFault:
                self._count("faults")
                raise

    def _count(self, event: str) -> None:
        with self._lock:
            self.counters[event] += 1


class Lane:
    """Zygotes, started once needed: for programs and for judges, each without and with the packages loaded. A clone of
    a zygote that has loaded numpy costs twice as much, and few programs use it."""

    def __init__(self, sandbox: Sandbox):
        self._sandbox = weakref.proxy(sandbox)
        self._boxes: dict[tuple[str, bool], Box] = {}

    def box(self, source: str, role: str = "program") -> Box:
        """For what has this source. One that hides that it uses a package gets it all the same, but slower."""
        with_packages = self._sandbox.mentions_packages(source)
        box = self._boxes.get((role, with_packages))
        if box is not None and (box.broken or box.runs >= RUNS_PER_ZYGOTE):
            box.close()
            box = None
        if box is None:
            box = self._sandbox.start_box(self._sandbox.tier, with_packages=with_packages)
            self._boxes[role, with_packages] = box
        return box

    def discard(self) -> None:
        for box in self._boxes.values():
            box.close()
        self._boxes.clear()

    def abandon(self) -> None:
        for box in self._boxes.values():
            box.abandon()
        self._boxes.clear()


def _require_linux(key: str) -> None:
    if sys.platform == "linux" and platform.machine() in AUDIT_ARCH:
        return
    raise VerifierError(
        f"The sandbox for model-written programs needs Linux on {' or '.join(AUDIT_ARCH)}; this is {sys.platform} on "
        f"{platform.machine()}.",
        where=key,
        why="no other system offers the isolation that it is built on",
        fix="train in a Linux virtual machine or container (Docker Desktop, WSL 2), or on a Linux host",
    )


_SANDBOXES: weakref.WeakSet[Sandbox] = weakref.WeakSet()


def _forget_processes_after_fork() -> None:
    for sandbox in list(_SANDBOXES):
        sandbox._forget_processes()


os.register_at_fork(after_in_child=_forget_processes_after_fork)
