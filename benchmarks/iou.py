"""Detection verdicts per second of kind `iou`, in one process and in several side by side.

The workloads are those of `assay bench iou`: boxes on 75 photographs, moved by up to 10%. `few` has 2.4 boxes an image,
as detection data with one or two categories has, `many` has 17. A process judges the same 75 responses again and again
through `Runner`; golds are read once. The numbers of processes alternate within every round, and the processes of one
measurement start together.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.report import Report, progress, show, spread, table
from benchmarks.worker import run_worker
from verifiers.visual.bench import measure_throughput, workloads


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each workload in each measurement")
    parser.add_argument("--processes", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """For the worker: verdicts a second of every workload."""
    return {name: measure_throughput(requests, options["seconds"]) for name, requests in workloads().items()}


def run(options: argparse.Namespace, report: Report) -> None:
    measured = []
    for number in range(1, options.rounds + 1):
        for count in options.processes:
            with ThreadPoolExecutor(count) as threads:
                asked = [{"seconds": options.seconds}] * count
                results = list(threads.map(lambda one: run_worker("benchmarks.iou", one), asked))
            measured.append({"round": number, "processes": count, "results": results})
            progress(f"iou round {number}, {count} processes: {_total(results, 'few'):,.0f} verdicts a second")
    body = {"settings": {"seconds": options.seconds}, "measurements": measured, "summary": summarise(measured)}
    report.write(body, tables(body))


def _total(results: list[dict[str, Any]], workload: str) -> float:
    return sum(result[workload]["per_second"] for result in results)


def summarise(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the processes of a measurement, spread over the rounds; ratios are taken within a round."""
    summary: dict[str, Any] = {}
    for name in measured[0]["results"][0]:
        totals = {(m["round"], m["processes"]): _total(m["results"], name) for m in measured}
        fewest = min(processes for _, processes in totals)
        summary[name] = {
            str(count): {
                "per_second": spread([total for (_, processes), total in totals.items() if processes == count]),
                "over_fewest": spread(
                    [t / totals[r, fewest] for (r, processes), t in totals.items() if processes == count]
                ),
            }
            for count in sorted({processes for _, processes in totals})
        }
    return summary


def tables(body: dict[str, Any]) -> str:
    boxes = {name: result["boxes_per_image"] for name, result in body["measurements"][0]["results"][0].items()}
    rows = [
        [name, f"{boxes[name]:.1f}", count, show(s["per_second"]), show(s["over_fewest"], 2)]
        for name, counts in body["summary"].items()
        for count, s in counts.items()
    ]
    columns = ["workload", "boxes an image", "processes", "verdicts a second", "times the fewest, same round"]
    return "Every figure: median (min to max) of the rounds.\n\n" + table(columns, rows)
