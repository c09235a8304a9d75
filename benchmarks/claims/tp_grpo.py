"""TP-GRPO against GRPO at equal rollouts, with a judge that errs in 0, 10, 30 and 50% of the steps.

    python -m benchmarks.claims.tp_grpo --seeds 501 502 503

The task is `chain`, the judge the generator's step oracle, made wrong about each step on its own; at 50% its labels
are noise. Every seed has one warm start, from which every arm begins, and the same prompts. GRPO is the same recipe
with GRPO's advantage: the same groups, the same token mean.

Measured on held-out problems: accuracy, and lucky: of the right answers the share with a line in which the right value
is lost, which the outcome rewards like any other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluations import scores_by_step
from benchmarks.report import RESULTS, Report, portable, progress, table
from data import load_examples, part
from data.chain import check_steps
from trainer.compose import load_recipe
from trainer.config import Config
from trainer.session import with_weights
from trainer.train import train

NAME, RECIPE = "claims_tp_grpo", "tp_grpo_chain"
GRPO = ["objective.advantage.kind=grpo", "~objective.advantage.alpha", "sources=[{kind: rule}]"]
ARMS = {"GRPO": GRPO} | {
    f"TP-GRPO, judge errs in {percent}%": [f"sources.1.judge.error_rate={percent / 100}"] for percent in (0, 10, 30, 50)
}
NOTE = """Held-out problems, avg@k in percent / lucky in percent: of the right answers, the share with a line that loses
the right value. Mean over the seeds; the same rollouts a step for all arms.

"""


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    report = Report(NAME, options)
    report.header["command"] = portable(["python", "-m", "benchmarks.claims.tp_grpo", *arguments])
    started = time.process_time()
    measured = [m for seed in options.seeds for m in of_seed(seed, options)]
    settings = {"recipe": RECIPE, "overrides": shared(options), "arms": {arm: ARMS[arm] for arm in options.arms}}
    body = {"settings": settings, "cpu_seconds": round(time.process_time() - started), "measurements": measured}
    report.write(body, tables(measured, options.arms))
    return 0


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="python -m benchmarks.claims.tp_grpo", description=str(__doc__).splitlines()[0])
    out.add_argument("--seeds", type=int, nargs="+", default=[501, 502, 503])
    out.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    out.add_argument("--steps", type=int, default=50)
    out.add_argument("--warm-start-steps", type=int, default=110, help="few, so that right answers by luck are common")
    out.add_argument("--prompts", type=int, default=16, help="prompts a step, with 8 samples each")
    out.add_argument("--runs", type=Path, default=Path("runs") / f"claims-tp-grpo-{time.strftime('%Y%m%d-%H%M%S')}")
    out.add_argument("--threads", type=int, default=1)
    out.add_argument("--results", type=Path, default=RESULTS, help=f"folder for {NAME}.json and .md")
    out.add_argument("--overrides", nargs="*", default=[], help="changes to the recipe, for all runs")
    return out


def shared(options: argparse.Namespace) -> list[str]:
    return [
        f"hardware.threads={options.threads}", f"rollout.prompts_per_step={options.prompts}",
        f"run.dir={options.runs.absolute()}", "data.eval.0.source.seed=1001", "eval.every_steps=10",
        "record.tensorboard=false", f"warm_start.steps={options.warm_start_steps}", *options.overrides,
    ]  # fmt: skip


def recipe(seed: int, options: argparse.Namespace, *overrides: str) -> Config:
    return load_recipe(RECIPE, [*shared(options), f"seed={seed}", *overrides])


def of_seed(seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    warm = train(recipe(seed, options, f"name=seed-{seed}-warm-start", "train.steps=0"))
    weights = str(warm / "checkpoints" / "step-000000" / "hf")
    measured = []
    for arm in options.arms:
        name = f"seed-{seed}-{''.join(c if c.isalnum() else '-' for c in arm)}"
        config = recipe(seed, options, *ARMS[arm], f"name={name}", f"train.steps={options.steps}")
        started = time.process_time()
        run = train(with_weights(config, weights).model_copy(update={"warm_start": None}))
        measured.append({"seed": seed, "arm": arm, "cpu_seconds": round(time.process_time() - started),
                         "curve": curve(run, config), "judge": judge_of(run)})  # fmt: skip
        progress(f"{name}: {shown(measured[-1]['curve'])}")
    return measured


def curve(run: Path, config: Config) -> list[dict[str, float]]:
    """Rollouts so far, accuracy and lucky in percent, at each evaluation."""
    held = config.data.eval[0]
    source = held.source
    found = part(load_examples(source.kind, source.options, key="data.eval"), source.part, source.eval_percent)
    examples = {e.id: e for e in found}
    a_step = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    out = []
    for step, scores in scores_by_step(run, held.name).items():
        file = run / "evaluations" / f"step-{step:06d}-{held.name}.jsonl"
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        right = [(examples[r["example_id"]], r["response"]) for r in rows if r["verdict"]["score"] == 1]
        lucky = [not all(line.on_track for line in check_steps(example, text)) for example, text in right]
        out.append({
            "rollouts": step * a_step,
            "accuracy": 100 * statistics.mean(scores.values()),
            "lucky": 100 * statistics.mean(lucky) if lucky else 0.0,
        })  # fmt: skip
    return out


def judge_of(run: Path) -> dict[str, float]:
    """Means over the steps of what the source `thoughts` said of itself; {} for GRPO."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    names = ("judged_share", "oracle_agreement", "wrong_thought_share", "unmatched_thought_share")
    values = {name: [m[f"thoughts/{name}"] for m in lines if f"thoughts/{name}" in m] for name in names}
    return {name: statistics.mean(v) for name, v in values.items() if v}


