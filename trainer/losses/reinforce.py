"""REINFORCE: the log-prob weighted by the advantage, without a ratio.

    loss = -A logp

Right for one optimizer step on fresh samples. Off-policy it needs `objective.mismatch`, whose weight multiplies it.

Source: Williams 1992. Reference: volcengine/verl b178a3cd, `core_algos.py`, `compute_policy_loss_reinforce` (there by
default summed over each sequence: `objective.reduce=sequence_sum`) and `compute_policy_loss_gpg` (token mean).

Shapes: R response tokens.
"""

from __future__ import annotations

from torch import Tensor

from trainer.losses.base import LOSSES, LossInputs, PolicyLoss
from verifiers.options import Options


class ReinforceOptions(Options):
    """None: the method has no parameter."""


def reinforce_loss(inputs: LossInputs, options: ReinforceOptions) -> tuple[Tensor, dict[str, Tensor]]:
    approx_kl_R = (inputs.old_logp_R - inputs.logp_R).detach()
    return -inputs.advantage_R * inputs.logp_R, {"approx_kl": approx_kl_R}


LOSSES.register("reinforce")(PolicyLoss(ReinforceOptions, reinforce_loss))  # type: ignore[arg-type]
