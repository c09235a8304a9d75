"""RAFT and Reinforce-Rej: learn from the responses that were kept.

    select=positive      A = max(R - baseline, 0)          RAFT with a verifier, and RAFT++
    select=best          A = 1 for the best sample of each group (the first of equals), 0 for the others
    select=mixed_groups  A = R - baseline in groups of unequal rewards, 0 in the others        (Reinforce-Rej)

With `loss.kind=reinforce` this is RAFT, with `ppo_clip` RAFT++. The token mean is over all tokens, of rejected
responses too, so the step shrinks with the pass rate. The published rewards are -1 and 1; for rewards 0 and 1 set
`baseline` to 0.5 with mixed_groups. With `positive` groups that are all correct do teach:
`objective.zero_variance.drop=false`.

Papers: RAFT arXiv:2304.06767 (`best`), RAFT++ and Reinforce-Rej arXiv:2504.11343. Reference: RLHFlow/Minimal-RL
e3b49f09, `compute_raft_outcome_advantage`, `compute_reinforce_rej_outcome_advantage`.

Shapes: N trajectories.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trainer.advantages.base import ADVANTAGES, AdvantageEstimator, AdvantageInputs, spread, unequal_groups
from verifiers.options import Options


class RaftOptions(Options):
    """select: which responses are kept. baseline: subtracted from every reward first."""

    select: Literal["positive", "best", "mixed_groups"] = "positive"
    baseline: float = 0.0


def raft_advantage(reward_N: Tensor, group_N: Tensor, options: RaftOptions) -> Tensor:
    """One advantage a trajectory [N]."""
    reward_N = reward_N - options.baseline
    if options.select == "positive":
        return reward_N.clamp(min=0)
    if options.select == "mixed_groups":
        return reward_N * unequal_groups(reward_N, group_N)
    best_N = torch.zeros_like(reward_N)
    for group in torch.unique(group_N):
        index = torch.nonzero(group_N == group).flatten()
        best_N[index[reward_N[index].argmax()]] = 1.0
    return best_N


def _compute(inputs: AdvantageInputs, options: RaftOptions) -> Tensor:
    return spread(raft_advantage(inputs.reward_N, inputs.group_N, options), inputs)


ADVANTAGES.register("raft")(
    AdvantageEstimator(
        RaftOptions,
        _compute,
        compares_samples=lambda o: o.select != "positive",
        teaches_from_flat_groups=lambda o: o.select != "mixed_groups",
    )
)
