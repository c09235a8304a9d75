"""What many runs leave behind: `python -m benchmarks sandbox --soak 50000`.

Programs of many kinds (right, wrong, killed, out of memory, threads, files, too much output, an endless loop now and
then) run in one sandbox. Every 1,000 runs the memory and the open files of the trainer, the launcher and the zygotes
are recorded, and their processes. Afterwards: which processes of this sandbox still live and in which of its
namespaces, what is left of its folder, and how many mounts, namespaces and pages of tmpfs the kernel has more than
before (these are the whole machine's).
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import Report, progress, table
from verifiers.code.box import Ended, Limits
from verifiers.code.inside import plain
from verifiers.code.sandbox import Sandbox
from verifiers.code.session import Session

EVERY = 1_000
SETTLE_S = 3.0  # the kernel frees namespaces some time after their last process
LIMITS = Limits(timeout_s=1, memory_mb=256, output_kb=256)
STDIN_PROGRAMS = (
    "print(sum(map(int, input().split())))",
    "raise ValueError('wrong')",
    "open('a', 'w').write('x' * 1_000_000)\nprint(len(open('a').read()))",
    "import os\nfor i in range(50):\n    os.makedirs(f'd{i}/e')\nprint(len(os.listdir('.')))",
    "import threading\nt = [threading.Thread(target=print, args=(i,)) for i in range(4)]\n[x.start() for x in t]\n"
    "[x.join() for x in t]",
    "print('x' * 100_000)",
    "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\nos.abort()",
    "x = bytearray(10**9)",
    "print('x' * 1_000_000)",
    "raise SystemExit(3)",
)
RARE_PROGRAM, RARE = "while True: pass", 2_500  # one of so many runs
CALLS = [plain.encode(["call:f", [i], {}]) for i in range(20)]
NAMESPACES = ("pid", "mnt", "ipc", "net", "user", "uts")
_SLABS = ("pid_namespace", "mnt_cache", "nsproxy")


def soak(options: argparse.Namespace, report: Report) -> None:
    report.name = "sandbox_soak"
    before = _machine()
    sandbox = Sandbox(workers=options.workers, packages=())
    watch = _Watch(sandbox)
    started = time.perf_counter()
    endings: Counter[str] = Counter()
    try:
        with ThreadPoolExecutor(options.workers) as executor:
            for first in range(0, options.soak, EVERY):
                numbers = range(first, min(first + EVERY, options.soak))
                endings.update(executor.map(lambda number: _one_run(sandbox, number), numbers))
                watch.record(numbers.stop)
        wall_s = time.perf_counter() - started
        counters = dict(sandbox.counters)
    finally:
        sandbox.close()
    time.sleep(SETTLE_S)
    body = {
        "settings": {"runs": options.soak, "workers": options.workers, "tier": str(sandbox.tier)},
        "wall_s": round(wall_s, 1),
        "endings": dict(endings),
        "counters": counters,
        "samples": watch.samples,
        "left": watch.left(),
        "machine": {"before": before, "after": _machine()},
    }
    report.write(body, _tables(body))


def _one_run(sandbox: Sandbox, number: int) -> Ended:
    session = Session(sandbox, LIMITS)
    if number % RARE == RARE - 1:
        return session.run_stdin(RARE_PROGRAM, "").ended
    kind = number % (len(STDIN_PROGRAMS) + 2)
    if kind >= len(STDIN_PROGRAMS):
        return session.run_calls("def f(x):\n    return [x] * x", CALLS).ended
    return session.run_stdin(STDIN_PROGRAMS[kind], "1 2 3").ended


class _Watch:
    def __init__(self, sandbox: Sandbox):
        self._sandbox, self._me = sandbox, psutil.Process()
        self.samples: list[dict[str, Any]] = []
        self._pids: dict[int, float] = {}
        self._launchers: set[str] = set()
        self._namespaces: set[tuple[str, str]] = set()
        self._folder = Path()
        self._own = _namespaces_of(os.getpid())  # which the launcher is in as well

    def record(self, runs: int) -> None:
        self._folder = self._sandbox._folder
        rss: dict[str, list[float]] = {"launcher": [], "bubblewrap": [], "zygotes": []}
        fds = 0
        for process in self._me.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                self._pids[process.pid] = process.create_time()
                self._namespaces |= _namespaces_of(process.pid) - self._own
                kind = _kind(process)
                if kind == "launcher":
                    self._launchers.add(str(process.pid))
                rss[kind].append(process.memory_info().rss / 2**20)
                fds += process.num_fds() if kind != "bubblewrap" else 0
        sample = {"runs": runs, "trainer_mb": round(self._me.memory_info().rss / 2**20, 2),
                  "trainer_fds": self._me.num_fds(), "other_fds": fds, "processes": sum(map(len, rss.values())),
                  "folder_entries": sum(1 for _ in self._folder.rglob("*")),
                  **{f"{kind}_mb": [round(value, 2) for value in values] for kind, values in rss.items()}}  # fmt: skip
        self.samples.append(sample)
        progress(f"{runs} runs: {sample}")

    def left(self) -> dict[str, Any]:
        living = [process.pid for process in psutil.process_iter() if self._is_ours(process)]
        # The kernel gives the number of a namespace that has gone to another one, so only those of our own count.
        held = {namespace for pid in living for namespace in _namespaces_of(pid)} & self._namespaces
        return {"processes_seen": len(self._pids), "processes": len(living), "namespaces_seen": len(self._namespaces),
                "namespaces": len(held), "folder": int(self._folder.exists()), "trainer_fds": self._me.num_fds(),
                "children": len(self._me.children(recursive=True))}  # fmt: skip

    def _is_ours(self, process: psutil.Process) -> bool:
        """Seen before; or a zygote, or a run, which is a clone of one and so has its command line: it ends with the
        launcher's process id."""
        with suppress(psutil.NoSuchProcess):
            line = process.cmdline()
            seen = self._pids.get(process.pid) == process.create_time()
            return seen or (any("zygote.py" in part for part in line) and line[-1] in self._launchers)
        return False


