"""Co-Reward keeps label accuracy where single-view voting falls: arXiv:2508.00410 on arithmetic, no answer used.

    python -m benchmarks.claims.co_reward --seeds 701 702 703

A paraphrase here is the same calculation with additions written as subtractions, exact, so the two views need different
lines of the arithmetic tables that the warm start has half learnt; half of its demonstrations answer at once. Every
seed has one warm start, from which every arm begins. Budgets differ, so single-view voting is there twice: with as many
prompts from the data as Co-Reward I has questions (prompts matched), and with as many rollouts (rollouts matched).
`majority, both views` labels each view by its own vote: the same prompts and rollouts as I, only not crossed. The true
outcome is there at each learning rate: where it fails, nothing is said about labels.

In pieces: with the same --runs, finished runs are not repeated, and the last command makes the tables of all that it
names.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import RESULTS, Report, portable, progress, table
from trainer.compose import load_recipe
from trainer.config import Config
from trainer.session import with_weights
from trainer.train import train

NAME, RECIPE = "claims_co_reward", "co_reward_chain"
ONE_VIEW = "data.views=original"
TEACHER = "sources.0.teacher={share_start: 0.1, share_end: 0.01}"
# (overrides, questions a step as a share of the groups of I)
ARMS: dict[str, tuple[list[str], float]] = {
    "true outcome": (["sources=[{kind: rule}, {kind: agreement, version: majority, weight: 0.0}]"], 1.0),
    "majority, prompts matched": (["sources.0.version=majority", ONE_VIEW], 0.5),
    "majority, rollouts matched": (["sources.0.version=majority", ONE_VIEW], 1.0),
    "majority, both views": (["sources.0.version=majority"], 1.0),
    "I": (["sources.0.version=I"], 1.0),
    "II, prompts matched": (["sources.0.version=II", TEACHER, ONE_VIEW], 0.5),
    "II": (["sources.0.version=II", TEACHER, ONE_VIEW], 1.0),
    "III": (["sources.0.version=III", TEACHER], 1.0),
}
WINDOW = 10  # steps, for the label metrics
FALLEN = 0.05  # a label accuracy this much below its start has fallen
NOTE = """Median of the seeds (min to max), percent. Label accuracy: labels equal to the gold answer, mean of the first
and of the last {window} steps (of `true outcome`: of what its majority would have said). Accuracy: held-out avg@k
before and after. Same label: share of a step's questions with the step's most common label, last {window} steps; some
30% would be right for this task.

