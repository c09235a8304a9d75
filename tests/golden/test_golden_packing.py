"""The layout of a packed batch against a hand-made toy."""

import json
from pathlib import Path

import pytest
import torch

from rollout.packing import pack
from tests.helpers import trajectory

pytestmark = pytest.mark.golden

(RECORD,) = json.loads((Path(__file__).parent / "packing_invariants.json").read_text(encoding="utf-8"))


def in_recorded_order():
    """Our packing sorts by length; the recorded toy does not. Its numbers, permuted the same way."""
    sequences = RECORD["inputs"]["sequences"]
    batch = pack([trajectory(s[:1], s[1:]) for s in sequences], 11)
    assert len(batch) == 1
    return sequences, batch[0]


def test_borders_and_positions_equal_the_toys():
    sequences, batch = in_recorded_order()
    assert batch.sequence_index == [2, 0, 1]
    borders = batch.cu_seqlens.tolist()
    recorded = RECORD["outputs"]["cu_seqlens"]
    for slot, i in enumerate(batch.sequence_index):
        here, there = slice(borders[slot], borders[slot + 1]), slice(recorded[i], recorded[i + 1])
        assert batch.ids_T[here].tolist() == sequences[i]
        assert batch.position_T[here].tolist() == RECORD["outputs"]["position_ids"][there]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == 5


def test_no_position_predicts_a_foreign_token():
    """The last position of each sequence would be scored against the next sequence's first token."""
    sequences, batch = in_recorded_order()
    borders = batch.cu_seqlens.tolist()
    recorded = RECORD["outputs"]["cu_seqlens"]
    foreign = {recorded[i + 1] - 1 for i in range(len(sequences))}
    assert foreign == set(RECORD["outputs"]["positions_whose_rolled_label_is_foreign"])
    ours = {borders[slot] + p - recorded[i] for slot, i in enumerate(batch.sequence_index)
            for p in foreign if recorded[i] <= p < recorded[i + 1]}  # fmt: skip
    assert set(batch.predict_R.tolist()) == set(range(11)) - ours
    assert batch.target_R.tolist() == batch.ids_T[batch.predict_R + 1].tolist()
    rolled = RECORD["outputs"]["rolled_labels"]
    expected = [rolled[p] for i in batch.sequence_index for p in range(recorded[i], recorded[i + 1] - 1)]
    assert batch.target_R.tolist() == expected


def test_one_recorded_log_prob_belongs_to_each_scored_token():
    _, batch = in_recorded_order()
    unpacked, packed = RECORD["outputs"]["logprobs_unpacked"], RECORD["outputs"]["logprobs_packed"]
    values = batch.flatten([torch.tensor(x, dtype=torch.float64) for x in unpacked])
    assert {i: v.tolist() for i, v in batch.split(values).items()} == dict(enumerate(packed))
