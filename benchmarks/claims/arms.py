"""Arms of a claim about reward models beside the policy: runs from one warm start a seed, read back as curves."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluations import scores_by_step
from benchmarks.quickstart import run_once
from benchmarks.report import RESULTS, progress, table
from trainer.compose import load_recipe


def options_parser(name: str, summary: str, arms: Sequence[str], steps: int) -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog=f"python -m benchmarks.claims.{name}", description=summary)
    runs = Path("runs") / f"claims-{name}-{datetime.now():%Y%m%d-%H%M%S}"
    add = out.add_argument
    add("--seeds", type=int, nargs="+", default=[501, 502, 503])
    add("--arms", nargs="+", choices=arms, default=list(arms))
    add("--steps", type=int, default=steps)
    add("--warm-start-steps", type=int, default=300)
    add("--prompts", type=int, default=16, help="prompts a step, with 8 samples each")
    add("--runs", type=Path, default=runs, help="folder for the runs; finished ones in it are not repeated")
    add("--threads", type=int, default=torch.get_num_threads(), help="default: torch's own choice")
    add("--results", type=Path, default=RESULTS, help=f"folder for claims_{name}.json and .md")
    add("--overrides", nargs="*", default=[], help="changes to the recipe, for all runs")
    return out


def run_arms(
    options: argparse.Namespace, recipe: str, arms: Mapping[str, list[str]], common: Sequence[str]
) -> list[dict[str, Any]]:
    """One measurement a seed and arm: its run's facts, and its `curve`. Every arm of a seed begins with the same
    weights."""
    overrides = [
        *common, *options.overrides, f"hardware.threads={options.threads}", "record.tensorboard=false",
        f"rollout.prompts_per_step={options.prompts}", "data.eval.0.source.seed=1001", "eval.every_steps=10",
        "eval.samples_per_prompt=2",
    ]  # fmt: skip
    eval_name = load_recipe(recipe).data.eval[0].name
    measured = []
    for seed in options.seeds:
        start = f"seed-{seed}-warm-start"
        warm = [f"warm_start.steps={options.warm_start_steps}", f"seed={seed}", "train.steps=0"]
        run_once(options.runs, start, [*overrides, *warm], "quickstart")
        weights = options.runs.absolute() / start / "checkpoints" / "step-000000" / "hf"
        for arm in options.arms:
            name = f"seed-{seed}-{''.join(c if c.isalnum() else '-' for c in arm)}"
            changes = [f"seed={seed}", f"train.steps={options.steps}", f"model.path={weights}", "model.scratch=null",
                       "model.tokenizer=null", "warm_start=null"]  # fmt: skip
            facts = run_once(options.runs, name, [*overrides, *arms[arm], *changes], recipe)
            curve = curve_of(options.runs / name, eval_name)
            measured.append({"seed": seed, "arm": arm, **facts, "curve": curve})
            progress(f"{name}: {shown(curve)}")
    return measured


def curve_of(run: Path, eval_name: str) -> dict[int, dict[str, float]]:
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


def shown(points: Mapping[int, Mapping[str, float]]) -> str:
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
        lines.append([arm, *(shown({s: means[s]}) for s in steps), f"{min(final):.0f} to {max(final):.0f}"])
    text = table(["arm", *(f"step {s}" for s in steps), "spread at the end"], lines)
    single = [[str(m["seed"]), m["arm"], shown(m["curve"])] for m in measured]
    return text + f"\nEvery run, at steps {', '.join(map(str, steps))}:\n\n" + table(["seed", "arm", "curve"], single)


def last(measured: Sequence[Mapping[str, Any]], arm: str, what: str) -> list[float]:
    """One value a seed, at the last evaluation."""
    return [list(m["curve"].values())[-1][what] for m in measured if m["arm"] == arm]


def best(measured: Sequence[Mapping[str, Any]], arm: str, what: str) -> list[float]:
    """One value a seed, the highest of its evaluations."""
    return [max(p[what] for p in m["curve"].values() if what in p) for m in measured if m["arm"] == arm]
