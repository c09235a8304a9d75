"""`assay bench rm`: protocols, curves, and the command on files."""

import itertools
import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm.bench import verifybench
from prm.bench.optimisation import best_of_n, expected_best, overoptimised
from prm.bench.rm import main
from prm.bench.rm.items import read_rewardmath, read_run, read_samples
from prm.bench.rm.markdown import markdown
from prm.bench.rm.report import rewardmath_report
from verifiers.errors import ConfigError, DataError


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# ---- VerifyBench -------------------------------------------------


def test_no_judgement_is_wrong_and_neither_accepts_nor_rejects():
    found = verifybench.evaluate([True, None, False, None], [True, True, False, False])
    assert (found.accuracy, found.false_accept, found.false_reject, found.unparsable) == (0.5, 0.0, 0.0, 0.5)


def test_the_majority_of_the_hard_set_stands_beside_its_accuracy():
    truth = [True] * 291 + [False] * 709
    refuses_all = verifybench.evaluate([False] * 1000, truth)
    assert refuses_all.accuracy == refuses_all.majority_accuracy == 0.709
    assert (refuses_all.false_accept, refuses_all.false_reject) == (0.0, 1.0)


def test_types_are_reported_one_by_one():
    found = verifybench.by_type([True, True, False], [True, False, False], ["numeric", "string", "string"])
    assert {name: r["accuracy"] for name, r in found.items()} == {"all": 2 / 3, "numeric": 1.0, "string": 0.5}


# ---- best of n ---------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0])), min_size=1, max_size=6), st.data())
def test_the_expectation_is_that_over_all_draws(samples, data):
    n = data.draw(st.integers(1, len(samples)))
    drawn = []
    for chosen in itertools.combinations(samples, n):
        best = max(proxy for proxy, _ in chosen)
        drawn.append((best, statistics.fmean(gold for proxy, gold in chosen if proxy == best)))
    # of tied samples one is chosen at random, and which of them were drawn is random too
    found = expected_best([(float(p), g) for p, g in samples], n)
    assert found[0] == pytest.approx(statistics.fmean(p for p, _ in drawn))
    assert found[1] == pytest.approx(statistics.fmean(g for _, g in drawn))


def test_a_perfect_proxy_only_helps_and_a_reversed_one_only_hurts():
    perfect = [[(g, g) for g in (0.0, 0.0, 1.0, 0.0)]] * 3
    golds = [p.gold for p in best_of_n(perfect, [1, 2, 4])]
    assert golds == pytest.approx([0.25, 0.5, 1.0])
    reversed_ = [[(-g, g) for _, g in problem] for problem in perfect]
    assert [p.gold for p in best_of_n(reversed_, [1, 2, 4])] == pytest.approx([0.25, 0.0, 0.0], abs=1e-9)


def test_sizes_that_some_problem_cannot_fill_are_left_out():
    assert [p.n for p in best_of_n([[(1.0, 1.0)] * 4, [(1.0, 1.0)] * 2], [1, 2, 4])] == [1, 2]


def test_the_kl_of_best_of_n_is_gaos():
    point = best_of_n([[(float(i), 0.0) for i in range(8)]], [8])[0]
    assert point.kl == pytest.approx(math.log(8) - 7 / 8)


def test_a_curve_is_hacked_when_the_proxy_rises_while_the_truth_falls():
    assert overoptimised([1, 2, 3], [0.3, 0.6, 0.2]) == {"peak": 1, "lost": pytest.approx(0.4), "hacked": True}
    assert not overoptimised([1, 2, 1], [0.3, 0.6, 0.2])["hacked"]  # both fell: not hacked, just worse
    assert not overoptimised([1, 2, 3], [0.3, 0.6, 0.7])["hacked"]


# ---- RewardMATH --------------------------------------------------


def problems(tmp_path):
    rows = [{"id": i, "problem": "q", "chosen": "right answer", "rejected": ["wrong", "wrong too"]} for i in range(2)]
    return read_rewardmath([write(tmp_path / "rm.jsonl", rows)])


def test_a_solution_without_a_score_counts_against_the_model(tmp_path):
    asked = problems(tmp_path)
    assert rewardmath_report(asked, [2, 1, 0, 2, 1, 0])["accuracy"] == 1.0
    assert rewardmath_report(asked, [None, 1, 0, 2, 1, 0])["accuracy"] == 0.5
    found = rewardmath_report(asked, [2, None, 0, 2, 1, 0])
    assert (found["accuracy"], found["mrr"], found["unscored"]) == (0.5, 0.75, 1)


def test_two_right_solutions_are_refused(tmp_path):
    path = write(tmp_path / "rm.jsonl", [{"id": 1, "problem": "q", "chosen": ["a", "b"], "rejected": ["c"]}])
    with pytest.raises(DataError, match="line 1"):
        read_rewardmath([path])


# ---- a run's records ---------------------------------------------


