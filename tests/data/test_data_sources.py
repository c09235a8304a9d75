"""Every source reads the same row into the same example, and every malformed input stops with its place and its fix."""

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from data import DATA_SOURCES, Message, load_examples
from verifiers.errors import ConfigError, DataError

ROWS = [
    {"question": "1+1?", "answer": "2", "work": "1+1 is 2", "key": "a", "level": "easy"},
    {"question": "2+2?", "answer": "4", "work": "2+2 is 4", "key": "b", "level": "hard"},
]
FIELDS = {"prompt_field": "question", "gold_field": "answer"}
ALL_FIELDS = FIELDS | {"solution_field": "work", "id_field": "key", "meta_fields": ["level"]}


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_table(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        return write_jsonl(path, ROWS)
    {"csv": pyarrow.csv.write_csv, "parquet": pyarrow.parquet.write_table}[kind](pyarrow.Table.from_pylist(ROWS), path)
    return path


def load_row(tmp_path: Path, row: dict, **options):
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    return load_examples("jsonl", FIELDS | {"path": str(path)} | options, key="data.train")[0]


def refuse_rows(tmp_path: Path, rows: list, **options) -> str:
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_examples("jsonl", FIELDS | {"path": str(path)} | options, key="data.train")
    return str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_every_kind_of_file_gives_the_same_examples(tmp_path, kind):
    path = write_table(tmp_path, kind)
    first, second = load_examples(kind, ALL_FIELDS | {"path": str(path)}, key="data.train")
    assert (first.id, first.prompt, first.gold, first.solution) == ("a", (Message("user", "1+1?"),), "2", "1+1 is 2")
    assert (second.id, second.meta) == ("b", {"level": "hard"})


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_without_an_id_field_rows_are_numbered_by_file_name(tmp_path, kind):
    path = write_table(tmp_path, kind)
    assert [e.id for e in load_examples(kind, FIELDS | {"path": str(path)}, key="d")] == ["rows-0", "rows-1"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_missing_field_names_the_file_and_the_nearest_field(tmp_path, kind):
    path = write_table(tmp_path, kind)
    with pytest.raises(DataError) as caught:
        load_examples(kind, FIELDS | {"path": str(path), "gold_field": "anwser"}, key="d")
    assert all(part in str(caught.value) for part in (str(path), "'anwser'", "gold_field", "did you mean 'answer'?"))


def test_csv_values_stay_text_and_may_span_lines(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('question,answer\n"one,\ntwo?",007\n', encoding="utf-8")
    (example,) = load_examples("csv", FIELDS | {"path": str(path)}, key="d")
    assert (example.question, example.gold) == ("one,\ntwo?", "007")


def test_csv_with_a_ragged_row_or_a_repeated_column_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\na,1\nb,2,3\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"Expected 2 columns, got 3"):
        load_examples("csv", FIELDS | {"path": str(path)}, key="d")
    path.write_text("question,answer,answer\na,1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="2 columns named 'answer'"):
        load_examples("csv", FIELDS | {"path": str(path)}, key="d")


def test_a_prompt_may_be_a_chat_and_its_last_message_is_the_question(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    example = load_row(tmp_path, {"question": turns, "answer": "2"})
    assert example.prompt == (Message("system", "Be brief."), Message("user", "1+1?"))
    assert example.question == "1+1?"


@pytest.mark.parametrize(
    ("value", "gold"),
    [(43.0, "43"), (43, "43"), ("43.0", "43"), (11.5, "11.5"), (-9867630.0, "-9867630"), (-0.0, "0"),
     (1e-7, "0.0000001"), (1e21, "1000000000000000000000"), (100, "100"), ("1.50", "1.5"), (0.1, "0.1")],
)  # fmt: skip
def test_number_golds_are_written_plainly(tmp_path, value, gold):
    assert load_row(tmp_path, {"question": "q", "answer": value}, gold_type="number").gold == gold


@pytest.mark.parametrize("value", [True, None, [1], "many", "1,000", float("nan"), float("inf"), "1e999999999", ""])
def test_what_is_no_finite_number_is_refused_as_a_number_gold(tmp_path, value):
    message = refuse_rows(tmp_path, [{"question": "q", "answer": value}], gold_type="number")
    assert "line 1, field 'answer'" in message


def test_decimal_columns_are_numbers(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table({"question": ["q"], "answer": [Decimal("43.00")]}), tmp_path / "d.parquet"
    )
    options = FIELDS | {"path": str(tmp_path / "d.parquet"), "gold_type": "number"}
    assert load_examples("parquet", options, key="d")[0].gold == "43"


@pytest.mark.parametrize(("value", "gold"), [({"a": [1]}, {"a": [1]}), ('{"a": [1]}', {"a": [1]}), (3, 3)])
def test_json_golds_are_structured_data(tmp_path, value, gold):
    assert load_row(tmp_path, {"question": "q", "answer": value}, gold_type="json").gold == gold


@pytest.mark.parametrize("value", ["{'a': 1}", {"a": float("nan")}])
def test_json_golds_that_are_not_json_are_refused(tmp_path, value):
    assert "field 'answer'" in refuse_rows(tmp_path, [{"question": "q", "answer": value}], gold_type="json")


def test_dates_are_no_plain_meta_data(tmp_path):
    table = pyarrow.table({"question": ["q"], "answer": ["1"], "day": pyarrow.array([0], pyarrow.date32())})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(DataError, match="field 'day'"):
        load_examples("parquet", FIELDS | {"path": str(tmp_path / "d.parquet"), "meta_fields": ["day"]}, key="d")


def test_null_means_that_a_row_has_no_solution(tmp_path):
    assert load_row(tmp_path, {"question": "q", "answer": "1", "work": None}, solution_field="work").solution is None


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"question": "q"}, ["field 'answer'", "is missing", "gold_field"]),
        ({"quesion": "q", "answer": "1"}, ["field 'question'", "did you mean 'quesion'?"]),
        ({"question": "  \n", "answer": "1"}, ["field 'question'", "is empty"]),
        ({"question": 3, "answer": "1"}, ["field 'question'", "3 (int)"]),
        ({"question": None, "answer": "1"}, ["field 'question'", "None (NoneType)"]),
        ({"question": [], "answer": "1"}, ["field 'question'", "empty list"]),
        ({"question": ["q"], "answer": "1"}, ["field 'question'", '{"role": "user"']),
        ({"question": [{"role": "user"}], "answer": "1"}, ["field 'question'", "{'role': 'user'}"]),
        ({"question": [{"role": "user", "content": ""}], "answer": "1"}, ["field 'question'", "is empty"]),
        ({"question": [{"role": "usr", "content": "q"}], "answer": "1"}, ["role 'usr'", "did you mean 'user'?"]),
        ({"question": [{"role": "assistant", "content": "q"}], "answer": "1"}, ["ends with", "response_prefix"]),
        ({"question": "q", "answer": None}, ["field 'answer'", "is null"]),
        ({"question": "q", "answer": " "}, ["field 'answer'", "is empty"]),
        ({"question": "q", "answer": 4}, ["field 'answer'", "gold_type=number"]),
        ({"question": "q", "answer": [4]}, ["field 'answer'", "gold_type=json"]),
    ],
)
def test_a_malformed_row_stops_with_its_line_its_field_and_the_fix(tmp_path, bad, expected):
    message = refuse_rows(tmp_path, [{"question": "fine", "answer": "1"}, bad])
    assert all(part in message for part in [str(tmp_path / "rows.jsonl"), "line 2", *expected]), message


