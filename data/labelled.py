"""Labelled responses and preference pairs: what reward models are trained on.

A source of them is a class with a nested pydantic model `Options`, built as ``Source(options)``, whose ``load()``
returns them. To add one, write a module in this folder and decorate the class with
``@LABELLED_DATA.register("name")``; a recipe may also name its own as ``package.module:Class``.

Nothing is guessed or repaired: a label that is missing or not a finite number is an error that names the line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import Field

from data.example import Message, content_key
from data.rows import FieldReader, Row
from data.sources import FileOptions, HubSource, JsonlSource, load_from, resolve_path
from verifiers.errors import ConfigError, DataError
from verifiers.options import Options as BaseOptions
from verifiers.registry import Registry


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt, the first preferred. margin: how much better it is, where somebody said so."""

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float | None = None

    def content_key(self) -> str:
        return content_key(self.prompt)


@dataclass(frozen=True, slots=True)
class LabelledResponse:
    """A response and its label: 1 right, 0 wrong, or a score. reference: the answer it was compared with. meta: free
    JSON data for the report."""

    id: str
    prompt: tuple[Message, ...]
    response: str
    label: float
    reference: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        return self.prompt[-1].content

    def content_key(self) -> str:
        return content_key(self.prompt)


Labelled = Pair | LabelledResponse
L = TypeVar("L", Pair, LabelledResponse)


class LabelledData(Protocol):
    """Built from its validated `Options`. `load` is deterministic and raises `DataError` for data it cannot use."""

    def load(self) -> Sequence[Labelled]: ...


LABELLED_DATA: Registry[type] = Registry("labelled data", "data")


def load_labelled(kind: str, options: Mapping[str, Any], *, key: str) -> list[Labelled]:
    """Load the rows of source `kind`; `key` is where the recipe asks for them, for messages.

    Raises `ConfigError` for an unknown kind or option, `DataError` for data that cannot be used; ids are unique.
    """
    return load_from(LABELLED_DATA, "a source of labelled data", kind, options, key=key)


class TableOptions(BaseOptions):
    """path: a JSONL file (its name ends in .jsonl or .json), else a Hugging Face dataset: a hub id or a local folder.
    name, split, revision: of a dataset. prompt_field: text, or a list of chat messages. id_field: without it the id is
    ``<stem>-<row>``, rows counted from 0."""

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    prompt_field: str = "prompt"
    id_field: str | None = None


def read_table(options: TableOptions, build: Callable[[FieldReader, str], L]) -> list[L]:
    """`build` (reader of the row, default id) for every row, in order. Raises `DataError`."""
    if options.path.endswith((".jsonl", ".json")):
        file = resolve_path(options.path)
        source, stem = str(file), file.stem
        rows: Iterator[Row] = JsonlSource(FileOptions(path=options.path)).rows(file)
    else:
        source, stem = f"{options.path} [{options.split}]", f"{Path(options.path).name}-{options.split}"
        hub = HubSource(HubSource.Options(**options.model_dump(include={"path", "name", "split", "revision"})))
        rows = (Row(f"row {i} (counted from 0)", row) for i, row in enumerate(hub.dataset(source)))
    try:
        return [build(FieldReader(row, source), f"{stem}-{i}") for i, row in enumerate(rows)]
    except OSError as error:
        raise DataError(f"Cannot read {source}: {error}.", where=source, fix="check the file and its rights") from error


def read_number(reader: FieldReader, field_name: str, option: str) -> float:
    """A finite number; true and false count as 1 and 0."""
    value = reader.value(field_name, option)
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        reader.fail(field_name, f"must be a finite number, got {value!r}",
                    "label the row or remove it: a missing label is not a wrong answer")  # fmt: skip
    return float(value)


def read_response(reader: FieldReader, field_name: str, option: str) -> str:
    """Text, or a conversation whose only message is the assistant's. It may be empty: an empty answer is one."""
    value = reader.value(field_name, option)
    if isinstance(value, str):
        return value
    well_formed = isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping)
    if not well_formed or value[0].get("role") != "assistant" or not isinstance(value[0].get("content"), str):
        reader.fail(field_name, "must be text, or a list with one message of the assistant",
                    'write [{"role": "assistant", "content": "..."}], the turns before it in the prompt')  # fmt: skip
    return value[0]["content"]


