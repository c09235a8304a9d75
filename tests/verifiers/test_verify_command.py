"""`assay verify`: the contract of docs/verify-command.md."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.cli import main
from verifiers import cli
from verifiers.rows import MAX_ROW_BYTES, parse_line, request_of, request_reader
from verifiers.verdict import Verdict

HERE = Path(__file__).parent


def grade(tmp_path, content: bytes, *arguments, kind="exact"):
    """Exit code and the rows of OUT for a file with `content`."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(content)
    code = main(["verify", kind, "--jsonl", str(source), "--out", str(out), *arguments])
    return code, [json.loads(line) for line in out.read_text().splitlines()]


def line(row_id="a", response=r"\boxed{42}", gold="42", **more):
    return json.dumps({"id": row_id, "response": response, "gold": gold, **more}).encode() + b"\n"


def test_every_line_has_its_verdict_in_order(tmp_path, capsys):
    content = line("a") + line("b", r"\boxed{41}") + line(3, "") + line("a", gold=42)
    code, rows = grade(tmp_path, content)
    assert code == 0
    assert [(r["id"], r["score"], r["status"]) for r in rows] == [
        ("a", 1.0, "correct"), ("b", 0.0, "wrong"), (3, 0.0, "no_answer"), ("a", 1.0, "correct")]  # fmt: skip
    assert all(list(r) == ["id", "score", "status", "ms"] and r["ms"] >= 0 for r in rows)
    assert capsys.readouterr().err.splitlines()[-1] == "4 lines: correct 2, no_answer 1, wrong 1"
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


HOSTILE = [
    (b"\n", None, "verifier_fault"),
    (b"   \r\n", None, "verifier_fault"),
    (b"not json\n", None, "verifier_fault"),
    (b'{"id": "x", "response": "1", "gold"\n', None, "verifier_fault"),
    (b"[1, 2]\n", None, "verifier_fault"),
    (b"null\n", None, "verifier_fault"),
    (b'{"id": "x", "response": "\xff", "gold": "1"}\n', None, "verifier_fault"),
    (b'{"id": "x", "id": "y", "response": "1", "gold": "1"}\n', None, "verifier_fault"),
    (b'{"response": "1", "gold": "1"}\n', None, "verifier_fault"),
    (b'{"id": null, "response": "1", "gold": "1"}\n', None, "verifier_fault"),
    (b'{"id": true, "response": "1", "gold": "1"}\n', None, "verifier_fault"),
    (b'{"id": 1.5, "response": "1", "gold": "1"}\n', None, "verifier_fault"),
    (b'{"id": ["x"], "response": "1", "gold": "1"}\n', None, "verifier_fault"),
    (b'{"id": "x", "gold": "1"}\n', "x", "verifier_fault"),
    (b'{"id": "x", "response": 1, "gold": "1"}\n', "x", "verifier_fault"),
    (b'{"id": "x", "response": "1"}\n', "x", "bad_gold"),
    (b'{"id": "x", "response": "1", "gold": null}\n', "x", "bad_gold"),
    (b'{"id": "x", "response": "1", "gold": NaN}\n', "x", "bad_gold"),
    (b'{"id": "x", "response": "1", "gold": [1e999]}\n', "x", "bad_gold"),
    (b'{"id": "x", "response": "1", "gold": {"a": -Infinity}}\n', "x", "bad_gold"),
    (b'{"id": "x", "response": "1", "gold": "1", "meta": [1]}\n', "x", "bad_gold"),
    (b'{"id": "x", "response": "1", "gold": ' + b"9" * 5000 + b"}\n", None, "verifier_fault"),
    (b'{"id": "x", "response": "1", "gold": ' + b"[" * 100_000 + b"\n", None, "verifier_fault"),
    (b'{"id": "\\ud800", "response": "\\udfff", "gold": "1"}\n', "\ud800", "no_answer"),
    (line("ok"), "ok", "correct"),
]


def test_no_line_costs_another_line_its_verdict(tmp_path):
    code, rows = grade(tmp_path, b"".join(hostile + line("after") for hostile, _, _ in HOSTILE))
    assert code == 0
    assert [(r["id"], r["status"]) for r in rows[::2]] == [(row_id, status) for _, row_id, status in HOSTILE]
    assert all((r["score"] is None) == (r["status"] in ("bad_gold", "verifier_fault")) for r in rows)
    assert [r["id"] for r in rows[1::2] if r["status"] == "correct"] == ["after"] * len(HOSTILE)


