"""`Signal`: a subset and a concatenation keep every part in step."""

import torch

from prm.signal import Signal


def signal(*values):
    return Signal(
        torch.tensor([float(v) for v in values]),
        token_reward=[torch.full((v,), 1.0 * v) for v in values],
        token_weight=[torch.full((v,), 0.5 * v) for v in values],
        labels={"name": [f"t{v}" for v in values]},
    )


def parts(s):
    return (s.outcome_N.tolist(), [t.tolist() for t in s.token_reward], [t.tolist() for t in s.token_weight], s.labels)


def test_a_subset_keeps_every_part_in_the_order_asked_for():
    assert parts(signal(1, 2, 3, 4).select([3, 1])) == parts(signal(4, 2))


def test_an_empty_subset_is_empty():
    empty = signal(1, 2).select([])
    assert parts(empty) == ([], [], [], {"name": []})
    assert empty.outcome_N.dtype == torch.float32


def test_absent_parts_stay_absent():
    bare = Signal(torch.tensor([1.0, 0.0]))
    for s in (bare.select([1]), Signal.concat([bare, bare])):
        assert s.token_reward is None
        assert s.token_weight is None
        assert s.labels == {}


def test_concatenation_is_end_to_end():
    assert parts(Signal.concat([signal(1, 2), signal(3)])) == parts(signal(1, 2, 3))


def test_not_judged_survives_both():
    s = Signal.concat([Signal(torch.tensor([float("nan")])), Signal(torch.tensor([1.0]))]).select([1, 0])
    assert torch.isnan(s.outcome_N).tolist() == [False, True]
