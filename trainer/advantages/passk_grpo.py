"""Pass@k GRPO: only the best sample of a group gets an advantage, its lead over the second best.

    A_best = (R_best - R_second) [/ (std_g + eps)]        all others 0

What the group as a whole would lose if its best sample had not been drawn; the objective is the maximum over the k
samples of a prompt, k the group size.

Paper: arXiv:2503.19595. Reference: volcengine/verl b178a3cd, `core_algos.py`, `compute_grpo_passk_outcome_advantage`
(standard deviation unbiased, eps 1e-6). A tie for the best gives 0 in both. verl raises for a group of one; here its
advantage is 0, because a group may lose members to samples that could not be judged in the middle of a run.

Shapes: N trajectories.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from trainer.advantages.base import ADVANTAGES, AdvantageEstimator, AdvantageInputs, always, group_std, spread
from verifiers.options import Options


class PasskGrpoOptions(Options):
    """eps: added to the (unbiased) standard deviation."""

    normalize_std: bool = True
    eps: float = Field(default=1e-6, gt=0)


def passk_advantage(reward_N: Tensor, group_N: Tensor, options: PasskGrpoOptions) -> Tensor:
    """One advantage a trajectory [N]."""
    lead_N = torch.zeros_like(reward_N)
    for group in torch.unique(group_N):
        index = torch.nonzero(group_N == group).flatten()
        if len(index) > 1:
            top, position = reward_N[index].topk(2)
            lead_N[index[position[0]]] = top[0] - top[1]
    if not options.normalize_std:
        return lead_N
    return lead_N / (group_std(reward_N, group_N, 1) + options.eps)


def _compute(inputs: AdvantageInputs, options: PasskGrpoOptions) -> Tensor:
    return spread(passk_advantage(inputs.reward_N, inputs.group_N, options), inputs)


ADVANTAGES.register("passk_grpo")(AdvantageEstimator(PasskGrpoOptions, _compute, compares_samples=always))
