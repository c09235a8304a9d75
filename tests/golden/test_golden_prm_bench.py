"""ProcessBench, PRMBench and RewardMATH against numbers of the benchmarks' own code; each trap is a negative test."""

import json
from pathlib import Path

import pytest
import torch

from prm.bench import prmbench, processbench, rewardmath
from prm.bench.aggregate import AGGREGATIONS, aggregate

pytestmark = pytest.mark.golden
HERE = Path(__file__).parent
NAMES = {"mean_odd": "mean_odds"}  # the reference's name -> ours


def each(file, method=None):
    records = json.loads((HERE / f"{file}.json").read_text(encoding="utf-8"))
    return [pytest.param(r, id=f"{file}-{i}") for i, r in enumerate(records) if method in (None, r["method"])]


@pytest.mark.parametrize("record", each("processbench"))
def test_processbench_equals_the_reference(record):
    labels, predictions = zip(*record["inputs"]["label_prediction"], strict=True)
    found, expected = processbench.evaluate(labels, predictions), record["outputs"]
    assert 100 * found.acc_err == pytest.approx(expected["error_acc"])
    assert 100 * found.acc_cor == pytest.approx(expected["correct_acc"])
    assert 100 * found.f1 == pytest.approx(expected["f1"])


def test_processbench_is_zero_where_the_reference_divides_by_zero():
    assert processbench.evaluate([-1, 2], [0, 1]).f1 == 0.0


@pytest.mark.parametrize("record", each("prmbench"))
def test_prmbench_equals_the_reference(record):
    found = prmbench.judge(record["inputs"]["error_steps_1_based"], record["inputs"]["labels"])
    expected = record["outputs"]
    assert {name.upper(): getattr(found.counts, name) for name in ("tp", "fp", "tn", "fn")} == expected["f1_matrix"]
    for name in ("correct_step_acc", "wrong_step_acc", "total_step_acc"):
        ours = getattr(found.counts, name)
        assert (-1 if ours is None else ours) == pytest.approx(expected[name])  # a share of nothing is None with us
    assert found.first_error == expected["first_error_acc"]
    assert found.valid_rate == pytest.approx(expected["model_response_acc"])


def test_prmbench_counts_error_steps_from_one():
    record = next(p.values[0] for p in each("prmbench") if p.values[0]["inputs"]["error_steps_1_based"] == [2, 3])
    from_zero = prmbench.judge([step + 1 for step in [2, 3]], record["inputs"]["labels"])
    assert from_zero.counts.fp != record["outputs"]["f1_matrix"]["FP"]
    with pytest.raises(ValueError, match="counted from 1"):
        prmbench.judge([0], [True])


@pytest.mark.parametrize("kind", [list, torch.tensor])
@pytest.mark.parametrize("record", each("rewardmath", "rewardmath.prm_aggregation"))
def test_aggregations_equal_the_reference(record, kind):
    scores = record["inputs"]["step_scores"]
    expected = {NAMES.get(name, name): value for name, value in record["outputs"].items()}
    assert expected.keys() == AGGREGATIONS.keys()
    # odds of 0.99 amplify the float32 of the tensor a hundredfold
    tolerance = {"rel": 1e-12} if kind is list else {"rel": 1e-5}
    assert {how: aggregate(kind(scores), how) for how in expected} == pytest.approx(expected, **tolerance)


@pytest.mark.parametrize("record", each("rewardmath", "rewardmath.mrr"))
def test_reciprocal_rank_equals_the_reference(record):
    chosen, rejected = record["inputs"]["chosen"], record["inputs"]["rejected"]
    assert rewardmath.reciprocal_rank(chosen, rejected) == pytest.approx(record["outputs"]["mrr"])
    assert rewardmath.share_outranked(chosen, rejected) == pytest.approx(record["outputs"]["rank"])


def test_a_tie_stands_before_the_right_solution():
    record = next(
        p.values[0] for p in each("rewardmath", "rewardmath.mrr") if 5 in p.values[0]["inputs"]["rejected"][:1]
    )
    chosen, rejected = record["inputs"]["chosen"], record["inputs"]["rejected"]
    in_favour = 1 / (1 + sum(score > chosen[0] for score in rejected))
    assert in_favour == 1.0 != record["outputs"]["mrr"]
    assert not rewardmath.is_accurate(chosen, rejected)
    assert rewardmath.is_accurate(chosen, rejected, with_ties=True)


def test_a_random_order_of_ten_has_the_published_expectation():
    assert 100 * rewardmath.random_reciprocal_rank(10) == pytest.approx(29.29, abs=0.005)
