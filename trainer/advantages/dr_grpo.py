"""Dr.GRPO: GRPO without the division by the standard deviation; the same as `grpo` with `normalize_std=false`.

    A_i = R_i - mean_g

Dividing by the standard deviation makes very easy and very hard prompts count more; dividing each response's loss by
its length makes long wrong answers cheap. Dr.GRPO drops both: the second half is `objective.reduce=constant`.

Paper: arXiv:2503.20783. Reference: volcengine/verl b178a3cd, `core_algos.py`, `compute_grpo_outcome_advantage`
with `norm_adv_by_std_in_grpo=False`. A group of one: A = R, as there.
"""

from __future__ import annotations

from torch import Tensor

from trainer.advantages.base import ADVANTAGES, AdvantageEstimator, AdvantageInputs, always, group_baseline, spread
from verifiers.options import Options


class DrGrpoOptions(Options):
    """None: the method has no parameter."""


def _compute(inputs: AdvantageInputs, options: DrGrpoOptions) -> Tensor:
    return spread(inputs.reward_N - group_baseline(inputs.reward_N, inputs.group_N), inputs)


ADVANTAGES.register("dr_grpo")(AdvantageEstimator(DrGrpoOptions, _compute, compares_samples=always))
