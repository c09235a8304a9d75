"""Hybrid labels: a triple is kept only where rule and judge agree, and what is left out is counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prm.agreed_labels import main
from prm.judge.base import Judge, JudgeReply, ReplyStatus
from verifiers.options import Options

SAYS = "tests.prm.test_agreed_labels:Says"
ROWS = [
    {"question": "1+1?", "reference": "2", "response": "It is 2", "model": "a"},
    {"question": "1+2?", "reference": "3", "response": "It is 4", "model": "b"},
    {"question": "2+2?", "reference": "4", "response": "It is 4 or so, IV", "model": "c"},
    {"question": "2+3?", "reference": "5", "response": "It is 5", "model": "d"},
]


class Says(Judge):
    """words: its reply to the first, second, ... request, one letter each: y, n, or anything else for silence."""

    class Options(Options):
        words: str

    def __init__(self, options: Any):
        self.words = options.words

    @classmethod
    def from_context(cls, options, context):
        return cls(options)

    def ask(self, requests):
        said = {"y": "Final Judgment: Yes", "n": "Final Judgment: No"}
        replies = [said.get(self.words[int(r.id.split("/")[1])]) for r in requests]
        return [JudgeReply(None, ReplyStatus.TIMEOUT) if t is None else JudgeReply(t, ReplyStatus.OK) for t in replies]


def label(tmp_path, words: str, rows: list[Any] = ROWS) -> tuple[int, list[dict], dict[str, int]]:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = main([str(source), str(out), "--verifier", "exact", "--judge", SAYS, "--judge-option", f"words={words}"])
    counts = tmp_path / "out.jsonl.counts.json"
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return code, lines, json.loads(counts.read_text()) if counts.exists() else {}


def test_what_both_say_is_the_label_and_every_row_left_out_is_counted(tmp_path):
    code, kept, counts = label(tmp_path, "ynn-")
    assert code == 0
    assert [(row["model"], row["label"]) for row in kept] == [("a", True), ("b", False)]
    assert counts == {"rows": 4, "kept": 2, "disagree": 1, "rule_could_not_judge": 0, "judge_said_nothing": 1}


def test_a_reference_that_the_rule_cannot_read_labels_nothing(tmp_path):
    _, kept, counts = label(tmp_path, "y", [{"question": "q", "reference": "", "response": "2"}])
    assert kept == []
    assert counts["rule_could_not_judge"] == 1


@pytest.mark.parametrize("row", [["no"], {"question": "q", "reference": "2"}, {**ROWS[0], "response": 3}])
def test_a_row_that_is_no_triple_is_an_error_that_names_its_line(tmp_path, capsys, row):
    code, kept, _ = label(tmp_path, "yy", [ROWS[0], row])
    assert code == 2
    assert kept == []
    assert "line 2" in capsys.readouterr().err
