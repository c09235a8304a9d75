"""SAPO: a smooth gate around rho = 1 instead of a clip.

    loss = -A (4 / tau) sigmoid(tau (rho - 1))        tau = tau_positive where A > 0, else tau_negative

The gradient at rho = 1 is -A, as everywhere; it fades on both sides instead of ending. A larger tau fades faster, so
tokens of negative advantage, whose updates spread over the whole vocabulary, are damped a little more.

Paper: arXiv:2511.20347. Reference: volcengine/verl b178a3cd, `core_algos.py`, `compute_policy_loss_sapo`, and
huggingface/trl f2cd5771 (`loss_type="sapo"`); both average by sequence, so use `objective.reduce=sequence`. The
log-ratio is clamped to [-20, 20] as in verl.

Shapes: R response tokens.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from trainer.losses.base import LOSSES, LossInputs, PolicyLoss, token_ratio
from verifiers.options import Options


class SapoOptions(Options):
    """Temperatures of the gate."""

    tau_positive: float = Field(default=1.0, gt=0)
    tau_negative: float = Field(default=1.05, gt=0)


def sapo_loss(inputs: LossInputs, options: SapoOptions) -> tuple[Tensor, dict[str, Tensor]]:
    ratio_R, log_ratio_R = token_ratio(inputs)
    positive_R = torch.full_like(ratio_R, options.tau_positive)
    tau_R = torch.where(inputs.advantage_R > 0, positive_R, torch.full_like(ratio_R, options.tau_negative))
    gate_R = 4 / tau_R * torch.sigmoid(tau_R * (ratio_R - 1))
    return -inputs.advantage_R * gate_R, {"approx_kl": -log_ratio_R.detach()}


LOSSES.register("sapo")(PolicyLoss(SapoOptions, sapo_loss))  # type: ignore[arg-type]
