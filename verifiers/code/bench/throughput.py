"""Programs a second of the sandbox, beside a bare ``python -I -S`` for every test and the peers that are installed.

All ways are interleaved, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from verifiers.code.bench.accuracy import Progress
from verifiers.code.bench.peers import PEERS
from verifiers.code.judging import IS_PROGRAM
from verifiers.code.session import Session
from verifiers.code.verifier import CodeVerifier
from verifiers.errors import VerifierError
from verifiers.verdict import VerifyRequest

BARE = "python -I -S"
PROGRAM = "n = int(input())\nprint(sum(i * i for i in range(n)))\n"
INPUTS = ["3", "10", "50", "100", "200"]
STDIN = {"type": "stdin_stdout", "inputs": INPUTS, "outputs": [str(sum(i * i for i in range(int(n)))) for n in INPUTS]}
FUNCTION = "def f(x):\n    return x * x\n"
CALLS = 20
FUNCTIONAL = {"type": "functional", "fn_name": "f", "inputs": [[i] for i in range(CALLS)],
              "outputs": [i * i for i in range(CALLS)]}  # fmt: skip
KINDS = {"stdin_per_s": (PROGRAM, STDIN), "functions_per_s": (FUNCTION, FUNCTIONAL)}
_WARM_RUNS = 100


def measure(
    verifiers: Mapping[str, CodeVerifier], *, programs: int, functions: int, rounds: int, workers: int,
    progress: Progress,
) -> tuple[list[dict[str, Any]], dict[str, str]]:  # fmt: skip
    """(samples, name -> why a peer was not measured). A sample: {"way", "round"} and what was measured of
    stdin_per_s (programs with 5 tests), functions_per_s (with 20 calls) and one_run_ms (warm, one at a time)."""
    counts = {"stdin_per_s": programs, "functions_per_s": functions}
    ways: dict[str, Callable[[str, int], float | None]] = {}
    for name, verifier in verifiers.items():
        ways[f"assay, {name}"] = lambda kind, count, v=verifier: sandboxed_rate(v, kind, count)
    ways[BARE] = lambda kind, count: bare_rate(count, workers) if kind == "stdin_per_s" else None
    failures: dict[str, str] = {}
    for name in PEERS:
        ways[name] = lambda kind, count, n=name: _peer_rate(n, kind, max(1, count // 4), workers)
    samples = []
    for number in range(rounds):
        for name, rate in ways.items():
            if name in failures:
                continue
            progress(f"round {number + 1}: {name}")
            try:
                sample = {"way": name, "round": number} | {kind: rate(kind, count) for kind, count in counts.items()}
            except VerifierError as error:
                failures[name] = error.what
                continue
            if name.startswith("assay, "):
                sample["one_run_ms"] = one_run_ms(verifiers[name.removeprefix("assay, ")])
            samples.append({key: value for key, value in sample.items() if value is not None})
    return samples, failures


def sandboxed_rate(verifier: CodeVerifier, kind: str, count: int) -> float:
    program, tests = KINDS[kind]
    started = time.perf_counter()
    verdicts = verifier.verify_many([VerifyRequest(program, tests, {IS_PROGRAM: True})] * count)
    seconds = time.perf_counter() - started
    _require(sum(verdict.score == 1.0 for verdict in verdicts), count, f"{verdicts[0].status}: {verdicts[0].evidence}")
    return count / seconds


def bare_rate(count: int, workers: int) -> float:
    """Each test a fresh interpreter with nothing between it and the machine."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as executor:
        path = Path(folder) / "main.py"
        path.write_text(PROGRAM, encoding="utf-8")

        def passes(_: int) -> bool:
            outputs = []
            for text in INPUTS:
                argv = [sys.executable, "-I", "-S", str(path)]
                done = subprocess.run(argv, input=text, capture_output=True, text=True, check=True)
                outputs.append(done.stdout.strip())
            return outputs == STDIN["outputs"]

        started = time.perf_counter()
        passed = sum(executor.map(passes, range(count)))
        seconds = time.perf_counter() - started
    _require(passed, count, BARE)
    return count / seconds


def one_run_ms(verifier: CodeVerifier) -> float:
    session = Session(verifier.sandbox, verifier.limits)
    started = time.perf_counter()
    for _ in range(_WARM_RUNS):
        session.run_stdin("print(1)", "")
    return 1000 * (time.perf_counter() - started) / _WARM_RUNS


def _peer_rate(name: str, kind: str, count: int, workers: int) -> float | None:
    """In a process of its own, because peers fork the process that they are called in. Raises `VerifierError`."""
    if kind not in PEERS[name]:
        return None
    program, tests = KINDS[kind]
    job = json.dumps({"name": name, "kind": kind, "program": program, "tests": tests, "count": count,
                      "workers": workers})  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "verifiers.code.bench.peers"], input=job, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise VerifierError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it died without a word")
    passed, seconds = json.loads(done.stdout.splitlines()[-1])
    _require(passed, count, name)
    return count / seconds


def _require(passed: int, count: int, words: str) -> None:
    if passed != count:
        raise VerifierError(f"Only {passed} of {count} right programs passed ({words}).")


def medians(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Way -> the median of each figure over the rounds."""
    result: dict[str, dict[str, float]] = {}
    for way in dict.fromkeys(sample["way"] for sample in samples):
        mine = [sample for sample in samples if sample["way"] == way]
        figures = dict.fromkeys(key for sample in mine for key in sample if key not in ("way", "round"))
        result[way] = {key: sorted(s[key] for s in mine if key in s)[len(mine) // 2] for key in figures}
    return result
