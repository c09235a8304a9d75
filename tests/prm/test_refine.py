"""Clip and Delta: the acceptance facts of arXiv:2410.15115 as specified, and what goes wrong in other forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prm.refine import RefineOptions, Refiner, clip, delta
from verifiers.errors import ConfigError
from verifiers.options import parse_options

RHO = torch.tensor([0.9, 0.5, 0.7, 0.2], dtype=torch.float64)
SCORES = st.lists(st.floats(0, 1), max_size=8).map(lambda v: torch.tensor(v, dtype=torch.float64))


def suffix_sums(reward):
    return reward.flip(0).cumsum(0).flip(0)


def close(value, expected):
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


def refine(scores, **options):
    return Refiner(parse_options(RefineOptions, options)).refine([scores])[0]


# ---- acceptance facts ------------------------------------------------


def test_delta_by_hand_and_its_suffix_sums_are_the_scores_but_the_last():
    close(delta(RHO), [0.4, -0.2, 0.7, 0.0])
    close(suffix_sums(delta(RHO)), [0.9, 0.5, 0.7, 0.0])


def test_clip_and_clip_delta_by_hand():
    close(refine(RHO, kind="clip", eta=0.6), [0.0, -0.1, 0.0, -0.4])
    close(refine(RHO, kind="clip_delta", eta=0.6), [0.1, -0.1, 0.0, 0.0])
    close(suffix_sums(refine(RHO, kind="clip_delta", eta=0.6)), [0.0, -0.1, 0.0, 0.0])


@pytest.mark.parametrize("eta", [0.3, 0.5, 0.6, 0.95])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_copies_of_a_step_before_the_last_pay_only_without_refinement(eta, n):
    longer = torch.cat([RHO[:2], RHO[1:2].repeat(n), RHO[2:]])

    def gain(**options):
        return float(refine(longer, **options).sum() - refine(RHO, **options).sum())

    assert gain(kind="none") == pytest.approx(n * 0.5)
    assert gain(kind="delta") == pytest.approx(0)
    assert gain(kind="clip", eta=eta) == pytest.approx(-n * max(0.0, eta - 0.5))
    assert gain(kind="clip_delta", eta=eta) == pytest.approx(0)


@given(SCORES)
def test_an_eta_that_all_scores_reach_clips_everything_to_zero(scores):
    eta = float(scores.min()) if len(scores) else 0.5
    assert clip(scores, eta).abs().sum() == 0


@pytest.mark.parametrize("kind", ["delta", "clip_delta"])
@pytest.mark.parametrize("scores", [[], [0.8]])
def test_no_step_and_a_single_step_earn_nothing(kind, scores):
    options = {"eta": 0.9} if kind == "clip_delta" else {}
    assert refine(torch.tensor(scores), kind=kind, **options).tolist() == [0.0] * len(scores)


@given(SCORES)
def test_delta_telescopes_to_every_score_but_the_last(scores):
    expected = torch.cat([scores[:-1], torch.zeros(min(1, len(scores)), dtype=torch.float64)])
    torch.testing.assert_close(suffix_sums(delta(scores)), expected)


@given(SCORES, st.floats(0, 1))
def test_the_sum_of_clip_is_never_positive(scores, eta):
    assert float(clip(scores, eta).sum()) <= 0


# ---- traps -----------------------------------------------------------


def test_delta_then_clip_would_not_telescope():
    trapped = clip(delta(RHO), 0.6)
    right = refine(RHO, kind="clip_delta", eta=0.6)
    assert float(right.sum()) == pytest.approx(min(0.9 - 0.6, 0.0))
    assert float(trapped.sum()) != pytest.approx(float(clip(RHO, 0.6)[0]))
    longer = torch.cat([RHO[:2], RHO[1:]])
    assert float(refine(longer, kind="clip_delta", eta=0.6).sum()) == pytest.approx(float(right.sum()))
    assert float(clip(delta(longer), 0.6).sum()) < float(trapped.sum()) - 0.5  # a copied step is charged eta


def test_whitened_clip_would_reward_steps_again():
    clipped = refine(RHO, kind="clip", eta=0.6)
    whitened = (clipped - clipped.mean()) / clipped.std()
    assert float(whitened.max()) > 0  # the trap
    assert float(clipped.max()) <= 0


@given(SCORES.filter(lambda s: len(s) >= 2), st.floats(0.5, 1), st.integers(0, 6))
def test_with_a_discount_delta_is_the_score_less_a_penalty_for_every_later_step(scores, gamma, k):
    """sum_j gamma^(j-k) r_j = rho_k - (1 - gamma) sum_{j>k} gamma^(j-k-1) rho_j, both sums up to the step before the
    last: the bound rho_k holds at gamma 1 only."""
    last = len(scores) - 1  # its score takes no part
    k = min(k, last - 1)
    reward = delta(scores)
    left = sum(gamma ** (j - k) * float(reward[j]) for j in range(k, last + 1))
    penalty = (1 - gamma) * sum(gamma ** (j - k - 1) * float(scores[j]) for j in range(k + 1, last))
    assert left == pytest.approx(float(scores[k]) - penalty, abs=1e-9)


def test_with_a_discount_longer_solutions_lose_under_delta_and_gain_under_the_naive_sum():
    gamma, score = 0.9, torch.full((3,), 0.8, dtype=torch.float64)
    longer = torch.full((9,), 0.8, dtype=torch.float64)

    def value(reward):
        return sum(gamma**j * float(r) for j, r in enumerate(reward))

    assert value(delta(longer)) < value(delta(score)) - 0.1
    assert value(longer) > value(score) + 1


def test_a_truncated_solution_gets_nothing_for_its_last_step_either():
    """The refinement knows no correctness: what was cut off is the last step, whatever it scores."""
    for last in (0.0, 0.2, 1.0):
        cut = torch.cat([RHO[:3], torch.tensor([last], dtype=torch.float64)])
        assert float(delta(cut)[-1]) == 0
        close(delta(cut), [0.4, -0.2, 0.7, 0.0])


def test_rewards_to_go_under_delta_pay_for_one_more_true_line():
    """Why Delta alone needs the total return: the -rho that pays for a step stands before it."""
    finish_now, one_more = torch.tensor([0.9, 0.9]), torch.tensor([0.9, 0.9, 0.9])
    assert float(delta(finish_now).sum()) == pytest.approx(float(delta(one_more).sum()))
    after_first_step = [float(suffix_sums(delta(s))[1]) for s in (finish_now, one_more)]
    assert after_first_step == pytest.approx([0.0, 0.9])


# ---- threshold -------------------------------------------------------


def test_the_running_mean_takes_the_batch_in_first_and_moves_with_momentum():
    refiner = Refiner(RefineOptions(kind="clip", eta="running_mean", momentum=0.75))
    first = refiner.refine([torch.tensor([0.2, 0.6]), torch.tensor([1.0]), torch.tensor([])])
    assert refiner.mean == pytest.approx(0.6)
    torch.testing.assert_close(torch.cat(first), torch.tensor([-0.4, 0.0, 0.0]))
    refiner.refine([torch.tensor([0.2])])
    assert refiner.mean == pytest.approx(0.75 * 0.6 + 0.25 * 0.2)
    assert refiner.metrics() == {"eta": refiner.mean}


def test_a_batch_without_steps_leaves_the_running_mean():
    refiner = Refiner(RefineOptions(kind="clip", eta="running_mean"))
    assert refiner.refine([torch.tensor([])])[0].tolist() == []
    refiner.refine([torch.tensor([0.5])])
    refiner.refine([torch.tensor([])])
    assert refiner.mean == pytest.approx(0.5)


def test_the_running_mean_goes_on_from_its_state():
    batches = [[torch.rand(4, generator=torch.Generator().manual_seed(i))] for i in range(4)]
    whole, parts = (Refiner(RefineOptions(kind="clip_delta", eta="running_mean")) for _ in range(2))
    for batch in batches:
        last = whole.refine(batch)
    for batch in batches[:2]:
        parts.refine(batch)
    resumed = Refiner(parts.options)
    resumed.load_state_dict(parts.state_dict())
    for batch in batches[2:]:
        again = resumed.refine(batch)
    assert torch.equal(last[0], again[0])


@pytest.mark.parametrize("options", [{"kind": "clip"}, {"kind": "clip_delta"}, {"kind": "delta", "eta": 0.5},
                                     {"eta": 0.5}, {"kind": "clip", "eta": "mean"}])  # fmt: skip
def test_eta_is_given_where_it_is_used_and_only_there(options):
    with pytest.raises(ConfigError, match="eta"):
        parse_options(RefineOptions, options)
