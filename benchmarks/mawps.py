"""What the recipe `smollm2_mawps` taught: report of a finished run (start it with `assay train smollm2_mawps`)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from benchmarks.evaluations import before_after, percent, scores_by_step
from benchmarks.report import Report, portable, table
from trainer.compose import load_resolved
from verifiers.errors import RunError

REWARD_WINDOW_STEPS = 5


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, default=Path("runs/smollm2_mawps"), help="folder of the finished run")


def run(options: argparse.Namespace, report: Report) -> None:
    folder: Path = options.run
    if not (folder / "summary.json").exists():
        raise RunError(
            "There is no finished run.", where=str(folder), fix="assay train smollm2_mawps, or name one: --run"
        )
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    environment = yaml.safe_load((folder / "resolved.yaml").read_text(encoding="utf-8"))["environment"]
    sets = [e.name for e in load_resolved(folder / "resolved.yaml").data.eval]
    body = {
        "run": {"command": portable(["assay", *environment["command"][1:]]), "code": environment["code"],
                "packages": environment["packages"]},
        "summary": summary,
        "evaluations": {name: before_after(scores_by_step(folder, name)) for name in sets},
        "training_reward": reward_curve(folder),
        "phase_seconds": phase_seconds(folder),
    }  # fmt: skip
    report.write(body, tables(body))


def reward_curve(folder: Path) -> list[dict[str, float]]:
    """Mean reward of the training samples over windows of a few steps."""
    rows = [row for row in _read(folder / "metrics.jsonl") if "reward/mean" in row]
    windows = [rows[at : at + REWARD_WINDOW_STEPS] for at in range(0, len(rows), REWARD_WINDOW_STEPS)]
    return [
        {
            "first_step": w[0]["step"],
            "last_step": w[-1]["step"],
            "reward_mean": sum(r["reward/mean"] for r in w) / len(w),
        }
        for w in windows
    ]


def phase_seconds(folder: Path) -> dict[str, float]:
    """Total seconds of each phase of the loop."""
    rows = _read(folder / "timings.jsonl")
    names = dict.fromkeys(k for row in rows for k in row if k.endswith("_s") and k != "eta_s")
    return {name: round(sum(row.get(name, 0.0) for row in rows), 1) for name in names}


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tables(body: dict[str, Any]) -> str:
    run_facts, summary = body["run"], body["summary"]
    commit = (run_facts["code"] or {}).get("commit") or "unknown"
    facts = [
        ["command", f"`{run_facts['command']}`"],
        ["commit of the run", f"{commit[:12]}{' + changes' * bool((run_facts['code'] or {}).get('dirty'))}"],
        ["seed, steps", f"{summary['seed']}, {summary['steps']}"],
        ["wall seconds", f"{summary['wall_seconds']:.0f}"],
        ["tokens generated, trained", f"{summary['tokens_generated']}, {summary['tokens_trained']}"],
        ["peak memory, MB", f"{summary['peak_memory_mb']:.0f}"],
    ]
    gains = [
        [name, str(e["prompts"]), percent(e["before"]), percent(e["after"]), percent(e["gain"], signed=True)]
        for name, e in body["evaluations"].items()
    ]
    curve = [[name, str(step), percent(value)] for name, e in body["evaluations"].items()
             for step, value in e["curve"].items()]  # fmt: skip
    rewards = [[f"{r['first_step']} to {r['last_step']}", f"{r['reward_mean']:.3f}"] for r in body["training_reward"]]
    return "\n".join([
        table(["the run", ""], facts),
        "Held-out avg@k with its 95% interval over prompts; the gain is paired by prompt.\n",
        table(["set", "prompts", "before", "after", "gain"], gains),
        table(["set", "step", "avg@k"], curve),
        table(["training steps", "mean reward"], rewards),
    ])  # fmt: skip
