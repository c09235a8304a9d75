"""The accuracy report: statistics, case files, hostile inputs, and the whole command on a few cases."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.errors import ConfigError, DataError
from verifiers.math.bench import main
from verifiers.math.bench.cases import load_cases, load_disputes
from verifiers.math.bench.hostile import hostile_cases, hostile_categories
from verifiers.math.bench.measure import survivals
from verifiers.math.bench.peers import CONTESTANTS, Contestant, StringMatchPeer, normalised
from verifiers.math.bench.plot import svg
from verifiers.math.bench.report import markdown
from verifiers.math.bench.statistics import Outcome, Rate, agreement, wilson

RIGHT = {"id": "a", "gold": "12", "response": "So \\boxed{12}.", "label": True, "category": "x", "source": "own"}
WRONG = {"id": "b", "gold": "12", "response": "So \\boxed{13}.", "label": False, "category": "x", "source": "own"}
BROKEN_LABEL = {"id": "c", "gold": "5", "response": "\\boxed{7}", "label": True, "category": "y", "source": "own",
                "why": "the label is wrong | on purpose"}  # fmt: skip
HOSTILE = {"id": "d", "gold": "1", "response": "1" * 999, "label": None, "category": "z", "source": "own"}
OPTIONS = ["--verifiers", "assay,string-match", "--rounds", "2", "--no-hostile"]


class Fragile(StringMatchPeer):
    """For a worker process: hangs or dies when the response says so."""

    def score(self, response: str, gold: str) -> bool:
        if response == "hang":
            time.sleep(60)
        if response == "crash":
            os._exit(3)
        return super().score(response, gold)


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def bench(tmp_path: Path, *arguments: str, rows: tuple[dict[str, Any], ...] = (RIGHT, WRONG, BROKEN_LABEL)) -> Any:
    """The report of one run of the command on `rows`."""
    cases = write(tmp_path / "cases.jsonl", *rows)
    assert main(["--cases", str(cases), "--out", str(tmp_path / "out"), *OPTIONS, *arguments]) == 0
    return json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))


# Statistics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
@pytest.mark.golden
def test_wilson_intervals_are_the_published_ones(hits: int, total: int, low: float, high: float) -> None:
    assert wilson(hits, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 2000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_a_wilson_interval_holds_its_proportion_and_mirrors(counts: tuple[int, int]) -> None:
    hits, total = counts
    low, high = wilson(hits, total)
    assert 0 <= low <= hits / total + 1e-12
    assert hits / total - 1e-12 <= high <= 1
    assert wilson(total - hits, total) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_no_interval_for_what_is_no_proportion(hits: int, total: int) -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(hits, total)


def test_unjudged_cases_are_in_no_rate_but_lower_the_agreement() -> None:
    result = agreement(
        [
            Outcome(True, True, "correct"),
            Outcome(True, False, "wrong"),
            Outcome(True, None, "timeout"),
            Outcome(False, True, "correct"),
            Outcome(False, None, "bad_gold"),
            Outcome(False, None, "timeout"),
        ]
    )
    assert (result.false_positives, result.false_negatives) == (Rate(1, 1), Rate(1, 2))
    assert (result.accuracy, result.agreement) == (Rate(1, 3), Rate(1, 6))
    assert result.unjudged == {"timeout": 2, "bad_gold": 1}


def test_a_rate_of_nothing_has_no_value() -> None:
    assert agreement([Outcome(True, True, "correct")]).false_positives.as_dict() == {
        "hits": 0, "total": 0, "value": None, "low": None, "high": None
    }  # fmt: skip


# Case files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "the line"),
        (json.dumps(WRONG | {"label": "no"}), "label"),
        (json.dumps(WRONG | {"gold": 12}), "gold"),
        (json.dumps(WRONG | {"category": " "}), "category"),
        (json.dumps(WRONG | {"lable": True}), "lable"),
        (json.dumps({key: value for key, value in WRONG.items() if key != "response"}), "response"),
        (json.dumps(RIGHT), "stands in line 1 already"),
    ],
)
def test_a_bad_line_is_an_error_that_names_file_and_line(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(RIGHT) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=says) as caught:
        load_cases(file)
    assert caught.value.where == f"{file}, line 3"


def test_a_missing_file_is_an_error_before_any_worker_starts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        main(["--cases", str(tmp_path / "none.jsonl")])


def test_a_dispute_must_be_about_a_case_and_contradict_its_label(tmp_path: Path) -> None:
    cases = load_cases(write(tmp_path / "cases.jsonl", RIGHT))
    stray = write(tmp_path / "stray.jsonl", {"id": "zz", "verdict": False, "reason": "r"})
    agreeing = write(tmp_path / "agreeing.jsonl", {"id": "a", "verdict": True, "reason": "r"})
    with pytest.raises(DataError, match="no case 'zz'"):
        load_disputes(stray, cases)
    with pytest.raises(DataError, match="agrees with its label"):
        load_disputes(agreeing, cases)


# The command ---------------------------------------------------------------------------------------------------------


def test_the_report_counts_disagreements_and_disputes(tmp_path: Path) -> None:
    disputed = write(tmp_path / "disputed.jsonl", {"id": "c", "verdict": False, "reason": "7 is not 5"})
    report = bench(tmp_path, "--disputed", str(disputed))
    ours = report["verifiers"]["assay"]
    assert (ours["overall"]["accuracy"]["hits"], ours["overall"]["accuracy"]["total"]) == (2, 3)
    assert ours["overall"]["false_negative_rate"]["value"] == 0.5
    assert ours["overall"]["false_positive_rate"]["value"] == 0.0
    assert ours["without_disputed"]["accuracy"]["value"] == 1.0
    assert ours["by_category"]["x"]["accuracy"]["value"] == 1.0
    assert ours["verdicts_that_vary"] == []
    (row,) = report["disagreements"]
    assert (row["id"], row["gold"], row["answer"], row["label"]) == ("c", "5", "7", True)
    assert row["dispute"] == "7 is not 5"
    assert "7 is not 5" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_every_verifier_is_measured_in_every_round(tmp_path: Path) -> None:
    report = bench(tmp_path)
    assert list(report["verifiers"]) == ["assay", "string-match"]
    for result in report["verifiers"].values():
        assert len(result["throughput"]["verdicts_per_cpu_second"]["rounds"]) == 2
        assert result["throughput"]["verdicts_per_wall_second"]["min"] > 0
    ratio = report["ratios_to_ours"]["string-match"]
    assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]


def test_a_peer_that_is_not_installed_is_listed_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = Contestant("absent", "verifiers.math.bench.peers:TrlPeer", "not there", ("no_such_package",))
    monkeypatch.setitem(CONTESTANTS, "absent", absent)
    report = bench(tmp_path, "--verifiers", "string-match,absent")
    assert report["not_measured"] == {"absent": "not installed (no_such_package)"}
    assert list(report["verifiers"]) == ["string-match"]
    assert "not measured: absent: not installed (no_such_package)" in capsys.readouterr().out


def test_a_peer_whose_worker_cannot_start_is_listed_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Contestant("broken", "hostile_kinds:CannotStart", "raises when built")
    monkeypatch.setitem(CONTESTANTS, "broken", broken)
    report = bench(tmp_path, "--verifiers", "string-match,broken")
    assert "cannot start" in report["not_measured"]["broken"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--verifiers", "asay"], "did you mean 'assay'"),
        (["--option", "unboxd=reject"], "unboxd"),
        (["--option", "unboxed"], "KEY=VALUE"),
        (["--category", "intervall"], "no case|No case"),
    ],
)
def test_a_wrong_argument_is_an_error_that_says_so(tmp_path: Path, arguments: list[str], says: str) -> None:
    cases = write(tmp_path / "cases.jsonl", RIGHT)
    with pytest.raises(ConfigError, match=says):
        main(["--cases", str(cases), *OPTIONS, *arguments])


def test_an_option_of_ours_reaches_our_verifier_only(tmp_path: Path) -> None:
    unboxed = RIGHT | {"response": "The answer is $12$."}
    anchored = bench(tmp_path, rows=(unboxed, WRONG))
    rejected = bench(tmp_path, "--option", "unboxed=reject", rows=(unboxed, WRONG))
    assert anchored["verifiers"]["assay"]["overall"]["false_negative_rate"]["value"] == 0.0
    assert rejected["verifiers"]["assay"]["overall"]["false_negative_rate"]["value"] == 1.0
    assert rejected["verifiers"]["string-match"]["options"] == {}


def test_plot_and_tables_hold_every_verifier(tmp_path: Path) -> None:
    report = bench(tmp_path)
    root = ElementTree.fromstring(svg(report))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"assay", "string-match"} <= set(texts)
    assert "50.0% (1 of 2)" in texts  # the false negative
    lines = markdown(report).splitlines()
    assert any("the label is wrong \\| on purpose" in line for line in lines)
    rules = [number for number, line in enumerate(lines) if line.startswith("| ---")]
    assert len(rules) == 3
    assert all(columns(lines[at - 1]) == columns(lines[at]) == columns(lines[at + 1]) for at in rules)


def columns(line: str) -> int:
    return line.replace("\\|", "").count("|")


def test_a_file_of_hostile_inputs_alone_is_survived_not_scored(tmp_path: Path) -> None:
    cases, out = write(tmp_path / "cases.jsonl", HOSTILE), tmp_path / "out"
    assert main(["--cases", str(cases), "--out", str(out), "--verifiers", "string-match", "--category", "z"]) == 0
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    hostile = report["verifiers"]["string-match"]["hostile"]
    assert (hostile["inputs"], hostile["survived"], hostile["workers_lost"]) == (1, 1, 0)
    assert "overall" not in report["verifiers"]["string-match"]


def test_a_worker_that_hangs_or_dies_on_a_hostile_input_is_lost_and_the_next_answer_is_judged() -> None:
    hang, crash, fine = (
        case.model_copy(update={"id": name, "response": name})
        for name, case in zip(("hang", "crash", "fine"), hostile_cases("dos_digits"), strict=False)
    )
    contestant = Contestant("fragile", "test_bench_math:Fragile", "does what the response says")
    results = survivals(contestant, [hang, crash, fine], lambda _: None)
    assert [result.lost_worker for result in results] == [True, True, False]
    assert [result.survived for result in results] == [False, False, True]
    assert all(result.next_right for result in results)
    assert str(results[0].verdict.status) == "timeout"


# Hostile inputs and string match -------------------------------------------------------------------------------------


def test_hostile_inputs_are_the_same_each_time_and_have_no_label() -> None:
    first, second = hostile_cases(), hostile_cases()
    assert first == second
    assert len({case.id for case in first}) == len(first) >= 80
    assert all(case.label is None for case in first)


def test_every_hostile_class_has_inputs_and_an_unknown_one_is_an_error() -> None:
    names = "digits factorial power nesting regex solve unicode sums matrix lists macros braces"
    assert hostile_categories() == [f"dos_{name}" for name in names.split()]
    for category in hostile_categories():
        assert hostile_cases(category)
    with pytest.raises(ValueError, match="did you mean 'dos_power'"):
        hostile_cases("dos_powers")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\\dfrac12", "\\frac{1}{2}"),
        ("x = 5", "5"),
        ("\\left( 1, 2 \\right)", "(1,2)"),
        ("60^\\circ", "60^{\\circ}"),
        ("12\\text{ cm}", "12 cm"),
        ("\\$0.50", ".50"),
        ("\\sqrt3", "\\sqrt{3}"),
    ],
)
def test_string_match_evens_out_notation(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(("one", "other"), [("1/2", "0.5"), ("10", "1"), ("100.5", "1.5"), ("a=b=c", "c")])
def test_string_match_compares_no_values(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)
