"""The pieces of an objective that every loss shares: reduction, KL, mismatch weights, overlong shaping.

Shapes: N trajectories, R response tokens, S sequences of a micro-batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trainer.config import KLConfig, MismatchConfig, ObjectiveConfig


def sequence_weights(
    length_N: Tensor, included_N: Tensor, reduce: Literal["token", "sequence", "constant"], constant_tokens: int | None
) -> Tensor:
    """The weight each response token of a trajectory has in the loss [N]: loss = sum over tokens of weight * token
    loss.

    token: 1 / all included tokens. sequence: 1 / (own length * included sequences). constant: 1 / (constant_tokens *
    included sequences), as TRL's dr_grpo. The counts are over the whole batch of the optimizer step, on all ranks, so
    the gradient does not depend on how the batch is split into micro-batches. Excluded trajectories weigh 0 and are not
    counted; neither are empty responses.
    """
    counted_N = included_N & (length_N > 0)
    tokens, sequences = (length_N * counted_N).sum().clamp(min=1), counted_N.sum().clamp(min=1)
    if reduce == "token":
        weight_N = torch.ones(length_N.shape, dtype=torch.float64) / tokens
    elif reduce == "sequence":
        weight_N = 1.0 / (length_N.clamp(min=1).double() * sequences)
    else:
        assert constant_tokens is not None
        weight_N = torch.ones(length_N.shape, dtype=torch.float64) / (constant_tokens * sequences)
    return weight_N * counted_N


def kl_penalty(logp_R: Tensor, reference_logp_R: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Schulman's estimators of KL(policy || reference) at the sampled tokens [R].

    With d = logp - reference: k1 = d, k2 = d^2 / 2, k3 = exp(-d) + d - 1. Gradients with respect to logp: 1, d,
    1 - exp(-d). As a loss on on-policy samples, k1 has zero expected gradient, k2 the gradient of the reverse KL, k3
    that of the forward KL. Source: http://joschu.net/blog/kl-approx.html; verl `core_algos.py:kl_penalty`, which also
    clamps k3's exponent to 20 and its value to 10 (where its gradient vanishes); we clamp the exponent only, against
    overflow.
    """
    difference = logp_R - reference_logp_R
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return torch.exp((-difference).clamp(max=20.0)) + difference - 1


def mismatch_weights(old_logp_R: Tensor, sampled_logp_R: Tensor, segment_R: Tensor, options: MismatchConfig) -> Tensor:
    """Truncated importance weights between learner and engine [R], without gradient: min(exp(old - sampled), cap).

    level=sequence uses the product over the sequence. Source: verl b178a3cd `rollout_corr_helper.py`,
    `compute_rollout_correction_weights` (its log-ratio is clamped to +-20 as well).
    """
    if options.kind == "none":
        return torch.ones_like(old_logp_R)
    log_ratio_R = (old_logp_R - sampled_logp_R).detach()
    if options.level == "sequence" and len(segment_R):
        total_S = torch.zeros(int(segment_R.max()) + 1, dtype=log_ratio_R.dtype, device=log_ratio_R.device)
        log_ratio_R = total_S.index_add_(0, segment_R, log_ratio_R)[segment_R]
    return log_ratio_R.clamp(-20.0, 20.0).exp().clamp(max=options.cap)


def soft_overlong_penalty(length: int, max_response_tokens: int, buffer_tokens: int, penalty: float) -> float:
    """DAPO's soft overlong punishment: 0 up to max - buffer, then linear down to -penalty at max.

    Paper: arXiv:2503.14476 eq. 13. Reference: volcengine/verl b178a3cd, `reward_manager/dapo.py`.
    """
    return min(0.0, -(length - (max_response_tokens - buffer_tokens)) / buffer_tokens * penalty)


def needs_reference(kl: KLConfig) -> bool:
    return kl.coef > 0


def describe(objective: ObjectiveConfig) -> str:
    """One line for the derived table."""
    kl = f"{objective.kl.estimator} x {objective.kl.coef:g}" if needs_reference(objective.kl) else "none"
    return (f"{objective.advantage.kind} advantage, {objective.loss.kind} loss, {objective.reduce} mean, KL {kl}, "
            f"mismatch {objective.mismatch.kind}")  # fmt: skip
