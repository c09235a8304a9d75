"""`StepScorer`: anything that scores the steps of a solution; the controls that every scorer is read beside; scores and
critiques from files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from prm.bench.items import Item, read_rows, validate
from prm.bench.processbench import vote
from verifiers.errors import DataError, ModelError

Scale = Literal["probability", "real"]  # in 0..1 and comparable with a label, or any finite number


class StepScorer(Protocol):
    """A higher score says that the step is likelier right. `name` stands in the report, `scale` decides which measures
    make sense."""

    @property
    def name(self) -> str: ...

    @property
    def scale(self) -> Scale: ...

    def score(self, problem: str, steps: Sequence[str]) -> list[float | None]:
        """One score a step, None for a step that could not be scored."""
        ...


@dataclass(slots=True)
class Scored:
    """scores: item id -> one score a step. redundant: item id -> for each step whether it is called redundant, of
    scorers that say so (counts in PRMBench only)."""

    name: str
    scale: Scale
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    redundant: dict[str, list[bool]] = field(default_factory=dict)


def score_all(scorer: StepScorer, items: Sequence[Item], on_item: Callable[[int], None] = lambda done: None) -> Scored:
    """Raises `ModelError` if the scorer breaks its contract: another number of scores, not finite, off its scale."""
    scored = Scored(scorer.name, scorer.scale)
    for done, item in enumerate(items, start=1):
        scores = scorer.score(item.problem, item.steps)
        problem = _problem(scores, len(item.steps), scorer.scale)
        if problem is not None:
            raise ModelError(f"The scorer '{scorer.name}' {problem}.", where=f"item {item.id}")
        scored.scores[item.id] = scores
        on_item(done)
    return scored


def _problem(scores: Sequence[float | None], steps: int, scale: Scale) -> str | None:
    known = [score for score in scores if score is not None]
    if len(scores) != steps:
        return f"gives {len(scores)} scores for {steps} steps"
    if not all(map(math.isfinite, known)):
        return f"gives scores that are not finite: {known}"
    if scale == "probability" and not all(0 <= score <= 1 for score in known):
        return f"gives scores outside 0..1: {known}"
    return None


# ---- controls ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Control:
    """Scores a step by (problem, its index, its text) without knowing what is right."""

    name: str
    scale: Scale
    rule: Callable[[str, int, str], float]

    def score(self, problem: str, steps: Sequence[str]) -> list[float | None]:
        return [self.rule(problem, index, step) for index, step in enumerate(steps)]


def controls(seed: int) -> dict[str, Control]:
    """length: a long step is wrong (minus its characters). position: a late step is wrong (minus its index). constant:
    every step is right, the majority of most benchmarks. random: uniform in 0..1, fixed by seed, problem, index and
    text."""
    every = (
        Control("length", "real", lambda problem, index, step: -float(len(step))),
        Control("position", "real", lambda problem, index, step: -float(index)),
        Control("constant", "probability", lambda problem, index, step: 1.0),
        Control("random", "probability", lambda problem, index, step: _draw(f"{seed}\0{problem}\0{index}\0{step}")),
    )
    return {control.name: control for control in every}


def _draw(text: str) -> float:
    # 53 bits, as random.random: eight whole bytes would round up to 1.0 now and then
    return (int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) >> 11) / 2**53


# ---- from files --------------------------------------------------


class _ScoreRow(BaseModel):
    model_config = ConfigDict(strict=True)

    id: str
    scores: list[float | None]
    redundant: list[bool] | None = None


class _CritiqueRow(BaseModel):
    model_config = ConfigDict(strict=True)

    id: str
    critiques: list[str] = Field(min_length=1)


def scores_from_file(path: str, items: Sequence[Item]) -> Scored:
    """Rows ``{"id": ..., "scores": [0.9, null, ...]}``, one score a step and maybe as many bits `redundant`;
    probabilities if all are in 0..1. Ids that are no item are ignored. Raises `DataError` if an item has no row, or a
    row another number of values than there are steps."""
    rows: dict[str, _ScoreRow] = {}
    for raw in read_rows(path):
        row = validate(_ScoreRow, raw, path)
        rows[row.id] = row
    _require(rows, items, path)
    scored = Scored("scores", "probability")
    for item in items:
        scores = rows[item.id].scores
        problem = _problem(scores, len(item.steps), "real")
        redundant = rows[item.id].redundant
        if redundant is not None and len(redundant) != len(item.steps):
            problem = f"says of {len(redundant)} steps whether they are redundant, there are {len(item.steps)}"
        if problem is not None:
            raise DataError(f"The row of '{item.id}' {problem}.", where=path, fix="write one finite score a step")
        scored.scores[item.id] = scores
        if redundant is not None:
            scored.redundant[item.id] = redundant
        if _problem(scores, len(item.steps), "probability") is not None:
            scored.scale = "real"
    return scored


def predictions_from_file(path: str, items: Sequence[Item]) -> dict[str, int | None]:
    r"""Item id -> the first error that critics vote for. Raises `DataError`.

    Rows: ``{"id": ..., "critiques": ["... \boxed{2}", ...]}``.
    """
    rows: dict[str, _CritiqueRow] = {}
    for raw in read_rows(path):
        row = validate(_CritiqueRow, raw, path)
        rows[row.id] = row
    _require(rows, items, path)
    return {item.id: vote(rows[item.id].critiques) for item in items}


def _require(rows: Mapping[str, BaseModel], items: Sequence[Item], path: str) -> None:
    missing = [item.id for item in items if item.id not in rows]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(items)} items have no row, the first is '{missing[0]}'.",
            where=path,
            fix="write one row an item; PRMBench's items are named <classification>_<idx>, its originals correct_<idx>",
        )