def test_a_line_of_a_hundred_megabytes_is_skipped_without_being_held(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with source.open("wb") as file:
        file.write(line("before"))
        for _ in range(100):
            file.write(b"x" * 2**20)
        file.write(b"\n" + line("after"))
    code = (
        "import resource, sys; from trainer.cli import main; from verifiers import Runner;"
        f"before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        f"code = main(['verify', 'exact', '--jsonl', {str(source)!r}, '--out', {str(out)!r}]);"
        "sys.exit(code or (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 60_000))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=HERE.parents[1]).returncode == 0
    rows = [json.loads(text) for text in out.read_text().splitlines()]
    assert [(r["id"], r["status"]) for r in rows] == [
        ("before", "correct"), (None, "verifier_fault"), ("after", "correct")]  # fmt: skip


def test_the_last_line_needs_no_line_end_and_a_bom_is_no_content(tmp_path):
    assert len(grade(tmp_path, line("a") + line("b").rstrip())[1]) == 2
    assert grade(tmp_path, b"\xef\xbb\xbf" + line("a"))[1][0]["status"] == "correct"
    assert grade(tmp_path, b"") == (0, [])


TOKENS = st.sampled_from([b'{"id":', b'"a"', b",", b'"response":', b'"gold":', b"1", b"}", b"NaN", b"\xff", b"\\ud800"])


@given(st.binary(max_size=60) | st.lists(TOKENS).map(b"".join))
def test_no_bytes_make_reading_a_line_raise(content):
    row = parse_line(content, request_of)
    assert row.id is None or isinstance(row.id, str | int)
    if isinstance(row.request, Verdict):
        assert row.request.score is None


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=20), st.booleans())
def test_batches_hold_each_line_once(lines, ended):
    content = b"\n".join(lines) + (b"\n" if lines and ended else b"")
    batches = list(cli._batches(io.BytesIO(content)))
    expected = content.split(b"\n")[: -1 if content.endswith(b"\n") or not content else None]
    stripped = [expected[0].removeprefix(b"\xef\xbb\xbf"), *expected[1:]] if expected else []
    assert [text.removesuffix(b"\n") for batch in batches for text in batch] == stripped


def test_batches_are_bounded_in_lines_and_bytes():
    many = list(cli._batches(io.BytesIO(b"x\n" * (2 * cli.BATCH_ROWS + 1))))
    assert [len(batch) for batch in many] == [cli.BATCH_ROWS, cli.BATCH_ROWS, 1]
    large = list(cli._batches(io.BytesIO((b"x" * (MAX_ROW_BYTES - 1) + b"\n") * 2 + b"y" * (MAX_ROW_BYTES + 1))))
    assert [[text and len(text) for text in batch] for batch in large] == [[MAX_ROW_BYTES], [MAX_ROW_BYTES], [None]]


def test_a_worker_that_dies_hangs_or_cannot_start_costs_no_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{HERE.parents[1]}")
    content = b"".join(line(c, c, "") for c in ("echo 1", "exits 3", "echo 2", "spin x", "raises oh", "echo 3"))
    code, rows = grade(tmp_path, content, "--timeout-s", "0.5", kind="hostile_kinds:Commanded")
    assert code == 0
    assert [r["status"] for r in rows] == [
        "correct", "verifier_fault", "correct", "timeout", "verifier_fault", "correct"]  # fmt: skip
    assert [r["score"] for r in rows] == [0.5, None, 0.5, None, None, 0.5]
    code, rows = grade(tmp_path, content, kind="hostile_kinds:CannotStart")
    assert (code, {r["status"] for r in rows}, len(rows)) == (0, {"verifier_fault"}, 6)
    assert "a_missing_library" in capsys.readouterr().err


def test_verbose_adds_what_was_compared(tmp_path):
    _, rows = grade(tmp_path, line(response="<think>a</think><answer></answer>"), "--verbose", kind="format")
    assert rows[0]["parts"]["non_empty"] == 0.0
    assert rows[0]["evidence"] == "broken: non_empty"
    assert rows[0]["answer"] is None


def test_options_are_json_or_text(tmp_path, capsys):
    content = line(response="#### 42")
    assert grade(tmp_path, content, "--option", "marker=####", "--option", "numeric=true")[1][0]["score"] == 1.0
    for wrong in (["--option", "maker=#"], ["--option", "marker"], ["--option", "a=1", "--option", "a=2"],
                  ["--timeout-s", "0"], ["--workers", "-1"]):  # fmt: skip
        assert main(["verify", "exact", "--jsonl", str(tmp_path / "in.jsonl"), "--out", "-", *wrong]) == 2
    assert "did you mean 'marker'" in capsys.readouterr().err


