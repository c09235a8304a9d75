"""Programs a second of the sandbox, beside a bare `python -I -S` for every test, and the cost of a run above its floor.

Tiers, the bare interpreter and the floors are interleaved, so that a machine that slows down slows all of them; ratios
are taken within a round. A floor is what the kernel takes for a clone into pid, mount and ipc namespaces with a tmpfs,
and its end: of an interpreter that has loaded nothing, of one that has loaded what a zygote has, and of one with numpy
as well. The last two have the memory, and so the page tables, of the zygotes that the runs beside them are cloned from.

`--soak 50000` instead makes that many runs of many kinds, and records memory, processes, files, namespaces and mounts.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from typing import Any

import psutil

from benchmarks.report import Report, progress, show, spread, table
from benchmarks.sandbox_soak import soak
from verifiers.code import walls
from verifiers.code.bench import throughput
from verifiers.code.sandbox import Sandbox
from verifiers.code.session import Session
from verifiers.code.verifier import CodeVerifier
from verifiers.code.walls import Tier
from verifiers.errors import VerifierError

BARE = "bare python -I -S"
RUNS = 100  # of one kind in a round, one after the other
FLOOR = """
import gc, os, sys
sys.path.insert(0, "/sandbox")
import kernel
sys.path.append("/packages")
if sys.argv[1] != "nothing":
    import zygote
    for library in [*zygote.LIBRARIES, *sys.argv[2:]]:
        __import__(library)
gc.collect()
gc.freeze()
while sys.stdin.readline():
    pid = kernel.clone_into_namespaces()
    if pid == 0:
        kernel.mount_private_tmpfs("/tmp", 16 << 20, 2048)
        os._exit(0)
    os.waitpid(pid, 0)
    os.write(1, b"\\n")
