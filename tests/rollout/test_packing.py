"""Packing: every sequence once, within the budget, never cut."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rollout.packing import balance, first_fit_decreasing, pack
from tests.helpers import random_trajectories, trajectory

LENGTHS = st.lists(st.integers(1, 60), max_size=40)
SEQUENCES = st.lists(
    st.builds(
        trajectory, st.lists(st.integers(0, 99), min_size=1, max_size=8), st.lists(st.integers(0, 99), max_size=8)
    ),
    min_size=1,
    max_size=12,
)


@given(LENGTHS, st.integers(1, 80))
def test_first_fit_decreasing_holds_everyone_once_within_capacity(lengths, capacity):
    bins = first_fit_decreasing(lengths, capacity)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    for b in bins:
        assert b
        assert sum(lengths[i] for i in b) <= capacity or len(b) == 1


@given(LENGTHS, st.integers(1, 80))
def test_no_two_bins_could_have_been_one(lengths, capacity):
    loads = sorted(sum(lengths[i] for i in b) for b in first_fit_decreasing(lengths, capacity))
    assert len(loads) < 2 or loads[0] + loads[1] > capacity


@given(LENGTHS)
def test_bins_list_their_items_in_order_of_decreasing_length(lengths):
    for b in first_fit_decreasing(lengths, 64):
        assert [lengths[i] for i in b] == sorted((lengths[i] for i in b), reverse=True)


def test_ties_go_by_index():
    assert first_fit_decreasing([5, 5, 5, 5], 10) == [[0, 1], [2, 3]]
    assert first_fit_decreasing([], 10) == []


@given(LENGTHS, st.integers(1, 9))
def test_balance_holds_everyone_once(lengths, parts):
    out = balance(lengths, parts)
    assert len(out) == parts
    assert sorted(i for part in out for i in part) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(2, 3))
def test_balance_is_within_grahams_bound_of_the_optimum(lengths, parts):
    best = min(
        max(sum(n for n, p in zip(lengths, choice, strict=True) if p == part) for part in range(parts))
        for choice in product(range(parts), repeat=len(lengths))
    )
    load = max(sum(lengths[i] for i in part) for part in balance(lengths, parts))
    assert load * 3 * parts <= best * (4 * parts - 1)  # 4/3 - 1/(3m)


def test_equal_items_are_dealt_evenly():
    assert sorted(map(len, balance([7] * 10, 4))) == [2, 2, 3, 3]


@given(SEQUENCES, st.integers(1, 40))
def test_a_packed_batch_is_its_sequences_end_to_end(sequences, max_tokens):
    batches = pack(sequences, max_tokens)
    assert sorted(i for b in batches for i in b.sequence_index) == list(range(len(sequences)))
    for b in batches:
        whole = [sequences[i].prompt_ids + sequences[i].response_ids for i in b.sequence_index]
        assert b.ids_T.tolist() == [t for s in whole for t in s]
        assert b.position_T.tolist() == [t for s in whole for t in range(len(s))]
        assert b.cu_seqlens.tolist() == [sum(map(len, whole[:n])) for n in range(len(whole) + 1)]
        assert b.max_seqlen == max(map(len, whole))
        assert b.target_R.tolist() == [t for i in b.sequence_index for t in sequences[i].response_ids]
        assert b.segment_R.tolist() == [s for s, i in enumerate(b.sequence_index) for _ in sequences[i].response_ids]
        assert len(b.ids_T) <= max_tokens or len(whole) == 1


@given(SEQUENCES)
def test_every_scored_token_is_predicted_by_the_one_before_it_in_its_own_sequence(sequences):
    for b in pack(sequences, 64):
        assert b.ids_T[b.predict_R + 1].tolist() == b.target_R.tolist()
        segment_T = torch.bucketize(torch.arange(len(b.ids_T)), b.cu_seqlens[1:].long(), right=True)
        assert segment_T[b.predict_R].tolist() == segment_T[b.predict_R + 1].tolist() == b.segment_R.tolist()


@given(SEQUENCES, st.integers(1, 40))
def test_split_is_the_inverse_of_flatten(sequences, max_tokens):
    values = [torch.arange(len(s.response_ids)) + 100.0 * i for i, s in enumerate(sequences)]
    found = {}
    for b in pack(sequences, max_tokens):
        found |= b.split(b.flatten(values))
    assert found.keys() == set(range(len(sequences)))
    assert all(torch.equal(found[i], values[i]) for i in found)


def test_dtypes_are_those_that_attention_kernels_and_indexing_want():
    (b,) = pack(random_trajectories(), 4096)
    assert b.cu_seqlens.dtype == torch.int32
    assert {t.dtype for t in (b.ids_T, b.position_T, b.predict_R, b.target_R, b.segment_R)} == {torch.int64}
    assert isinstance(b.max_seqlen, int)


def test_a_sequence_longer_than_the_budget_gets_a_batch_of_its_own_uncut():
    long, short = trajectory([1] * 10, [2] * 10), trajectory([3], [4])
    batches = pack([short, long], 8)
    assert [b.sequence_index for b in batches] == [[1], [0]]
    assert len(batches[0].ids_T) == 20


def test_an_empty_prompt_is_refused_because_nothing_predicts_its_first_token():
    with pytest.raises(ValueError, match="sequence 1 has an empty prompt"):
        pack([trajectory([1], [2]), trajectory([], [2])], 8)


def test_nothing_packs_to_nothing():
    assert pack([], 8) == []
