"""Programs a second of the sandbox, beside a bare `python -I -S` for every test, and the cost of a run above its floor.

Tiers and the bare interpreter are interleaved, so that a machine that slows down slows all of them. The floor is what
the kernel takes for a clone into pid, mount and ipc namespaces with a tmpfs: from an interpreter that has loaded
nothing, and from one with the libraries that a zygote has.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from typing import Any

from benchmarks.report import Report, progress, show, spread, table
from verifiers.code import walls
from verifiers.code.bench import throughput
from verifiers.code.verifier import CodeVerifier
from verifiers.code.walls import Tier
from verifiers.errors import VerifierError

BARE = "bare python -I -S"
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
    verifiers = _verifiers(options.workers)
    samples: list[dict[str, Any]] = []
    try:
        for number in range(options.rounds):
            for name, verifier in verifiers.items():
                progress(f"round {number + 1}: {name}")
                rates = {"stdin_per_s": throughput.sandboxed_rate(verifier, "stdin_per_s", options.programs),
                         "functions_per_s": throughput.sandboxed_rate(verifier, "functions_per_s", options.sets),
                         "one_run_ms": throughput.one_run_ms(verifier)}  # fmt: skip
                samples.append({"way": name, "round": number, **rates})
            progress(f"round {number + 1}: {BARE}")
            rate = throughput.bare_rate(options.programs, options.workers)
            samples.append({"way": BARE, "round": number, "stdin_per_s": rate})
            if Tier.NAMESPACES in verifiers:
                for name, packages in (("floor", []), ("floor with libraries", ["numpy"])):
                    samples.append({"way": name, "round": number, "one_run_ms": _floor_ms(packages)})
    finally:
        for verifier in verifiers.values():
            verifier.close()
    settings = {key: getattr(options, key) for key in ("programs", "sets", "rounds", "workers")}
    report.write({"settings": settings, "samples": samples}, _table(samples))


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