"""
FLOORS = {
    "floor, nothing loaded": ("nothing", []),
    "floor, with the zygote's libraries": ("libraries", []),
    "floor, with numpy as well": ("libraries", ["numpy"]),
}
PROGRAMS = {"a run": "print(1)", "a run that uses numpy": "import numpy\nprint(1)"}
RATIOS = (
    ("a run", "floor, nothing loaded"),
    ("a run", "floor, with the zygote's libraries"),
    ("a run that uses numpy", "floor, with numpy as well"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--programs", type=int, default=60, help="programs with 5 stdin tests in a round")
    parser.add_argument("--sets", type=int, default=200, help="functions with 20 calls in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--soak", type=int, metavar="RUNS", help="only this: so many runs, and what is left of them")


def run(options: argparse.Namespace, report: Report) -> None:
    """Raises `VerifierError` if no tier works."""
    if options.soak is not None:
        soak(options, report)
        return
    report.name = "sandbox_cost"  # `sandbox` is the report of `assay bench sandbox`
    verifiers = _verifiers(options.workers)
    costs: dict[str, _Floor | _Runs] = {}
    samples: list[dict[str, Any]] = []
    try:
        if Tier.NAMESPACES in verifiers:
            costs |= {name: _Floor(*arguments) for name, arguments in FLOORS.items()}
            costs |= {name: _Runs(program) for name, program in PROGRAMS.items()}
        for number in range(options.rounds):
            for name, verifier in verifiers.items():
                progress(f"round {number + 1}: {name}")
                stdin = throughput.sandboxed_rate(verifier, "stdin_per_s", options.programs)
                functions = throughput.sandboxed_rate(verifier, "functions_per_s", options.sets)
                samples.append({"way": name, "round": number, "stdin_per_s": stdin, "functions_per_s": functions})
            progress(f"round {number + 1}: {BARE}")
            rate = throughput.bare_rate(options.programs, options.workers)
            samples.append({"way": BARE, "round": number, "stdin_per_s": rate})
            samples += _costs(costs, number)
    finally:
        for closing in (*verifiers.values(), *costs.values()):
            closing.close()
    settings = {key: getattr(options, key) for key in ("programs", "sets", "rounds", "workers")}
    report.write({"settings": settings, "samples": samples}, _table(samples) + "\n" + _ratios(samples))


def _verifiers(workers: int) -> dict[str, CodeVerifier]:
    verifiers: dict[str, CodeVerifier] = {}
    for tier in (Tier.NAMESPACES, Tier.LANDLOCK):
        try:
            verifiers[tier] = CodeVerifier(CodeVerifier.Options(isolation=tier.value), workers=workers)
        except VerifierError as error:
            progress(f"not measured: {error.what}")
    if not verifiers:
        raise VerifierError("No tier of the sandbox works here.", fix="see docs/sandbox.md")
    return verifiers


class _Floor:
    """An interpreter in the same bubblewrap that clones itself once for every line it reads."""

    def __init__(self, loaded: str, packages: list[str]):
        found = walls.find_packages(packages, "packages")
        command = walls.command(Tier.NAMESPACES, found, walls.find_bubblewrap())[:-1]
        self._process = subprocess.Popen(
            [*command, "-c", FLOOR, loaded, *packages], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.once()

    def once(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        self._process.stdout.read(1)

    def cpu_s(self) -> float:
        return _cpu_s(psutil.Process(self._process.pid))

    def close(self) -> None:
        self._process.communicate()


class _Runs:
    """One program, run again and again in a sandbox of its own."""

    def __init__(self, program: str):
        self._program = program
        self._sandbox = Sandbox(workers=1, isolation=Tier.NAMESPACES.value)
        self._session = Session(self._sandbox, self._sandbox.limits)
        self._own_cpu_s = 0.0
        self.once()
        (self._launcher,) = [process for process in psutil.Process().children()
                             if any(str(self._sandbox._folder) == part for part in process.cmdline())]  # fmt: skip

    def once(self) -> None:
        started = time.thread_time()
        self._session.run_stdin(self._program, "")
        self._own_cpu_s += time.thread_time() - started

    def cpu_s(self) -> float:
        return self._own_cpu_s + _cpu_s(self._launcher)

    def close(self) -> None:
        self._sandbox.close()


def _cpu_s(root: psutil.Process) -> float:
    """Of a process, what it started, and what of that has ended."""
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return sum(t.user + t.system + t.children_user + t.children_system for t in times)


def _costs(ways: dict[str, _Floor | _Runs], number: int) -> list[dict[str, Any]]:
    """Milliseconds of one run and of one clone, warm, one at a time and taking turns."""
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu_s = {name: way.cpu_s() for name, way in ways.items()}
    for _ in range(RUNS):
        for name, way in ways.items():
            started = time.perf_counter()
            way.once()
            wall[name].append(1000 * (time.perf_counter() - started))
    return [{"way": name, "round": number, "one_run_ms": spread(wall[name])["median"],
             "one_run_cpu_ms": 1000 * (way.cpu_s() - cpu_s[name]) / RUNS} for name, way in ways.items()]  # fmt: skip


def _ratios(samples: list[dict[str, Any]]) -> str:
    rounds = sorted({sample["round"] for sample in samples})
    figures = {(s["way"], s["round"]): s for s in samples}
    rows = []
    for run, floor in RATIOS:
        cells = [f"{run} to {floor}"]
        for key in ("one_run_ms", "one_run_cpu_ms"):
            values = [figures[run, n][key] / figures[floor, n][key] for n in rounds if (floor, n) in figures]
            cells.append(show(spread(values), 2) if values else "")
        rows.append(cells)
    for tier in (Tier.NAMESPACES, Tier.LANDLOCK):
        values = [figures[tier, n]["stdin_per_s"] / figures[BARE, n]["stdin_per_s"] for n in rounds
                  if (tier, n) in figures]  # fmt: skip
        if values:
            rows.append([f"programs a second, {tier} to {BARE}", show(spread(values), 2), ""])
    return table(["ratio within a round", "of the wall time", "of the CPU time"], rows)


def _table(samples: list[dict[str, Any]]) -> str:
    rows = []
    for way in dict.fromkeys(sample["way"] for sample in samples):
        mine = [sample for sample in samples if sample["way"] == way]
        cells = [way]
        for key, digits in (("stdin_per_s", 1), ("functions_per_s", 0), ("one_run_ms", 1), ("one_run_cpu_ms", 1)):
            values = [sample[key] for sample in mine if key in sample]
            cells.append(show(spread(values), digits) if values else "")
        rows.append(cells)
    columns = ["", "programs with 5 stdin tests / s", "functions with 20 calls / s", "one run, ms", "CPU of it, ms"]
    return table(columns, rows)
