"""Verdicts a second of the worker pool: one and two workers, cheap pure-Python verdicts, and the parent's share.

The verdicts cost a fixed amount of pure Python, so the numbers measure the pool and not a verifier. Numbers of workers
are interleaved, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks.report import Report, progress, show, spread, table
from verifiers.options import Options
from verifiers.runner import Runner
from verifiers.verdict import Status, Verdict, VerifyRequest


class FixedWork:
    """Spends `microseconds` of this process's CPU time in pure Python, whatever the response."""

    isolated = True

    class Options(Options):
        microseconds: float

    def __init__(self, options: FixedWork.Options):
        self.seconds = options.microseconds / 1e6

    def verify(self, request: VerifyRequest) -> Verdict:
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return Verdict(1.0, Status.CORRECT, "compared '42' with '42'", answer="42")

    def gold_response(self, gold: Any, meta: Any) -> str:
        return "42"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verdicts", type=int, default=4000, help="requests in a batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--microseconds", type=float, nargs="+", default=[100.0, 200.0, 300.0])
    parser.add_argument("--response-chars", type=int, default=1000)


def run(options: argparse.Namespace, report: Report) -> None:
    """Raises `VerifierError` if the workers cannot start."""
    response = ("The sum of the parts is " * 50)[: options.response_chars] + " \\boxed{42}"
    requests = [VerifyRequest(response, "42", {}, f"rows-{i}") for i in range(options.verdicts)]
    rows, measured = [], []
    for microseconds in options.microseconds:
        progress(f"verdicts of {microseconds:g} microseconds")
        samples = _measure(microseconds, requests, options.repeats)
        measured += samples
        rate = {w: spread([s["verdicts_per_s"] for s in samples if s["workers"] == w]) for w in (1, 2)}
        speedup = [b["verdicts_per_s"] / a["verdicts_per_s"] for a, b in zip(samples[::2], samples[1::2], strict=True)]
        parent = spread([s["parent_us_per_verdict"] for s in samples])
        rows.append([f"{microseconds:g}", show(rate[1]), show(rate[2]), show(spread(speedup), 2), show(parent, 1)])
    columns = ["µs a verdict", "verdicts/s, 1 worker", "verdicts/s, 2 workers", "ratio", "parent CPU, µs a verdict"]
    settings = {k: getattr(options, k) for k in ("verdicts", "repeats", "microseconds", "response_chars")}
    report.write({"settings": settings, "samples": measured}, table(columns, rows))


def _measure(microseconds: float, requests: list[VerifyRequest], repeats: int) -> list[dict[str, float]]:
    runners = {w: Runner("benchmarks.verifier_pool:FixedWork", {"microseconds": microseconds}, workers=w)
               for w in (1, 2)}  # fmt: skip
    samples = []
    try:
        for runner in runners.values():
            runner.warm()
            runner.verify(requests[:500])
        for _ in range(repeats):
            for workers, runner in runners.items():
                started, cpu = time.perf_counter(), time.process_time()
                verdicts = runner.verify(requests)
                seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
                assert all(v.status is Status.CORRECT for v in verdicts)
                samples.append({"microseconds": microseconds, "workers": workers,
                                "verdicts_per_s": len(requests) / seconds,
                                "parent_us_per_verdict": 1e6 * cpu / len(requests)})  # fmt: skip
    finally:
        for runner in runners.values():
            runner.close()
    return samples
