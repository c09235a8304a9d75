"""The objectives side by side on the quickstart's task: same warm starts, same token budget, several seeds.

Every seed has one warm start, from which every objective begins. A run counts up to the last evaluation at which it
had generated no more than `--budget-tokens` tokens, so that an objective that replaces flat groups, or writes longer,
does not get more. Held-out expressions are others than those the quickstart was tuned with, as in the benchmark
`quickstart`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.evaluations import scores_by_step
from benchmarks.quickstart import RECIPE, run_once, tuning_prompts
from benchmarks.report import Report, progress, table
from trainer.compose import load_recipe

OBJECTIVES = ("grpo", "dr_grpo", "rloo", "reinforce_pp", "ppo", "dapo", "gspo", "cispo")


def add_options(parser: argparse.ArgumentParser) -> None:
    runs = Path("runs") / f"benchmark-objectives-{datetime.now():%Y%m%d-%H%M%S}"
    parser.add_argument("--seeds", type=int, nargs="+", default=[201, 202, 203, 204, 205])
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--budget-tokens", type=int, default=350_000, help="generated tokens that a run may take")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument(
        "--runs", type=Path, default=runs, help="folder for the runs; finished ones in it are not repeated"
    )
    parser.add_argument("--eval-examples", type=int, default=400)
    parser.add_argument("--overrides", nargs="*", default=[], help="changes to the recipe, for all runs")


def run(options: argparse.Namespace, report: Report) -> None:
    overrides = [
        *options.overrides, "data.eval.0.source.seed=1001", "data.eval.0.source.count=16000", "eval.every_steps=10",
        f"data.eval.0.source.max_examples={options.eval_examples}", f"hardware.threads={options.threads}",
    ]  # fmt: skip
    tuned_on, eval_name = tuning_prompts(), load_recipe(RECIPE).data.eval[0].name
    measured: list[dict[str, Any]] = []
    for seed in options.seeds:
        start = f"seed-{seed}-warm-start"
        run_once(options.runs, start, [*overrides, f"seed={seed}", "train.steps=0"])
        weights = options.runs.absolute() / start / "checkpoints" / "step-000000" / "hf"
        for objective in options.objectives:
            name = f"seed-{seed}-{objective}"
            changes = [
                f"objective={objective}", f"train.steps={options.steps}", f"seed={seed}", f"model.path={weights}",
                "model.scratch=null", "model.tokenizer=null", "warm_start=null",
            ]  # fmt: skip
            facts = run_once(options.runs, name, [*overrides, *changes])
            scores = scores_by_step(options.runs / name, eval_name, tuned_on)
            curve = {step: 100 * statistics.mean(by_prompt.values()) for step, by_prompt in scores.items()}
            spent = tokens_by_step(options.runs / name)
            last = max(step for step in curve if spent[step] <= options.budget_tokens)
            measured.append({
                "seed": seed, "objective": objective, **facts, "curve": curve, "tokens": {s: spent[s] for s in curve},
                "counted_step": last, "before": curve[0], "after": curve[last],
            })  # fmt: skip
            progress(f"objectives {name}: {curve[0]:.1f} -> {curve[last]:.1f} at step {last}")
    settings = {"recipe": RECIPE, "overrides": overrides, "budget_tokens": options.budget_tokens}
    report.write({"settings": settings, "measurements": measured}, tables(measured, options))


def tokens_by_step(run: Path) -> dict[int, int]:
    """Tokens generated up to and with each step, from the run's metrics; evaluations are not counted."""
    spent, total = {0: 0}, 0.0
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "response/length_mean" in row:
            total += row["response/length_mean"] * row["rollout/trajectories"]
            spent[row["step"]] = round(total)
    return spent


def tables(measured: list[dict[str, Any]], options: argparse.Namespace) -> str:
    rows, curves = [], []
    steps = sorted(set.intersection(*(set(m["curve"]) for m in measured)))
    for objective in options.objectives:
        runs = [m for m in measured if m["objective"] == objective]
        after, gain = [m["after"] for m in runs], [m["after"] - m["before"] for m in runs]
        rows.append([
            objective, f"{statistics.mean(m['before'] for m in runs):.1f}", f"{statistics.mean(after):.1f}",
            f"{min(after):.1f} to {max(after):.1f}", f"{statistics.mean(gain):+.1f}",
            f"{min(gain):+.1f} to {max(gain):+.1f}",
            f"{statistics.median(m['counted_step'] for m in runs):.0f}",
            f"{statistics.mean(m['tokens'][m['counted_step']] for m in runs) / 1000:.0f}k",
        ])  # fmt: skip
        curves.append([objective, *(f"{statistics.mean(m['curve'][s] for m in runs):.1f}" for s in steps)])
    note = (
        f"Held-out accuracy in percent (avg@k), {len(options.seeds)} seeds, at most {options.budget_tokens:,} "
        "generated tokens a run; the spread is the lowest and highest seed.\n\n"
    )
    columns = ["objective", "before", "after", "spread", "gain", "spread of the gain", "step", "tokens"]
    body = table(columns, rows)
    return f"{note}{body}\nMean curve over the seeds, by step:\n\n{table(['objective', *map(str, steps)], curves)}"
