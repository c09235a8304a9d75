"""GMPO: the geometric mean of the tokens' ratios, each clipped before the mean.

    l_t = logp - old_logp, clipped to [-clip_low, clip_high] on the side where the sign of A lets it go too far
    loss = -mean_t(A) exp(mean_t(l_t))            on every token of the sequence

A clipped token loses its own gradient; the sequence goes on. The bounds are on the log-ratio: 0.4 is a ratio in
[0.67, 1.49].

Paper: arXiv:2507.20673. Reference: volcengine/verl b178a3cd, `core_algos.py`, `compute_policy_loss_geo_mean`:
averaged over sequences whatever the aggregation, so use `objective.reduce=sequence`; it counts empty rows, we do not,
and on the side that is not clipped its log-ratio is unbounded, ours ends at +-20. Importance weights multiply each
token's loss here, which averages them over the sequence; verl takes their geometric mean (`importance_weights` with
level=geometric gives it).

Shapes: R response tokens.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from trainer.losses.base import LOSSES, MAX_LOG_RATIO, LossInputs, PolicyLoss, sequence_mean
from verifiers.options import Options


class GmpoOptions(Options):
    """Bounds of the log-ratio."""

    clip_low: float = Field(default=0.4, gt=0)
    clip_high: float = Field(default=0.4, gt=0)


def gmpo_loss(inputs: LossInputs, options: GmpoOptions) -> tuple[Tensor, dict[str, Tensor]]:
    log_ratio_R = (inputs.logp_R - inputs.old_logp_R).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    sign_R = torch.sign(inputs.advantage_R)
    bounded_R = log_ratio_R.clamp(-options.clip_low, options.clip_high)
    pessimistic_R = sign_R * torch.minimum(sign_R * log_ratio_R, sign_R * bounded_R)
    ratio_R = sequence_mean(pessimistic_R, inputs.segment_R, inputs.mask_R).exp()
    advantage_R = sequence_mean(inputs.advantage_R, inputs.segment_R, inputs.mask_R)
    clipped_R = (pessimistic_R != log_ratio_R) & (sign_R != 0)
    return -advantage_R * ratio_R, {"clip_fraction": clipped_R.float(), "approx_kl": -log_ratio_R.detach()}


LOSSES.register("gmpo")(PolicyLoss(GmpoOptions, gmpo_loss))  # type: ignore[arg-type]
