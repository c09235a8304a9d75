"""Metrics of step scores: against brute force, and what must not change them."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.bench import prmbench, processbench, rewardmath
from prm.bench.aggregate import AGGREGATIONS, OF_ANY_SCALE, aggregate
from prm.bench.calibration import brier, brier_of_base_rate, expected_calibration_error
from prm.bench.ranking import auc, correlation, pairwise_accuracy, rank_correlation, ranks

COARSE = st.integers(0, 4).map(lambda n: n / 4)  # many ties
SCORED = st.lists(st.tuples(COARSE, st.booleans()), max_size=30)
PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def split(rows):
    return [row[0] for row in rows], [row[1] for row in rows]


# ---- ranking -----------------------------------------------------


@settings(deadline=None)
@given(SCORED)
def test_auc_is_the_share_of_pairs_in_order_with_ties_as_half(rows):
    pairs = [(a > b) + (a == b) / 2 for a, right in rows if right for b, other in rows if not other]
    expected = sum(pairs) / len(pairs) if pairs else None
    assert auc(*split(rows)) == (expected if expected is None else pytest.approx(expected))


@settings(deadline=None)
@given(SCORED, st.randoms())
def test_auc_does_not_depend_on_order_and_turns_over_with_the_sign(rows, rng):
    shuffled = list(rows)
    rng.shuffle(shuffled)
    value = auc(*split(rows))
    assert auc(*split(shuffled)) == value
    if value is not None:
        scores, labels = split(rows)
        assert auc([-score for score in scores], labels) == pytest.approx(1 - value)
        assert auc([math.exp(score) for score in scores], labels) == pytest.approx(value)


def test_auc_of_equal_scores_is_a_half_in_any_order_of_labels():
    assert auc([1.0] * 4, [True, True, False, False]) == auc([1.0] * 4, [False, False, True, True]) == 0.5


def test_a_nan_has_no_rank():
    with pytest.raises(ValueError, match="NaN"):
        auc([math.nan, 1.0], [True, False])


@settings(deadline=None)
@given(st.lists(st.tuples(COARSE, st.booleans(), st.integers(0, 3)), max_size=30))
def test_pairwise_accuracy_counts_pairs_of_the_same_group_only(rows):
    pairs = [(a > b) + (a == b) / 2 for a, x, g in rows if x for b, y, h in rows if not y and g == h]
    value, count = pairwise_accuracy(*split(rows), [row[2] for row in rows])
    assert count == len(pairs)
    assert value == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)


def test_knowing_which_group_is_easy_raises_auc_but_no_pair():
    scores, labels = [0.9, 0.9, 0.1, 0.1], [True, True, True, False]
    assert auc(scores, labels) > 0.8
    assert pairwise_accuracy(scores, labels, ["easy", "easy", "hard", "hard"]) == (0.5, 1)


def test_tied_values_share_their_rank():
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]
    assert ranks([]) == []


def test_correlations_see_direction_and_are_undefined_without_spread():
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 50]) == pytest.approx(0.8)
    assert correlation([1, 1, 1], [1, 2, 3]) is None
    assert correlation([1], [1]) is None


# ---- calibration -------------------------------------------------


@settings(deadline=None)
@given(SCORED.filter(bool))
def test_no_constant_beats_the_base_rate(rows):
    labels = split(rows)[1]
    for constant in (0.0, 0.3, 0.5, 1.0):
        assert brier([constant] * len(labels), labels) >= brier_of_base_rate(labels) - 1e-12


def test_calibration_error_of_hand_made_bins():
    scores, labels = [0.05, 0.05, 0.95, 0.95], [False, True, True, True]
    assert expected_calibration_error(scores, labels) == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0.0
    assert expected_calibration_error([], []) is None


@settings(deadline=None)
@given(SCORED, st.randoms())
def test_calibration_error_does_not_depend_on_order(rows, rng):
    shuffled = list(rows)
    rng.shuffle(shuffled)
    before, after = (expected_calibration_error(*split(some)) for some in (rows, shuffled))
    assert after == (before if before is None else pytest.approx(before))


def test_calibration_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match="probabilities"):
        brier([1.5], [True])
    with pytest.raises(ValueError, match="2 labels"):
        expected_calibration_error([0.5], [True, False])


# ---- aggregation -------------------------------------------------


@settings(deadline=None)
@given(PROBABILITIES, st.randoms())
def test_every_aggregation_but_the_last_ignores_the_order_of_steps(scores, rng):
    shuffled = list(scores)
    rng.shuffle(shuffled)
    for how in AGGREGATIONS.keys() - {"last"}:
        assert aggregate(shuffled, how) == pytest.approx(aggregate(scores, how), abs=1e-9)


@settings(deadline=None)
@given(PROBABILITIES)
def test_aggregations_are_finite_and_all_but_odds_and_products_stay_between_the_extremes(scores):
    for how in AGGREGATIONS:
        value = aggregate(scores, how)
        assert math.isfinite(value)
        if how not in ("prod", "mean_odds"):
            assert min(scores) - 1.1e-7 <= value <= max(scores) + 1.1e-7
    assert aggregate(scores, "prod") <= min(scores)


def test_a_long_response_does_not_underflow_its_geometric_mean():
    assert aggregate([0.1] * 1000, "prod") == 0.0
    assert aggregate([0.1] * 1000, "geometric_mean") == pytest.approx(0.1)


def test_certain_steps_give_no_nan_where_the_reference_does():
    assert aggregate([1.0, 0.0], "mean_logit") == pytest.approx(0.5)
    assert math.isfinite(aggregate([1.0], "mean_odds"))


def test_what_cannot_be_aggregated_is_refused():
    with pytest.raises(ValueError, match="no step"):
        aggregate([], "min")
    with pytest.raises(ValueError, match="finite"):
        aggregate([math.nan], "min")
    for how in AGGREGATIONS.keys() - set(OF_ANY_SCALE):
        with pytest.raises(ValueError, match="probabilities"):
            aggregate([-1.0], how)
    assert aggregate([-3.0, -1.0], "mean") == -2.0


# ---- ProcessBench ------------------------------------------------


def test_the_first_step_below_the_threshold_is_the_prediction():
    assert processbench.first_error([0.9, 0.4, 0.1], 0.5) == 1
    assert processbench.first_error([0.9, 0.5], 0.5) == -1  # at the threshold a step is right


def test_a_step_without_a_score_makes_the_prediction_unparsable_unless_it_comes_later():
    assert processbench.first_error([0.9, None, 0.1], 0.5) is None
    assert processbench.first_error([0.1, None], 0.5) == 0
    assert processbench.first_error([], 0.5) is None


def test_an_unparsable_prediction_is_wrong_for_both_kinds_of_solutions():
    result = processbench.evaluate([-1, 2, -1], [None, None, -1])
    assert (result.acc_cor, result.acc_err, result.unparsable) == (0.5, 0.0, 2)


def test_a_share_of_nothing_is_zero():
    assert processbench.evaluate([], []).as_dict()["f1"] == 0.0
    assert processbench.evaluate([-1], [-1]).f1 == 0.0
    with pytest.raises(ValueError, match="no split"):
        processbench.mean_f1([])


def test_the_majority_prediction_stands_beside_the_accuracy():
    result = processbench.evaluate([-1, -1, 3], [-1, -1, -1])
    assert result.accuracy == result.majority_accuracy == pytest.approx(2 / 3)
    assert result.f1 == 0.0


def test_the_mean_is_over_splits_not_over_solutions():
    easy = processbench.evaluate([-1, 0], [-1, 0])
    hard = processbench.evaluate([-1, 0] * 10, [0, -1] * 10)
    assert processbench.mean_f1([easy, hard]) == 0.5


@pytest.mark.parametrize(
    ("critiques", "prediction"),
    [
        ([r"Fine. \boxed{-1}"], -1),
        ([r"\boxed{1} or rather \boxed{ 2 }"], 2),
        (["no box"], None),
        ([r"\boxed{none}"], None),
        ([r"\boxed{3}", r"\boxed{1}", r"\boxed{1}"], 1),
        ([r"\boxed{3}", r"\boxed{1}"], 3),  # a tie goes to the earlier
        ([r"\boxed{2}", r"\boxed{02}", r"\boxed{02}", r"\boxed{2}", r"\boxed{1}", r"\boxed{1}", r"\boxed{1}"], 1),
        (["no box", "no box", r"\boxed{0}"], 0),  # who says nothing does not vote
        ([r"\boxed{x}", r"\boxed{x}", r"\boxed{0}"], None),  # the majority cannot be read
    ],
)
def test_critiques_vote_with_what_they_wrote(critiques, prediction):
    assert processbench.vote(critiques) == prediction


@settings(deadline=None)
@given(st.text())
def test_reading_a_critique_is_total(text):
    assert processbench.vote([text]) is None or isinstance(processbench.vote([text]), int)


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.one_of(COARSE, st.none()), min_size=1, max_size=5).flatmap(
            lambda steps: st.tuples(st.just(steps), st.integers(-1, len(steps) - 1))
        ),
        min_size=1,
        max_size=8,
    ).filter(lambda rows: any(score is not None for steps, _ in rows for score in steps))
)
def test_the_chosen_threshold_is_the_best_there_is(rows):
    scores, labels = split(rows)

    def f1(threshold):
        return processbench.evaluate(labels, [processbench.first_error(s, threshold) for s in scores]).f1

    chosen = processbench.best_threshold(scores, labels)
    assert f1(chosen) == pytest.approx(max(f1(n / 8) for n in range(-1, 10)))


def test_there_is_no_threshold_without_scores():
    with pytest.raises(ValueError, match="no step"):
        processbench.best_threshold([[None]], [-1])


def test_a_perfect_scorer_is_separated():
    scores = [[3.0, 2.0], [3.0, -1.0], [-5.0, 4.0]]
    threshold = processbench.best_threshold(scores, [-1, 1, 0])
    assert -1.0 < threshold <= 2.0


# ---- PRMBench ----------------------------------------------------


def item(labels, error_steps=(), name="confidence", original=None, steps=None):
    return prmbench.Prediction(name, tuple(error_steps), labels, original, steps or len(labels or ()))


def test_prmscore_is_the_mean_of_both_f1():
    counts = prmbench.evaluate([item([True, True, False], [2, 3])]).counts
    assert (counts.f1, counts.f1_neg) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert counts.prmscore == pytest.approx(2 / 3)


def test_judging_everything_valid_earns_a_high_f1_and_no_f1_neg():
    result = prmbench.evaluate([item([True] * 10, [10])])
    assert result.counts.f1 > 0.9
    assert result.counts.f1_neg == 0.0
    assert result.counts.total_step_acc == result.counts.majority_acc == 0.9


def test_counts_are_pooled_over_steps_not_averaged_over_solutions():
    result = prmbench.evaluate([item([True] * 99 + [False], [100]), item([True], [1])])
    assert result.counts.f1 == pytest.approx(2 * 99 / (2 * 99 + 1))


def test_similarity_compares_with_the_original_even_if_that_was_judged_all_wrong():
    result = prmbench.evaluate([item([True, True], [2], original=[False, False])])
    assert result.similarity == 1.0  # the reference drops the pair, because a valid rate of 0 is false
    assert prmbench.evaluate([item([True], [1])]).similarity is None


def test_an_unreadable_item_is_left_out_and_counted():
    found = prmbench.evaluate([item([True, False], [2]), item(None, [1], steps=2)]).as_dict()
    assert found["validity_rate"] == 0.5
    assert found["prmscore"] == 1.0
    assert found["prmscore_strict"] == 0.5  # tp 1, tn 1, and one miss of each kind


def test_redundancy_labels_count_in_the_classes_of_simplicity_only():
    valid, redundant = [True, True], [False, True]
    assert prmbench.judgements("redundency", valid, redundant) == [True, False]
    assert prmbench.judgements("circular", valid, redundant) == [True, False]
    assert prmbench.judgements("confidence", valid, redundant) == valid
    assert prmbench.judgements("redundency", valid) == valid


def test_no_wrong_step_is_no_first_error():
    result = prmbench.evaluate([item([True, True], name="multi_solutions")])
    assert result.first_error_acc is None
    assert result.counts.f1 == 1.0


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=12), st.sets(st.integers(1, 14)))
def test_every_step_is_counted_once(labels, error_steps):
    counts = prmbench.judge(error_steps, labels).counts
    assert counts.total == len(labels)
    assert counts.fp + counts.tn == sum(step <= len(labels) for step in error_steps)


# ---- RewardMATH --------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(0, 3))
def test_strict_accuracy_is_rank_one_and_ties_only_ever_help_the_other(rejected, chosen):
    assert rewardmath.is_accurate([chosen], rejected) == (rewardmath.rank_of_chosen([chosen], rejected) == 1)
    assert rewardmath.is_accurate([chosen], rejected, with_ties=True) >= rewardmath.is_accurate([chosen], rejected)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(0, 3), st.randoms())
def test_the_rank_does_not_depend_on_the_order_of_the_wrong_ones(rejected, chosen, rng):
    shuffled = list(rejected)
    rng.shuffle(shuffled)
    assert rewardmath.rank_of_chosen([chosen], shuffled) == rewardmath.rank_of_chosen([chosen], rejected)


def test_a_judge_with_one_grade_is_never_accurate_and_always_so_with_ties():
    result = rewardmath.evaluate([(7.0, [7.0] * 9)] * 3)
    assert (result.accuracy, result.accuracy_with_ties, result.mrr) == (0.0, 1.0, pytest.approx(0.1))
    assert result.random_accuracy == pytest.approx(0.1)


def test_random_scores_earn_what_is_said_of_them():
    rng = random.Random(0)
    result = rewardmath.evaluate([(rng.random(), [rng.random() for _ in range(9)]) for _ in range(4000)])
    assert result.accuracy == pytest.approx(result.random_accuracy, abs=0.02)
    assert result.mrr == pytest.approx(result.random_mrr, abs=0.02)


def test_no_problem_is_no_result():
    assert rewardmath.evaluate([]) is None