@pytest.mark.parametrize(
    ("options", "row"),
    [
        ({"solution_field": "work"}, {"work": 3}),
        ({"solution_field": "work"}, {"work": ""}),
        ({"solution_field": "work"}, {}),
        ({"id_field": "key"}, {"key": ""}),
        ({"id_field": "key"}, {"key": 1.5}),
        ({"id_field": "key"}, {"key": True}),
        ({"id_field": "key"}, {}),
        ({"meta_fields": ["level"]}, {}),
    ],
)
def test_optional_fields_that_are_asked_for_are_checked_too(tmp_path, options, row):
    field = next(name if isinstance(name, str) else name[0] for name in options.values())
    assert f"line 1, field '{field}'" in refuse_rows(tmp_path, [{"question": "q", "answer": "1"} | row], **options)


def test_a_repeated_id_names_both_rows(tmp_path):
    rows = [{"question": "q", "answer": "1", "key": key} for key in (7, 8, "7")]
    message = refuse_rows(tmp_path, rows, id_field="key")
    assert "'7' is used twice, in line 1 and in line 3" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"question": "q", "answer": "1"}\n{"question": \n', "Line 2 is not valid JSON"),
        (b'["q", "1"]\n', "Line 1 holds a list"),
        (b'{"question": "caf\xe9", "answer": "1"}\n', "Line 1 is not UTF-8"),
        (b"[" * 200_000 + b"\n", "Line 1 is not valid JSON"),
        (b"", "has no rows"),
        (b"\n \n", "has no rows"),
    ],
)
def test_a_file_that_is_no_jsonl_is_refused_with_the_line(tmp_path, content, expected):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_examples("jsonl", FIELDS | {"path": str(path)}, key="d")
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "q", "answer": "1"}\r\n\n{"question": "r", "answer": "2"}')
    assert [e.id for e in load_examples("jsonl", FIELDS | {"path": str(path)}, key="d")] == ["rows-0", "rows-1"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00 no table \xff\n\xff,\xff\n"])
def test_a_file_that_is_no_table_is_refused(tmp_path, kind, content):
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=str(path)):
        load_examples(kind, FIELDS | {"path": str(path)}, key="d")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_missing_file_and_a_folder_are_refused_with_the_nearest_name(tmp_path, kind):
    write_table(tmp_path, kind)
    with pytest.raises(DataError, match=f"did you mean 'rows.{kind}'"):
        load_examples(kind, FIELDS | {"path": str(tmp_path / f"row.{kind}")}, key="d")
    with pytest.raises(DataError, match="is a folder"):
        load_examples(kind, FIELDS | {"path": str(tmp_path)}, key="d")
    with pytest.raises(DataError, match="does not exist either"):
        load_examples(kind, FIELDS | {"path": str(tmp_path / "no" / "rows")}, key="d")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_a_file_that_cannot_be_read_is_a_data_error():
    with pytest.raises(DataError, match="Cannot read"):
        load_examples("jsonl", FIELDS | {"path": "/proc/self/mem"}, key="d")


