"""CISPO: REINFORCE weighted by a clipped ratio without gradient; no token is ever dropped.

    loss = -sg(clip(rho, min_ratio, max_ratio)) A logp

The two published forms clip differently, and both name the bound epsilon. Here the bounds are ratios:

    MiniMax-M1 and verl: clip(rho, 1 - eps_low, 1 + eps_high)    min_ratio = 1 - eps_low, max_ratio = 1 + eps_high
    ScaleRL and TRL: min(rho, epsilon_high), no "1 +"            min_ratio = 0, max_ratio = epsilon_high (5.0)

Papers: MiniMax-M1 arXiv:2506.13585; ScaleRL arXiv:2510.13786. Reference: volcengine/verl b178a3cd,
`core_algos.py`, `compute_policy_loss_cispo` (0.2 and 0.2 by default); huggingface/trl f2cd5771,
`GRPOTrainer._compute_loss`, `loss_type="cispo"`. The log-ratio is clamped to [-20, 20] as in verl.

Shapes: R response tokens.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from trainer.losses.base import LOSSES, LossInputs, PolicyLoss, token_ratio
from verifiers.options import Options


class CispoOptions(Options):
    """min_ratio, max_ratio: bounds of the ratio itself, not distances from 1."""

    min_ratio: float = Field(default=0.0, ge=0, le=1)
    max_ratio: float = Field(default=5.0, ge=1)

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.min_ratio == self.max_ratio:
            raise ValueError("min_ratio and max_ratio are equal: that is loss.kind=reinforce")
        return self


def cispo_loss(inputs: LossInputs, options: CispoOptions) -> tuple[Tensor, dict[str, Tensor]]:
    ratio_R, log_ratio_R = token_ratio(inputs)
    weight_R = ratio_R.detach().clamp(options.min_ratio, options.max_ratio)
    diagnostics = {"clip_fraction": (weight_R != ratio_R).float(), "approx_kl": -log_ratio_R.detach()}
    return -weight_R * inputs.advantage_R * inputs.logp_R, diagnostics


LOSSES.register("cispo")(PolicyLoss(CispoOptions, cispo_loss))  # type: ignore[arg-type]
