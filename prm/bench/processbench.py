"""ProcessBench: find the first wrong step. Source: arXiv 2412.06559, QwenLM/ProcessBench `code/run_eval.py`.

A label or prediction is the index, from 0, of the first wrong step; -1 says that every step is right. A prediction of
None could not be read: it is wrong, whatever the label, and never counts as -1.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

NO_ERROR = -1
_BOX = re.compile(r"\\boxed\{([^}]*)\}")


def first_error(scores: Sequence[float | None], threshold: float) -> int | None:
    """The first step that scores below `threshold`, -1 if none does. None if a step before that has no score, or if
    there is no step at all."""
    for index, score in enumerate(scores):
        if score is None:
            return None
        if score < threshold:
            return index
    return NO_ERROR if scores else None


def read_critique(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` of a critique holds, as text; None without one."""
    found = _BOX.findall(text)
    return found[-1].strip() if found else None


def vote(critiques: Iterable[str]) -> int | None:
    """The prediction of several critiques of one solution (one is no vote). The majority is of *texts*, as in the
    reference ("2" and "02" are two candidates), ties go to the earlier one, critiques without a box do not vote; the
    winner is then read as a whole number, and is None if it is none."""
    answers = [answer for critique in critiques if (answer := read_critique(critique)) is not None]
    if not answers:
        return None
    winner = Counter(answers).most_common(1)[0][0]
    try:
        return int(winner)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class ProcessBenchResult:
    """Counts of one split. erroneous, correct: solutions with and without a wrong step; found, passed: those predicted
    exactly. unparsable: predictions of None. Shares are fractions; a share of nothing is 0."""

    erroneous: int
    found: int
    correct: int
    passed: int
    unparsable: int
    majority: int

    @property
    def acc_err(self) -> float:
        return self.found / self.erroneous if self.erroneous else 0.0

    @property
    def acc_cor(self) -> float:
        return self.passed / self.correct if self.correct else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of the two accuracies; 0 where both are (the reference divides 0 by 0)."""
        return harmonic_mean(self.acc_err, self.acc_cor)

    @property
    def accuracy(self) -> float:
        total = self.erroneous + self.correct
        return (self.found + self.passed) / total if total else 0.0

    @property
    def majority_accuracy(self) -> float:
        """The accuracy of always predicting the most frequent label."""
        total = self.erroneous + self.correct
        return self.majority / total if total else 0.0

    def as_dict(self) -> dict[str, Any]:
        names = ("erroneous", "correct", "unparsable", "acc_err", "acc_cor", "f1", "accuracy", "majority_accuracy")
        return {name: getattr(self, name) for name in names}


def harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def evaluate(labels: Sequence[int], predictions: Sequence[int | None]) -> ProcessBenchResult:
    """Compare N predictions with N labels. Raises ValueError for unequal lengths."""
    pairs = list(zip(labels, predictions, strict=True))
    erroneous = [label == prediction for label, prediction in pairs if label != NO_ERROR]
    correct = [label == prediction for label, prediction in pairs if label == NO_ERROR]
    most = Counter(labels).most_common(1)
    return ProcessBenchResult(
        erroneous=len(erroneous),
        found=sum(erroneous),
        correct=len(correct),
        passed=sum(correct),
        unparsable=sum(prediction is None for prediction in predictions),
        majority=most[0][1] if most else 0,
    )


def mean_f1(results: Iterable[ProcessBenchResult]) -> float:
    """The benchmark's one number: the plain mean of the splits' F1. Raises ValueError for no split."""
    scores = [result.f1 for result in results]
    if not scores:
        raise ValueError("no split: there is no mean")
    return math.fsum(scores) / len(scores)


def best_threshold(scores: Sequence[Sequence[float | None]], labels: Sequence[int]) -> float:
    """The threshold with the highest F1 on N solutions (scores: one list of step scores each), the lowest one of
    equals. Thresholds lie midway between neighbouring scores; the lowest is the lowest score, below which nothing is.

    Meant for one named split (the paper: GSM8K); on the split it is chosen on, F1 is optimistic. Raises ValueError if
    no step has a score. O(S log S) for S steps.
    """
    values = sorted({score for steps in scores for score in steps if score is not None})
    if not values:
        raise ValueError("no step has a score: there is no threshold to choose")
    between = [_between(low, high) for low, high in pairwise(values)]
    cuts = [values[0], *between, math.nextafter(values[-1], math.inf)]
    position = {value: i for i, value in enumerate(values)}
    found, passed = [0] * (len(cuts) + 1), [0] * (len(cuts) + 1)
    for steps, label in zip(scores, labels, strict=True):
        interval = _hits(steps, label, position, len(cuts))
        if interval is not None:
            counts = passed if label == NO_ERROR else found
            counts[interval[0]] += 1
            counts[interval[1]] -= 1
    return cuts[_best_cut(found, passed, labels)]


def _best_cut(found: Sequence[int], passed: Sequence[int], labels: Sequence[int]) -> int:
    """found, passed: changes of the two counts from one cut to the next."""
    correct = sum(label == NO_ERROR for label in labels)
    erroneous = len(labels) - correct
    best, best_f1, hits, passes = 0, -1.0, 0, 0
    for cut in range(len(found) - 1):
        hits, passes = hits + found[cut], passes + passed[cut]
        f1 = harmonic_mean(hits / max(erroneous, 1), passes / max(correct, 1))
        if f1 > best_f1:
            best, best_f1 = cut, f1
    return best


def _between(low: float, high: float) -> float:
    """A number above `low`, at most `high`: the middle, unless there is no float between."""
    middle = low + (high - low) / 2
    return middle if low < middle else high


def _hits(steps: Sequence[float | None], label: int, position: dict[float, int], cuts: int) -> tuple[int, int] | None:
    """The half-open range of cuts at which the prediction is `label`. Cut i lies below the i-th smallest score."""
    read = steps if label == NO_ERROR else steps[: label + 1]
    if not read or any(score is None for score in read) or label >= len(steps):
        return None
    at = [position[score] for score in read if score is not None]
    if label == NO_ERROR:
        return 0, min(at) + 1
    low, high = at[-1] + 1, min(at[:-1], default=cuts - 1) + 1
    return (low, high) if low < high else None
