"""Programs a second of the sandbox, beside a bare `python -I -S` for every test, and the cost of a run above its floor.

Tiers and the bare interpreter are interleaved, so that a machine that slows down slows all of them. The floor is what
the kernel takes for a clone into pid, mount and ipc namespaces with a tmpfs: from an interpreter that has loaded
nothing, and from one with the libraries that a zygote has.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report import Report, progress, show, spread, table
from verifiers.code import walls
from verifiers.code.verifier import CodeVerifier
from verifiers.code.walls import Tier
from verifiers.errors import VerifierError
from verifiers.verdict import VerifyRequest

STDIN_PROGRAM = "n = int(input())\nprint(sum(i * i for i in range(n)))\n"
STDIN_INPUTS = ["3", "10", "50", "100", "200"]
FUNCTION_PROGRAM = "def f(x):\n    return x * x\n"
CALLS = 20
FLOOR = """
import os, sys, time
sys.path.insert(0, "/sandbox")
import kernel
sys.path.append("/packages")
runs = int(sys.argv[1])
for name in sys.argv[2:]:
    __import__(name)
    import zygote
    for library in zygote.LIBRARIES:
        __import__(library)
started = time.perf_counter()
for _ in range(runs):
    pid = kernel.clone_into_namespaces()
    if pid == 0:
        kernel.mount_private_tmpfs("/tmp", 16 << 20, 2048)
        os._exit(0)
    os.waitpid(pid, 0)
os.write(2, b"%f" % (1000 * (time.perf_counter() - started) / runs))
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--programs", type=int, default=60, help="programs with 5 stdin tests in a round")
    parser.add_argument("--sets", type=int, default=200, help="functions with 20 calls in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)


def run(options: argparse.Namespace, report: Report) -> None:
    """Raises `VerifierError` if no tier works."""
    ways, verifiers = _ways(options.workers)
    outputs = [str(sum(i * i for i in range(int(n)))) for n in STDIN_INPUTS]
    stdin = {"type": "stdin_stdout", "inputs": STDIN_INPUTS, "outputs": outputs}
    function = {"type": "functional", "fn_name": "f", "inputs": [[i] for i in range(CALLS)],
                "outputs": [i * i for i in range(CALLS)]}  # fmt: skip
    samples = []
    try:
        for number in range(options.rounds):
            for name, judge in ways.items():
                progress(f"round {number + 1}: {name}")
                sample: dict[str, Any] = {"way": name, "round": number}
                sample["stdin_per_s"] = _rate(judge, STDIN_PROGRAM, stdin, options.programs)
                if name in verifiers:
                    sample["functions_per_s"] = _rate(judge, FUNCTION_PROGRAM, function, options.sets)
                    sample["one_run_ms"] = _one_run_ms(verifiers[name])
                samples.append(sample)
            if Tier.NAMESPACES in verifiers:
                for name, packages in (("floor", []), ("floor with libraries", ["numpy"])):
                    samples.append({"way": name, "round": number, "one_run_ms": _floor_ms(packages)})
    finally:
        for verifier in verifiers.values():
            verifier.close()
    settings = {key: getattr(options, key) for key in ("programs", "sets", "rounds", "workers")}
    report.write({"settings": settings, "samples": samples}, _table(samples))


def _ways(workers: int) -> tuple[dict[str, Callable[[list[VerifyRequest]], Any]], dict[str, CodeVerifier]]:
    verifiers: dict[str, CodeVerifier] = {}
    for tier in (Tier.NAMESPACES, Tier.LANDLOCK):
        try:
            verifiers[tier] = CodeVerifier(CodeVerifier.Options(isolation=tier.value, program="text"), workers=workers)
        except VerifierError as error:
            progress(f"not measured: {error.what}")
    if not verifiers:
        raise VerifierError("No tier of the sandbox works here.", fix="see docs/sandbox.md")
    ways: dict[str, Callable[[list[VerifyRequest]], Any]] = {n: v.verify_many for n, v in verifiers.items()}
    ways["bare python -I -S"] = partial(_bare, workers=workers)
    return ways, verifiers


def _rate(judge: Callable[[list[VerifyRequest]], Any], program: str, gold: Any, count: int) -> float:
    requests = [VerifyRequest(program, gold)] * count
    started = time.perf_counter()
    verdicts = judge(requests)
    seconds = time.perf_counter() - started
    assert all(verdict.score == 1.0 for verdict in verdicts) if isinstance(verdicts, list) else verdicts == count
    return count / seconds


def _bare(requests: list[VerifyRequest], workers: int) -> int:
    """Each test a fresh interpreter with nothing between it and the machine; the number of programs that pass."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as executor:
        path = Path(folder) / "main.py"
        path.write_text(requests[0].response)

        def passes(request: VerifyRequest) -> bool:
            outputs = [
                subprocess.run(
                    [sys.executable, "-I", "-S", str(path)], input=text, capture_output=True, text=True, check=True
                )
                for text in request.gold["inputs"]
            ]
            return [output.stdout.strip() for output in outputs] == request.gold["outputs"]

        return sum(executor.map(passes, requests))


def _one_run_ms(verifier: CodeVerifier, runs: int = 100) -> float:
    """One at a time, warm."""
    started = time.perf_counter()
    for _ in range(runs):
        verifier.sandbox.run_stdin("print(1)", "")
    return 1000 * (time.perf_counter() - started) / runs


def _floor_ms(packages: list[str], runs: int = 200) -> float:
    command = walls.command(Tier.NAMESPACES, walls.find_packages(packages, "packages"), walls.find_bubblewrap())[:-1]
    done = subprocess.run(
        [*command, "-c", FLOOR, str(runs), *packages], stderr=subprocess.PIPE, check=True, env=dict(os.environ)
    )
    return float(done.stderr)


def _table(samples: list[dict[str, Any]]) -> str:
    rows = []
    for way in dict.fromkeys(sample["way"] for sample in samples):
        mine = [sample for sample in samples if sample["way"] == way]
        cells = [way]
        for key, digits in (("stdin_per_s", 1), ("functions_per_s", 0), ("one_run_ms", 1)):
            values = [sample[key] for sample in mine if key in sample]
            cells.append(show(spread(values), digits) if values else "")
        rows.append(cells)
    return table(["", "programs with 5 stdin tests / s", "functions with 20 calls / s", "one run, ms"], rows)
