"""One scorer on every protocol: plain dictionaries for report.json and the markdown.

Shapes: scores and items run in parallel.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from prm.bench import rewardmath, verifybench
from prm.bench.calibration import brier, brier_of_base_rate, expected_calibration_error
from prm.bench.optimisation import best_of_n, overoptimised
from prm.bench.ranking import auc, pairwise_accuracy, rank_correlation
from prm.bench.rm.items import Item, Problem, Sample
from prm.bench.scorers import Scale

Scores = Sequence[float | None]


def rewardmath_report(problems: Sequence[Problem], scores: Scores) -> dict[str, Any]:
    """A solution without a score counts against the model: the right one below all, a wrong one above all."""
    given = iter(scores)
    pairs = []
    for problem in problems:
        own = [next(given) for _ in problem.asked]
        right = -math.inf if own[0] is None else own[0]
        pairs.append((right, [math.inf if score is None else score for score in own[1:]]))
    result = rewardmath.evaluate(pairs)
    asked = [one for problem in problems for one in problem.asked]
    known = [(score, one) for score, one in zip(scores, asked, strict=True) if score is not None]
    lengths = [float(len(one.response)) for _, one in known]
    return (result.as_dict() if result is not None else {}) | {
        "unscored": len(asked) - len(known),
        "length_correlation": rank_correlation([score for score, _ in known], lengths),
        "label_length_correlation": rank_correlation([one.label for _, one in known], lengths),
    }


def verifybench_report(items: Sequence[Item], scores: Scores, scale: Scale, threshold: float) -> dict[str, Any]:
    truth = [item.asked.label > 0.5 for item in items]
    judged = [None if score is None else score > threshold for score in scores]
    known = [(score, label) for score, label in zip(scores, truth, strict=True) if score is not None]
    values, labels = [score for score, _ in known], [label for _, label in known]
    found: dict[str, Any] = {
        "types": verifybench.by_type(judged, truth, [item.type for item in items]),
        "subtypes": verifybench.by_type(judged, truth, [item.subtype for item in items]),
        "threshold": threshold,
        "auc": auc(values, labels),
    }
    if scale == "probability":
        found |= {"brier": brier(values, labels), "base_rate_brier": brier_of_base_rate(labels),
                  "calibration_error": expected_calibration_error(values, labels)}  # fmt: skip
    return found


def samples_report(samples: Sequence[Sample], scores: Scores, sizes: Sequence[int]) -> dict[str, Any]:
    """Best-of-n over all problems, and where the samples are of a run's steps the curve over them."""
    known = [(sample, score) for sample, score in zip(samples, scores, strict=True) if score is not None]
    groups: dict[tuple[int | None, str], list[tuple[float, float]]] = defaultdict(list)
    for sample, score in known:
        groups[sample.step, sample.group].append((score, sample.gold))
    curve = best_of_n(list(groups.values()), sizes)
    right = [sample.gold > 0.5 for sample, _ in known]
    values = [score for _, score in known]
    within, pairs = pairwise_accuracy(values, right, [(sample.step, sample.group) for sample, _ in known])
    found: dict[str, Any] = {
        "samples": len(known),
        "unscored": len(samples) - len(known),
        "problems": len(groups),
        "auc": auc(values, right),
        "within_problem": within,
        "within_problem_pairs": pairs,
        "length_correlation": rank_correlation(values, [float(len(s.asked.response)) for s, _ in known]),
        "best_of_n": [point.as_dict() for point in curve],
    }
    if curve:
        found["best_of_n_summary"] = overoptimised([p.proxy for p in curve], [p.gold for p in curve])
    steps = sorted({sample.step for sample, _ in known if sample.step is not None})
    if len(steps) > 1:
        found["steps"] = [_at_step(step, known) for step in steps]
        proxies, golds = ([point[name] for point in found["steps"]] for name in ("proxy", "gold"))
        found["steps_summary"] = overoptimised(proxies, golds)
    return found


def _at_step(step: int, known: Sequence[tuple[Sample, float]]) -> dict[str, Any]:
    own = [(sample, score) for sample, score in known if sample.step == step]
    return {
        "step": step,
        "proxy": statistics.fmean(score for _, score in own),
        "gold": statistics.fmean(sample.gold for sample, _ in own),
        "auc": auc([score for _, score in own], [sample.gold > 0.5 for sample, _ in own]),
        "characters": statistics.fmean(len(sample.asked.response) for sample, _ in own),
        "samples": len(own),
    }
