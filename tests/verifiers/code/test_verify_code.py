"""`assay verify code`: the fields of its rows, and a verdict for every line."""

import json
import time
from pathlib import Path

import pytest

import data
from trainer.cli import main
from verifiers import BadGold, Runner
from verifiers.code.verifier import CodeVerifier
from verifiers.rows import RowError, parse_line, stream_surely

PROGRAMS = Path(data.__file__).parent / "assets" / "sandbox" / "programs.jsonl"
ECHO = {"type": "stdin_stdout", "inputs": ["7"], "outputs": ["7"]}
SQUARE = {"type": "functional", "fn_name": "f", "inputs": [[3]], "outputs": [9]}


def verify(tmp_path, tier, *lines, arguments=()):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"".join(line + b"\n" for line in lines))
    files = ["--jsonl", str(source), "--out", str(out)]
    code = main(["verify", "code", *files, "--option", f"isolation={tier}", *arguments])
    assert code == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def row(**fields):
    return json.dumps({"id": "a", "tests": ECHO, **fields}).encode()


def test_the_shared_programs_have_the_status_they_should(tmp_path, tier):
    rows = [json.loads(line) for line in PROGRAMS.read_text().splitlines()][::3]
    verdicts = verify(tmp_path, tier, *(json.dumps(row).encode() for row in rows), arguments=["--timeout-s", "1"])
    assert [verdict["id"] for verdict in verdicts] == [row["id"] for row in rows]
    for program, verdict in zip(rows, verdicts, strict=True):
        assert list(verdict) == ["id", "score", "status", "ms"]
        assert verdict["score"] in (0.0, 1.0)
        assert verdict["ms"] > 0
        if program["expect"]["verdict"] != "any":
            assert verdict["score"] == (program["expect"]["verdict"] == "pass"), program["id"]


LINES = [
    (row(code="print(input())"), 1.0, "correct"),
    (row(response="So:\n```python\nprint(input())\n```\nDone."), 1.0, "correct"),
    (row(response="<think>first</think>print(input())"), 1.0, "correct"),
    (row(code="So:\n```python\nprint(input())\n```"), 0.0, "error_in_program"),
    (row(code="s = '<think>'\nprint(input())"), 1.0, "correct"),
    (row(code='"""\n```python\nprint(8)\n```\n"""\nprint(input())'), 1.0, "correct"),
    (row(code="print(input())", response="print(8)"), 1.0, "correct"),
    (row(code=None, response="print(8)"), 0.0, "wrong"),
    (row(code=" "), 0.0, "no_answer"),
    (row(code="x = '\ud800'\nprint(input())"), 0.0, "error_in_program"),
    (row(code="print('\0')\nprint(input())"), 0.0, "error_in_program"),
    (row(code="def f(x): return x ** 2", tests=SQUARE), 1.0, "correct"),
    (row(code="def f(x): return x ** 2", tests={"type": "assert", "asserts": ["assert f(3) == 9"]}), 1.0, "correct"),
    (row(code="print(input())", tests=None, gold=ECHO), 1.0, "correct"),
    (row(), None, "verifier_fault"),
    (row(code=7), None, "verifier_fault"),
    (row(code="x", tests=None), None, "bad_gold"),
    (row(code="x", tests=[1]), None, "bad_gold"),
    (row(code="x", tests={"type": "riddle"}), None, "bad_gold"),
    (row(code="x", tests={**ECHO, "outputs": []}), None, "bad_gold"),
    (row(code="x", tests={**ECHO, "inputs": [7]}), None, "bad_gold"),
    (row(code="x", tests={**ECHO, "inputs": ["\ud800"]}), None, "bad_gold"),
    (row(code="x", tests={**SQUARE, "inputs": [3]}), None, "bad_gold"),
    (row(code="x", tests={"type": "assert", "asserts": ["assert ("]}), None, "bad_gold"),
    (b"not json", None, "verifier_fault"),
    (b"", None, "verifier_fault"),
    (row(code="while True: pass"), 0.0, "timeout"),
    (row(code="print(input())"), 1.0, "correct"),
]


def test_every_line_has_its_verdict_in_order(tmp_path, tier):
    verdicts = verify(tmp_path, tier, *(line for line, _, _ in LINES), arguments=["--timeout-s", "1"])
    assert [(v["score"], v["status"]) for v in verdicts] == [(score, status) for _, score, status in LINES]


def test_rows_without_a_program_or_tests_are_told_apart():
    with pytest.raises(RowError):
        CodeVerifier.request_of({"tests": ECHO})
    with pytest.raises(BadGold):
        CodeVerifier.request_of({"code": "x"})


def test_verdicts_come_as_soon_as_all_before_them_are_there(tier):
    slow = "import time\ntime.sleep(1.5)\nprint(input())"
    rows = [parse_line(row(code=code), CodeVerifier.request_of) for code in ("print(input())", slow, "print(input())")]
    with Runner("code", {"isolation": tier, "packages": []}, timeout_s=1.0, workers=2) as runner:
        verdicts = stream_surely(runner, rows, pytest.fail)
        assert next(verdicts).score == 1.0
        started = time.monotonic()
        assert [verdict.score for verdict in verdicts] == [1.0, 1.0]
        assert time.monotonic() - started > 0.5  # the slow one was still running
