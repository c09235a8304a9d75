"""From scores to the report, as plain JSON data. Every measure stands beside what a scorer that knows nothing gets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prm.bench import prmbench, processbench, rewardmath
from prm.bench.aggregate import AGGREGATIONS, OF_ANY_SCALE, aggregate
from prm.bench.calibration import brier, brier_of_base_rate, expected_calibration_error
from prm.bench.items import CORRECT, Item
from prm.bench.ranking import auc, pairwise_accuracy, rank_correlation
from prm.bench.scorers import Scored

DEFAULT_THRESHOLD = 0.5
THRESHOLD_SPLIT = "gsm8k"  # where the paper of ProcessBench chooses it
SAME_ITEMS = "these very items (optimistic)"
TOTAL = "all classes"


def choose_threshold(
    scored: Scored, items: Sequence[Item], *, given: float | None, split: str | None
) -> tuple[float, str]:
    """(threshold, how it came about): given; else the best for first-error F1 on `split`; else 0.5 for probabilities;
    else the best on GSM8K, or where there is none on all items. Raises ValueError if `split` has no items."""
    if given is not None:
        return given, "given"
    if split is None and scored.scale == "probability":
        return DEFAULT_THRESHOLD, "default"
    splits = by_split(items)
    if split is None and THRESHOLD_SPLIT not in splits:
        chosen, how = list(items), SAME_ITEMS
    else:
        name = split or THRESHOLD_SPLIT
        if name not in splits:
            raise ValueError(f"no item belongs to the split '{name}'")
        chosen, how = splits[name], f"split {name}"
    labels = [item.first_error for item in chosen]
    scores = [scored.scores[item.id] for item in chosen]
    if all(score is None for steps in scores for score in steps):
        return DEFAULT_THRESHOLD, "nothing was scored"
    return processbench.best_threshold(scores, labels), how


def by_split(items: Iterable[Item]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        found[item.split].append(item)
    return dict(found)


def evaluate(scored: Scored, items: Sequence[Item], threshold: float, chosen_on: str) -> dict[str, Any]:
    """Everything about one scorer, as plain JSON data."""
    splits = by_split(items)
    steps = [score for item in items for score in scored.scores[item.id]]
    found: dict[str, Any] = {
        "scale": scored.scale,
        "threshold": {"value": threshold, "chosen_on": chosen_on},
        "steps_scored": sum(score is not None for score in steps),
        "steps_unscored": sum(score is None for score in steps),
        "steps": {name: _steps(scored, some, threshold) for name, some in splits.items()},
    }
    predictions = {item.id: processbench.first_error(scored.scores[item.id], threshold) for item in items}
    found |= first_errors(items, predictions)
    if modified := [item for item in items if item.kind == "prmbench"]:
        found["prmbench"] = _prmbench(scored, modified, threshold)
    found["responses"] = _responses(scored, items)
    return found


def first_errors(items: Sequence[Item], predictions: Mapping[str, int | None]) -> dict[str, Any]:
    """ProcessBench's protocol on its own items and on those of generators; {} if there are none."""
    splits = by_split(item for item in items if item.kind != "prmbench")
    results = {
        name: processbench.evaluate([item.first_error for item in some], [predictions[item.id] for item in some])
        for name, some in splits.items()
    }
    if not results:
        return {}
    return {
        "first_error": {name: result.as_dict() for name, result in results.items()},
        "mean_f1": processbench.mean_f1(results.values()),
    }


def _steps(scored: Scored, items: Sequence[Item], threshold: float) -> dict[str, Any]:
    """Over the steps with a score whose truth is known."""
    rows = [
        (score, right, item.id, 0 <= item.first_error < index)
        for item in items
        for index, (score, right) in enumerate(zip(scored.scores[item.id], item.truth, strict=True))
        if score is not None and right is not None
    ]
    scores, labels, responses = [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]
    within, pairs = pairwise_accuracy(scores, labels, responses)
    judged = [(score >= threshold) == label for score, label in zip(scores, labels, strict=True)]
    right = sum(labels) / len(labels) if labels else None
    found = {
        "steps": len(rows),
        "right": right,
        "auc": auc(scores, labels),
        "auc_to_first_error": auc([r[0] for r in rows if not r[3]], [r[1] for r in rows if not r[3]]),
        "within_response": within,
        "within_response_pairs": pairs,
        "accuracy": sum(judged) / len(judged) if judged else None,
        "majority_accuracy": None if right is None else max(right, 1 - right),
    }
    if scored.scale == "probability":
        found |= {
            "brier": brier(scores, labels),
            "base_rate_brier": brier_of_base_rate(labels),
            "calibration_error": expected_calibration_error(scores, labels),
        }
    return found


