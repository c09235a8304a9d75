"""What a policy loss gets and returns.

Shapes: R response tokens of a micro-batch, packed; S sequences in it. A micro-batch holds whole sequences, so what a
loss takes over a sequence does not depend on the split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from verifiers.options import Options
from verifiers.registry import Registry


@dataclass(frozen=True, slots=True)
class LossInputs:
    """logp_R: log-prob of each token under the policy being trained (with gradient). old_logp_R: under the policy at
    the start of the update (no gradient). advantage_R. segment_R: int64, the sequence of each token. mask_R: bool, the
    tokens the policy wrote, None: all; losses over whole sequences skip the others, and the reduction gives them no
    weight."""

    logp_R: Tensor
    old_logp_R: Tensor
    advantage_R: Tensor
    segment_R: Tensor
    mask_R: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """compute(inputs, options) -> (loss_R before reduction, diagnostics by name, each [R], averaged over tokens)."""

    options: type[Options]
    compute: Callable[[LossInputs, Options], tuple[Tensor, dict[str, Tensor]]]


LOSSES: Registry[PolicyLoss] = Registry("policy loss", "trainer.losses")

MAX_LOG_RATIO = 20.0  # as in verl: beyond e^20 float32 sums lose everything else


def token_ratio(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """(exp(logp - old_logp) [R], the log-ratio [R]), the log-ratio clamped to +-20, where its gradient ends."""
    log_ratio_R = (inputs.logp_R - inputs.old_logp_R).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio_R.exp(), log_ratio_R


def sequence_mean(value_R: Tensor, segment_R: Tensor, mask_R: Tensor | None = None) -> Tensor:
    """The mean over the own sequence's masked tokens, on each of its tokens [R]; 0 where none is masked in."""
    own_R = torch.ones_like(value_R) if mask_R is None else mask_R.to(value_R.dtype)
    sequences = int(segment_R.max()) + 1 if len(segment_R) else 0
    zero_S = torch.zeros(sequences, dtype=value_R.dtype, device=value_R.device)
    total_S = zero_S.index_add(0, segment_R, value_R * own_R)
    return (total_S / zero_S.index_add(0, segment_R, own_R).clamp(min=1))[segment_R]


def clipped_surrogate(ratio_R: Tensor, advantage_R: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """(max(-A rho, -A clip(rho, low, high)), 1 where the clipped branch is the larger), both [R]."""
    unclipped_R, clipped_R = -advantage_R * ratio_R, -advantage_R * ratio_R.clamp(low, high)
    return torch.maximum(unclipped_R, clipped_R), (clipped_R > unclipped_R).float()