def _kind(process: psutil.Process) -> str:
    line = process.cmdline()
    if any(part.endswith("launcher.py") for part in line):
        return "launcher"
    return "bubblewrap" if line and line[0].endswith("bwrap") else "zygotes"


def _namespaces_of(pid: int) -> set[tuple[str, str]]:
    found = set()
    for name in NAMESPACES:
        with suppress(OSError):
            found.add((name, os.readlink(f"/proc/{pid}/ns/{name}")))
    return found


def _machine() -> dict[str, int]:
    """Of the whole machine; slabs only if this user may read them."""
    shmem = re.search(r"^Shmem:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    figures = {"mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
               "tmpfs_kb": int(shmem[1]) if shmem else -1}  # fmt: skip
    with suppress(OSError):
        slabs = Path("/proc/slabinfo").read_text()
        for name in _SLABS:
            found = re.search(rf"^{name}\s+(\d+)", slabs, re.MULTILINE)
            if found:
                figures[name] = int(found[1])
    return figures


def _tables(body: dict[str, Any]) -> str:
    samples, left, machine = body["samples"], body["left"], body["machine"]
    rows = []
    for sample in _thinned(samples):
        zygotes = sample["zygotes_mb"]
        launcher = ", ".join(f"{value:.1f}" for value in sample["launcher_mb"])
        rows.append([str(sample["runs"]), f"{sample['trainer_mb']:.1f}", launcher,
                     f"{statistics.mean(zygotes):.1f} ({max(zygotes):.1f})" if zygotes else "",
                     str(sample["trainer_fds"]), str(sample["other_fds"]), str(sample["processes"]),
                     str(sample["folder_entries"])])  # fmt: skip
    columns = ["runs", "trainer, MB", "launcher, MB", "zygotes, MB: mean (largest)", "trainer's open files",
               "launcher's and zygotes'", "processes", "entries of the folder"]  # fmt: skip
    endings = ", ".join(f"{name} {count}" for name, count in sorted(body["endings"].items()))
    counters = ", ".join(f"{name} {count}" for name, count in body["counters"].items())
    over = [[name, str(machine["before"][name]), str(machine["after"][name])] for name in machine["before"]]
    return "\n".join(
        [
            f"{body['settings']['runs']} runs, {body['settings']['workers']} at a time, tier "
            f"{body['settings']['tier']}, {body['wall_s']:.0f} s. Ended: {endings}. Counters: {counters}.\n",
            table(columns, rows),
            "## Afterwards\n",
            table(
                ["", "seen", "left"],
                [
                    ["processes", str(left["processes_seen"]), str(left["processes"])],
                    ["namespaces that a process is in", str(left["namespaces_seen"]), str(left["namespaces"])],
                    ["the sandbox's folder", "1", str(left["folder"])],
                    ["children of the trainer", "", str(left["children"])],
                ],
            ),
            "The whole machine, on which other sandboxes may run:\n",
            table(["", "before", "after"], over),
        ]
    )


def _thinned(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """About a dozen rows; the JSON file has all."""
    step = max(1, len(samples) // 12)
    return [sample for i, sample in enumerate(samples) if i % step == 0 or i == len(samples) - 1]
