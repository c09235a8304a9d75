"""GSPO: PPO's clip on the sequence's ratio, the geometric mean of its tokens' ratios.

    s = exp(mean_t (logp - old_logp))        loss = max(-A s, -A clip(s, 1 - clip_low, 1 + clip_high))

on every token of the sequence, with s written as sg(s) exp(logp - sg(logp)), so that each token carries its own part of
the gradient (GSPO-token) and an advantage may differ between tokens. With one advantage a sequence that is the gradient
of s itself. The bounds are tiny because s is a mean: with PPO's 0.2 nothing would ever be clipped.

Paper: arXiv:2507.18071. Reference: volcengine/verl b178a3cd, `core_algos.py`, `compute_policy_loss_gspo`:
always averaged by sequence, so use `objective.reduce=sequence`; its clip falls back to 0.2, here the paper's 3e-4 and
4e-4 are the default; log s is clamped to 10, as there. TRL: `importance_sampling_level="sequence"`.

Shapes: R response tokens.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from trainer.losses.base import LOSSES, LossInputs, PolicyLoss, clipped_surrogate, sequence_mean
from verifiers.options import Options


class GspoOptions(Options):
    clip_low: float = Field(default=3e-4, gt=0, lt=1)
    clip_high: float = Field(default=4e-4, gt=0)


def gspo_loss(inputs: LossInputs, options: GspoOptions) -> tuple[Tensor, dict[str, Tensor]]:
    logp_R = inputs.logp_R
    log_ratio_R = logp_R.detach() - inputs.old_logp_R
    log_s_R = sequence_mean(log_ratio_R, inputs.segment_R, inputs.mask_R)
    ratio_R = (logp_R - logp_R.detach() + log_s_R).clamp(max=10.0).exp()
    loss_R, clipped_R = clipped_surrogate(ratio_R, inputs.advantage_R, 1 - options.clip_low, 1 + options.clip_high)
    return loss_R, {"clip_fraction": clipped_R, "approx_kl": -log_ratio_R}


LOSSES.register("gspo")(PolicyLoss(GspoOptions, gspo_loss))  # type: ignore[arg-type]
