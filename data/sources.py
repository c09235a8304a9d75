"""Where questions come from: files, the Hugging Face hub, and (in their own modules) generators.

A data source is a class with a nested pydantic model `Options`, built as ``Source(options)``, whose ``load()`` returns
the examples. To add one, write a module in this folder and decorate the class with ``@DATA_SOURCES.register("name")``;
a recipe may also name its own as ``package.module:Class``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from data.example import Example
from data.hub import use_cache_if_unreachable
from data.rows import Row, RowOptions, require_columns, to_examples
from data.steps import CheckSteps
from verifiers.errors import ConfigError, DataError, did_you_mean
from verifiers.options import parse_options
from verifiers.registry import Registry

ASSETS = Path(__file__).parent / "assets"
ASSETS_PREFIX = "assets:"


class DataSource(Protocol):
    """Built from its validated `Options`. `load` is deterministic and raises `DataError` for data it cannot use."""

    def load(self) -> list[Example]: ...


DATA_SOURCES: Registry[type] = Registry("data source", "data")


def step_oracle(kind: str, *, key: str | None = None) -> CheckSteps | None:
    """What labels the lines of a response to an example of this data source; None if it cannot. Raises `ConfigError`
    for an unknown kind, naming `key`."""
    return getattr(DATA_SOURCES.get(kind, key=key), "check_steps", None)


def oracle_of(example: Example) -> CheckSteps | None:
    """The step oracle of the data source that made this example; None where there is none."""
    task = example.meta.get("task")
    return step_oracle(str(task)) if task in DATA_SOURCES.names() else None


def load_examples(kind: str, options: Mapping[str, Any], *, key: str) -> list[Example]:
    """Load the examples of source `kind`. `key` is where the recipe asks for them (``data.train``), for messages.

    Raises `ConfigError` for an unknown kind or option, `DataError` for data that cannot be used; ids are unique.
    """
    return load_from(DATA_SOURCES, "a data source", kind, options, key=key)


def load_from(registry: Registry[Any], what: str, kind: str, options: Mapping[str, Any], *, key: str) -> list[Any]:
    """As `load_examples`, from any registry of classes with ``Options`` and ``load()``. what: they are, for errors."""
    source: Any = registry.get(kind, key=f"{key}.kind")
    if not hasattr(source, "Options") or not hasattr(source, "load"):
        raise ConfigError(
            f"'{kind}' is not {what}.",
            where=f"{key}.kind",
            fix=f"{what} is a class with a nested pydantic model Options and a method load() -> list",
        )
    rows = list(source(parse_options(source.Options, options, key)).load())
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise DataError(
                f"The id '{row.id}' is used twice.",
                where=f"{key} ({kind})",
                why="rewards and records are kept by id",
                fix="make the ids of this source unique",
            )
        seen.add(row.id)
    if not rows:
        raise DataError("The data source gave no examples.", where=f"{key} ({kind})")
    return rows


def resolve_path(path: str) -> Path:
    """The path a recipe names: ``assets:mawps/mawps.jsonl`` is packaged with assay, anything else is the user's own.

    Raises `DataError` when nothing is there, naming the nearest entry of the folder.
    """
    resolved = ASSETS / path.removeprefix(ASSETS_PREFIX) if path.startswith(ASSETS_PREFIX) else Path(path).expanduser()
    if resolved.exists():
        return resolved
    folder = resolved.parent
    if not folder.is_dir():
        raise DataError(f"No such file: {path}.", where=path, fix=f"the folder {folder} does not exist either")
    raise DataError(
        f"No such file: {path}.",
        where=path,
        fix=f"in {folder}: {did_you_mean(resolved.name, [p.name for p in folder.iterdir()])}",
    )


class FileOptions(RowOptions):
    """path: a file, or ``assets:<path>`` for one that comes with assay."""

    path: str


class _FileSource:
    """A table in one file; a subclass says how to read its rows."""

    Options = FileOptions

    def __init__(self, options: FileOptions):
        self.options = options

    def load(self) -> list[Example]:
        """One example a row, in the order of the file. Raises `DataError`."""
        path = resolve_path(self.options.path)
        if path.is_dir():
            raise DataError(
                f"{path} is a folder, not a file.",
                where=str(path),
                fix=f"name one file in it: {did_you_mean(path.name, [p.name for p in path.iterdir()])}",
            )
        try:
            return to_examples(self.rows(path), self.options, source=str(path), stem=path.stem)
        except OSError as error:
            raise DataError(
                f"Cannot read {path}: {error}.", where=str(path), fix="check the file and its rights"
            ) from error

    def rows(self, path: Path) -> Iterator[Row]:
        raise NotImplementedError


@DATA_SOURCES.register("jsonl")
class JsonlSource(_FileSource):
    """One JSON object a line, UTF-8. Blank lines are skipped."""

    def rows(self, path: Path) -> Iterator[Row]:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                text = self._text(raw, path, number)
                if text.strip():
                    yield Row(f"line {number}", self._object(text, path, number))

    def _text(self, raw: bytes, path: Path, number: int) -> str:
        try:
            return raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"Line {number} is not UTF-8 text: {error}.",
                where=f"{path}, line {number}",
                fix="save the file as UTF-8; if it is compressed, unpack it first",
            ) from error

    def _object(self, text: str, path: Path, number: int) -> dict[str, Any]:
        where, fix = f"{path}, line {number}", "write one JSON object a line, with no comma between the lines"
        try:
            row = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"Line {number} is not valid JSON: {error}.", where=where, fix=fix) from error
        if not isinstance(row, dict):
            raise DataError(f"Line {number} holds a {type(row).__name__}, not a JSON object.", where=where, fix=fix)
        return row


@DATA_SOURCES.register("parquet")
class ParquetSource(_FileSource):
    """A Parquet file."""

    def rows(self, path: Path) -> Iterator[Row]:
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
            columns = require_columns(file.schema_arrow.names, self.options, source=str(path))
            records = file.read(columns=columns).to_pylist()
        except pyarrow.ArrowException as error:
            raise DataError(
                f"{path} is not a readable Parquet file: {error}.", where=str(path), fix="write or download it again"
            ) from error
        yield from _numbered(records)


@DATA_SOURCES.register("csv")
class CsvSource(_FileSource):
    """A comma-separated UTF-8 file with a header line. Every value is text: "007" stays "007"."""

    def rows(self, path: Path) -> Iterator[Row]:
        import pyarrow
        from pyarrow import csv

        reading = csv.ReadOptions(use_threads=False)
        parsing = csv.ParseOptions(newlines_in_values=True)
        try:
            names = csv.open_csv(path, read_options=reading, parse_options=parsing).schema.names
            columns = require_columns(names, self.options, source=str(path))
            as_text = csv.ConvertOptions(
                column_types={name: pyarrow.string() for name in columns},
                include_columns=columns,
                strings_can_be_null=False,
            )
            records = csv.read_csv(path, reading, parsing, as_text).to_pylist()
        except pyarrow.ArrowException as error:
            raise DataError(
                f"{path} is not a readable CSV file: {error}.",
                where=str(path),
                fix="it needs UTF-8 text, a header line, and as many values in every row as there are columns; "
                "quote values that hold commas, quotes or line breaks",
            ) from error
        yield from _numbered(records)


@DATA_SOURCES.register("hub")
class HubSource:
    """A Hugging Face dataset: a hub id, a local folder of data files, or a folder written by ``save_to_disk``."""

    class Options(RowOptions):
        """path: hub id or local folder. name: the dataset's configuration. revision: a commit, tag or branch; naming a
        commit makes the run repeatable."""

        path: str
        name: str | None = None
        split: str = "train"
        revision: str | None = None

    def __init__(self, options: Options):
        self.options = options

    def load(self) -> list[Example]:
        """One example a row, in the order of the split. Raises `DataError`."""
        options = self.options
        source = f"{options.path} [{options.split}]"
        dataset = self.dataset(source)
        columns = require_columns(dataset.column_names, options, source=source)
        # Only what is needed: other columns may hold images or audio that are slow, or need a package, to decode.
        rows = _numbered(dataset.select_columns(columns))
        return to_examples(rows, options, source=source, stem=f"{Path(options.path).name}-{options.split}")

    def dataset(self, source: str) -> Any:
        import datasets
        from datasets.exceptions import DatasetsError

        options = self.options
        local = options.path.startswith((ASSETS_PREFIX, "/", ".", "~")) or Path(options.path).is_dir()
        path = str(resolve_path(options.path)) if local else options.path
        try:
            if local and (Path(path) / "dataset_dict.json").exists():
                return self._split_of(datasets.DatasetDict.load_from_disk(path), source)
            if local and (Path(path) / "state.json").exists():
                return datasets.Dataset.load_from_disk(path)
            if not local:
                use_cache_if_unreachable()
            return datasets.load_dataset(path, options.name, split=options.split, revision=options.revision)
        except (DatasetsError, OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"Cannot load the dataset {options.path}: {error}.",
                where=source,
                fix="check path, name, split and revision; a hub id needs the network or a cached copy, and a private "
                "or gated dataset needs 'hf auth login'",
            ) from error

    def _split_of(self, splits: Mapping[Any, Any], source: str) -> Any:
        if self.options.split not in splits:
            raise DataError(
                f"There is no split '{self.options.split}'.",
                where=source,
                fix=f"set split: {did_you_mean(self.options.split, splits)}",
            )
        return splits[self.options.split]


def _numbered(records: Any) -> Iterator[Row]:
    for number, record in enumerate(records):
        yield Row(f"row {number} (counted from 0)", record)
