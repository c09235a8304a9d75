"""What the scripts of claims share: the command line, arms from one warm start a seed, curves read back."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluations import scores_by_step
from benchmarks.quickstart import run_once
from benchmarks.report import RESULTS, Report, portable, progress, table
from trainer.compose import load_recipe
from verifiers.errors import AssayError

Parser = argparse.ArgumentParser
Curve = dict[int, dict[str, float]]  # {step: {what: value}}


def main_of(
    name: str, arguments: Sequence[str], parser: Parser, run: Callable[[argparse.Namespace, Report], None]
) -> int:
    """Parse, run, report; what a user can fix is a message and exit status 1. name: of the script."""
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    report = Report(f"claims_{name}", options)
    report.header["command"] = portable(["python", "-m", f"benchmarks.claims.{name}", *arguments])
    try:
        run(options, report)
    except AssayError as error:
        sys.stderr.write(f"claims_{name}: {error}\n")
        return 1
    return 0


def base_parser(name: str, summary: str, seeds: Sequence[int], steps: int) -> Parser:
    """What every claim is told."""
    out = argparse.ArgumentParser(prog=f"python -m benchmarks.claims.{name}", description=summary)
    runs = Path("runs") / f"claims-{name.replace('_', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
    add = out.add_argument
    add("--seeds", type=int, nargs="+", default=list(seeds))
    add("--steps", type=int, default=steps)
    add("--runs", type=Path, default=runs, help="folder for the runs; finished ones in it are not repeated")
    add("--threads", type=int, default=torch.get_num_threads(), help="default: torch's own choice")
    add("--results", type=Path, default=RESULTS, help=f"folder for claims_{name}.json and .md")
    add("--overrides", nargs="*", default=[], help="changes to the recipe, for all runs")
    return out


def options_parser(name: str, summary: str, arms: Sequence[str], *, seeds: Sequence[int], steps: int) -> Parser:
    """Of a claim with arms from one warm start a seed."""
    out = base_parser(name, summary, seeds, steps)
    out.add_argument("--arms", nargs="+", choices=list(arms), default=list(arms))
    out.add_argument("--warm-start-steps", type=int, default=300)
    out.add_argument("--prompts", type=int, default=16, help="prompts a step, with 8 samples each")
    return out


def shared_overrides(options: argparse.Namespace, common: Sequence[str] = ()) -> list[str]:
    """Of the warm start and of every arm."""
    return [
        *common, *options.overrides, f"hardware.threads={options.threads}", "record.tensorboard=false",
        f"rollout.prompts_per_step={options.prompts}", "data.eval.0.source.seed=1001", "eval.every_steps=10",
        "eval.samples_per_prompt=2",
    ]  # fmt: skip


def run_arms(
    options: argparse.Namespace,
    recipe: str,
    arms: Mapping[str, list[str]],
    *,
    common: Sequence[str] = (),
    warm_start_recipe: str | None = None,
    warm_start: Sequence[str] = (),
    curve: Callable[[Path, str], Curve] | None = None,
    shown: Callable[[Curve], str] | None = None,
) -> list[dict[str, Any]]:
    """One measurement a seed and arm: its run's facts, and its `curve` (run folder, evaluation set), reported as it
    comes by `shown`. Every arm of a seed begins with the same weights: of `warm_start_recipe` (default: the recipe)
    with the changes `warm_start`."""
    curve, shown = curve or curve_of, shown or accuracy_and_reward
    overrides = shared_overrides(options, common)
    eval_name = load_recipe(recipe).data.eval[0].name
    measured = []
    for seed in options.seeds:
        start = f"seed-{seed}-warm-start"
        warm = [*warm_start, f"warm_start.steps={options.warm_start_steps}", f"seed={seed}", "train.steps=0"]
        run_once(options.runs, start, [*overrides, *warm], warm_start_recipe or recipe)
        weights = options.runs.absolute() / start / "checkpoints" / "step-000000" / "hf"
        for arm in options.arms:
            name = f"seed-{seed}-{''.join(c if c.isalnum() else '-' for c in arm)}"
            changes = [f"seed={seed}", f"train.steps={options.steps}", f"model.path={weights}", "model.scratch=null",
                       "model.tokenizer=null", "warm_start=null"]  # fmt: skip
            facts = run_once(options.runs, name, [*overrides, *arms[arm], *changes], recipe)
            measured.append({"seed": seed, "arm": arm, **facts, "curve": curve(options.runs / name, eval_name)})
            progress(f"{name}: {shown(measured[-1]['curve'])}")
    return measured


def curve_of(run: Path, eval_name: str) -> Curve:
    """{step: held-out accuracy in percent; and, of the training batches since the evaluation before it, the mean
    reward, the accuracy in percent and the response length in tokens}."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    out, before = {}, 0
    for step, scores in scores_by_step(run, eval_name).items():
        batches = [r for r in rows if before < r["step"] <= step or r["step"] == step == 1]
        point = {"accuracy": 100 * statistics.mean(scores.values())}
        for name, key, factor in (("reward", "reward/mean", 1), ("train_accuracy", "reward/accuracy", 100),
                                  ("length", "response/length_mean", 1)):  # fmt: skip
            values = [r[key] for r in batches if key in r]
            if values:
                point[name] = factor * statistics.mean(values)
        out[step], before = point, step
    return out


def accuracy_and_reward(points: Mapping[int, Mapping[str, float]]) -> str:
    """Held-out accuracy / reward of the training batches."""
    return "  ".join(f"{p['accuracy']:.0f}/{p['reward']:.2f}" if "reward" in p else f"{p['accuracy']:.0f}"
                     for p in points.values())  # fmt: skip


def mean_tables(measured: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> str:
    """Accuracy / reward by step, the mean over seeds with the spread at the end, then every run."""
    steps = list(measured[0]["curve"])
    lines = []
    for arm in arms:
        curves = [m["curve"] for m in measured if m["arm"] == arm]
        final = [c[steps[-1]]["accuracy"] for c in curves]
        means = {s: {k: statistics.mean(c[s][k] for c in curves) for k in curves[0][s]} for s in steps}
        lines.append(
            [arm, *(accuracy_and_reward({s: means[s]}) for s in steps), f"{min(final):.0f} to {max(final):.0f}"]
        )
    text = table(["arm", *(f"step {s}" for s in steps), "spread at the end"], lines)
    single = [[str(m["seed"]), m["arm"], accuracy_and_reward(m["curve"])] for m in measured]
    return text + f"\nEvery run, at steps {', '.join(map(str, steps))}:\n\n" + table(["seed", "arm", "curve"], single)


def last(measured: Sequence[Mapping[str, Any]], arm: str, what: str) -> list[float]:
    """One value a seed, at the last evaluation."""
    return [list(m["curve"].values())[-1][what] for m in measured if m["arm"] == arm]


def best(measured: Sequence[Mapping[str, Any]], arm: str, what: str) -> list[float]:
    """One value a seed, the highest of its evaluations."""
    return [max(p[what] for p in m["curve"].values() if what in p) for m in measured if m["arm"] == arm]
