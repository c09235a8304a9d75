"""Reward ensembles: how the combinations relate to each other, and what they do to scale and shift."""

import pytest
import torch

from prm.ensemble import EnsembleOptions, brme, combine
from verifiers.errors import ConfigError
from verifiers.options import parse_options

SCORES = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EVERY = [EnsembleOptions(objective=o, ddof=d) for o in ("mean", "wco", "uwo") for d in (0, 1)]


def uwo(coef, ddof=1):
    return EnsembleOptions(objective="uwo", coef=coef, ddof=ddof)


@pytest.mark.parametrize("options", EVERY)
def test_one_member_is_itself(options):
    assert torch.equal(combine(SCORES[:1], options), SCORES[0])


@pytest.mark.parametrize("options", EVERY)
def test_members_that_agree_are_their_mean(options):
    torch.testing.assert_close(combine(SCORES[:1].expand(4, 7), options), SCORES[0])


@pytest.mark.parametrize("options", EVERY)
def test_no_combination_exceeds_the_mean_and_all_move_with_a_shift(options):
    found = combine(SCORES, options)
    assert bool((found <= SCORES.mean(0) + 1e-12).all())
    torch.testing.assert_close(combine(SCORES + 3, options), found + 3)


def test_without_a_coefficient_uwo_is_the_mean():
    torch.testing.assert_close(combine(SCORES, uwo(0.0)), SCORES.mean(0))


def test_scaling_scales_mean_and_minimum_and_squares_the_penalty():
    for objective in ("mean", "wco"):
        options = EnsembleOptions(objective=objective)
        torch.testing.assert_close(combine(2 * SCORES, options), 2 * combine(SCORES, options))
    penalty = SCORES.mean(0) - combine(SCORES, uwo(0.5))
    torch.testing.assert_close(2 * SCORES.mean(0) - combine(2 * SCORES, uwo(0.5)), 4 * penalty)


def test_scores_1_2_3():
    scores = torch.tensor([[1.0], [2.0], [3.0]])
    assert combine(scores, EnsembleOptions()).item() == 2.0
    assert combine(scores, EnsembleOptions(objective="wco")).item() == 1.0
    assert combine(scores, uwo(1.0)).item() == 1.0
    assert combine(scores, uwo(1.0, ddof=0)).item() == pytest.approx(4 / 3)


def test_a_coefficient_below_zero_is_refused():
    with pytest.raises(ConfigError, match="coef"):
        parse_options(EnsembleOptions, {"objective": "uwo", "coef": -0.1}, "sources.0")


# ---- BRME ----------------------------------------------------------


def test_alpha_1_is_the_most_certain_heads_reward():
    mean, sigma = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.1, 0.9], [0.2, 0.3]])
    assert brme(mean, sigma, 1.0).tolist() == [1.0, 4.0]


def test_alpha_0_is_one_head_for_the_whole_batch():
    mean, sigma = torch.tensor([[0.0, 5.0], [2.0, 2.0]]), torch.ones(2, 2)
    assert brme(mean, sigma, 0.0).tolist() == [2.0, 2.0]  # on average the lower, though not for the first sample


def test_the_worst_head_of_the_batch_is_never_below_the_worst_head_of_each_sample():
    robust = brme(SCORES, torch.ones_like(SCORES), 0.0).mean()
    assert float(robust) >= float(combine(SCORES, EnsembleOptions(objective="wco")).mean())


def test_alpha_mixes_linearly():
    sigma = SCORES.abs()
    mixed = brme(SCORES, sigma, 0.25)
    torch.testing.assert_close(mixed, 0.25 * brme(SCORES, sigma, 1.0) + 0.75 * brme(SCORES, sigma, 0.0))


def test_an_alpha_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        brme(SCORES, SCORES.abs(), 1.5)
