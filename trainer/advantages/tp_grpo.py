"""TP-GRPO: GRPO whose advantage is changed for tokens in thoughts that a judge calls wrong, or unused.

    right response, token in a right thought      rhat
    right response, token in a wrong thought      rhat - alpha acc_g
    wrong response, token in a matched thought    rhat
    wrong response, token in an unmatched one     0

rhat is GRPO's advantage, acc_g the share of right responses of the whole group. Process rewards are not standardised.
token_label_R (1: key, that is right or matched) comes from the source `thoughts`; all 1 is GRPO.

Paper: arXiv:2507.23317, the two propositions on its advantages. The paper sums the rewards of the thoughts that end at
or after a token; with the answer as last thought, which has rhat alone, that sum is this table (a test holds it). No
reference code is public.

Shapes: N trajectories, R response tokens.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from trainer.advantages.base import (
    ADVANTAGES,
    AdvantageEstimator,
    AdvantageInputs,
    always,
    group_mean,
    needed,
    own_tokens,
)
from trainer.advantages.grpo import GrpoOptions, grpo_advantage


class TpGrpoOptions(GrpoOptions):
    """alpha: of the process reward; 0 leaves right responses as in GRPO."""

    alpha: float = Field(default=1.0, ge=0)


def _compute(inputs: AdvantageInputs, options: TpGrpoOptions) -> Tensor:
    key_R = needed(inputs, "token_label_R") > 0
    correct_N = needed(inputs, "correct_N")
    rhat_N = grpo_advantage(inputs.reward_N, inputs.group_N, options)
    accuracy_N, _ = group_mean(correct_N.to(rhat_N.dtype), inputs.group_N)
    other_N = torch.where(correct_N, rhat_N - options.alpha * accuracy_N, torch.zeros_like(rhat_N))
    rhat_R, other_R = (value_N.repeat_interleave(inputs.length_N) for value_N in (rhat_N, other_N))
    return torch.where(key_R, rhat_R, other_R) * own_tokens(inputs)


ADVANTAGES.register("tp_grpo")(
    AdvantageEstimator(
        TpGrpoOptions,
        _compute,
        needs=("token_label_R", "correct_N"),
        compares_samples=always,
        teaches_from_flat_groups=always,
    )
)
