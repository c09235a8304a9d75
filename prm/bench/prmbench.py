"""PRMBench: which steps are wrong. Source: arXiv 2501.03124, ssmisya/PRMBench
`mr_eval/tasks/prmtest_classified/task.py`.

A step is *positive* if it is judged valid. `error_steps` are counted from 1; those beyond the last step, which the data
has, count nowhere. Labels are one bool a step: judged valid or not.

Where this differs from the reference: a share of nothing is 0 or None, never -1; and `similarity` also counts a pair
whose original has no step judged valid, which the reference drops because 0 is false.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

SIMPLICITY = ("redundency", "circular")  # spelt as in the data


@dataclass(frozen=True, slots=True)
class StepCounts:
    """Judgements of steps. tp: a right step judged valid; fp: a wrong step judged valid; tn: a wrong step found; fn: a
    right step judged wrong."""

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0

    def __add__(self, other: StepCounts) -> StepCounts:
        return StepCounts(self.tp + other.tp, self.fp + other.fp, self.tn + other.tn, self.fn + other.fn)

    @property
    def total(self) -> int:
        return self.tp + self.fp + self.tn + self.fn

    @property
    def f1(self) -> float:
        """F1 of finding right steps."""
        return _f1(self.tp, self.fp, self.fn)

    @property
    def f1_neg(self) -> float:
        """F1 of finding wrong steps."""
        return _f1(self.tn, self.fn, self.fp)

    @property
    def prmscore(self) -> float:
        """(F1 + F1_neg) / 2. Where no step is wrong, as in the class multi_solutions, F1_neg is 0: read F1 there."""
        return (self.f1 + self.f1_neg) / 2

    @property
    def correct_step_acc(self) -> float | None:
        """Among right steps, the share judged valid."""
        return _share(self.tp, self.tp + self.fn)

    @property
    def wrong_step_acc(self) -> float | None:
        """Among wrong steps, the share found."""
        return _share(self.tn, self.tn + self.fp)

    @property
    def total_step_acc(self) -> float | None:
        return _share(self.tp + self.tn, self.total)

    @property
    def majority_acc(self) -> float | None:
        """`total_step_acc` of judging all steps alike."""
        return _share(max(self.tp + self.fn, self.tn + self.fp), self.total)


def _f1(hits: int, false_alarms: int, misses: int) -> float:
    return _share(2 * hits, 2 * hits + false_alarms + misses) or 0.0


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True, slots=True)
class Judged:
    """One judged solution. first_error: whether the first wrong step was found, None if there is none. valid_rate:
    share of steps judged valid."""

    counts: StepCounts
    first_error: bool | None
    valid_rate: float | None


def judge(error_steps: Iterable[int], labels: Sequence[bool]) -> Judged:
    """Compare the labels of S steps with `error_steps` (from 1). Raises ValueError for an index below 1."""
    wrong = {step - 1 for step in error_steps}
    if any(index < 0 for index in wrong):
        raise ValueError("error steps are counted from 1")
    first = min(wrong, default=None)
    found = [(index in wrong, bool(label)) for index, label in enumerate(labels)]
    counts = StepCounts(
        tp=found.count((False, True)),
        fp=found.count((True, True)),
        tn=found.count((True, False)),
        fn=found.count((False, False)),
    )
    return Judged(
        counts=counts,
        first_error=not labels[first] if first is not None and first < len(labels) else None,
        valid_rate=_share(sum(map(bool, labels)), len(labels)),
    )


def judgements(classification: str, valid: Sequence[bool], redundant: Sequence[bool] | None = None) -> list[bool]:
    """The labels that count for a class: in the classes redundency and circular, of a scorer that also says which steps
    are redundant, that a step is not."""
    if classification in SIMPLICITY and redundant is not None:
        return [not label for label in redundant]
    return list(valid)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A judged item of the benchmark. labels: None if the scorer's output could not be read. original: labels of the
    correct original of the same problem, if that was judged."""

    classification: str
    error_steps: tuple[int, ...]
    labels: Sequence[bool] | None
    original: Sequence[bool] | None = None
    steps: int = field(default=0)


@dataclass(frozen=True, slots=True)
class PRMBenchResult:
    """counts: steps of the readable items. first_error_acc: over items with a wrong step. similarity: mean |valid rate
    of the modified - of the original|; near 0, the scorer does not tell them apart. readable: items that were read.
    counts_strict: `counts`, and every step of an unreadable item misjudged."""

    items: int
    readable: int
    counts: StepCounts
    counts_strict: StepCounts
    first_error_acc: float | None
    similarity: float | None

    def as_dict(self) -> dict[str, Any]:
        """Unreadable items are left out of every number but `validity_rate` and `prmscore_strict`, as in the
        reference."""
        names = ("f1", "f1_neg", "prmscore", "correct_step_acc", "wrong_step_acc", "total_step_acc", "majority_acc")
        return {
            "items": self.items,
            "validity_rate": _share(self.readable, self.items),
            "steps": self.counts.total,
            **{name: getattr(self.counts, name) for name in names},
            "prmscore_strict": self.counts_strict.prmscore,
            "first_error_acc": self.first_error_acc,
            "similarity": self.similarity,
        }


def evaluate(predictions: Iterable[Prediction]) -> PRMBenchResult:
    """Over the modified items of one class or of all; the correct originals are no items and count in `similarity`
    only."""
    counts, missed = StepCounts(), StepCounts()
    items = readable = 0
    first: list[bool] = []
    distances: list[float] = []
    for prediction in predictions:
        items += 1
        if prediction.labels is None:
            missed += _misjudged(prediction)
            continue
        readable += 1
        judged = judge(prediction.error_steps, prediction.labels)
        counts += judged.counts
        first += [] if judged.first_error is None else [judged.first_error]
        original = None if prediction.original is None else judge((), prediction.original).valid_rate
        if original is not None and judged.valid_rate is not None:
            distances.append(abs(judged.valid_rate - original))
    return PRMBenchResult(
        items=items,
        readable=readable,
        counts=counts,
        counts_strict=counts + missed,
        first_error_acc=_share(sum(first), len(first)),
        similarity=math.fsum(distances) / len(distances) if distances else None,
    )


def _misjudged(prediction: Prediction) -> StepCounts:
    wrong = sum(step <= prediction.steps for step in set(prediction.error_steps))
    return StepCounts(fp=wrong, fn=prediction.steps - wrong)
