"""GPG: group-centred rewards, scaled up for the samples that teach nothing.

    A_i = alpha (R_i - mean_g) / f_norm

alpha, `scale=nonzero_rewards`: batch size / samples of non-zero reward, as in verl. `scale=informative_groups`: batch
size / samples in groups of unequal rewards, the correction the paper argues for (samples without gradient do not
dilute the mean). The two differ whenever a mixed group has zero rewards, and verl's depends on where the reward's zero
is.

Paper: arXiv:2504.02546. Reference: volcengine/verl b178a3cd, `core_algos.py`, `compute_gpg_outcome_advantage` (its
`alpha` argument is overwritten there). Used with `loss.kind=reinforce`. A group of one: A = alpha R / f_norm, as there.

Shapes: N trajectories.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from trainer.advantages.base import (
    ADVANTAGES,
    AdvantageEstimator,
    AdvantageInputs,
    always,
    group_baseline,
    spread,
    unequal_groups,
)
from verifiers.options import Options


class GpgOptions(Options):
    """f_norm: constant divisor. scale: which samples count in alpha."""

    f_norm: float = Field(default=1.0, gt=0)
    scale: Literal["nonzero_rewards", "informative_groups"] = "nonzero_rewards"


def _compute(inputs: AdvantageInputs, options: GpgOptions) -> Tensor:
    reward_N, group_N = inputs.reward_N, inputs.group_N
    if options.scale == "nonzero_rewards":
        counted = torch.count_nonzero(reward_N)
    else:
        counted = unequal_groups(reward_N, group_N).sum()
    alpha = len(reward_N) / counted.clamp(min=1)
    return spread(alpha * (reward_N - group_baseline(reward_N, group_N)) / options.f_norm, inputs)


ADVANTAGES.register("gpg")(AdvantageEstimator(GpgOptions, _compute, compares_samples=always))
