"""The labelled cases: one JSON object a line, checked before any verifier starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from verifiers.errors import ConfigError, DataError, did_you_mean

# Beside this package in a checkout and in an installed distribution alike. Nothing here may import `data`.
ASSETS = Path(__file__).parents[3] / "data" / "assets" / "math_cases"
SHIPPED_CASES = ASSETS / "cases.jsonl"
SHIPPED_DISPUTES = ASSETS / "disputed.jsonl"


class Case(BaseModel):
    """label: whether `response` answers rightly when `gold` is the answer; None for a hostile input, which only has to
    be survived. source: where the case is from. why: what it tests, for a person."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    gold: str
    response: str
    label: bool | None
    category: str
    source: str
    why: str = ""

    @field_validator("id", "category", "source")
    @classmethod
    def _is_not_empty(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("must not be empty")
        return text

    @property
    def is_boxed(self) -> bool:
        return "\\boxed" in self.response


class Dispute(BaseModel):
    """A label that a maintainer believes to be wrong. verdict: what it should be."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    verdict: bool
    reason: str


R = TypeVar("R", Case, Dispute)


def load_cases(file: Path) -> list[Case]:
    """Every case of `file`. Raises `DataError` naming file and line for the first that cannot be used."""
    return _load(file, Case)


def load_disputes(file: Path, cases: Sequence[Case] | None = None) -> dict[str, Dispute]:
    """{case id: dispute}. With `cases`, a dispute about no case or in agreement with the label is a `DataError`."""
    disputes = {dispute.id: dispute for dispute in _load(file, Dispute)}
    if cases is None:
        return disputes
    labels = {case.id: case.label for case in cases}
    for dispute in disputes.values():
        if dispute.id not in labels:
            raise DataError(f"There is no case '{dispute.id}' to dispute.", where=str(file))
        if labels[dispute.id] is dispute.verdict:
            raise DataError(
                f"The dispute of '{dispute.id}' agrees with its label.",
                where=str(file),
                fix="remove the line: the label was corrected since",
            )
    return disputes


def in_category(cases: Sequence[Case], category: str) -> list[Case]:
    """Raises `ConfigError` if there is none."""
    chosen = [case for case in cases if case.category == category]
    if not chosen:
        raise ConfigError(
            f"No case has the category '{category}'.",
            where="--category",
            fix=did_you_mean(category, {case.category for case in cases}),
        )
    return chosen


def _load(file: Path, model: type[R]) -> list[R]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The file cannot be read: {error}.", where=str(file)) from error
    rows: list[R] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _row(line, model, f"{file}, line {number}")
        if row.id in seen:
            raise DataError(f"The id '{row.id}' stands in line {seen[row.id]} already.", where=f"{file}, line {number}")
        seen[row.id] = number
        rows.append(row)
    return rows


def _row(line: str, model: type[R], where: str) -> R:
    fix = f"write one JSON object a line with the fields {', '.join(model.model_fields)}"
    try:
        return model.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        raise DataError(f"This is not JSON: {error}.", where=where, fix=fix) from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'the line'}: {problem['msg']}" for problem in error.errors()
        )
        raise DataError(f"This row cannot be used: {problems}.", where=where, fix=fix) from error
