"""`assay bench sandbox`: what it measures and writes, and that it notices what does not hold."""

import json

import pytest

from verifiers import ConfigError, DataError
from verifiers.code import bench
from verifiers.code.bench import accuracy, corpus, report, throughput
from verifiers.code.bench.peers import PEERS


def test_a_short_run_writes_markdown_and_json(tmp_path, tier, capsys):
    (tmp_path / "samples.jsonl").write_text("\n".join(json.dumps(s) for s in samples()))
    arguments = ["--tier", tier, "--every", "40", "--programs", "2", "--functions", "2", "--rounds", "1"]
    arguments += ["--responses", str(tmp_path), "--out", str(tmp_path / "new")]
    assert bench.main(arguments) == 0
    written = json.loads((tmp_path / "new" / "report.json").read_text())
    text = (tmp_path / "new" / "report.md").read_text()
    assert text == report.markdown(written)
    assert text in capsys.readouterr().out
    assert [len(rows) for rows in written["corpus"].values()] == [5]
    assert {suite: r["tasks"] for suite, r in written["references"].items()} == {"HumanEval": 5, "MBPP": 25}
    assert written["responses"]["agreed"] == written["responses"]["completions"] == 1
    assert {f"assay, {tier}", throughput.BARE} <= set(written["throughput"]["medians"])
    assert set(written["throughput"]["not_measured"]) <= set(PEERS)
    for heading in ("behave as they should", "Reference solutions", "Labelled completions", "Throughput", "Nothing."):
        assert heading in text


def samples():
    (row,) = [row for row in corpus.load("humaneval.jsonl") if row["task_id"] == "HumanEval/23"]
    common = {"task_id": row["task_id"], "prompt": row["prompt"]}
    right = {**common, "sample": 0, "completion": row["canonical_solution"], "passed": True, "outcome": "passed"}
    wrong = {**common, "sample": 1, "completion": "    return 7\n", "passed": True, "outcome": "passed"}
    return [right, wrong]


def test_a_wrong_label_is_listed_and_fails_the_report(tmp_path, verifier):
    (tmp_path / "samples.jsonl").write_text("\n".join(json.dumps(s) for s in samples()))
    found = accuracy.judge_labelled(verifier, accuracy.labelled(tmp_path, 1), lambda text: None)
    assert (found["completions"], found["agreed"]) == (2, 1)
    assert found["differences"][0]["completion"] == "HumanEval/23#1"
    assert report.failures({"responses": found}) == ["only 1 of 2 labels are reproduced"]


def test_a_program_that_gets_through_is_a_problem(verifier):
    breach = {"id": "x", "category": "hack", "code": "print(7)", "expect": {"verdict": "fail", "status": "timeout"},
              "tests": {"type": "stdin_stdout", "inputs": [""], "outputs": ["7"]}}  # fmt: skip
    with corpus.Listeners() as listeners:
        result = corpus.judge(verifier, listeners, breach)
    assert len(result["problems"]) == 2
    assert len(report.failures({"corpus": {"namespaces": [result]}})) == 2


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="Unknown section"):
        bench.main(["--only", "corpse"])
    with pytest.raises(DataError, match="cannot be read"):
        bench.main(["--responses", str(tmp_path)])