def _prmbench(scored: Scored, items: Sequence[Item], threshold: float) -> dict[str, Any]:
    labels = {item.id: _labels(scored, item, threshold) for item in items}
    classes = by_split(item for item in items if item.split != CORRECT)
    predictions = {
        name: [
            prmbench.Prediction(
                classification=name,
                error_steps=tuple(i for i, right in enumerate(item.truth, start=1) if not right),
                steps=len(item.steps),
                labels=labels[item.id],
                original=labels.get(f"{CORRECT}_{item.group}"),
            )
            for item in some
        ]
        for name, some in classes.items()
    }
    predictions[TOTAL] = [one for some in predictions.values() for one in some]
    return {name: prmbench.evaluate(some).as_dict() for name, some in predictions.items()}


def _labels(scored: Scored, item: Item, threshold: float) -> list[bool] | None:
    """Judged valid or not; None if a step has no score."""
    known = [score for score in scored.scores[item.id] if score is not None]
    if len(known) < len(item.steps):
        return None
    return prmbench.judgements(item.split, [score >= threshold for score in known], scored.redundant.get(item.id))


def _responses(scored: Scored, items: Sequence[Item]) -> dict[str, Any]:
    """Whole solutions, by benchmark or split, for every aggregation that this scale allows. A solution with an unscored
    step is left out and counted."""
    known = [item for item in items if item.outcome is not None]
    tables: dict[str, list[Item]] = defaultdict(list)
    for item in known:
        tables["prmbench" if item.kind == "prmbench" else item.split].append(item)
    return {name: _aggregations(scored, some) for name, some in tables.items()}


def _aggregations(scored: Scored, items: Sequence[Item]) -> dict[str, Any]:
    usable, scores = [], []
    for item in items:
        values = [score for score in scored.scores[item.id] if score is not None]
        if len(values) == len(item.steps):
            usable.append(item)
            scores.append(values)
    names = AGGREGATIONS if scored.scale == "probability" else OF_ANY_SCALE
    table = {how: _outcomes(usable, [aggregate(values, how) for values in scores]) for how in names}
    right = sum(bool(item.outcome) for item in usable)
    return {"solutions": len(usable), "right": right, "left_out": len(items) - len(usable), "aggregations": table}


def _outcomes(items: Sequence[Item], scores: Sequence[float]) -> dict[str, Any]:
    labels, groups = [bool(item.outcome) for item in items], [item.group for item in items]
    accuracy, pairs = pairwise_accuracy(scores, labels, groups)
    result = rewardmath.evaluate(_one_right(scores, labels, groups))
    return {
        "auc": auc(scores, labels),
        "pairwise_accuracy": accuracy,
        "pairs": pairs,
        "length_correlation": rank_correlation(scores, [len(item.steps) for item in items]),
        "rewardmath": None if result is None else result.as_dict(),
    }


def _one_right(
    scores: Sequence[float], labels: Sequence[bool], groups: Sequence[str]
) -> list[tuple[float, list[float]]]:
    """RewardMATH's problems: the groups with exactly one right solution, and wrong ones."""
    members: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for score, label, group in zip(scores, labels, groups, strict=True):
        members[group][0 if label else 1].append(score)
    return [(right[0], wrong) for right, wrong in members.values() if len(right) == 1 and wrong]


def step_rows(scored: Scored, items: Sequence[Item], threshold: float) -> list[dict[str, Any]]:
    """One row an item: raw scores, labels by the threshold (1 judged right, 0 wrong, null not scored), threshold."""
    return [
        {
            "id": item.id,
            "split": item.split,
            "scorer": scored.name,
            "scores": scored.scores[item.id],
            "labels": [None if score is None else int(score >= threshold) for score in scored.scores[item.id]],
            "threshold": threshold,
            "first_error": processbench.first_error(scored.scores[item.id], threshold),
            "true_first_error": item.first_error,
        }
        for item in items
    ]
