"""Rows of a table -> `Example`s, with an error for every row that cannot be one.

A row is a mapping from field names to plain values, whatever file it came from. Nothing is guessed or repaired: the
first malformed row raises `DataError` naming the source, the row, the field, the nearest existing field and the fix.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NoReturn

from pydantic import Field

from data.example import Example, Message
from verifiers.errors import DataError, did_you_mean
from verifiers.options import Options

ROLES = ("system", "user", "assistant")
MAX_EXPONENT = 400  # above any float; a text like 1e999999999 would take gigabytes to write out


class RowOptions(Options):
    """Which field of a row is what.

    prompt_field: text, or a list of chat messages ``{"role": ..., "content": ...}`` whose last role is user.
    gold_field: None where nothing is known of the answers: they can be voted on, and not be judged by a rule.
    gold_type: ``text`` takes a string as it is; ``number`` takes a number, or a string that reads as one,
    and writes it plainly (43.0 becomes "43"); ``json`` keeps structured values and parses strings as JSON.
    solution_field: a demonstration; null in a row means that this row has none.
    id_field: unique text or integer; without it the id is ``<file stem>-<row>``, rows counted from 0.
    meta_fields: copied to `Example.meta` as plain JSON data.
    """

    prompt_field: str = "prompt"
    gold_field: str | None = "gold"
    gold_type: Literal["text", "number", "json"] = "text"
    solution_field: str | None = None
    id_field: str | None = None
    meta_fields: list[str] = Field(default_factory=list)

    def roles_of_fields(self) -> dict[str, str]:
        """Option name -> field name, for every field that a row must have."""
        fields = {"prompt_field": self.prompt_field}
        fields |= {"gold_field": self.gold_field} if self.gold_field is not None else {}
        fields |= {"solution_field": self.solution_field} if self.solution_field is not None else {}
        fields |= {"id_field": self.id_field} if self.id_field is not None else {}
        return fields | {f"meta_fields[{i}]": name for i, name in enumerate(self.meta_fields)}


@dataclass(frozen=True, slots=True)
class Row:
    """place: where it stands, for messages ("line 3"). fields: its values by field name."""

    place: str
    fields: Mapping[str, Any]


def to_examples(rows: Iterable[Row], options: RowOptions, *, source: str, stem: str) -> list[Example]:
    """Map every row of `source` (a name for messages) to an example, in order. Raises `DataError`."""
    examples: list[Example] = []
    place_of_id: dict[str, str] = {}
    for number, row in enumerate(rows):
        example = _RowReader(row, options, source).example(f"{stem}-{number}")
        if example.id in place_of_id:
            raise DataError(
                f"The id '{example.id}' is used twice, in {place_of_id[example.id]} and in {row.place}.",
                where=f"{source}, {row.place}, field '{options.id_field}'",
                why="rewards and records are kept by id",
                fix=f"make the ids unique, or leave id_field out to number the rows as {stem}-0, {stem}-1, ...",
            )
        place_of_id[example.id] = row.place
        examples.append(example)
    if not examples:
        raise DataError(f"{source} has no rows.", where=source, fix="check that it is the right, complete file")
    return examples


def require_columns(columns: Iterable[str], options: RowOptions, *, source: str) -> list[str]:
    """Return the columns that `options` needs; raise `DataError` when one is missing or stands there twice."""
    columns = list(columns)
    for option, name in options.roles_of_fields().items():
        if columns.count(name) == 1:
            continue
        problem = "no column" if name not in columns else f"{columns.count(name)} columns"
        raise DataError(
            f"{source} has {problem} named '{name}'.",
            where=f"{source}, field '{name}' ({option})",
            fix=f"set {option} to a column of the table: {did_you_mean(name, columns)}",
        )
    return list(dict.fromkeys(options.roles_of_fields().values()))


class FieldReader:
    """Reads the fields of one row; every method returns a checked value or raises `DataError`."""

    def __init__(self, row: Row, source: str):
        self.row, self.source = row, source

    def fail(self, field: str, problem: str, fix: str) -> NoReturn:
        raise DataError(
            f"Field '{field}' {problem}.", where=f"{self.source}, {self.row.place}, field '{field}'", fix=fix
        )

    def value(self, field: str, option: str) -> Any:
        if field not in self.row.fields:
            near = did_you_mean(field, self.row.fields)
            self.fail(field, "is missing", f"add it to the row, or set {option} to a field the rows have: {near}")
        return self.row.fields[field]

    def id(self, field: str) -> str:
        value = self.value(field, "id_field")
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            self.fail(field, f"must be text or an integer to be an id, got {_shown(value)}", "fix the row's id")
        return str(value)

    def prompt(self, field: str) -> tuple[Message, ...]:
        value = self.value(field, "prompt_field")
        if isinstance(value, str):
            return (Message("user", self.not_blank(field, value)),)
        if not isinstance(value, list):
            self.fail(field, f"must be text or a list of chat messages, got {_shown(value)}", "fix the row's prompt")
        if not value:
            self.fail(field, "is an empty list of messages", "give it at least one user message")
        messages = tuple(self.message(field, turn) for turn in value)
        if messages[-1].role != "user":
            self.fail(
                field,
                f"ends with a message of role '{messages[-1].role}'",
                "end with the user's question; text to start the answer with belongs in template.response_prefix",
            )
        return messages

    def message(self, field: str, turn: Any) -> Message:
        well_formed = isinstance(turn, Mapping) and all(isinstance(turn.get(k), str) for k in ("role", "content"))
        if not well_formed:
            self.fail(field, f"holds {_shown(turn)}", 'write each message as {"role": "user", "content": "..."}')
        if turn["role"] not in ROLES:
            self.fail(field, f"has a message of role '{turn['role']}'", did_you_mean(turn["role"], ROLES))
        return Message(turn["role"], self.not_blank(field, turn["content"]))

    def not_blank(self, field: str, text: str) -> str:
        if not text.strip():
            self.fail(field, "is empty", "fill it in, or remove the row")
        return text

    def plain(self, field: str, value: Any) -> Any:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            self.fail(field, f"holds {_shown(value)}, which is not plain JSON data ({error})", "convert or remove it")
        return value


class _RowReader(FieldReader):
    def __init__(self, row: Row, options: RowOptions, source: str):
        super().__init__(row, source)
        self.options = options

    def example(self, default_id: str) -> Example:
        options = self.options
        return Example(
            id=default_id if options.id_field is None else self.id(options.id_field),
            prompt=self.prompt(options.prompt_field),
            gold=None if options.gold_field is None else self._gold(options.gold_field),
            solution=None if options.solution_field is None else self._solution(options.solution_field),
            meta={name: self.plain(name, self.value(name, "meta_fields")) for name in options.meta_fields},
        )

    def _solution(self, field: str) -> str | None:
        value = self.value(field, "solution_field")
        if value is None:
            return None
        if not isinstance(value, str):
            self.fail(field, f"must be text or null, got {_shown(value)}", "fix the row's solution")
        return self.not_blank(field, value)

    def _gold(self, field: str) -> Any:
        value = self.value(field, "gold_field")
        if value is None:
            self.fail(field, "is null", "fill in the gold answer, or remove the row")
        if self.options.gold_type == "number":
            return self._number(field, value)
        if self.options.gold_type == "json":
            return self._json(field, value)
        if not isinstance(value, str):
            fit = "number" if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else "json"
            self.fail(field, f"must be text, got {_shown(value)}", f"set gold_type={fit}, or fix the row")
        return self.not_blank(field, value)

    def _number(self, field: str, value: Any) -> str:
        fix = "fix the row, or set gold_type=text to keep the answers as they are written"
        if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
            self.fail(field, f"must be a number, got {_shown(value)}", fix)
        try:
            number = Decimal(repr(value) if isinstance(value, float) else value)
        except InvalidOperation:
            self.fail(field, f"must be a number, got {_shown(value)}", fix)
        if not number.is_finite() or abs(number.adjusted()) > MAX_EXPONENT:
            self.fail(field, f"must be a finite number, got {_shown(value)}", fix)
        text = format(number, "f")
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return "0" if text == "-0" else text

    def _json(self, field: str, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                self.fail(field, f"is not valid JSON ({error})", "fix the row, or set gold_type=text")
        return self.plain(field, value)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
