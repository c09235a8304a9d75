"""Accuracies recomputed from the evaluations a run left: ``evaluations/step-NNNNNN-NAME.jsonl``.

All intervals are 95% bootstrap intervals over prompts.
"""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from trainer.evaluate import bootstrap
from verifiers.errors import RunError

RESAMPLES = 10_000

# example id -> mean score of its judged samples (avg@k of one prompt)
Scores = dict[str, float]


def scores_by_step(run: Path, name: str, excluded_prompts: Container[str] = ()) -> dict[int, Scores]:
    """{step: scores} of one evaluation set. Raises `RunError` unless there are at least two evaluations."""
    files = sorted((run / "evaluations").glob(f"step-*-{name}.jsonl"))
    if len(files) < 2:
        raise RunError(f"The run has {len(files)} evaluations of '{name}', two are needed.", where=str(run))
    return {int(file.name.split("-")[1]): _scores(file, excluded_prompts) for file in files}


def _scores(file: Path, excluded_prompts: Container[str]) -> Scores:
    samples: dict[str, list[float]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        score = row["verdict"]["score"]
        if score is not None and row["prompt"] not in excluded_prompts:
            samples.setdefault(row["example_id"], []).append(score)
    return {name: sum(values) / len(values) for name, values in samples.items()}


def estimate(scores: Scores) -> dict[str, float]:
    return bootstrap(list(scores.values()), RESAMPLES, seed=0).as_dict()


def gain(before: Scores, after: Scores) -> dict[str, float]:
    """after - before, paired by prompt."""
    both = sorted(before.keys() & after.keys())
    return bootstrap([after[name] - before[name] for name in both], RESAMPLES, seed=0).as_dict()


def before_after(by_step: dict[int, Scores]) -> dict[str, Any]:
    """First and last evaluation, the paired gain, and the curve."""
    steps = sorted(by_step)
    first, last = by_step[steps[0]], by_step[steps[-1]]
    return {
        "prompts": len(first.keys() & last.keys()),
        "before": estimate(first),
        "after": estimate(last),
        "gain": gain(first, last),
        "curve": {step: estimate(by_step[step]) for step in steps},
    }


def percent(value: dict[str, float], *, signed: bool = False) -> str:
    """``61.2% (58.0 to 64.1)``."""
    sign = "+" if signed else ""
    low, high = (f"{100 * value[side]:{sign}.1f}" for side in ("low", "high"))
    return f"{100 * value['value']:{sign}.1f}% ({low} to {high})"
