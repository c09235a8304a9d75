"""One-step-off against in-turn training: steps an hour and learning curves, where generation and training take alike.

`python -m benchmarks.overlap --seeds 1 2 3` trains the quickstart's model from the same warm start with `train.overlap`
off and on, the two in turn, each process on one thread (overlap has two processes). The learner's share is raised with
`train.epochs_per_batch` until a step spends about as long in it as in the rollouts. Evaluations take no part in the
times.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import RESULTS, Report, progress, show, spread, table

ARMS = {"in turn": [], "overlapped": ["train.overlap=true"]}
EVALUATION = "chain/avg@4"


def run(folder: Path, seed: int, arm: str, options: argparse.Namespace) -> dict[str, Any]:
    name = f"{arm.replace(' ', '_')}-{seed}"
    overrides = [f"run.dir={folder}", f"name={name}", f"seed={seed}", f"train.steps={options.steps}",
                 f"train.epochs_per_batch={options.epochs}", "objective.mismatch={kind: truncated}",
                 f"rollout.prompts_per_step={options.prompts}", f"eval.every_steps={options.eval_every}",
                 "checkpoint.every_steps=null", "hardware.threads=1", "record.tensorboard=false",
                 *options.overrides, *ARMS[arm]]  # fmt: skip
    subprocess.run([sys.executable, "-m", "trainer.train", "recipe=quickstart", *overrides], check=True,
                   capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    timings = [json.loads(line) for line in (folder / name / "timings.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    # a step's own time without its evaluation; the first two steps fill the pipeline
    step_s = [t["step_s"] - t.get("evaluate_s", 0.0) for t in timings[2:]]
    phases = {p: median(t.get(p, 0.0) for t in timings[2:]) for p in ("rollout_and_verify_s", "learn_s")}
    curve = {m["step"]: m[EVALUATION] for m in metrics if EVALUATION in m}
    stale = [m["rollout/stale_steps"] for m in metrics if "rollout/stale_steps" in m]
    return {"seed": seed, "arm": arm, "steps_per_hour": 3600 / median(step_s), "phases": phases, "curve": curve,
            "stale_steps": max(stale, default=0.0)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--eval-every", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, choices=[1], help="of each process")
    parser.add_argument("--overrides", nargs="*", default=[], help="changes to the recipe, for both arms")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    report = Report("overlap", options)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="assay-overlap-") as folder:
        for seed in options.seeds:
            for arm in ARMS:
                runs.append(run(Path(folder), seed, arm, options))
                progress(f"seed {seed}, {arm}: {runs[-1]['steps_per_hour']:.0f} steps an hour")
    by = {(r["seed"], r["arm"]): r for r in runs}
    ratio = spread([by[s, "overlapped"]["steps_per_hour"] / by[s, "in turn"]["steps_per_hour"] for s in options.seeds])
    steps = sorted({int(k) for r in runs for k in r["curve"]})
    rows = [
        [str(r["seed"]), r["arm"], f"{r['steps_per_hour']:.0f}", f"{r['phases']['rollout_and_verify_s']:.2f}",
         f"{r['phases']['learn_s']:.2f}", *(f"{100 * r['curve'][s]:.1f}" for s in steps)]
        for r in runs
    ]  # fmt: skip
    columns = ["seed", "rollouts", "steps an hour", "waiting for rollouts, s", "learning, s",
               *(f"accuracy after {s}" for s in steps)]  # fmt: skip
    text = f"Steps an hour, overlapped to in turn, by seed: {show(ratio, 2)}.\n\n{table(columns, rows)}"
    report.write(
        {"settings": {k: str(v) for k, v in vars(options).items() if k != "results"}, "runs": runs, "ratio": ratio},
        text,
    )


if __name__ == "__main__":
    main()