@LABELLED_DATA.register("pairs")
class PairTable:
    """Preference pairs from JSONL or Hugging Face, in either form in use:

    plain: ``{"prompt": "...", "chosen": "...", "rejected": "..."}``; conversation: prompt, chosen and rejected are
    lists of messages, or there is no prompt (`prompt_field`: null) and chosen and rejected are whole conversations that
    differ in their last turn only.
    """

    class Options(TableOptions):
        """margin_field: how much better the chosen one is, 0 or more; null in a row means that nobody said."""

        prompt_field: str | None = "prompt"  # pyright: ignore[reportIncompatibleVariableOverride]
        chosen_field: str = "chosen"
        rejected_field: str = "rejected"
        margin_field: str | None = None

    def __init__(self, options: Options):
        self.options = options

    def load(self) -> list[Pair]:
        return read_table(self.options, self._pair)

    def _pair(self, reader: FieldReader, default_id: str) -> Pair:
        options = self.options
        if options.prompt_field is None:
            prompt, chosen, rejected = self._conversations(reader)
        else:
            prompt = reader.prompt(options.prompt_field)
            chosen = read_response(reader, options.chosen_field, "chosen_field")
            rejected = read_response(reader, options.rejected_field, "rejected_field")
        if chosen == rejected:
            reader.fail(options.rejected_field, "says the same as the chosen one", "remove the row")
        margin = None
        if options.margin_field is not None and reader.value(options.margin_field, "margin_field") is not None:
            margin = read_number(reader, options.margin_field, "margin_field")
            if margin < 0:
                reader.fail(options.margin_field, f"is {margin:g}", "swap chosen and rejected, or fix the margin")
        id_ = default_id if options.id_field is None else reader.id(options.id_field)
        return Pair(id_, prompt, chosen, rejected, margin)

    def _conversations(self, reader: FieldReader) -> tuple[tuple[Message, ...], str, str]:
        sides: list[list[Message]] = []
        fields = {"chosen_field": self.options.chosen_field, "rejected_field": self.options.rejected_field}
        for option, name in fields.items():
            turns = reader.value(name, option)
            if not isinstance(turns, list) or len(turns) < 2:
                reader.fail(name, "must be a conversation of at least two messages when there is no prompt_field",
                            "name the prompt's field, or write the whole conversation")  # fmt: skip
            sides.append([reader.message(name, turn) for turn in turns])
        chosen, rejected = sides
        if chosen[:-1] != rejected[:-1] or chosen[-2].role != "user" or chosen[-1].role != "assistant":
            reader.fail(self.options.rejected_field, "does not share all turns but the last with the chosen one",
                        "only the assistant's last turn may differ")  # fmt: skip
        return tuple(chosen[:-1]), chosen[-1].content, rejected[-1].content


@LABELLED_DATA.register("labelled")
class LabelledTable:
    """Responses with a label, from JSONL or Hugging Face."""

    class Options(TableOptions):
        """label_field: true or false, or a number. reference_field: the gold answer as text. meta_fields: copied."""

        response_field: str = "response"
        label_field: str = "label"
        reference_field: str | None = None
        meta_fields: list[str] = Field(default_factory=list)

    def __init__(self, options: Options):
        self.options = options

    def load(self) -> list[LabelledResponse]:
        return read_table(self.options, self._response)

    def _response(self, reader: FieldReader, default_id: str) -> LabelledResponse:
        options = self.options
        reference = None
        if options.reference_field is not None:
            reference = reader.value(options.reference_field, "reference_field")
            if not isinstance(reference, str):
                reader.fail(options.reference_field, f"must be text, got {reference!r}", "fix the row's reference")
        return LabelledResponse(
            default_id if options.id_field is None else reader.id(options.id_field),
            reader.prompt(options.prompt_field),
            read_response(reader, options.response_field, "response_field"),
            read_number(reader, options.label_field, "label_field"),
            reference,
            {name: reader.plain(name, reader.value(name, "meta_fields")) for name in options.meta_fields},
        )


def expect(rows: Sequence[Labelled], kind: type[Labelled], *, key: str) -> list[Labelled]:
    """`rows`, all of type `kind`. Raises `ConfigError` for a source of the other type."""
    other = next((row for row in rows if not isinstance(row, kind)), None)
    if other is not None:
        names = {Pair: "pairs", LabelledResponse: "labelled responses"}
        raise ConfigError(
            f"This kind of reward model is trained on {names[kind]}, and the source gives {names[type(other)]}.",
            where=f"{key}.kind",
            fix="for pairs use the kind pairs, for labelled responses the kind labelled, or a generator of them",
        )
    return list(rows)
