"""Runs verifiers on cases: verdicts and CPU time in interleaved rounds, and what hostile inputs do to a worker.

Every round starts new worker processes, warms them up on requests that are no cases, and judges every case once: a
verifier's cache never sees a case twice. CPU time is user and system time of the worker processes and whatever they
start, so a loaded machine changes it little.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from verifiers.errors import VerifierError
from verifiers.math.bench.cases import Case
from verifiers.math.bench.peers import Contestant
from verifiers.runner import Runner
from verifiers.verdict import VERIFIERS, Verdict, VerifyRequest

HOSTILE_LIMIT_S = 2.0
HOSTILE_MEMORY_MB = 1024
# More than any peer's own limits: math-verify's are 5 s for each of gold, response and comparison, TRL's 10, 10 and 5.
PEER_TIMEOUT_S = 30.0
_POLL_S = 0.02
_WARM_UP = [
    VerifyRequest(f"The answer is $\\boxed{{{answer}}}$.", gold)
    for gold, answer in (
        ("12", "13"),
        ("\\frac{2}{9}", "0.25"),
        ("\\sqrt{7}+u", "u+\\sqrt{7}"),
        ("(-\\infty,4)", "x<4"),
        ("\\{8,9\\}", "9,8"),
        ("(4,9)", "(4,8)"),
        ("u^2+v=8", "v=8-u^2"),
        ("\\begin{pmatrix}4\\\\9\\end{pmatrix}", "(4,9)"),
        ("14\\%", "0.14"),
        ("\\text{east}", "east"),
    )
]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Round:
    """verdicts: one per case, in order. wall_s, cpu_s: for all of them, without start-up and warm-up."""

    verdicts: list[Verdict]
    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Survival:
    """What one hostile input did. lost_worker: its process was killed or died. next_right: the worker, or the one that
    replaced it, judged the next, ordinary answer rightly. peak_mb: largest resident memory of a process while it ran
    (None where the system does not tell)."""

    case: Case
    verdict: Verdict
    wall_s: float
    peak_mb: float | None
    lost_worker: bool
    next_right: bool

    @property
    def in_time(self) -> bool:
        return self.wall_s <= HOSTILE_LIMIT_S and not self.lost_worker

    @property
    def survived(self) -> bool:
        return self.in_time and self.next_right and (self.peak_mb is None or self.peak_mb <= HOSTILE_MEMORY_MB)


def start_error(contestant: Contestant) -> str | None:
    """Why its worker cannot start, None if it can. Wrong options raise `ConfigError`."""
    with _runner(contestant) as runner:
        try:
            runner.verify(_WARM_UP[:1])
        except VerifierError as error:
            return str(error)
    return None


def interleaved_rounds(
    contestants: Sequence[Contestant], cases: Sequence[Case], *, rounds: int, workers: int, progress: Progress
) -> dict[str, list[Round]]:
    """{name: its rounds}. Within a round the contestants follow one another; every second round runs backwards."""
    results: dict[str, list[Round]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        for contestant in contestants if number % 2 == 0 else reversed(contestants):
            measured = one_round(contestant, cases, workers=workers)
            results[contestant.name].append(measured)
            progress(f"round {number + 1}/{rounds}: {contestant.name}, {measured.wall_s:.1f} s")
    return results


def one_round(contestant: Contestant, cases: Sequence[Case], *, workers: int) -> Round:
    requests = [VerifyRequest(case.response, case.gold, example_id=case.id) for case in cases]
    with _runner(contestant, workers=workers) as runner:
        runner.verify(_WARM_UP * workers)
        in_process = not VERIFIERS.get(contestant.kind).isolated
        cpu_before, started = _cpu_s(in_process), time.perf_counter()
        verdicts = runner.verify(requests)
        wall_s = time.perf_counter() - started
        return Round(verdicts, wall_s, _cpu_s(in_process) - cpu_before)


def survivals(contestant: Contestant, cases: Sequence[Case], progress: Progress) -> list[Survival]:
    """Each hostile input in turn, one worker, killed after `HOSTILE_LIMIT_S`."""
    results = []
    with _runner(contestant, timeout_s=HOSTILE_LIMIT_S, memory_mb=HOSTILE_MEMORY_MB, workers=1) as runner:
        runner.verify(_WARM_UP)
        for case in cases:
            results.append(_survival(runner, case))
            if not results[-1].survived:
                progress(f"hostile: {contestant.name} does not survive {case.id} ({case.why})")
    return results


def _survival(runner: Runner, case: Case) -> Survival:
    processes = [process.pid for process in psutil.Process().children(recursive=True)] or [psutil.Process().pid]
    with _PeakMemory(processes) as memory:
        started = time.perf_counter()
        (verdict,) = runner.verify([VerifyRequest(case.response, case.gold, example_id=case.id)])
        wall_s = time.perf_counter() - started
    lost = not all(psutil.pid_exists(pid) for pid in processes)
    (following,) = runner.verify([VerifyRequest("\\boxed{21}", "21")])
    return Survival(case, verdict, wall_s, memory.peak_mb, lost, following.score == 1.0)


def _runner(contestant: Contestant, **limits: Any) -> Runner:
    if contestant.kind.startswith(f"{__package__}."):
        limits.setdefault("timeout_s", PEER_TIMEOUT_S)
    return Runner(contestant.kind, contestant.options, key=contestant.name, **limits)


def _cpu_s(in_process: bool) -> float:
    """CPU seconds of all processes started from here, dead or alive, and of this one if verdicts are made in it."""
    times = psutil.Process().cpu_times()
    total = times.children_user + times.children_system  # those that ended
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
            total += times.children_user + times.children_system + _clock_s(process.pid, times.user + times.system)
        except psutil.NoSuchProcess:
            continue
    return total + (time.process_time() if in_process else 0.0)


def _clock_s(pid: int, coarse_s: float) -> float:
    """CPU time of a living process: to the nanosecond on Linux, elsewhere `coarse_s` (ticks of 10 ms)."""
    if not sys.platform.startswith("linux"):
        return coarse_s
    try:
        return time.clock_gettime(~pid << 3 | 2)  # the clock that clock_getcpuclockid(3) gives for a process
    except OSError:
        return coarse_s


class _PeakMemory:
    """Largest resident memory, MB, that any of the processes `pids` reaches inside the ``with``. Linux tells it, if
    asked while the process lives, hence the thread."""

    def __init__(self, pids: Sequence[int]):
        self._pids, self._done = pids, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mb: float | None = None

    def __enter__(self) -> _PeakMemory:
        for pid in self._pids:
            _forget_peak(pid)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            ended = self._done.wait(_POLL_S)
            peaks = [peak for pid in self._pids if (peak := _peak_mb(pid)) is not None]
            if peaks:
                self.peak_mb = max(self.peak_mb or 0.0, *peaks)
            if ended:
                return


def _forget_peak(pid: int) -> None:
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return  # then the peak is that since the process started


def _peak_mb(pid: int) -> float | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return None
