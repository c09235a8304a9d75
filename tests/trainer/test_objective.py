"""Reduction, KL, mismatch weights, length penalty: properties and edges, beyond the recorded vectors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import KLConfig, MismatchConfig, OverlongConfig
from trainer.objective import kl_penalty, mismatch_weights, needs_reference, sequence_weights, soft_overlong_penalty
from verifiers.errors import ConfigError
from verifiers.options import parse_options

ROWS = st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=12)


@given(ROWS)
def test_token_and_sequence_weights_of_the_included_sum_to_one(rows):
    length, included = torch.tensor([n for n, _ in rows]), torch.tensor([b for _, b in rows])
    for reduce in ("token", "sequence"):
        weight = sequence_weights(length, included, reduce, None)
        total = float((weight * length).sum())
        assert total == pytest.approx(1.0 if bool((included & (length > 0)).any()) else 0.0)
        assert (weight[~included] == 0).all()
        assert torch.isfinite(weight).all()


def test_the_three_reductions_by_hand():
    length, included = torch.tensor([2, 6, 4, 0]), torch.tensor([True, True, False, True])
    assert sequence_weights(length, included, "token", None).tolist() == [1 / 8, 1 / 8, 0, 0]
    assert sequence_weights(length, included, "sequence", None).tolist() == [1 / 4, 1 / 12, 0, 0]
    assert sequence_weights(length, included, "constant", 10).tolist() == [1 / 20, 1 / 20, 0, 0]


def test_weights_are_exact_for_large_batches():
    weight = sequence_weights(torch.full((100_000,), 3), torch.ones(100_000).bool(), "token", None)
    assert weight.dtype == torch.float64
    assert float(weight.sum() * 3) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("estimator", "value", "slope"), [
    ("k1", lambda d: d, lambda d: 1.0),
    ("k2", lambda d: d * d / 2, lambda d: d),
    ("k3", lambda d: math.exp(-d) + d - 1, lambda d: 1 - math.exp(-d)),
])  # fmt: skip
def test_kl_estimators_and_their_gradients_by_hand(estimator, value, slope):
    d = [-2.0, -0.1, 0.0, 0.3, 4.0]
    logp = torch.tensor(d, dtype=torch.float64, requires_grad=True)
    kl = kl_penalty(logp, torch.zeros(5, dtype=torch.float64), estimator)
    kl.sum().backward()
    assert kl.tolist() == pytest.approx([value(x) for x in d], abs=1e-12)
    assert logp.grad.tolist() == pytest.approx([slope(x) for x in d], abs=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_estimates_of_the_kl(estimator):
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.log_softmax(torch.randn(5, generator=generator, dtype=torch.float64), -1) for _ in range(2))
    expectation = (p.exp() * kl_penalty(p, q, estimator)).sum()
    assert float(expectation) == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-12)


def test_k3_of_an_absurd_gap_stays_finite():
    assert torch.isfinite(kl_penalty(torch.tensor([-500.0, 500.0]), torch.zeros(2), "k3")).all()


def test_no_mismatch_correction_weighs_everything_one():
    old, segment = torch.tensor([-1.0, -50.0]), torch.tensor([0, 0])
    assert mismatch_weights(old, torch.zeros(2), segment, MismatchConfig()).tolist() == [1.0, 1.0]


def test_mismatch_weights_by_hand():
    old, sampled = torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-1.5, -0.5, -1.0])
    segment = torch.tensor([0, 0, 1])
    token = mismatch_weights(old, sampled, segment, MismatchConfig(kind="truncated", cap=1.2))
    assert token.tolist() == pytest.approx([1.2, math.exp(-0.5), math.exp(-1.0)])
    sequence = mismatch_weights(old, sampled, segment, MismatchConfig(kind="truncated", level="sequence"))
    assert sequence.tolist() == pytest.approx([1.0, 1.0, math.exp(-1.0)])


def test_mismatch_weights_carry_no_gradient_and_stay_finite():
    old = torch.tensor([0.0, -900.0], requires_grad=True)
    weight = mismatch_weights(old, torch.tensor([-900.0, 0.0]), torch.tensor([0, 1]), MismatchConfig(kind="truncated"))
    assert not weight.requires_grad
    assert torch.isfinite(weight).all()
    for level in ("token", "sequence"):
        empty = mismatch_weights(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long),
                                 MismatchConfig(kind="truncated", level=level))  # fmt: skip
        assert empty.shape == (0,)


def test_the_soft_length_penalty_is_zero_then_linear():
    found = [soft_overlong_penalty(n, 100, 20, 0.5) for n in (0, 80, 85, 90, 100)]
    assert found == pytest.approx([0.0, 0.0, -0.125, -0.25, -0.5])
    assert soft_overlong_penalty(0, 20, 20, 1.0) == 0.0


def test_a_reference_is_needed_for_a_kl_coefficient_only():
    assert not needs_reference(KLConfig())
    assert needs_reference(KLConfig(coef=1e-9))


@pytest.mark.parametrize("values", [{"kind": "soft"}, {"kind": "mask", "buffer_tokens": 4}])
def test_a_buffer_is_for_the_soft_penalty_and_needed_there(values):
    with pytest.raises(ConfigError, match="buffer_tokens"):
        parse_options(OverlongConfig, values, "objective.overlong")
