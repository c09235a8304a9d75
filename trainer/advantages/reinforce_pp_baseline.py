"""REINFORCE++-baseline: the group's mean as baseline, then whitened over all tokens of the batch.

    a_i = R_i - mean_g        A_t = (a_i - mean) / sqrt(var + 1e-8)        mean, var over the batch's tokens

Unlike GRPO the scale is the batch's and not the group's, so a group of nearly equal rewards is not blown up.

Paper: arXiv:2501.03262. Reference: volcengine/verl b178a3cd, `core_algos.py`,
`compute_reinforce_plus_plus_baseline_outcome_advantage`. A group of one has mean 0, as there.

Shapes: N trajectories.
"""

from __future__ import annotations

from torch import Tensor

from trainer.advantages.base import (
    ADVANTAGES,
    AdvantageEstimator,
    AdvantageInputs,
    always,
    group_baseline,
    spread,
    whiten,
)
from verifiers.options import Options


class ReinforcePpBaselineOptions(Options):
    """None: the method has no parameter."""


def _compute(inputs: AdvantageInputs, options: ReinforcePpBaselineOptions) -> Tensor:
    centred_N = inputs.reward_N - group_baseline(inputs.reward_N, inputs.group_N)
    return whiten(spread(centred_N, inputs), inputs)


ADVANTAGES.register("reinforce_pp_baseline")(
    AdvantageEstimator(ReinforcePpBaselineOptions, _compute, compares_samples=always)
)
