"""REINFORCE++: rewards to go, whitened over all tokens of the batch; no critic and no group.

    G_t = r_t + gamma G_{t+1}        A_t = (G_t - mean) / sqrt(var + 1e-8)         mean, var over the batch's tokens

r_t is the dense reward (a KL in the reward belongs there) plus the outcome at the last token. Long responses weigh more
in mean and variance, because they are taken over tokens.

Paper: arXiv:2501.03262. Reference: volcengine/verl b178a3cd, `core_algos.py`,
`compute_reinforce_plus_plus_outcome_advantage`. That version forgets the return at tool tokens, so that what comes
before a tool call sees no outcome (fixed in verl 0.9.1); we skip tool tokens, as 0.9.1 does.

Shapes: R response tokens.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from trainer.advantages.base import (
    ADVANTAGES,
    AdvantageEstimator,
    AdvantageInputs,
    always,
    discounted_to_go,
    token_rewards,
    whiten,
)
from verifiers.options import Options


class ReinforcePpOptions(Options):
    """gamma: discount a token."""

    gamma: float = Field(default=1.0, ge=0, le=1)


def _compute(inputs: AdvantageInputs, options: ReinforcePpOptions) -> Tensor:
    return whiten(discounted_to_go(token_rewards(inputs), inputs, options.gamma), inputs)


ADVANTAGES.register("reinforce_pp")(
    AdvantageEstimator(
        ReinforcePpOptions, _compute, uses_token_reward=True, uses_rewards_to_go=True, teaches_from_flat_groups=always
    )
)
