"""What the recipe `code_rlvr` taught: report of finished runs (each is `assay train code_rlvr seed=S name=NAME`).

Besides the accuracy on all held-out tasks it gives that on tasks that need parentheses, where the naive program, which
most demonstrations of the warm start show, is wrong.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from benchmarks.evaluations import before_after, percent, scores_by_step
from benchmarks.mawps import phase_seconds, reward_curve
from benchmarks.report import Report, portable, table
from data import load_examples
from trainer.compose import load_resolved
from verifiers.errors import RunError

SET = "small_programs"


def add_options(parser: argparse.ArgumentParser) -> None:
    default = [Path("runs/code_rlvr")]
    parser.add_argument("--runs", type=Path, nargs="+", default=default, help="folders of finished runs")
    parser.add_argument("--note", default="", help="what a reader must know of the machine, e.g. that it was shared")


def run(options: argparse.Namespace, report: Report) -> None:
    measured = [facts(folder) for folder in options.runs]
    note = f"{options.note}\n\n" * bool(options.note)
    report.write({"note": options.note, "measurements": measured}, note + tables(measured))


def facts(folder: Path) -> dict[str, Any]:
    if not (folder / "summary.json").exists():
        raise RunError(
            "There is no finished run.", where=str(folder), fix="assay train code_rlvr, or name others: --runs"
        )
    environment = yaml.safe_load((folder / "resolved.yaml").read_text(encoding="utf-8"))["environment"]
    source = load_resolved(folder / "resolved.yaml").data.eval[0].source
    examples = load_examples(source.kind, source.options, key="data.eval")
    easy = {e.question for e in examples if not e.meta["needs_parentheses"]}
    return {
        "command": portable(["assay", *environment["command"][1:]]),
        "code": environment["code"],
        "summary": json.loads((folder / "summary.json").read_text(encoding="utf-8")),
        "all_tasks": before_after(scores_by_step(folder, SET)),
        "parentheses_needed": before_after(scores_by_step(folder, SET, easy)),
        "training_reward": reward_curve(folder),
        "phase_seconds": phase_seconds(folder),
    }


def tables(measured: list[dict[str, Any]]) -> str:
    rows, curves = [], []
    for m in measured:
        summary = m["summary"]
        for name in ("all_tasks", "parentheses_needed"):
            e, words = m[name], name.replace("_", " ")
            ends = [percent(e["before"]), percent(e["after"]), percent(e["gain"], signed=True)]
            rows.append([str(summary["seed"]), words, str(e["prompts"]), *ends, f"{summary['wall_seconds']:.0f}"])
            curves += [[str(summary["seed"]), words, str(step), percent(v)] for step, v in e["curve"].items()]
    rewards = [
        [str(m["summary"]["seed"]), f"{r['first_step']} to {r['last_step']}", f"{r['reward_mean']:.3f}"]
        for m in measured
        for r in m["training_reward"]
    ]
    commands = [[str(m["summary"]["seed"]), f"`{m['command']}`"] for m in measured]
    return "\n".join([
        "Held-out avg@k with its 95% interval over prompts; before = after the warm start; the gain is paired by "
        "prompt.\n",
        table(["seed", "tasks", "prompts", "before", "after", "gain", "wall s"], rows),
        table(["seed", "command"], commands),
        table(["seed", "tasks", "step", "avg@k"], curves),
        table(["seed", "training steps", "mean reward"], rewards),
    ])  # fmt: skip
