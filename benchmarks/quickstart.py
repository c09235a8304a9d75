"""The recipe `quickstart` over seeds, with two controls that must not rise: shuffled rewards, learning rate 0.

Accuracy is avg@k on expressions drawn with another generator seed. The split by content keeps them out of training;
the prompts of the recipe's own evaluation set, which was looked at while the recipe was tuned, are left out of the
accuracy. Every run is a process of its own, started as a user would; its time includes imports and all evaluations,
which are three times as large as in the plain recipe.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.evaluations import before_after, percent, scores_by_step
from benchmarks.report import ROOT, Report, portable, progress, table
from data import load_examples, part
from trainer.compose import load_recipe
from verifiers.errors import RunError

RECIPE = "quickstart"
VARIANTS = {"recipe": [], "shuffled rewards": ["train.shuffle_rewards=true"], "learning rate 0": ["optim.lr=0"]}


def add_options(parser: argparse.ArgumentParser) -> None:
    runs = Path("runs") / f"benchmark-quickstart-{datetime.now():%Y%m%d-%H%M%S}"
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument(
        "--runs", type=Path, default=runs, help="folder for the runs; finished ones in it are not repeated"
    )
    parser.add_argument("--eval-seed", type=int, default=1001)
    parser.add_argument("--eval-count", type=int, default=16000, help="expressions drawn, before the split")
    parser.add_argument("--eval-examples", type=int, default=600)
    parser.add_argument("--overrides", nargs="*", default=[], help="changes to the recipe, for all variants")


def run(options: argparse.Namespace, report: Report) -> None:
    overrides = [
        *options.overrides, f"data.eval.0.source.seed={options.eval_seed}", f"hardware.threads={options.threads}",
        f"data.eval.0.source.count={options.eval_count}", f"data.eval.0.source.max_examples={options.eval_examples}",
    ]  # fmt: skip
    tuned_on = tuning_prompts()
    eval_name = load_recipe(RECIPE).data.eval[0].name
    measured = []
    for seed in options.seeds:
        for variant, changes in VARIANTS.items():
            name = f"seed-{seed}-{variant.replace(' ', '-')}"
            facts = run_once(options.runs, name, [*overrides, *changes, f"seed={seed}"])
            scores = before_after(scores_by_step(options.runs / name, eval_name, tuned_on))
            measured.append({"seed": seed, "variant": variant, **facts, **scores})
            progress(f"quickstart {name}: {percent(scores['before'])} -> {percent(scores['after'])}")
    body = {
        "settings": {"recipe": RECIPE, "overrides": overrides, "evaluation_set": eval_name,
                     "excluded_prompts": len(tuned_on)},
        "measurements": measured,
    }  # fmt: skip
    report.write(body, tables(measured))


def tuning_prompts() -> set[str]:
    """The prompts of the recipe's own evaluation set."""
    source = load_recipe(RECIPE).data.eval[0].source
    examples = part(load_examples(source.kind, source.options, key="data.eval"), source.part, source.eval_percent)
    return {e.question for e in examples[: source.max_examples]}


def run_once(runs: Path, name: str, overrides: list[str], recipe: str = RECIPE) -> dict[str, Any]:
    """Wall seconds of the whole process, and the run's own summary. A finished run is read, not repeated."""
    record = runs / name / "benchmark.json"
    command = ["train", recipe, *overrides, f"name={name}", f"run.dir={runs.absolute()}", "run.resume=never"]
    shown = portable(["assay", *command])
    if record.exists():
        facts = json.loads(record.read_text(encoding="utf-8"))
        if facts["command"] != shown:
            raise RunError("The run was made with other options.", where=str(record), fix="name another folder: --runs")
        return facts
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "trainer.cli", *command], cwd=ROOT, stdout=sys.stderr)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RunError(f"The run {name} failed with exit code {done.returncode}.", where=str(runs / name))
    summary = json.loads((runs / name / "summary.json").read_text(encoding="utf-8"))
    facts = {"command": shown, "process_seconds": round(seconds, 1), "summary": summary}
    record.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def tables(measured: list[dict[str, Any]]) -> str:
    rows = [
        [str(m["seed"]), m["variant"], percent(m["before"]), percent(m["after"]), percent(m["gain"], signed=True),
         f"{m['process_seconds']:.0f}", f"{m['summary']['wall_seconds']:.0f}", str(m["prompts"])]
        for m in measured
    ]  # fmt: skip
    columns = ["seed", "variant", "before", "after", "gain, paired", "process s", "training s", "prompts"]
    steps = list(measured[0]["curve"])
    curve_rows = [
        [str(m["seed"]), m["variant"], *(f"{100 * m['curve'][step]['value']:.1f}" for step in steps)] for m in measured
    ]
    curve = table(["seed", "variant", *(f"step {step}" for step in steps)], curve_rows)
    note = "Held-out accuracy, avg@k in percent with its 95% interval over prompts; before = after the warm start.\n\n"
    return f"{note}{table(columns, rows)}\nCurves:\n\n{curve}"
