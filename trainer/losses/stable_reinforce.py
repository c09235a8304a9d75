"""StableReinforce's pre-clip: the ratio is bounded before PPO's clip, so that no single token can blow up the loss.

    rho = exp(clamp(logp - old_logp, ln min_ratio, ln max_ratio))
    loss = max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))

PPO does not clip A < 0 with rho >> 1; there the inner clamp ends value and gradient at max_ratio.

Paper: R1-Reward, arXiv:2505.02835. Reference: yfzhang114/r1_reward 3693413a, `PolicyLoss.forward`: averaged by
sequence, so use `objective.reduce=sequence`. The advantage filter of the method is `advantage.kind=stable_reinforce`.

Shapes: R response tokens.
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from trainer.losses.base import LOSSES, LossInputs, PolicyLoss, clipped_surrogate
from verifiers.options import Options


class StableReinforceOptions(Options):
    """min_ratio, max_ratio: bounds of the ratio before PPO's clip."""

    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.2, gt=0)
    min_ratio: float = Field(default=1e-3, gt=0, lt=1)
    max_ratio: float = Field(default=1e3, gt=1)


def stable_reinforce_loss(inputs: LossInputs, options: StableReinforceOptions) -> tuple[Tensor, dict[str, Tensor]]:
    log_ratio_R = inputs.logp_R - inputs.old_logp_R
    ratio_R = log_ratio_R.clamp(math.log(options.min_ratio), math.log(options.max_ratio)).exp()
    loss_R, clipped_R = clipped_surrogate(ratio_R, inputs.advantage_R, 1 - options.clip_low, 1 + options.clip_high)
    return loss_R, {"clip_fraction": clipped_R, "approx_kl": -log_ratio_R.detach()}


LOSSES.register("stable_reinforce")(PolicyLoss(StableReinforceOptions, stable_reinforce_loss))  # type: ignore[arg-type]
