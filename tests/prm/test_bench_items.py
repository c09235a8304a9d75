"""Solutions in steps: reading the benchmarks' files, generators' oracles and their corruptions, scores from files."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import load_examples
from data.chain import check_steps
from prm.bench.items import CORRECT, read_items
from prm.bench.oracles import Corruption, corrupted_items, miscomputed, other_digit, response_items
from prm.bench.scorers import Control, controls, predictions_from_file, score_all, scores_from_file
from verifiers import ConfigError, DataError
from verifiers.errors import ModelError

DATA = Path(__file__).parent / "data"
PROCESSBENCH, PRMBENCH = str(DATA / "processbench_format.jsonl"), str(DATA / "prmbench_excerpt.jsonl")
CHAIN = {"count": 20}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# ---- files -------------------------------------------------------


def test_processbench_says_nothing_of_the_steps_after_the_first_error():
    items = {item.id: item for item in read_items([PROCESSBENCH])}
    assert items["own-0"].truth == (True, True, True)
    assert items["own-1"].truth == (False, None, None)
    assert items["own-2"].truth == (True, False, None)
    assert [item.first_error for item in items.values()] == [-1, 0, 1, -1, 1]
    assert items["own-4"].outcome is True  # the answer may be right in spite of a wrong step
    assert items["own-0"].group == items["own-1"].group != items["own-2"].group
    assert items["own-0"].split == "processbench_format"


def test_prmbench_counts_from_one_and_knows_every_step():
    items = {item.id: item for item in read_items([PRMBENCH])}
    assert items["step_contradiction_prm_test_p1_49"].truth == (True, True, False, False, True)
    assert items["redundency_prm_test_p1_49"].first_error == 2
    assert items["multi_solutions_prm_test_p1_13"].outcome is True
    assert items["step_contradiction_prm_test_p1_49"].outcome is False


def test_an_error_step_behind_the_last_step_counts_nowhere():
    (item,) = [item for item in read_items([PRMBENCH]) if item.split == "missing_condition"]
    assert item.truth == (True,) * 7 + (False,)  # of 8 steps; error_steps are 8 and 10


def test_the_original_of_three_classes_is_one_item():
    items = read_items([PRMBENCH])
    originals = [item.id for item in items if item.split == CORRECT]
    assert sorted(originals) == ["correct_prm_test_p1_13", "correct_prm_test_p1_49", "correct_prm_train_p1_1"]
    assert all(all(item.truth) for item in items if item.split == CORRECT)


def test_files_of_prmbench_classes_share_their_originals(tmp_path):
    lines = Path(PRMBENCH).read_text().splitlines(keepends=True)
    halves = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for half, some in zip(halves, (lines[:2], lines[2:]), strict=True):
        half.write_text("".join(some))
    assert {i.id for i in read_items([str(half) for half in halves])} == {i.id for i in read_items([PRMBENCH])}


def test_limit_takes_rows_from_all_over_the_file(tmp_path):
    row = json.loads(Path(PROCESSBENCH).read_text().splitlines()[0])
    rows = [
        {**row, "id": str(i), "label": 0 if i < 6 else -1} for i in range(10)
    ]  # sorted, as the benchmark's files are
    items = read_items([write(tmp_path / "sorted.jsonl", rows)], limit=5)
    assert [item.id for item in items] == ["0", "2", "4", "6", "8"]
    assert {item.first_error for item in items} == {0, -1}
    assert len(read_items([PROCESSBENCH], limit=99)) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 3}, "is no step"),
        ({"label": -2}, "label"),
        ({"label": True}, "label"),
        ({"steps": []}, "steps"),
        ({"steps": "one text"}, "steps"),
        ({"problem": None}, "problem"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, change, message):
    row = json.loads(Path(PROCESSBENCH).read_text().splitlines()[0])
    path = write(tmp_path / "x.jsonl", [row, {**row, "id": "other", **change}])
    with pytest.raises(DataError, match=message) as caught:
        read_items([path])
    assert "line 2" in str(caught.value)


def test_other_rows_duplicates_and_missing_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="neither"):
        read_items([write(tmp_path / "x.jsonl", [{"question": "?"}])])
    with pytest.raises(DataError, match="used twice"):
        read_items([PROCESSBENCH, PROCESSBENCH])
    with pytest.raises(DataError, match="No such file"):
        read_items([str(tmp_path / "nothing.jsonl")])
    with pytest.raises(DataError, match="no rows"):
        read_items([write(tmp_path / "empty.jsonl", [])])
    row = json.loads(Path(PRMBENCH).read_text().splitlines()[0])
    with pytest.raises(DataError, match="counted from 1"):
        read_items([write(tmp_path / "zero.jsonl", [{**row, "error_steps": [0]}])])


# ---- generators --------------------------------------------------


@pytest.mark.parametrize("source", ["chain", "countdown"])
def test_a_demonstration_is_right_and_a_changed_digit_is_found_by_the_oracle(source):
    items = corrupted_items(source, CHAIN, Corruption(per_example=2))
    right = [item for item in items if item.id.endswith("/0")]
    assert len(right) == 20
    assert all(item.first_error == -1 and item.outcome for item in right)
    wrong = [item for item in items if not item.id.endswith("/0")]
    assert len(wrong) == 40
    assert sum(item.first_error >= 0 for item in wrong) >= 39  # 0*5=0 may become 0*6=0
    assert {item.group for item in wrong} == {item.group for item in right}


@settings(deadline=None)
@given(st.text(), st.integers())
def test_another_digit_changes_one_character_or_nothing(solution, seed):
    changed = other_digit(solution, random.Random(seed))
    differing = [(a, b) for a, b in zip(solution, changed, strict=True) if a != b]
    assert len(differing) == any(c in "0123456789" for c in solution)


@pytest.mark.parametrize(("kind", "carried_on"), [("systematic", True), ("digit", False)])
def test_a_systematic_error_is_carried_on_to_the_answer_and_a_changed_digit_is_not(kind, carried_on):
    no_way_back = {"count": 60, "operators": "+-", "min_operands": 5}  # a product with 0 would make up for the error
    items = corrupted_items("chain", no_way_back, Corruption(kind, per_example=1, error_rate=0.3))
    wrong = [item for item in items if 0 <= item.first_error < len(item.steps) - 2]
    assert len(wrong) > 20
    to_the_end = sum(not any(item.truth[item.first_error :]) for item in wrong)
    # two wrong entries may cancel out
    assert to_the_end > 0.8 * len(wrong) if carried_on else to_the_end == 0
    assert all(item.steps[-1] == f"#{item.steps[-2]}" for item in wrong)


def test_a_wrong_table_errs_on_the_same_operands_everywhere():
    examples = load_examples("chain", {"count": 200, "max_operands": 3}, key="x")
    results = {}
    for example in examples:
        first = miscomputed(example, 0.3, seed="s").split("\n")[0]
        operation = example.question[:3]
        result = first[0]
        assert results.setdefault(operation, result) == result
    assert len(results) > 50


def test_without_wrong_entries_the_demonstration_is_left():
    (example,) = load_examples("chain", {"count": 1}, key="x")
    assert miscomputed(example, 0.0, seed="s") == example.solution
    assert all(label.correct for label in check_steps(example, miscomputed(example, 0.0, seed="s")))


def test_the_same_seed_gives_the_same_corruptions():
    first, second = (corrupted_items("chain", CHAIN, Corruption(seed=3)) for _ in range(2))
    assert first == second
    assert first != corrupted_items("chain", CHAIN, Corruption(seed=4))


def test_responses_are_labelled_and_empty_ones_left_out(tmp_path):
    example = load_examples("chain", CHAIN, key="x")[0]
    rows = [
        {"example_id": example.id, "response": example.solution, "reward": 1.0},
        {"example_id": example.id, "response": example.solution.split("\n")[0]},
        {"example_id": example.id, "response": ""},
    ]
    items, empty = response_items("chain", CHAIN, write(tmp_path / "step-000001.jsonl", rows))
    assert empty == 1
    assert [item.outcome for item in items] == [True, False]  # the second stops before the answer
    assert [item.first_error for item in items] == [-1, -1]
    assert "".join(f"{step}\n" for step in items[0].steps).strip() == example.solution


def test_generators_say_what_they_cannot_do(tmp_path):
    with pytest.raises(DataError, match="No example"):
        response_items("chain", CHAIN, write(tmp_path / "x.jsonl", [{"example_id": "?", "response": "1"}]))
    with pytest.raises(ConfigError, match="no step oracle"):
        corrupted_items("jsonl", {}, Corruption())
    with pytest.raises(ConfigError, match="systematic"):
        corrupted_items("countdown", CHAIN, Corruption("systematic"))


# ---- scorers -----------------------------------------------------


def test_controls_know_nothing_but_length_position_and_chance():
    found = {name: control.score("p", ["long step", "x"]) for name, control in controls(0).items()}
    assert found["length"] == [-9.0, -1.0]
    assert found["position"] == [0.0, -1.0]
    assert found["constant"] == [1.0, 1.0]
    assert len(set(found["random"])) == 2
    assert all(0 <= score < 1 for score in found["random"])


def test_random_scores_depend_on_seed_problem_and_step_and_on_nothing_else():
    score = controls(0)["random"].score
    assert score("p", ["a", "b"]) == score("p", ["a", "b"])
    assert score("p", ["a", "c"])[0] == score("p", ["a", "b"])[0]
    assert score("q", ["a"]) != score("p", ["a"])
    assert controls(1)["random"].score("p", ["a"]) != score("p", ["a"])


@pytest.mark.parametrize(("value", "scale"), [(float("nan"), "real"), (1.5, "probability"), (-0.1, "probability")])
def test_a_scorer_that_breaks_its_contract_stops_the_report(value, scale):
    items = read_items([PROCESSBENCH])
    with pytest.raises(ModelError, match="bad"):
        score_all(Control("bad", scale, lambda problem, index, step: value), items)


def test_a_missing_score_is_no_breach():
    class Half:
        name, scale = "half", "probability"

        def score(self, problem, steps):
            return [0.5, *[None] * (len(steps) - 1)]

    items = read_items([PROCESSBENCH])
    assert score_all(Half(), items).scores["own-0"] == [0.5, None, None]


def test_scores_of_a_file_are_probabilities_if_all_may_be(tmp_path):
    items = read_items([PROCESSBENCH])
    rows = [{"id": item.id, "scores": [0.5, None, 1.0]} for item in items]
    assert scores_from_file(write(tmp_path / "p.jsonl", rows), items).scale == "probability"
    rows[1]["scores"] = [-2.0, 0.5, 0.5]
    scored = scores_from_file(write(tmp_path / "r.jsonl", rows), items)
    assert (scored.scale, scored.scores["own-1"]) == ("real", [-2.0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "own-0", "scores": [0.5]}, "1 scores for 3 steps"),
        ({"id": "own-0", "scores": [0.5, float("nan"), 0.5]}, "not finite"),
        ({"id": "own-0", "scores": [0.5] * 3, "redundant": [True]}, "redundant"),
        ({"id": "own-0", "scores": "0.5"}, "scores"),
        ({"id": "other", "scores": [0.5]}, "no row"),
    ],
)
def test_scores_that_do_not_fit_are_refused(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        scores_from_file(write(tmp_path / "x.jsonl", [row]), read_items([PROCESSBENCH])[:1])


def test_critiques_become_predictions(tmp_path):
    items = read_items([PROCESSBENCH])[:2]
    rows = [{"id": "own-0", "critiques": [r"\boxed{-1}"]}, {"id": "own-1", "critiques": ["?", r"\boxed{0}"]}]
    assert predictions_from_file(write(tmp_path / "c.jsonl", rows), items) == {"own-0": -1, "own-1": 0}
    with pytest.raises(DataError, match="critiques"):
        predictions_from_file(write(tmp_path / "d.jsonl", [{"id": "own-0", "critiques": []}]), items)
