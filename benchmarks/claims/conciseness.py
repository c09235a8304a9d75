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
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.quickstart import run_once
from benchmarks.report import RESULTS, Report, portable, progress, table
from data.chain import conciseness_level
from trainer.compose import load_any, load_recipe
from trainer.fit_config import FitConfig
from verifiers.errors import AssayError

NAME, RECIPE, MODEL_RECIPE = "claims_conciseness", "conciseness_chain", "conciseness_rm_chain"
ADDITIVE = ["sources.1.form=additive", "sources.1.all_correct=pay"]
ARMS = {
    "success only": ["sources.1.alpha=0.0"],
    "multiplicative, guard": ["sources.1.alpha=3.0"],
    "multiplicative, no guard": ["sources.1.alpha=3.0", "sources.1.all_correct=pay"],
    "weak, no guard": ["sources.1.alpha=0.03", "sources.1.all_correct=pay"],
    "weak, no guard, no std": ["sources.1.alpha=0.03", "sources.1.all_correct=pay",
                               "objective.advantage.normalize_std=false"],
    **{f"additive {weight:g}": [*ADDITIVE, f"sources.1.alpha={weight}"] for weight in (0.5, 1.0, 2.0, 3.0, 5.0)},
    "multiplicative, guard, model": ["sources.1.alpha=3.0"],
}  # fmt: skip
CHANCE = 0.2  # of an answer modulo 5
COLLAPSED = 0.5  # of the accuracy of success only, at the last evaluation
WHAT = ("accuracy", "lines", "repeats", "empty", "level")
NOTE = """Held-out, mean over the seeds: accuracy in percent / lines of working a response. At the end also: share of
lines that repeat an earlier one, share of empty responses, mean conciseness level.

"""


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    report = Report(NAME, options)
    report.header["command"] = portable(["python", "-m", "benchmarks.claims.conciseness", *arguments])
    try:
        run(options, report)
    except AssayError as error:
        sys.stderr.write(f"{NAME}: {error}\n")
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    summary = str(__doc__).splitlines()[0]
    out = argparse.ArgumentParser(prog="python -m benchmarks.claims.conciseness", description=summary)
    runs = Path("runs") / f"claims-conciseness-{datetime.now():%Y%m%d-%H%M%S}"
    out.add_argument("--seeds", type=int, nargs="+", default=[501, 502, 503])
    out.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    out.add_argument("--steps", type=int, default=40)
    out.add_argument("--warm-start-steps", type=int, default=300)
    out.add_argument("--prompts", type=int, default=16, help="prompts a step, with 8 samples each")
    out.add_argument("--model-overrides", nargs="*", default=[], help="changes to the recipe of the reward model")
    out.add_argument(
        "--runs", type=Path, default=runs, help="folder for the runs; finished ones in it are not repeated"
    )
    out.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's own choice")
    out.add_argument("--results", type=Path, default=RESULTS, help=f"folder for {NAME}.json and .md")
    out.add_argument("--overrides", nargs="*", default=[], help="changes to the recipe, for all runs")
    return out


def run(options: argparse.Namespace, report: Report) -> None:
    overrides = [
        *options.overrides, f"hardware.threads={options.threads}", f"rollout.prompts_per_step={options.prompts}",
        "data.eval.0.source.seed=1001", "eval.every_steps=10", "eval.samples_per_prompt=2",
    ]  # fmt: skip
    eval_name = load_recipe(RECIPE).data.eval[0].name
    model = f"sources.1.path={trained_model(options)}" if any("model" in arm for arm in options.arms) else ""
    measured = []
    for seed in options.seeds:
        start = f"seed-{seed}-warm-start"
        warm_start = [*overrides, f"warm_start.steps={options.warm_start_steps}", f"seed={seed}", "train.steps=0"]
        run_once(options.runs, start, warm_start, RECIPE)
        weights = options.runs.absolute() / start / "checkpoints" / "step-000000" / "hf"
        for arm in options.arms:
            name = f"seed-{seed}-{''.join(c if c.isalnum() else '-' for c in arm)}"
            changes = [*ARMS[arm], *([model] if "model" in arm else []), f"seed={seed}", f"train.steps={options.steps}",
                       f"model.path={weights}", "model.scratch=null", "model.tokenizer=null",
                       "warm_start=null"]  # fmt: skip
            facts = run_once(options.runs, name, [*overrides, *changes], RECIPE)
            measured.append({"seed": seed, "arm": arm, **facts, "curve": curve(options.runs / name, eval_name)})
            progress(f"{name}: {shown(measured[-1]['curve'])}")
    settings = {"recipe": RECIPE, "overrides": overrides, "arms": {arm: ARMS[arm] for arm in options.arms}}
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
