"""Length and repetition rewards: the values that the papers promise, and the edges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.shaping.base import SHAPINGS, ShapingInputs
from trainer.shaping.consistency import consistency_reward
from trainer.shaping.cosine import CosineOptions, cosine_reward
from trainer.shaping.relative_length import RelativeLengthOptions, relative_length_term
from trainer.shaping.repetition import dense_penalty, sparse_penalty
from verifiers.errors import ConfigError
from verifiers.options import parse_options

LIMIT = 14336
TOKENS = st.lists(st.integers(0, 3), max_size=24)


def shape(kind, lengths=(2, 4), reward=(1.0, 0.0), correct=(True, False), group=(0, 0), ids=None, **options):
    ids = [list(range(n)) for n in lengths] if ids is None else ids
    inputs = ShapingInputs(torch.tensor(reward), torch.tensor(correct), torch.tensor(group), ids, 100)
    entry = SHAPINGS.get(kind)
    return entry.compute(inputs, parse_options(entry.options, options))


# ---- cosine --------------------------------------------------------


@pytest.mark.parametrize(("length", "right", "wrong"), [
    (0, 2.0, -10.0), (7168, 1.5, -5.0), (14319, 1 + 3.4696e-6, -3.4696e-5), (14320, -10.0, -10.0),
    (14336, -10.0, -10.0),
])  # fmt: skip
def test_the_cosine_reward_at_the_papers_lengths(length, right, wrong):
    assert cosine_reward(length, True, LIMIT, CosineOptions()) == pytest.approx(right, abs=1e-9)
    assert cosine_reward(length, False, LIMIT, CosineOptions()) == pytest.approx(wrong, abs=1e-8)


def test_shorter_is_better_when_right_and_worse_when_wrong_and_right_beats_wrong():
    lengths = range(0, LIMIT - 16, 97)
    right = [cosine_reward(n, True, LIMIT, CosineOptions()) for n in lengths]
    wrong = [cosine_reward(n, False, LIMIT, CosineOptions()) for n in lengths]
    assert right == sorted(right, reverse=True)
    assert wrong == sorted(wrong)
    assert min(right) >= 1 > 0 >= max(wrong)


def test_equal_values_at_both_ends_are_a_constant():
    options = CosineOptions(correct_at_0=3.0, correct_at_max=3.0)
    assert {cosine_reward(n, True, LIMIT, options) for n in range(0, 14320, 1000)} == {3.0}


def test_the_cosine_shaping_replaces_the_outcome_and_leaves_the_unjudged():
    found = shape("cosine", lengths=(0, 50), reward=(7.0, float("nan")))
    assert found.token_reward_R is None
    assert found.reward_N[0] == 2.0
    assert math.isnan(found.reward_N[1])
    assert shape("cosine", lengths=(84, 83), correct=(True, True)).reward_N[0] == -10.0  # 84 + 16 reaches the limit


# ---- repetition ----------------------------------------------------


def test_the_dense_penalty_of_the_papers_example():
    tokens = [1, 2, 3, 1, 2, 3, 1, 2, 3, 9]
    every = dense_penalty(tokens, 3, -0.05)
    assert [i for i, v in enumerate(every) if v] == [3, 4, 5, 6, 7, 8]
    start = dense_penalty(tokens, 3, -0.05, only_start=True)
    assert [i for i, v in enumerate(start) if v] == [3, 4, 5]
    assert set(every) == {0.0, -0.05}  # set, not added up, though position 5 is in three repeats


@given(TOKENS, st.integers(1, 5), st.booleans())
def test_the_dense_penalty_is_on_tokens_of_repeated_n_grams_only(tokens, n, only_start):
    found = dense_penalty(tokens, n, -1.0, only_start)
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    repeats = [i for i, g in enumerate(grams) if g in grams[:i]]
    allowed = {j for i in repeats for j in range(i, i + n)}
    marked = {i for i, v in enumerate(found) if v}
    assert len(found) == len(tokens)
    assert marked <= allowed if only_start else marked == allowed
    assert bool(marked) == bool(repeats)


@given(TOKENS, st.integers(1, 5))
def test_the_sparse_penalty_lies_between_the_penalty_and_zero(tokens, n):
    found = sparse_penalty(tokens, n, -0.7)
    assert -0.7 < found <= 0
    if len(tokens) < n or len(set(tokens)) == len(tokens):
        assert found == 0


def test_the_sparse_penalty_by_hand():
    assert sparse_penalty([5, 5, 5, 5, 5], 2, -1.0) == -0.75


def test_a_response_shorter_than_n_has_no_repeats():
    assert dense_penalty([1, 1], 3, -1.0) == [0.0, 0.0]
    assert sparse_penalty([], 1, -1.0) == 0.0


def test_the_two_forms_reach_the_advantage_by_different_ways():
    ids = [[1, 1, 1], [1, 2]]
    dense = shape("repetition", ids=ids, ngram_tokens=1, penalty=-0.5)
    assert dense.reward_N.tolist() == [1.0, 0.0]
    assert dense.token_reward_R.tolist() == [0.0, -0.5, -0.5, 0.0, 0.0]
    sparse = shape("repetition", ids=ids, form="sparse", ngram_tokens=1, penalty=-0.6)
    assert sparse.reward_N.tolist() == pytest.approx([1.0 - 0.4, 0.0])
    assert sparse.token_reward_R is None


# ---- relative length -----------------------------------------------

GROUPS = st.lists(st.tuples(st.integers(1, 400), st.booleans(), st.integers(0, 2)), min_size=1, max_size=12)


def term(rows, **options):
    lengths, correct, group = (torch.tensor(column) for column in zip(*rows, strict=True))
    return relative_length_term(lengths, correct, group, RelativeLengthOptions(**options))


@given(GROUPS)
def test_the_length_term_is_bounded_and_zero_without_a_correct_response(rows):
    found = term(rows)
    assert bool(((found >= -0.5) & (found <= 0)).all())
    for value, (_, _, g) in zip(found.tolist(), rows, strict=True):
        if not any(c for _, c, h in rows if h == g):
            assert value == 0


@given(GROUPS, st.integers(2, 9))
def test_the_length_term_does_not_depend_on_the_unit_of_length(rows, scale):
    scaled = [(n * scale, c, g) for n, c, g in rows]
    torch.testing.assert_close(term(scaled), term(rows), atol=1e-9, rtol=0)


def test_the_length_term_by_hand():
    rows = [(100, True, 0), (100, True, 0), (140, False, 0), (200, False, 0), (10, False, 0), (900, False, 0)]
    assert term(rows).tolist() == pytest.approx([0.0, 0.0, 0.0, -0.5 * 0.5, -0.5 * 0.4, -0.5])


def test_right_answers_can_be_spared():
    rows = [(100, True, 0), (10, True, 0), (500, False, 0)]
    assert term(rows)[1] < 0
    assert term(rows, wrong_only=True).tolist() == [0.0, 0.0, -0.5]


def test_a_wrong_answer_of_good_length_stays_below_a_right_one():
    found = shape("relative_length", lengths=(700, 300, 100, 100), reward=(1.0, 0.0, 1.0, 1.0),
                  correct=(True, False, True, True), group=(0,) * 4, max_penalty=0.9)  # fmt: skip
    assert found.reward_N.tolist() == pytest.approx([1 - 0.9 * 5 / 6, 0.0, 1 - 0.9 / 6, 1 - 0.9 / 6])


# ---- consistency ---------------------------------------------------


@pytest.mark.parametrize(("has_format", "correct", "consistency", "reward"), [
    (1, 1, 1, 2.0), (1, 1, 0, 1.5), (1, 1, -1, 1.0), (1, 0, 1, 0.5), (1, 0, -1, 0.5), (0, 1, 1, 1.5), (0, 0, 1, 0.0),
])  # fmt: skip
def test_the_consistency_reward_table(has_format, correct, consistency, reward):
    assert consistency_reward(bool(has_format), bool(correct), consistency) == reward


def test_a_consistency_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="consistency=2"):
        consistency_reward(True, True, 2)


# ---- registry ------------------------------------------------------


def test_the_shapings_and_their_typos():
    assert SHAPINGS.names() == ["cosine", "relative_length", "repetition"]
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        SHAPINGS.get("cosin", key="objective.shaping.kind")
    with pytest.raises(ConfigError, match="penalty"):
        shape("repetition", penalty=0.05)