def test_mawps_is_packaged_and_whole_floats_are_read_as_integers():
    options = {
        "path": "assets:mawps/mawps.jsonl",
        "prompt_field": "input",
        "gold_field": "target",
        "gold_type": "number",
    }
    examples = load_examples("jsonl", options, key="data.train")
    assert len(examples) == 2065
    assert (examples[0].id, examples[0].gold) == ("mawps-0", "43")
    assert examples[205].gold == "11.5"
    assert not any(e.gold.endswith(".0") for e in examples)


def test_hub_reads_a_local_folder_of_files_and_one_saved_to_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "files").mkdir()
    write_jsonl(tmp_path / "files" / "train.jsonl", ROWS)
    datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    for name, split in (("files", "train"), ("saved", "test"), ("one", "train")):
        examples = load_examples("hub", FIELDS | {"path": str(tmp_path / name), "split": split}, key="d")
        assert [(e.id, e.gold) for e in examples] == [(f"{name}-{split}-0", "2"), (f"{name}-{split}-1", "4")]


def test_hub_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    options = FIELDS | {"path": str(tmp_path / "saved"), "split": "test"}
    with pytest.raises(DataError, match=r"no split 'tset'.*\n.*\n.*did you mean 'test'"):
        load_examples("hub", options | {"split": "tset"}, key="d")
    with pytest.raises(DataError, match="did you mean 'answer'"):
        load_examples("hub", options | {"gold_field": "answr"}, key="d")
    with pytest.raises(DataError, match="No such file"):
        load_examples("hub", options | {"path": str(tmp_path / "savd")}, key="d")
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match="Cannot load the dataset"):
        load_examples("hub", options | {"path": str(tmp_path), "split": "nope"}, key="d")


def test_an_unknown_kind_or_option_is_a_config_error_naming_the_key():
    with pytest.raises(ConfigError) as caught:
        load_examples("jsnl", {}, key="data.train")
    assert "data.train.kind" in str(caught.value)
    assert "did you mean 'jsonl'" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load_examples("jsonl", {"pth": "x", "gold_type": "int"}, key="data.train")
    assert all(part in str(caught.value) for part in ("data.train.pth", "did you mean 'path'", "data.train.gold_type"))


def test_a_source_of_ones_own_is_checked_like_ours():
    with pytest.raises(ConfigError, match="is not a data source"):
        load_examples("collections:Counter", {}, key="data.train")


def test_the_registry_finds_sources_and_generators():
    names = ["chain", "countdown", "csv", "hub", "jsonl", "mbpp", "parquet", "small_programs"]
    assert DATA_SOURCES.names() == names


def test_importing_data_and_verifiers_imports_no_heavy_package():
    code = (
        "import sys, data, verifiers; from data import DATA_SOURCES; DATA_SOURCES.names(); "
        "sys.exit(str({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules) or ''))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
