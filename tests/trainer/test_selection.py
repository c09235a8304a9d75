"""Choosing answers at test time: the published example, the limits at which the methods meet, ties and gaps."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.selection import best_of_majority, best_of_n, probability_score, weighted_majority

EXAMPLE = (["A"] * 6 + ["B"] * 3 + ["C"], [0.2] * 6 + [0.6] * 3 + [0.9])
SAMPLES = st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.integers(-5, 5)), min_size=1, max_size=20)


def split(rows):
    return [a for a, _ in rows], [float(r) for _, r in rows]


@pytest.mark.parametrize(("alpha", "k", "expected"), [
    (0.2, 1, ["B"]), (0.5, 1, ["A"]), (0.0, 1, ["C"]), (0.2, 5, ["B", "A"]), (0.0, 2, ["C", "B"]), (0.7, 1, ["A"]),
])  # fmt: skip
def test_best_of_majority_on_the_example(alpha, k, expected):
    assert best_of_majority(*EXAMPLE, k=k, alpha=alpha) == expected


@given(SAMPLES)
def test_with_alpha_0_it_is_best_of_n(rows):
    answers, rewards = split(rows)
    best = {a: max(r for b, r in rows if b == a) for a in answers} | {None: None}
    found = best_of_majority(answers, rewards, 1, 0.0, "max")
    assert best[found[0] if found else None] == best[best_of_n(answers, rewards)]  # the answers may differ in a tie


@given(SAMPLES)
def test_with_alpha_at_the_highest_frequency_it_is_the_majority(rows):
    answers, rewards = split(rows)
    counts = {a: answers.count(a) for a in answers if a is not None}
    most = max(counts.values(), default=0)
    winners = [a for a, c in counts.items() if c == most]
    if most > 1 and len(winners) == 1:
        expected = weighted_majority(answers, [1.0] * len(answers))
        assert best_of_majority(answers, rewards, 1, most / len(answers)) == [expected] == winners


@given(SAMPLES, st.integers(1, 5))
def test_duplicating_the_samples_changes_nothing(rows, k):
    answers, rewards = split(rows)
    for alpha in (0.0, 0.4, 0.9):
        if alpha == 0 or alpha > 1 / len(rows):
            once = best_of_majority(answers, rewards, k, alpha)
            assert best_of_majority(answers * 2, rewards * 2, k, alpha) == once


@given(SAMPLES)
def test_a_higher_alpha_keeps_fewer_answers(rows):
    answers, rewards = split(rows)
    alphas = [a for a in (0.25, 0.5, 0.75) if a > 1 / len(rows)]
    kept = [set(best_of_majority(answers, rewards, 9, a)) for a in alphas]
    frequent = [{x for x in answers if x is not None and answers.count(x) / len(rows) >= a} for a in alphas]
    assert all(k == f for k, f in zip(kept, frequent, strict=True) if f)
    assert all(later <= earlier for earlier, later in pairwise(frequent))


def test_when_no_answer_is_frequent_enough_the_most_frequent_are_taken():
    answers = ["a", "b", "b", "c", None, None, None, None]
    assert best_of_majority(answers, [9.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0], 2, 0.5) == ["b", "a"]


def test_the_reward_of_an_answer_is_the_mean_or_the_maximum_of_its_samples():
    answers, rewards = ["a", "a", "b", "b"], [1.0, 0.0, 0.6, 0.6]
    assert best_of_majority(answers, rewards, 1, 0.5) == ["b"]
    assert best_of_majority(answers, rewards, 1, 0.5, "max") == ["a"]


def test_weighted_majority_adds_up_the_weights():
    assert weighted_majority(["a", "b", "a"], [0.3, 0.5, 0.3]) == "a"
    assert weighted_majority(["a", "b", "a"], [0.2, 0.5, 0.2]) == "b"


def test_a_log_prob_is_no_weight_of_a_vote():
    with pytest.raises(ValueError, match="negative"):
        weighted_majority(["a", "a", "b"], [-1.0, -1.0, -1.5])


def test_the_score_of_a_response_is_the_geometric_mean_of_its_probabilities():
    assert probability_score([math.log(0.5), math.log(0.125)]) == pytest.approx(0.25)
    assert probability_score([-1e6]) == 0.0
    assert probability_score([]) == 0.0


def test_ties_go_to_what_was_sampled_first():
    assert best_of_n(["a", "b"], [1.0, 1.0]) == "a"
    assert weighted_majority(["b", "a"], [1.0, 1.0]) == "b"
    assert best_of_majority(["b", "a"], [1.0, 1.0], 1, 0.0) == ["b"]


def test_samples_without_an_answer_are_never_chosen():
    assert best_of_n([None, "a"], [9.0, -9.0]) == "a"
    assert weighted_majority([None, None, "a"], [5.0, 5.0, 0.0]) == "a"
    assert best_of_n([None], [1.0]) is None
    assert weighted_majority([None], [1.0]) is None
    assert best_of_majority([None, None, None], [1.0] * 3, 1, 0.5) == []
    assert best_of_majority([], [], 1, 0.5) == []


@pytest.mark.parametrize(("k", "alpha", "match"), [(0, 0.5, "k=0"), (1, 1.5, "alpha=1.5"), (1, 0.1, "not above 1/10"),
                                                   (1, 0.05, "not above 1/10")])  # fmt: skip
def test_settings_that_select_nothing_or_everything_are_refused(k, alpha, match):
    with pytest.raises(ValueError, match=match):
        best_of_majority(*EXAMPLE, k=k, alpha=alpha)
