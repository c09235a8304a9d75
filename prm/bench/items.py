"""What is scored: solutions in steps, with what is known about each step; and the files they are read from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data.rows import Row
from data.sources import FileOptions, JsonlSource, resolve_path
from verifiers.errors import DataError

Kind = Literal["processbench", "prmbench", "generator"]
CORRECT = "correct"  # the class of PRMBench's originals


@dataclass(frozen=True, slots=True)
class Item:
    """One solution.

    split: what it is reported with (a file, or a class of PRMBench). truth: for each step whether it is right, None
    where nobody knows (ProcessBench, after the first wrong step). outcome: whether the whole is right, None if unknown.
    group: items of the same problem share it.
    """

    id: str
    kind: Kind
    split: str
    group: str
    problem: str
    steps: tuple[str, ...]
    truth: tuple[bool | None, ...]
    outcome: bool | None

    @property
    def first_error(self) -> int:
        """Index of the first step known to be wrong; -1 if none is."""
        return next((i for i, right in enumerate(self.truth) if right is False), -1)


class _ProcessBenchRow(BaseModel):
    model_config = ConfigDict(strict=True)

    id: str
    problem: str
    steps: list[str] = Field(min_length=1)
    label: int = Field(ge=-1)
    final_answer_correct: bool | None = None

    @model_validator(mode="after")
    def _label_is_a_step(self) -> _ProcessBenchRow:
        if self.label >= len(self.steps):
            raise ValueError(f"label {self.label} is no step: there are {len(self.steps)}, counted from 0")
        return self


class _PRMBenchRow(BaseModel):
    model_config = ConfigDict(strict=True)

    idx: str
    classification: str
    original_question: str
    modified_question: str
    original_process: list[str] = Field(min_length=1)
    modified_process: list[str] = Field(min_length=1)
    error_steps: list[int]

    @model_validator(mode="after")
    def _counted_from_one(self) -> _PRMBenchRow:
        if any(step < 1 for step in self.error_steps):
            raise ValueError("error_steps are counted from 1")
        return self


def read_items(paths: Sequence[str], *, limit: int | None = None) -> list[Item]:
    """The items of JSONL files in the format of ProcessBench or PRMBench, told apart by their fields. The files of
    PRMBench's classes share their originals.

    limit: take as many rows of each file, evenly spread over it: ProcessBench's erroneous solutions stand before its
    correct ones. Raises `DataError` naming the line.
    """
    items: list[Item] = []
    prmbench: list[_PRMBenchRow] = []
    for path in paths:
        rows = _spread(list(read_rows(path)), limit)
        if not rows:
            raise DataError(f"{path} has no rows.", where=path)
        if "label" in rows[0].fields:
            items += [_from_processbench(row, path) for row in rows]
        elif "modified_process" in rows[0].fields:
            prmbench += [validate(_PRMBenchRow, row, path) for row in rows]
        else:
            raise DataError(
                "These rows are neither ProcessBench's nor PRMBench's.",
                where=f"{path}, {rows[0].place}",
                fix="fields: id, problem, steps, label; or: idx, classification, original_question, modified_question, "
                "original_process, modified_process, error_steps",
            )
    return _unique([*items, *_from_prmbench(prmbench)])


def _spread(rows: list[Row], limit: int | None) -> list[Row]:
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i * len(rows) // limit] for i in range(limit)]


def read_rows(path: str) -> Iterator[Row]:
    """The objects of a JSONL file with their places. Raises `DataError`."""
    file = resolve_path(path)
    if not file.is_file():
        raise DataError(f"{path} is not a file.", where=path, fix="name one JSONL file")
    try:
        yield from JsonlSource(FileOptions(path=path)).rows(file)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error}.", where=path) from error


R = TypeVar("R", bound=BaseModel)


def validate(model: type[R], row: Row, path: str) -> R:
    """`row` as a `model`. Raises `DataError` naming the line and every problem."""
    try:
        return model.model_validate(dict(row.fields))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'the row'}: {p['msg']}" for p in error.errors())
        raise DataError(f"This row cannot be used: {problems}.", where=f"{path}, {row.place}") from error


def _from_processbench(row: Row, path: str) -> Item:
    fields = validate(_ProcessBenchRow, row, path)
    truth: list[bool | None] = [True] * len(fields.steps)
    if fields.label >= 0:
        truth[fields.label :] = [False, *[None] * (len(fields.steps) - fields.label - 1)]
    return Item(
        id=fields.id,
        kind="processbench",
        split=Path(path).stem,
        group=fields.problem,
        problem=fields.problem,
        steps=tuple(fields.steps),
        truth=tuple(truth),
        outcome=fields.final_answer_correct,
    )


def _from_prmbench(rows: Sequence[_PRMBenchRow]) -> list[Item]:
    """Each original once, and each modified solution. Of a repeated (class, idx) the first counts, and the original of
    the class redundency goes before those of others, both as in the reference."""
    items: dict[str, Item] = {}
    for row in sorted(rows, key=lambda row: row.classification != "redundency"):
        right = [True] * len(row.original_process)
        _add(items, CORRECT, row.idx, row.original_question, row.original_process, right)
    for row in rows:
        right = [number not in row.error_steps for number in range(1, len(row.modified_process) + 1)]
        _add(items, row.classification, row.idx, row.modified_question, row.modified_process, right)
    return list(items.values())


def _add(
    items: dict[str, Item], split: str, idx: str, problem: str, steps: Sequence[str], truth: Sequence[bool]
) -> None:
    id_ = f"{split}_{idx}"
    if id_ not in items:
        items[id_] = Item(id_, "prmbench", split, idx, problem, tuple(steps), tuple(truth), all(truth))


def _unique(items: list[Item]) -> list[Item]:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"The id '{item.id}' is used twice.", where="--data", fix="name each file and item once")
        seen.add(item.id)
    return items