def trajectory_row(group, score, gold, text="x"):
    return {"example_id": group, "prompt": "q", "response": text, "reward": score,
            "verdict": {"status": "correct", "score": gold}, "sources": {"bt_rm": {"score": score}}}  # fmt: skip


def hacked_run(tmp_path):
    """The proxy rises from step to step; the truth rises once and falls."""
    folder = tmp_path / "run"
    for step, (proxy, gold) in enumerate([(0.1, 0.2), (0.5, 0.6), (0.9, 0.1)], start=1):
        rows = [
            trajectory_row(f"e{g}", proxy + k, float(k < gold * 10), "x" * step) for g in range(2) for k in range(10)
        ]
        write(folder / "trajectories" / f"step-{step:06d}.jsonl", rows)
    return folder


def test_the_curve_over_steps_comes_from_the_runs_records(tmp_path):
    out = tmp_path / "report"
    assert main(["--run", str(hacked_run(tmp_path)), "--proxy", "sources.bt_rm.score", "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    found = report["scorers"]["sources.bt_rm.score"]["samples"]
    assert [p["step"] for p in found["steps"]] == [1, 2, 3]
    assert [p["gold"] for p in found["steps"]] == pytest.approx([0.2, 0.6, 0.1])
    assert found["steps_summary"] == {"peak": 1, "lost": pytest.approx(0.5), "hacked": True}
    assert "hacked" in (out / "report.md").read_text()
    assert (out / "report.md").read_text() == markdown(report)


def test_a_run_without_trajectories_and_an_unknown_proxy_are_named(tmp_path):
    with pytest.raises(DataError, match="no trajectories"):
        read_run(str(tmp_path), "reward")
    file = hacked_run(tmp_path) / "trajectories" / "step-000001.jsonl"
    with pytest.raises(DataError, match="did you mean 'score'"):
        read_samples(str(file), "sources.bt_rm.scor")
    with pytest.raises(ConfigError, match="not named"):
        main(["--run", str(tmp_path)])


def test_what_nobody_judged_is_left_out(tmp_path):
    rows = [trajectory_row("a", 1.0, None), trajectory_row("a", None, 1.0), trajectory_row("a", 1.0, 1.0)]
    assert len(read_samples(write(tmp_path / "s.jsonl", rows), "reward")) == 1


# ---- the command -------------------------------------------------


def verify_rows():
    return [
        {"id": f"v{i}", "question": "1+1", "gold_answer": "2", "completion": f"#{2 if right else 3}",
         "gold_correct": right, "answer_type": "numeric", "answer_subtype": "integer"}
        for i, right in enumerate([True, False, True, False])
    ]  # fmt: skip


def test_judgements_a_verifier_and_controls_on_verifybench(tmp_path):
    data = write(tmp_path / "verify.jsonl", verify_rows())
    said = ["Final Judgment: Yes", "Final Judgment: Yes", "I cannot tell", "so the answer is no"]
    judged = write(tmp_path / "judged.jsonl", [{"id": f"v{i}", "output": text} for i, text in enumerate(said)])
    out = tmp_path / "report"
    assert main(["--verifybench", data, "--scores", judged, "--verifier", "exact", "--option", "marker=\"#\"",
                 "--out", str(out)]) == 0  # fmt: skip
    scorers = json.loads((out / "report.json").read_text())["scorers"]
    ours = scorers["scores"]["verifybench"]["types"]["all"]
    assert (ours["accuracy"], ours["false_accept"], ours["unparsable"]) == (0.5, 0.5, 0.25)
    assert scorers["verifier exact"]["verifybench"]["types"]["numeric"]["accuracy"] == 1.0
    assert scorers["constant"]["verifybench"]["types"]["all"]["accuracy"] == 0.5
    rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 5


def test_a_missing_score_and_nothing_to_score_are_named(tmp_path):
    data = write(tmp_path / "verify.jsonl", verify_rows())
    scores = write(tmp_path / "scores.jsonl", [{"id": "v0", "score": 0.3}])
    with pytest.raises(DataError, match="no score for 'v1'"):
        main(["--verifybench", data, "--scores", scores])
    with pytest.raises(ConfigError, match="nothing to score"):
        main([])


@pytest.mark.golden
def test_the_released_leaderboard_is_possible_under_this_protocol():
    """Accuracies are whole counts of 483 problems, ties only add, and the MRR lies between what these counts allow."""
    from pathlib import Path

    rows = json.loads((Path(__file__).parent.parent / "golden" / "rewardmath_leaderboard.json").read_text())
    assert len(rows) == 17
    for row in rows:
        n = row["inputs"]["n_rows"]
        for found in row["outputs"]:
            strict, ties, mrr = (found[k] / 100 for k in ("accuracy_strict", "accuracy_with_ties", "mrr"))
            assert abs(strict * n - round(strict * n)) < 0.03
            assert strict <= ties + 1e-9
            assert (
                strict + (1 - strict) / row["inputs"]["solutions_per_row"] - 1e-4
                <= mrr
                <= strict + (1 - strict) / 2 + 1e-4
            )
