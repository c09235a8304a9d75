"""GRPO on the total return: every token gets the sum of all rewards of its response, relative to the group.

    R_i = outcome_i + sum_t r_{i,t}        A_i = (R_i - mean_g) / (std_g + eps)

The one estimator for rewards that are not causal, as Delta's: each token answers for the whole sum, which is its
gradient whatever the order of the terms. Definition: ours; it is GRPO (arXiv:2402.03300) with dense rewards added up,
and exactly GRPO without them.

Shapes: N trajectories.
"""

from __future__ import annotations

from torch import Tensor

from trainer.advantages.base import (
    ADVANTAGES,
    AdvantageEstimator,
    AdvantageInputs,
    always,
    own_tokens,
    spread,
    trajectory_index,
)
from trainer.advantages.grpo import GrpoOptions, grpo_advantage


class TotalReturnOptions(GrpoOptions):
    """As GRPO's."""


def total_reward(inputs: AdvantageInputs) -> Tensor:
    """The outcome plus all dense rewards of the own tokens [N]."""
    if inputs.token_reward_R is None:
        return inputs.reward_N
    dense_R = inputs.token_reward_R.to(inputs.reward_N.dtype) * own_tokens(inputs)
    return inputs.reward_N.index_add(0, trajectory_index(inputs.length_N), dense_R)


def _compute(inputs: AdvantageInputs, options: TotalReturnOptions) -> Tensor:
    return spread(grpo_advantage(total_reward(inputs), inputs.group_N, options), inputs)


ADVANTAGES.register("total_return")(
    AdvantageEstimator(TotalReturnOptions, _compute, uses_token_reward=True, compares_samples=always)
)
