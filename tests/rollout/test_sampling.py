"""`sample_tokens` against an independent reference in float64, and on degenerate rows."""

import math

import pytest
import torch

from rollout.sampling import greedy_tokens, sample_tokens
from tests.helpers import reference_log_probs

ALMOST_ONE = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
VOCABULARIES = [7, 100, 512, 4096, 5000]  # 512 and 4096 take the two-level path, the others cannot be cut into blocks


def random_logits(rows, vocabulary, seed=0, scale=3.0):
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.9), (1.0, 0.5), (0.6, 0.95)])
def test_log_probs_are_those_of_the_distribution_sampled_from(vocabulary, temperature, top_p):
    logits = random_logits(16, vocabulary)
    uniform = torch.rand(16, generator=torch.Generator().manual_seed(1))
    token, logp_sampled, logp_model = sample_tokens(logits, uniform, temperature, top_p)
    expected = reference_log_probs(logits, temperature, top_p).gather(1, token[:, None])[:, 0]
    untransformed = torch.log_softmax(logits.double(), -1).gather(1, token[:, None])[:, 0]
    torch.testing.assert_close(logp_sampled.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(logp_model.double(), untransformed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_the_uniform_number_picks_the_token_whose_cdf_interval_holds_it(vocabulary, top_p):
    """Inverse CDF in vocabulary order: the middle of a token's interval must give that token."""
    logits = random_logits(1, vocabulary, seed=2)
    p = reference_log_probs(logits, 0.8, top_p)[0].exp()
    cdf = p.cumsum(0)
    wide = (p > 1e-4).nonzero()[:, 0]  # narrower intervals are within the rounding of float32
    middle = (cdf[wide] - p[wide] / 2).float()
    token, _, _ = sample_tokens(logits.expand(len(wide), -1), middle, 0.8, top_p)
    assert token.tolist() == wide.tolist()


@pytest.mark.parametrize("vocabulary", [50, 4096])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.4, 0.9)])
def test_frequencies_follow_the_distribution(vocabulary, temperature, top_p):
    draws = 20_000
    logits = random_logits(1, vocabulary, seed=3, scale=4.0)
    generator = torch.Generator().manual_seed(4)
    count = torch.zeros(vocabulary, dtype=torch.float64)
    for _ in range(10):
        uniform = torch.rand(draws // 10, generator=generator)
        token, _, _ = sample_tokens(logits.expand(draws // 10, -1), uniform, temperature, top_p)
        count += torch.bincount(token, minlength=vocabulary)
    expected = draws * reference_log_probs(logits, temperature, top_p)[0].exp()
    assert count[expected == 0].sum() == 0
    common = expected >= 5
    observed = torch.cat([count[common], count[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum().clamp(min=1)[None]])
    chi_square, freedom = float(((observed - wanted) ** 2 / wanted).sum()), len(observed) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("top_p", [1.0, 0.9, 1e-6])
@pytest.mark.parametrize("uniform", [0.0, 0.5, ALMOST_ONE.item()])
def test_a_token_without_mass_is_never_drawn(vocabulary, top_p, uniform):
    alone, few, last = (torch.full((vocabulary,), -math.inf) for _ in range(3))
    alone[vocabulary // 2] = 3.0
    few[[1, vocabulary // 2, vocabulary - 2]] = torch.tensor([0.0, 1.0, -20.0])
    last[-1] = -50.0
    peaked = torch.full((vocabulary,), -1e4)  # finite, but exp underflows to zero
    peaked[3] = 1e4
    logits = torch.stack([alone, few, last, peaked])
    token, logp_sampled, logp_model = sample_tokens(logits, torch.full((4,), uniform), 0.9, top_p)
    assert token[0] == vocabulary // 2
    assert token[1] in (1, vocabulary // 2, vocabulary - 2)
    assert token[2] == vocabulary - 1
    assert token[3] == 3
    assert torch.isfinite(logp_sampled).all()
    assert torch.isfinite(logp_model).all()
    assert logp_sampled[[0, 2, 3]].abs().max() < 1e-6


@pytest.mark.parametrize("vocabulary", [100, 4096])
def test_the_ends_of_the_unit_interval_give_the_first_and_the_last_possible_token(vocabulary):
    logits = torch.full((2, vocabulary), -math.inf)
    logits[:, 5 : vocabulary - 5] = 0.0
    token, _, _ = sample_tokens(logits, torch.stack([torch.tensor(0.0), ALMOST_ONE]), 1.0, 1.0)
    assert token.tolist() == [5, vocabulary - 6]


@pytest.mark.parametrize("vocabulary", [100, 4096])
def test_a_tiny_top_p_is_greedy(vocabulary):
    logits = random_logits(64, vocabulary, seed=5)
    uniform = torch.rand(64, generator=torch.Generator().manual_seed(6))
    token, logp_sampled, logp_model = sample_tokens(logits, uniform, 1.0, 1e-6)
    assert token.tolist() == logits.argmax(-1).tolist()
    assert logp_sampled.abs().max() < 1e-6
    assert (logp_model < -1e-3).any()


def test_a_nucleus_wider_than_the_candidate_list_is_found_too():
    """Nearly flat logits over 5,000 tokens: 90% of the mass takes about 4,500 of them."""
    logits = random_logits(4, 5000, seed=7, scale=0.01)
    uniform = torch.tensor([0.01, 0.3, 0.6, 0.99])
    token, logp_sampled, _ = sample_tokens(logits, uniform, 1.0, 0.9)
    expected = reference_log_probs(logits, 1.0, 0.9).gather(1, token[:, None])[:, 0]
    torch.testing.assert_close(logp_sampled.double(), expected, atol=1e-3, rtol=0)
    assert (logp_sampled > -math.log(4700)).all()


def test_top_p_counts_mass_after_temperature():
    logits = torch.tensor(
        [[0.0, math.log(0.5), math.log(0.25)]]
    )  # 4/7, 2/7, 1/7; at temperature 0.5: 16/21, 4/21, 1/21
    uniform = torch.tensor([0.99])
    assert sample_tokens(logits, uniform, 1.0, 0.7)[0].item() == 1
    assert sample_tokens(logits, uniform, 0.5, 0.7)[0].item() == 0


def test_half_precision_logits_are_scored_in_float32():
    logits = random_logits(8, 100).bfloat16()
    uniform = torch.rand(8, generator=torch.Generator().manual_seed(8))
    token, logp_sampled, _ = sample_tokens(logits, uniform, 1.0, 1.0)
    expected = torch.log_softmax(logits.double(), -1).gather(1, token[:, None])[:, 0]
    assert logp_sampled.dtype == torch.float32
    torch.testing.assert_close(logp_sampled.double(), expected, atol=1e-5, rtol=0)


def test_the_input_logits_are_left_as_they_were():
    logits = random_logits(4, 100)
    before = logits.clone()
    sample_tokens(logits, torch.rand(4), 0.7, 0.9)
    greedy_tokens(logits)
    assert torch.equal(logits, before)


def test_greedy_takes_the_mode_with_certainty():
    logits = random_logits(8, 100)
    token, logp_sampled, logp_model = greedy_tokens(logits)
    assert token.tolist() == logits.argmax(-1).tolist()
    assert logp_sampled.tolist() == [0.0] * 8
    torch.testing.assert_close(logp_model, torch.log_softmax(logits, -1).amax(-1), atol=1e-5, rtol=0)
