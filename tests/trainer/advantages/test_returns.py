"""Estimators with returns: GAE, REINFORCE++, ReMax, several streams, StableReinforce. By hand, and their identities."""

from dataclasses import replace

import pytest
import torch

from tests.trainer.advantages.batches import random_inputs, run
from trainer.advantages.base import ADVANTAGES, AdvantageInputs, discounted_to_go, own_tokens, token_rewards
from trainer.advantages.gae import GaeOptions, gae
from trainer.advantages.multi_stream import MultiStreamOptions, multi_stream_return
from trainer.advantages.stable_reinforce import filter_advantages
from verifiers.errors import ConfigError


def test_rewards_to_go_by_hand_skip_tool_tokens_without_discount():
    reward = torch.tensor([1.0, 2.0, 100.0, 4.0, 8.0])
    inputs = AdvantageInputs(torch.zeros(2), torch.arange(2), torch.tensor([4, 1]),
                             mask_R=torch.tensor([True, True, False, True, True]))  # fmt: skip
    assert discounted_to_go(reward, inputs, 0.5).tolist() == [1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 0.0, 4.0, 8.0]


def test_gae_by_hand():
    inputs = AdvantageInputs(torch.tensor([1.0]), torch.arange(1), torch.tensor([3]),
                             value_R=torch.tensor([0.5, 0.25, 0.75]))  # fmt: skip
    advantage, returns = gae(inputs, GaeOptions(gamma=0.5, lam=0.5))
    delta = [0.5 * 0.25 - 0.5, 0.5 * 0.75 - 0.25, 1 - 0.75]
    expected = [delta[0] + 0.25 * (delta[1] + 0.25 * delta[2]), delta[1] + 0.25 * delta[2], delta[2]]
    assert advantage.tolist() == pytest.approx(expected)
    assert returns.tolist() == pytest.approx([a + v for a, v in zip(expected, [0.5, 0.25, 0.75], strict=True)])


def test_gae_with_gamma_and_lambda_1_returns_the_plain_rewards_to_go():
    inputs = random_inputs()
    _, returns = gae(inputs, GaeOptions())
    torch.testing.assert_close(returns, discounted_to_go(token_rewards(inputs), inputs, 1.0))


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_a_critic_that_is_right_leaves_no_advantage(lam):
    inputs = random_inputs()
    exact = discounted_to_go(token_rewards(inputs), inputs, 0.9)
    advantage, returns = gae(replace(inputs, value_R=exact), GaeOptions(gamma=0.9, lam=lam))
    assert advantage.abs().max() < 1e-12
    torch.testing.assert_close(returns, exact)


def test_lambda_0_is_the_one_step_error():
    inputs = random_inputs(mask=False)
    advantage, _ = gae(inputs, GaeOptions(lam=0.0))
    reward, value, start = token_rewards(inputs), inputs.value_R, 0
    for n in inputs.length_N.tolist():
        following = torch.cat([value[start + 1 : start + n], torch.zeros(1, dtype=torch.float64)])
        expected = reward[start : start + n] + following - value[start : start + n]
        torch.testing.assert_close(advantage[start : start + n], expected)
        start += n


def test_values_at_tool_tokens_do_not_matter():
    inputs = random_inputs()
    other = torch.where(own_tokens(inputs), inputs.value_R, torch.full_like(inputs.value_R, 1e6))
    torch.testing.assert_close(run("gae", replace(inputs, value_R=other)), run("gae", inputs))


def test_returns_of_gae_do_not_depend_on_whitening():
    inputs, estimator = random_inputs(), ADVANTAGES.get("gae")
    plain, whitened = GaeOptions(whiten=False), GaeOptions()
    assert torch.equal(estimator.returns(inputs, plain), estimator.returns(inputs, whitened))
    assert not torch.allclose(estimator.compute(inputs, plain), estimator.compute(inputs, whitened))


@pytest.mark.parametrize("kind", ["gae", "reinforce_pp", "reinforce_pp_baseline"])
def test_whitened_advantages_have_mean_0_and_variance_1_over_the_policys_tokens(kind):
    inputs = random_inputs()
    found = run(kind, inputs)[own_tokens(inputs)]
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(found.var(correction=1)) == pytest.approx(1.0, abs=1e-6)


def test_a_single_token_is_whitened_to_0_where_the_reference_raises():
    inputs = AdvantageInputs(torch.tensor([5.0]), torch.arange(1), torch.tensor([1]))
    assert run("reinforce_pp", inputs).tolist() == [0.0]


def test_reinforce_pp_sees_the_outcome_across_a_tool_call():
    """The recorded version resets the return at a masked token, so the first tokens would see reward 0."""
    mask = torch.tensor([True, False, True, True])
    inputs = AdvantageInputs(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.tensor([3, 1]), mask_R=mask)
    found = run("reinforce_pp", inputs)
    assert found[0] == found[2] > 0 > found[3]


def test_remax_is_the_outcome_minus_the_greedy_outcome():
    inputs = AdvantageInputs(torch.tensor([1.0, 0.0]), torch.arange(2), torch.tensor([2, 1]),
                             baseline_N=torch.tensor([0.25, 0.25]))  # fmt: skip
    assert run("remax", inputs).tolist() == [0.75, 0.75, -0.25]


# ---- streams -------------------------------------------------------


def test_streams_with_gamma_1_are_the_return_of_the_summed_rewards():
    inputs = random_inputs()
    found = multi_stream_return(inputs, MultiStreamOptions(gammas=[1.0, 1.0]))
    torch.testing.assert_close(found, discounted_to_go(inputs.stream_RK.sum(1), inputs, 1.0))


def test_without_a_critic_the_advantage_is_the_return():
    inputs = replace(random_inputs(), value_R=None)
    returns = multi_stream_return(inputs, MultiStreamOptions(gammas=[1.0, 0.9]))
    assert torch.equal(run("multi_stream", inputs), returns)


def test_streams_without_a_discount_each_are_refused():
    with pytest.raises(ConfigError, match="1 discounts for 2 reward streams"):
        run("multi_stream", random_inputs(), gammas=[1.0])


# ---- StableReinforce -----------------------------------------------


def test_the_filter_hardly_touches_normal_advantages():
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = filter_advantages(normal, torch.ones(200_000).bool(), 3.0)
    assert 0 < float((found == 0).double().mean()) < 0.003


def test_the_filter_does_not_standardise_again():
    values = torch.cat([torch.zeros(30), torch.tensor([100.0])]).double()
    found = filter_advantages(values, torch.ones(31).bool(), 3.0)
    assert found[-1] == 0
    assert found[0] == pytest.approx(-((1 / 30) ** 0.5))


def test_equal_advantages_become_zero():
    assert filter_advantages(torch.full((5,), 0.3), torch.ones(5).bool(), 3.0).tolist() == [0.0] * 5


def test_the_filter_ignores_tool_tokens():
    own = torch.tensor([True, True, False])
    assert filter_advantages(torch.tensor([1.0, -1.0, 1e9]), own, 3.0).tolist() == [1.0, -1.0, 0.0]
