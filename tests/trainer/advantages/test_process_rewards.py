"""returns_to_go and total_return: estimators for dense rewards without a critic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.trainer.advantages.batches import random_inputs, run
from trainer.advantages.base import AdvantageInputs, at_last_token, discounted_to_go, token_rewards


def by_hand():
    """Two samples of one prompt: rewards 1 0 -1 then outcome 1, and outcome 0."""
    return AdvantageInputs(torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long), torch.tensor([3, 2]),
                           torch.tensor([1.0, 0.0, -1.0, 0.0, 0.0]))  # fmt: skip


def test_rewards_to_go_by_hand_are_compared_with_the_mean_of_the_groups_tokens():
    found = run("returns_to_go", by_hand(), normalize_std=False)
    assert found.tolist() == pytest.approx([0.8, -0.2, -0.2, -0.2, -0.2])  # returns 1 0 0 | 0 0, mean 0.2
    scaled = run("returns_to_go", by_hand())
    assert scaled.tolist() == pytest.approx([0.8 / 0.4, *[-0.2 / 0.4] * 4], abs=1e-4)


def test_a_discount_is_taken_by_token():
    found = run("returns_to_go", by_hand(), normalize_std=False, gamma=0.5)
    returns = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(found, returns - returns.mean())


def test_the_total_return_is_on_every_token():
    inputs = replace(by_hand(), token_reward_R=torch.tensor([1.0, 0.0, 1.0, 0.5, 0.0]))
    found = run("total_return", inputs, normalize_std=False)
    assert found.tolist() == pytest.approx([1.25] * 3 + [-1.25] * 2)  # totals 3 and 0.5


def test_without_dense_rewards_the_total_return_is_grpo():
    inputs = replace(random_inputs(), token_reward_R=None)
    assert torch.equal(run("total_return", inputs), run("grpo", inputs))


def test_without_dense_rewards_the_rewards_to_go_are_opo():
    inputs = replace(random_inputs(mask=False), token_reward_R=None)
    torch.testing.assert_close(run("returns_to_go", inputs, normalize_std=False), run("opo", inputs))


@pytest.mark.parametrize("options", [{}, {"normalize_std": False}, {"gamma": 0.9}])
def test_advantages_of_a_group_sum_to_zero_over_its_tokens(options):
    inputs = random_inputs()
    found = run("returns_to_go", inputs, **options)
    group_R = inputs.group_N.repeat_interleave(inputs.length_N)
    for group in (1, 5):
        assert abs(float(found[group_R == group].sum())) < 1e-9


def test_a_group_of_one_has_nothing_to_compare_with():
    inputs = random_inputs()
    alone = inputs.group_N.repeat_interleave(inputs.length_N) == 9
    expected = discounted_to_go(token_rewards(inputs), inputs, 1.0)
    torch.testing.assert_close(run("returns_to_go", inputs)[alone], expected[alone])


def test_equal_returns_teach_nothing():
    inputs = AdvantageInputs(torch.full((3,), 0.1), torch.zeros(3, dtype=torch.long), torch.tensor([3, 5, 1]))
    assert not run("returns_to_go", inputs).any()  # and not a rounding error over a standard deviation of 0
    assert not run("total_return", inputs).any()


def test_the_total_does_not_depend_on_where_its_parts_stand():
    inputs = replace(random_inputs(mask=False), token_reward_R=None)
    moved = replace(inputs, reward_N=torch.zeros(7, dtype=torch.float64),
                    token_reward_R=at_last_token(inputs.reward_N, inputs))  # fmt: skip
    torch.testing.assert_close(run("total_return", moved), run("total_return", inputs))
