"""Group-relative advantages, beyond the recorded vectors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.advantages.base import ADVANTAGES, AdvantageInputs, group_mean
from trainer.advantages.grpo import GrpoOptions, grpo_advantage
from verifiers.errors import ConfigError
from verifiers.options import parse_options

ROWS = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=16)


def tensors(rows):
    return torch.tensor([r for _, r in rows], dtype=torch.float64), torch.tensor([g for g, _ in rows])


@given(ROWS)
def test_advantages_of_a_group_of_two_or_more_sum_to_zero(rows):
    reward, group = tensors(rows)
    for normalize in (True, False):
        advantage = grpo_advantage(reward, group, GrpoOptions(normalize_std=normalize))
        for g in set(group.tolist()):
            if (group == g).sum() > 1:
                assert abs(float(advantage[group == g].sum())) < 1e-6


@settings(deadline=None)  # the first assert_close of a process loads half a second of code
@given(ROWS)
def test_a_group_is_weighed_as_if_it_were_alone(rows):
    reward, group = tensors(rows)
    whole = grpo_advantage(reward, group, GrpoOptions())
    for g in set(group.tolist()):
        alone = grpo_advantage(
            reward[group == g], torch.zeros(int((group == g).sum()), dtype=torch.long), GrpoOptions()
        )
        torch.testing.assert_close(whole[group == g], alone, atol=1e-9, rtol=1e-6)


def test_the_order_of_trajectories_does_not_matter():
    reward, group = torch.tensor([1.0, 0.0, 0.5, 0.25, 1.0]), torch.tensor([7, 2, 7, 2, 2])
    order = torch.tensor([3, 0, 4, 1, 2])
    whole = grpo_advantage(reward, group, GrpoOptions())
    torch.testing.assert_close(grpo_advantage(reward[order], group[order], GrpoOptions()), whole[order])


@pytest.mark.parametrize(("ddof", "std"), [(1, math.sqrt(1 / 3)), (0, 0.5)])
def test_the_standard_deviation_is_the_one_asked_for(ddof, std):
    reward, group = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    found = grpo_advantage(reward, group, GrpoOptions(ddof=ddof, eps=1e-4))
    assert found.tolist() == pytest.approx([s * 0.5 / (std + 1e-4) for s in (1, 1, -1, -1)], abs=1e-12)


def test_a_group_of_equal_rewards_gets_zero_not_noise():
    found = grpo_advantage(torch.full((3,), 0.1), torch.zeros(3, dtype=torch.long), GrpoOptions())
    assert found.abs().max() < 1e-1
    exact = grpo_advantage(torch.ones(3), torch.zeros(3, dtype=torch.long), GrpoOptions())
    assert exact.tolist() == [0.0] * 3


def test_a_group_of_one_keeps_its_reward():
    found = grpo_advantage(torch.tensor([0.75]), torch.tensor([4]), GrpoOptions())
    assert found.item() == pytest.approx(0.75, abs=1e-5)
    assert grpo_advantage(torch.tensor([0.75]), torch.tensor([4]), GrpoOptions(normalize_std=False)).item() == 0.75


def test_every_response_token_gets_its_trajectorys_advantage():
    estimator = ADVANTAGES.get("grpo")
    inputs = AdvantageInputs(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.tensor([3, 2]))
    found = estimator.compute(inputs, GrpoOptions(normalize_std=False))
    assert found.tolist() == [0.5, 0.5, 0.5, -0.5, -0.5]


def test_group_mean_of_nothing_is_nothing():
    mean, size = group_mean(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert len(mean) == len(size) == 0


@pytest.mark.parametrize(("values", "key"), [({"epz": 1e-6}, "eps"), ({"eps": 0.0}, "eps"), ({"ddof": 2}, "ddof"),
                                             ({"normalize_std": "yes"}, "normalize_std")])  # fmt: skip
def test_wrong_options_are_refused_by_key(values, key):
    with pytest.raises(ConfigError, match=key):
        parse_options(GrpoOptions, values, "objective.advantage")


def test_an_unknown_estimator_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'grpo'"):
        ADVANTAGES.get("gpro", key="objective.advantage.kind")