def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_bytes(line())
    for words in (["exact"], ["exact", "x"], ["exact", "--jsonl", str(source)], ["exakt", "x", "--gold", "1"],
                  ["exact", "--jsonl", str(tmp_path / "none"), "--out", "-"],
                  ["exact", "--jsonl", str(source), "--out", str(source)],
                  ["exact", "--jsonl", str(source), "--out", str(tmp_path / "no" / "where")],
                  ["exact", "x", "--gold", "1", "--meta", "[]"], ["exact", "x", "--gold-json", "{"]):  # fmt: skip
        assert main(["verify", *words]) == 2, words
        assert "Traceback" not in capsys.readouterr().err
    assert source.read_bytes() == line()


def test_interrupted_it_says_what_is_done(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    out.write_text("older\n")
    sleepy = line("s", "sleep 0.02", "") * cli.BATCH_ROWS
    source.write_bytes(line("fast", "echo 1", "") * cli.BATCH_ROWS + sleepy * 20)
    files = ["--jsonl", str(source), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", "verify", "hostile_kinds:InProcess", *files],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parents[1]}"},
    )  # fmt: skip
    partial = tmp_path / "out.jsonl.partial"
    deadline = time.monotonic() + 30
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    done = len(partial.read_text().splitlines())
    assert done >= cli.BATCH_ROWS
    assert f"interrupted: the first {done} verdicts are in {partial}" in err
    assert out.read_text() == "older\n"


def test_it_reads_stdin_and_writes_stdout():
    done = subprocess.run([sys.executable, "-m", "trainer.cli", "verify", "exact", "--jsonl", "-", "--out", "-"],
                          input=line() * 3, capture_output=True, cwd=HERE.parents[1])  # fmt: skip
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr.splitlines()[-1] == b"3 lines: correct 3"


def test_one_answer_prints_the_status_and_what_decided(capsys):
    assert main(["verify", "exact", r"so \boxed{42}", "--gold", "42"]) == 0
    shown = dict(text.split(maxsplit=1) for text in capsys.readouterr().out.splitlines())
    assert (shown["status"], shown["score"], shown["answer"]) == ("correct", "1", "42")
    assert "ms" in shown
    assert main(["verify", "choice", "-5", "--gold", "B"]) == 0
    assert "no_answer" in capsys.readouterr().out
    assert main(["verify", "exact", "x", "--gold-json", "null"]) == 1
    assert "bad_gold" in capsys.readouterr().out
    gold = {"numbers": [1, 2], "target": 3}
    assert main(["verify", "countdown", "1+2", "--gold-json", json.dumps(gold)]) == 0
    assert "correct" in capsys.readouterr().out


def test_one_answer_by_math_shows_its_parsed_forms():
    done = subprocess.run([sys.executable, "-m", "trainer.cli", "verify", "math", "-", "--gold", r"\frac12"],
                          input=rb"\boxed{0.5}", capture_output=True, cwd=HERE.parents[1])  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:4] == [b"status", b"correct", b"score", b"1"]


def test_a_kind_may_read_its_own_fields(tmp_path):
    code, rows = grade(tmp_path, b'{"id": 1, "code": "yes"}\n{"id": 2}\n', kind=f"{__name__}:OwnRows")
    assert (code, [r["status"] for r in rows]) == (0, ["correct", "bad_gold"])
    assert request_reader("exact") is request_of


class OwnRows:
    """A kind whose rows have other fields."""

    from verifiers.options import Options

    isolated = False

    def __init__(self, options):
        pass

    @classmethod
    def request_of(cls, row):
        from verifiers import BadGold, VerifyRequest

        if "code" not in row:
            raise BadGold("no code")
        return VerifyRequest(row["code"], gold=None)

    def verify(self, request):
        return Verdict(float(request.response == "yes"), "correct")

    def gold_response(self, gold, meta):
        return "yes"


@pytest.mark.parametrize("suite", ["math", "iou", "sandbox"])
def test_bench_hands_its_arguments_on(suite, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", suite, "--help"])
    assert stop.value.code == 0
    assert f"assay bench {suite}" in capsys.readouterr().out
