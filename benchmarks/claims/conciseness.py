"""Conciseness paid on top of right answers shortens; added to every answer it collapses: arXiv:2511.09158, in small.

    python -m benchmarks.claims.conciseness --seeds 501 502 503

The policy starts from demonstrations some of whose lines are written twice. Every seed has one warm start, from which
every arm begins. `success only` is the same recipe with alpha 0. The additive form is swept through the weight at which
answering nothing should begin to pay: weight * (level of nothing - level of a solution) > accuracy - chance.

Conciseness is the task's level by program; the last arm asks a model that was trained on such levels instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.claims.arms import main_of, options_parser, run_arms, shared_overrides
from benchmarks.quickstart import run_once
from benchmarks.report import Report, table
from data.chain import conciseness_level
from trainer.compose import load_any
from trainer.fit_config import FitConfig

RECIPE, MODEL_RECIPE = "conciseness_chain", "conciseness_rm_chain"
ADDITIVE = ["sources.1.form=additive", "sources.1.all_correct=pay"]
ARMS = {
    "success only": ["sources.1.alpha=0.0"],
    "multiplicative, guard": ["sources.1.alpha=3.0"],
    "multiplicative, no guard": ["sources.1.alpha=3.0", "sources.1.all_correct=pay"],
    "weak, no guard": ["sources.1.alpha=0.03", "sources.1.all_correct=pay"],
    "weak, no guard, no std": ["sources.1.alpha=0.03", "sources.1.all_correct=pay",
                               "objective.advantage.normalize_std=false"],
    **{f"additive {weight:g}": [*ADDITIVE, f"sources.1.alpha={weight}"] for weight in (0.1, 0.25, 0.5, 1.0, 3.0)},
    "multiplicative, guard, model": ["sources.1.alpha=3.0"],
}  # fmt: skip
CHANCE = 0.2  # of an answer modulo 5
COLLAPSED = 0.5  # of the accuracy of success only, at the last evaluation
WHAT = ("accuracy", "lines", "repeats", "empty", "level")
NOTE = """Held-out, mean over the seeds: accuracy in percent / lines of working a response. At the end also: share of
lines that repeat an earlier one, share of empty responses, mean conciseness level.

"""


def main(arguments: list[str]) -> int:
    summary = str(__doc__).splitlines()[0]
    parser = options_parser("conciseness", summary, list(ARMS), seeds=[501, 502, 503], steps=40)
    parser.add_argument("--model-overrides", nargs="*", default=[], help="changes to the recipe of the reward model")
    return main_of("conciseness", arguments, parser, run)


def run(options: argparse.Namespace, report: Report) -> None:
    model = f"sources.1.path={trained_model(options)}" if any("model" in arm for arm in options.arms) else ""
    arms = {arm: [*changes, *([model] if "model" in arm else [])] for arm, changes in ARMS.items()}
    measured = run_arms(options, RECIPE, arms, curve=curve, shown=shown)
    settings = {"recipe": RECIPE, "overrides": shared_overrides(options),
                "arms": {arm: ARMS[arm] for arm in options.arms}}  # fmt: skip
    report.write({"settings": settings, "measurements": measured}, tables(measured, options.arms))


def trained_model(options: argparse.Namespace) -> Path:
    """The checkpoint of the reward model that writes levels, trained once for all seeds."""
    changes = [*options.model_overrides, f"hardware.threads={options.threads}"]
    config = load_any(MODEL_RECIPE, changes)
    assert isinstance(config, FitConfig)
    run_once(options.runs, MODEL_RECIPE, changes, MODEL_RECIPE)
    return options.runs.absolute() / MODEL_RECIPE / "checkpoints" / f"step-{config.train.steps or 0:06d}"


def curve(run: Path, eval_name: str) -> dict[int, dict[str, float]]:
    """{step: what held-out responses are like}."""
    out = {}
    for file in sorted((run / "evaluations").glob(f"step-*-{eval_name}.jsonl")):
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        working = [[x for x in row["response"].splitlines() if x and not x.startswith("#")] for row in rows]
        lines = sum(map(len, working))
        out[int(file.name.split("-")[1])] = {
            "accuracy": 100 * statistics.mean(row["verdict"]["score"] or 0.0 for row in rows),
            "lines": lines / len(rows),
            "repeats": sum(len(some) - len(set(some)) for some in working) / max(1, lines),
            "empty": statistics.mean(not row["response"].strip() for row in rows),
            "level": statistics.mean(conciseness_level(row["response"]) for row in rows),
        }
    return out


def shown(points: dict[int, dict[str, float]]) -> str:
    return "  ".join(f"{p['accuracy']:.0f}/{p['lines']:.1f}" for p in points.values())


def tables(measured: list[dict[str, Any]], arms: list[str]) -> str:
    steps = list(measured[0]["curve"])
    by_arm = {arm: [m["curve"] for m in measured if m["arm"] == arm] for arm in arms}
    last = steps[-1]
    rows, ends = [], []
    for arm, curves in by_arm.items():
        final = [c[last]["accuracy"] for c in curves]
        cells = [f"{mean(curves, s, 'accuracy'):.1f} / {mean(curves, s, 'lines'):.2f}" for s in steps]
        rows.append([arm, *cells, f"{min(final):.1f} to {max(final):.1f}"])
        ends.append([arm, *(f"{mean(curves, last, what):.2f}" for what in WHAT)])
    text = NOTE + table(["arm", *(f"step {s}" for s in steps), "spread at the end"], rows)
    text += f"\nAt step {last}:\n\n" + table(["arm", *WHAT], ends)
    if "success only" in by_arm:
        text += verdicts(by_arm, last)
    single = [[str(m["seed"]), m["arm"], shown(m["curve"])] for m in measured]
    text += f"\nEvery run, accuracy / lines at steps {', '.join(map(str, steps))}:\n\n"
    return text + table(["seed", "arm", "curve"], single)


def verdicts(by_arm: dict[str, list[dict[int, dict[str, float]]]], last: int) -> str:
    """Each arm against success only, seed by seed, and the weight at which nothing should begin to pay."""
    reference = by_arm["success only"]
    accuracy = mean(reference, last, "accuracy")
    rows = []
    for arm, curves in by_arm.items():
        gaps = [c[last]["accuracy"] - r[last]["accuracy"] for c, r in zip(curves, reference, strict=True)]
        shorter = [c[last]["lines"] - r[last]["lines"] for c, r in zip(curves, reference, strict=True)]
        state = "collapsed" if mean(curves, last, "accuracy") < COLLAPSED * accuracy else "holds"
        rows.append([arm, state, f"{statistics.mean(gaps):+.1f} ({min(gaps):+.1f} to {max(gaps):+.1f})",
                     f"{statistics.mean(shorter):+.2f} ({min(shorter):+.2f} to {max(shorter):+.2f})"])  # fmt: skip
    level = mean(reference, last, "level")
    threshold = (accuracy / 100 - CHANCE) / max(1e-9, 1 - level)
    text = f"\nAgainst success only at step {last}, mean and range over seeds; collapsed: under {COLLAPSED:.0%} of its "
    text += f"accuracy. By its accuracy and level ({level:.2f}), nothing should pay from an additive weight of "
    return text + f"{threshold:.1f} on.\n\n" + table(["arm", "verdict", "accuracy, points", "lines"], rows)


def mean(curves: list[dict[int, dict[str, float]]], step: int, what: str) -> float:
    return statistics.mean(c[step][what] for c in curves)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
