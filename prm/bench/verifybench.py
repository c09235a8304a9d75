"""VerifyBench: is a completion right, given the reference answer? Source: arXiv 2505.15801, repository 893d46f.

A judgement is yes, no, or none (unparsable, not scored); none is a wrong judgement, never a no. Beside every accuracy
stands the majority class: of the published hard set it is 70.9%.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """Shares; None where nothing is there to divide by. false_accept: of the wrong completions, judged right; none is
    not an acceptance. false_reject: of the right ones, judged wrong. unparsable: of all."""

    items: int
    accuracy: float
    majority_accuracy: float
    false_accept: float | None
    false_reject: float | None
    unparsable: float

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def evaluate(judgements: Sequence[bool | None], truth: Sequence[bool]) -> VerifyResult | None:
    """judgements[i] on an item whose label is truth[i]; None for no item."""
    n = len(truth)
    if not n:
        return None
    pairs = list(zip(judgements, truth, strict=True))
    right = sum(truth)
    return VerifyResult(
        items=n,
        accuracy=sum(judged is label for judged, label in pairs) / n,
        majority_accuracy=max(right, n - right) / n,
        false_accept=sum(judged is True and not label for judged, label in pairs) / (n - right) if n > right else None,
        false_reject=sum(judged is False and label for judged, label in pairs) / right if right else None,
        unparsable=sum(judged is None for judged, _ in pairs) / n,
    )


def by_type(
    judgements: Sequence[bool | None], truth: Sequence[bool], types: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """`evaluate` for all items (``all``) and for each type, by name."""
    index: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(types):
        index[name].append(i)
    parts = {"all": list(range(len(truth))), **{name: index[name] for name in sorted(index)}}
    found = {n: evaluate([judgements[i] for i in some], [truth[i] for i in some]) for n, some in parts.items()}
    return {name: result.as_dict() for name, result in found.items() if result is not None}
