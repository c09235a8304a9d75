"""PPO's clipped surrogate, with separate bounds (clip-higher) and the optional dual clip.

    rho = exp(logp - old_logp)
    loss = max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))            and, where A < 0, min(that, -A dual_clip)

Papers: PPO arXiv:1707.06347 eq. 7; clip-higher DAPO arXiv:2503.14476 eq. 10; dual clip arXiv:1912.09729 eq. 5.
Reference: volcengine/verl b178a3cd, `core_algos.py`, `compute_policy_loss_vanilla` (its dual clip is on with 3.0; ours
is off unless the recipe sets it). As there, the log-ratio is clamped to [-20, 20] before the exponential. TRL's `delta`
(two-sided clipping, INTELLECT-2) is `dual_clip` as long as it is at least 1 + clip_high.

Shapes: R response tokens.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from trainer.losses.base import LOSSES, LossInputs, PolicyLoss, clipped_surrogate, token_ratio
from verifiers.options import Options


class PpoClipOptions(Options):
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.2, gt=0)
    dual_clip: float | None = Field(default=None, gt=1)


def ppo_clip_loss(inputs: LossInputs, options: PpoClipOptions) -> tuple[Tensor, dict[str, Tensor]]:
    ratio_R, log_ratio_R = token_ratio(inputs)
    loss_R, clipped_R = clipped_surrogate(ratio_R, inputs.advantage_R, 1 - options.clip_low, 1 + options.clip_high)
    diagnostics = {"clip_fraction": clipped_R, "approx_kl": -log_ratio_R.detach()}
    if options.dual_clip is not None:
        bound_R = -inputs.advantage_R * options.dual_clip
        negative_R = inputs.advantage_R < 0
        diagnostics["dual_clip_fraction"] = (negative_R & (bound_R < loss_R)).float()
        loss_R = torch.where(negative_R, torch.minimum(loss_R, bound_R), loss_R)
    return loss_R, diagnostics


LOSSES.register("ppo_clip")(PolicyLoss(PpoClipOptions, ppo_clip_loss))  # type: ignore[arg-type]
