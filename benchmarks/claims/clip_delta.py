"""Step rewards get hacked by more steps, and Clip and Clip-Delta hold: arXiv:2410.15115 on the quickstart's task.

    python -m benchmarks.claims.clip_delta --seeds 401 402 403

The failure needs no bad reward model: the scorer here is the generator's own truth with a little noise
(`step_oracle`). Every seed has one warm start, from which every arm begins. `success only` is the same recipe with
alpha 0.

RL finds only what is sampled. After the quickstart's demonstrations, which never write a line twice, no response has a
line too many, and nothing is hacked. So here a line of a demonstration is written twice with chance `--repeat-share`,
as language models do.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.claims.arms import main_of, options_parser, run_arms, shared_overrides
from benchmarks.evaluations import scores_by_step
from benchmarks.report import Report, portable, table
from data import load_examples, part
from trainer.compose import load_recipe

RECIPE = "clip_delta_chain"
CLIPPED = "refine={kind: %s, eta: 0.7}"
ARMS = {
    "success only": ["sources.1.weight=0.0"],
    "naive sum": ["sources.1.refine={kind: none}"],
    "Clip": [f"sources.1.{CLIPPED % 'clip'}"],
    "Delta, returns to go": ["sources.1.refine={kind: delta}"],
    "Clip-Delta": [f"sources.1.{CLIPPED % 'clip_delta'}"],
    "Delta, total return": ["sources.1.refine={kind: delta}", "objective=total_return"],
    "Delta, critic (GAE)": ["sources.1.refine={kind: delta}", "objective=ppo"],
}
COLLAPSED = 0.5  # of the accuracy of success only, at the last evaluation
NOTE = """Held-out accuracy in percent (avg@k) / lines a response there; mean over the seeds. The scorer gives about 0.9
to a true line and 0.2 to a false one; alpha 1, eta 0.7. All arms but the last two use rewards to go against the group's
mean.

"""


def main(arguments: list[str]) -> int:
    parser = options_parser("clip_delta", str(__doc__).splitlines()[0], list(ARMS), seeds=[401, 402, 403], steps=40)
    parser.add_argument("--repeat-share", type=float, default=0.2, help="of the lines of demonstrations")
    return main_of("clip_delta", arguments, parser, run)


def run(options: argparse.Namespace, report: Report) -> None:
    shown_file = write_demonstrations(options.runs, options.repeat_share)
    warm_start = ["warm_start.source={kind: jsonl, "
                  f"path: {shown_file}, prompt_field: question, gold_field: gold, "
                  "solution_field: solution}"]  # fmt: skip
    measured = run_arms(options, RECIPE, ARMS, warm_start=warm_start, curve=curve, shown=shown)
    settings = {
        "recipe": RECIPE,
        "overrides": shared_overrides(options),
        "warm_start": [portable([o]) for o in (f"warm_start.steps={options.warm_start_steps}", *warm_start)],
        "arms": {arm: ARMS[arm] for arm in options.arms},
    }
    report.write({"settings": settings, "measurements": measured}, tables(measured, options.arms))


def write_demonstrations(runs: Path, repeat_share: float) -> Path:
    """The recipe's own demonstrations, with scratchpad lines written twice at random."""
    config = load_recipe(RECIPE).warm_start
    assert config is not None
    source, rng = config.source, random.Random("repeat")
    rows = []
    for example in part(load_examples(source.kind, source.options, key="warm_start"), source.part, source.eval_percent):
        assert example.solution is not None
        *lines, answer = example.solution.splitlines(keepends=True)
        repeated = "".join(line * (1 + (rng.random() < repeat_share)) for line in lines)
        rows.append({"question": example.question, "gold": example.gold, "solution": repeated + answer})
    runs.mkdir(parents=True, exist_ok=True)
    file = runs.absolute() / "demonstrations.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def curve(run: Path, eval_name: str) -> dict[int, dict[str, float]]:
    """{step: accuracy in percent and lines of a held-out response}."""
    out = {}
    for step, scores in scores_by_step(run, eval_name).items():
        file = run / "evaluations" / f"step-{step:06d}-{eval_name}.jsonl"
        lines = [len(json.loads(row)["response"].splitlines()) for row in file.read_text("utf-8").splitlines()]
        out[step] = {"accuracy": 100 * statistics.mean(scores.values()), "lines": statistics.mean(lines)}
    return out


def shown(points: dict[int, dict[str, float]]) -> str:
    return "  ".join(f"{p['accuracy']:.0f}/{p['lines']:.1f}" for p in points.values())


def tables(measured: list[dict[str, Any]], arms: list[str]) -> str:
    steps = list(measured[0]["curve"])
    by_arm = {arm: [m["curve"] for m in measured if m["arm"] == arm] for arm in arms}
    rows, last = [], steps[-1]
    for arm, curves in by_arm.items():
        final = [c[last]["accuracy"] for c in curves]
        cells = [f"{mean(curves, s, 'accuracy'):.1f} / {mean(curves, s, 'lines'):.1f}" for s in steps]
        rows.append([arm, *cells, f"{min(final):.1f} to {max(final):.1f}"])
    text = NOTE + table(["arm", *(f"step {s}" for s in steps), "spread at the end"], rows)
    single = [[str(m["seed"]), m["arm"], shown(m["curve"])] for m in measured]
    text += f"\nEvery run, accuracy / lines at steps {', '.join(map(str, steps))}:\n\n"
    text += table(["seed", "arm", "curve"], single)
    if "success only" not in by_arm:
        return text
    reference = mean(by_arm["success only"], last, "accuracy")
    verdicts = [[arm, "collapsed" if mean(c, last, "accuracy") < COLLAPSED * reference else "holds",
                 f"{mean(c, last, 'accuracy') - reference:+.1f}"] for arm, c in by_arm.items()]  # fmt: skip
    text += f"\nCollapsed: under {COLLAPSED:.0%} of the accuracy of success only at step {last}.\n\n"
    return text + table(["arm", "verdict", "against success only, points"], verdicts)


def mean(curves: list[dict[int, dict[str, float]]], step: int, what: str) -> float:
    return statistics.mean(c[step][what] for c in curves)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