# ---- tables ------------------------------------------------------


def shown(points: list[dict[str, float]]) -> str:
    return "  ".join(f"{p['accuracy']:.1f}/{p['lucky']:.1f}" for p in points)


def tables(measured: list[dict[str, Any]], arms: list[str]) -> str:
    rollouts = [str(p["rollouts"]) for p in measured[0]["curve"]]
    of_arm = {arm: [m["curve"] for m in measured if m["arm"] == arm] for arm in arms}
    rows = []
    for arm, curves in of_arm.items():
        cells = [f"{mean(curves, i, 'accuracy'):.1f} / {mean(curves, i, 'lucky'):.1f}" for i in range(len(rollouts))]
        final = [c[-1]["accuracy"] for c in curves]
        rows.append([arm, *cells, f"{min(final):.1f} to {max(final):.1f}"])
    text = NOTE + table(["arm", *(f"{n} rollouts" for n in rollouts), "accuracy at the end, spread"], rows)
    if "GRPO" in of_arm:
        text += "\nAgainst GRPO of the same seed, points: mean over the evaluations after the start, and at the end; " \
                "mean over the seeds (min to max).\n\n"  # fmt: skip
        text += table(["arm", "whole curve", "at the end", "lucky, at the end"],
                      [against(arm, measured) for arm in arms if arm != "GRPO"])  # fmt: skip
    single = [[str(m["seed"]), m["arm"], shown(m["curve"]), f"{m['judge'].get('oracle_agreement', 0):.2f}",
               str(m["cpu_seconds"])] for m in measured]  # fmt: skip
    return text + "\nEvery run:\n\n" + table(["seed", "arm", "curve", "judge agrees with the oracle", "CPU s"], single)


def mean(curves: list[list[dict[str, float]]], index: int, what: str) -> float:
    return statistics.mean(c[index][what] for c in curves)


def against(arm: str, measured: list[dict[str, Any]]) -> list[str]:
    grpo = {m["seed"]: m["curve"] for m in measured if m["arm"] == "GRPO"}
    whole, end, lucky = [], [], []
    for m in measured:
        if m["arm"] == arm:
            pairs = list(zip(m["curve"], grpo[m["seed"]], strict=True))
            whole.append(statistics.mean(a["accuracy"] - b["accuracy"] for a, b in pairs[1:]))
            end.append(pairs[-1][0]["accuracy"] - pairs[-1][1]["accuracy"])
            lucky.append(pairs[-1][0]["lucky"] - pairs[-1][1]["lucky"])
    spreads = [f"{statistics.mean(v):+.1f} ({min(v):+.1f} to {max(v):+.1f})" for v in (whole, end, lucky)]
    return [arm, *spreads]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
