"""ReMax: rewards to go minus the reward of the greedy response to the same prompt.

    A_t = sum_{s >= t} r_s - R_greedy

Needs one more rollout a prompt, at temperature 0, whose reward is `baseline_N`; it is not trained on.

Paper: arXiv:2310.10505. Reference: volcengine/verl b178a3cd, `core_algos.py`,
`compute_remax_outcome_advantage`.

Shapes: N trajectories, R response tokens.
"""

from __future__ import annotations

from torch import Tensor

from trainer.advantages.base import (
    ADVANTAGES,
    AdvantageEstimator,
    AdvantageInputs,
    always,
    discounted_to_go,
    needed,
    spread,
    token_rewards,
)
from verifiers.options import Options


class RemaxOptions(Options):
    """None: the method has no parameter."""


def _compute(inputs: AdvantageInputs, options: RemaxOptions) -> Tensor:
    return discounted_to_go(token_rewards(inputs), inputs, 1.0) - spread(needed(inputs, "baseline_N"), inputs)


ADVANTAGES.register("remax")(
    AdvantageEstimator(
        RemaxOptions,
        _compute,
        needs=("baseline_N",),
        uses_token_reward=True,
        uses_rewards_to_go=True,
        teaches_from_flat_groups=always,
    )
)