"""


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    report = Report(NAME, options)
    report.header["command"] = portable(["python", "-m", "benchmarks.claims.co_reward", *arguments])
    measured = [m for seed in options.seeds for m in of_seed(seed, options)]
    settings = {"recipe": RECIPE, "overrides": [portable([o]) for o in shared(options)],
                "arms": {arm: ARMS[arm] for arm in options.arms}}  # fmt: skip
    report.write({"settings": settings, "measurements": measured}, tables(measured))
    return 0


def parser() -> argparse.ArgumentParser:
    summary = str(__doc__).splitlines()[0]
    out = argparse.ArgumentParser(prog="python -m benchmarks.claims.co_reward", description=summary)
    out.add_argument("--seeds", type=int, nargs="+", default=[701, 702, 703])
    out.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    out.add_argument("--lrs", nargs="+", default=["1.0e-4", "3.0e-4"], help="learning rates, as text")
    out.add_argument("--steps", type=int, default=80)
    out.add_argument("--warm-start-steps", type=int, default=400)
    out.add_argument("--prompts", type=int, default=24, help="groups a step of I, both views counted; 8 samples each")
    out.add_argument("--runs", type=Path, default=Path("runs") / "claims-co-reward",
                     help="folder for the runs; finished ones in it are not repeated")  # fmt: skip
    out.add_argument("--threads", type=int, default=1)
    out.add_argument("--results", type=Path, default=RESULTS, help=f"folder for {NAME}.json and .md")
    out.add_argument("--overrides", nargs="*", default=[], help="changes to the recipe, for all runs")
    return out


def shared(options: argparse.Namespace) -> list[str]:
    return [
        f"hardware.threads={options.threads}", f"train.steps={options.steps}", "data.eval.0.source.seed=1001",
        "warm_start.source.direct_share=0.5", "warm_start.examples_per_step=64",
        f"eval.every_steps={max(1, options.steps // 4)}", "record.tensorboard=false", "record.trajectories=false",
        *options.overrides,
    ]  # fmt: skip


def of_seed(seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    warm = [f"name=seed-{seed}-warm-start", f"warm_start.steps={options.warm_start_steps}", "train.steps=0"]
    weights = str(train(recipe(seed, options, *warm)) / "checkpoints" / "step-000000" / "hf")
    measured = []
    for lr in options.lrs:
        for arm in options.arms:
            overrides, share = ARMS[arm]
            name = f"seed-{seed}-lr-{lr}-{''.join(c if c.isalnum() else '-' for c in arm)}"
            groups = round(share * options.prompts)
            config = recipe(seed, options, *overrides, f"name={name}", f"optim.lr={lr}",
                            f"rollout.prompts_per_step={groups}")  # fmt: skip
            run = train(with_weights(config, weights).model_copy(update={"warm_start": None}))
            measured.append({"seed": seed, "lr": lr, "arm": arm, **read_run(run, config)})
            progress(f"{name}: {shown(measured[-1])}, {measured[-1]['seconds']:.0f} s")
    return measured


def recipe(seed: int, options: argparse.Namespace, *overrides: str) -> Config:
    return load_recipe(RECIPE, [*shared(options), f"run.dir={options.runs.absolute()}", f"seed={seed}", *overrides])


def read_run(run: Path, config: Config) -> dict[str, Any]:
    """Held-out accuracy by step, label metrics step by step, and rollouts a step, the teacher's included."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    metric = f"{config.data.eval[0].name}/avg@{config.eval.samples_per_prompt}"
    steps = [line for line in lines if "agreement/vote_share" in line]
    keys = ("label_accuracy", "label_share", "vote_share", "answer_entropy", "views_agree_share")
    series = {key: [line[f"agreement/{key}"] for line in steps if f"agreement/{key}" in line] for key in keys}
    has_teacher = any("agreement/policy_share" in line for line in steps)
    return {
        "accuracy": {line["step"]: line[metric] for line in lines if metric in line},
        "labels": {key: values for key, values in series.items() if values},
        "rollouts_a_step": steps[0]["rollout/trajectories"] * (2 if has_teacher else 1),
        "seconds": json.loads((run / "summary.json").read_text("utf-8"))["wall_seconds"],
    }


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and of the last WINDOW steps."""
    return statistics.mean(values[:WINDOW]), statistics.mean(values[-WINDOW:])


def shown(m: dict[str, Any]) -> str:
    first, last = ends(m["labels"]["label_accuracy"])
    curve = " ".join(f"{100 * value:.1f}" for value in m["accuracy"].values())
    same = ends(m["labels"]["label_share"])[1]
    return f"labels {100 * first:.1f} to {100 * last:.1f}, accuracy {curve}, same label {100 * same:.0f}"


# ---- tables ------------------------------------------------------


def tables(measured: list[dict[str, Any]]) -> str:
    text = NOTE.format(window=WINDOW)
    columns = ["arm", "rollouts a step", "label accuracy, first", "last", "change", "accuracy before", "after",
               "same label", "labels fell on"]  # fmt: skip
    for lr in dict.fromkeys(m["lr"] for m in measured):
        of_lr = [m for m in measured if m["lr"] == lr]
        rows = [row(arm, [m for m in of_lr if m["arm"] == arm]) for arm in dict.fromkeys(m["arm"] for m in of_lr)]
        text += f"Learning rate {lr}:\n\n{table(columns, rows)}\n"
    single = [[str(m["seed"]), m["lr"], m["arm"], shown(m), f"{m['seconds']:.0f}"] for m in measured]
    text += (
        f"Labels fell: the last {WINDOW} steps more than {100 * FALLEN:.0f} points below the first.\n\nEvery run:\n\n"
    )
    return text + table(["seed", "learning rate", "arm", "curve", "s"], single)


def row(arm: str, found: list[dict[str, Any]]) -> list[str]:
    labels = [ends(m["labels"]["label_accuracy"]) for m in found]
    accuracy = [list(m["accuracy"].values()) for m in found]
    changes = [last - first for first, last in labels]
    cells = [[first for first, _ in labels], [last for _, last in labels], changes, [a[0] for a in accuracy],
             [a[-1] for a in accuracy], [ends(m["labels"]["label_share"])[1] for m in found]]  # fmt: skip
    fell = sum(change < -FALLEN for change in changes)
    return [arm, f"{found[0]['rollouts_a_step']:.0f}", *map(points, cells), f"{fell} of {len(found)}"]


def points(values: Sequence[float]) -> str:
    scaled = [100 * v for v in values]
    return f"{statistics.median(scaled):.1f} ({min(scaled):.1f} to {max(scaled):.1f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
