"""The pieces of an objective that every loss shares: reduction, KL, mismatch weights, overlong shaping.

Shapes: N trajectories, R response tokens, S sequences of a micro-batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer.config import KLConfig, MismatchConfig, ObjectiveConfig, RejectionOptions
from trainer.losses.base import MAX_LOG_RATIO, sequence_mean

Reduce = Literal["token", "sequence", "sequence_sum", "constant"]
Estimator = Literal["k1", "k2", "k3"]


# ---- reduction -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """What a reduction divides by: tokens and sequences in the loss of one optimizer step, on all ranks."""

    tokens: int
    sequences: int

    def __add__(self, other: BatchCounts) -> BatchCounts:
        return BatchCounts(self.tokens + other.tokens, self.sequences + other.sequences)


def count_batch(length_N: Tensor, included_N: Tensor) -> BatchCounts:
    """The counts of these trajectories; with several ranks, add them up over the ranks. Excluded trajectories and empty
    responses do not count."""
    counted_N = included_N & (length_N > 0)
    return BatchCounts(int((length_N * counted_N).sum()), int(counted_N.sum()))


def sequence_weights(
    length_N: Tensor,
    included_N: Tensor,
    reduce: Reduce,
    constant_tokens: int | None,
    counts: BatchCounts | None = None,
) -> Tensor:
    """The weight each response token of a trajectory has in the loss [N]: loss = sum over tokens of weight * token
    loss.

    token: 1 / all included tokens. sequence: 1 / (own length * included sequences). sequence_sum: 1 / included
    sequences. constant: 1 / (constant_tokens * included sequences), as TRL's dr_grpo. length_N counts the tokens in the
    loss (without tool output). The counts are over the whole batch of the optimizer step, on all ranks, so the gradient
    does not depend on how the batch is split into micro-batches; `counts` are those of all ranks, None: this is the
    whole batch. The ranks' gradients are to be summed, not averaged. Excluded trajectories weigh 0 and are not counted;
    neither are empty responses.
    """
    counted_N = included_N & (length_N > 0)
    counts = counts or count_batch(length_N, included_N)
    tokens, sequences = max(counts.tokens, 1), max(counts.sequences, 1)
    if reduce == "token":
        weight_N = torch.full(length_N.shape, 1.0 / tokens, dtype=torch.float64)
    elif reduce == "sequence":
        weight_N = 1.0 / (length_N.clamp(min=1).double() * sequences)
    elif reduce == "sequence_sum":
        weight_N = torch.full(length_N.shape, 1.0 / sequences, dtype=torch.float64)
    else:
        assert constant_tokens is not None
        weight_N = torch.full(length_N.shape, 1.0 / (constant_tokens * sequences), dtype=torch.float64)
    return weight_N * counted_N


# ---- KL ------------------------------------------------------------


def kl_penalty(logp_R: Tensor, reference_logp_R: Tensor, estimator: Estimator) -> Tensor:
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


def kl_loss(
    logp_R: Tensor,
    reference_logp_R: Tensor,
    old_logp_R: Tensor,
    estimator: Estimator,
    gradient: Literal["estimator", "reverse_kl", "ratio"] = "estimator",
) -> Tensor:
    """The KL term of the loss [R]: the estimator's value, with a gradient of one's choice.

    estimator: the estimator's own (see `kl_penalty`). reverse_kl: d, that of k2, whatever the value (straight-through;
    verl's "k1+" and "k3+", which raise NotImplementedError at b178a3cd and work in 0.9.1). ratio: the estimator times
    exp(logp - old_logp), differentiated as it stands, as TRL's `use_bias_correction_kl` (on by default in 1.16): its
    expectation is the reverse KL's gradient for k1 and k3, off-policy too; on-policy it is d for k3, d + 1 for k1.
    """
    value_R = kl_penalty(logp_R, reference_logp_R, estimator)
    if gradient == "estimator":
        return value_R
    if gradient == "ratio":
        return (logp_R - old_logp_R).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * value_R
    straight_R = kl_penalty(logp_R, reference_logp_R, "k2")
    return straight_R - straight_R.detach() + value_R.detach()


def kl_reward(old_logp_R: Tensor, reference_logp_R: Tensor, coef: float, estimator: Estimator = "k1") -> Tensor:
    """The KL as a reward on each token: -coef * estimate, without gradient [R]. It reaches the policy through the
    advantage, so with k1 it is the gradient of the reverse KL (PPO's and RLOO's use). Add it to `token_reward_R`, or
    its sum over the response to the outcome where the estimator has no dense rewards."""
    return -coef * kl_penalty(old_logp_R, reference_logp_R, estimator).detach()


def adapted_kl_coef(coef: float, kl: float, target: float, horizon: float, samples: int) -> float:
    """The KL coefficient after `samples` more samples whose mean KL was `kl`: raised above the target, lowered below,
    by at most 20% * samples / horizon. Source: Ziegler et al., arXiv:1909.08593; verl
    `core_algos.py:AdaptiveKLController` (target 0.1, horizon 10000)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * samples / horizon)


# ---- mismatch between engine and learner ---------------------------


def proximal_logp(old_logp_R: Tensor, sampled_logp_R: Tensor, form: Literal["decoupled", "bypass"]) -> Tensor:
    """The log-probs that the loss's ratio is taken against [R].

    decoupled: three policies. The ratio is new / old, both the learner's, and the clip keeps the step small; that the
    samples came from a third policy is corrected by `importance_weights` on old / sampled. bypass: two policies; the
    ratio is new / sampled and the clip does both jobs, so no weight may be applied on top. Without clip and cap the two
    agree. Sources: Hilton et al., arXiv:2110.00641; verl `algorithm.rollout_correction.bypass_mode`.
    """
    return old_logp_R if form == "decoupled" else sampled_logp_R


def importance_weights(
    log_ratio_R: Tensor,
    segment_R: Tensor,
    level: Literal["token", "sequence", "geometric"],
    outside: Literal["truncate", "zero"],
    cap: float,
    floor: float = 0.0,
    mask_R: Tensor | None = None,
) -> Tensor:
    """Weights old / sampled of each token [R], without gradient, from log_ratio_R = old_logp - sampled_logp.

    level: token; sequence, the product over the response; geometric, its geometric mean. outside: what becomes of a
    weight above cap or below floor: truncate brings it to the bound, zero drops it (the token stays in the counts of
    the reduction). A whole response counts with its tokens under mask_R. The log-ratio is clamped to +-20.
    Sources: verl `rollout_corr_helper.py:compute_rollout_correction_weights` (truncate, no floor; 0.9.1 also has zero
    with both bounds, IcePop); TRL 1.16 `vllm_importance_sampling_mode` (default level=sequence, outside=zero, cap=3).
    """
    log_ratio_R = log_ratio_R.detach()
    if level != "token":
        mean_R = sequence_mean(log_ratio_R, segment_R, mask_R)
        own_R = torch.ones_like(log_ratio_R) if mask_R is None else mask_R.to(log_ratio_R.dtype)
        log_ratio_R = mean_R * _sequence_sum(own_R, segment_R) if level == "sequence" else mean_R
    weight_R = log_ratio_R.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if outside == "truncate":
        return weight_R.clamp(floor, cap)
    return torch.where((weight_R >= floor) & (weight_R <= cap), weight_R, torch.zeros_like(weight_R))


def mismatch_diagnostics(log_ratio_R: Tensor) -> dict[str, Tensor]:
    """How far learner and engine are apart, before any cap or rejection hides it, each [R]: the weight itself, the
    absolute gap in nats, and k3 of KL(engine || learner), given log_ratio_R = old_logp - sampled_logp."""
    log_ratio_R = log_ratio_R.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_R = log_ratio_R.exp()
    return {"mismatch_ratio": ratio_R, "logprob_gap": log_ratio_R.abs(), "mismatch_kl": ratio_R - 1 - log_ratio_R}


def normalised_weights(
    weight_R: Tensor, segment_R: Tensor, level: Literal["token", "sequence"], mask_R: Tensor | None = None
) -> Tensor:
    """Weights divided by their mean over tokens or over sequences [R]. All weights of the optimizer step at once: over
    one micro-batch the mean would depend on the split. Source: verl `rollout_is_batch_normalize`."""
    own_R = torch.ones_like(weight_R) if mask_R is None else mask_R.to(weight_R.dtype)
    share_R = own_R if level == "token" else own_R / _sequence_sum(own_R, segment_R).clamp(min=1)
    mean = (weight_R * share_R).sum() / share_R.sum().clamp(min=1e-8)
    return weight_R / mean if mean > 1e-8 else weight_R


def mismatch_weights(old_logp_R: Tensor, sampled_logp_R: Tensor, segment_R: Tensor, options: MismatchConfig) -> Tensor:
    """The recipe's `importance_weights` between learner and engine [R], before they are divided by their mean; 1
    without a correction, and with kind=bypass, whose ratio is already against the engine."""
    if options.kind in ("none", "bypass"):
        return torch.ones_like(old_logp_R)
    outside = "truncate" if options.kind == "truncated" else "zero"
    return importance_weights(
        old_logp_R - sampled_logp_R, segment_R, options.level, outside, options.cap, options.floor
    )


def mismatch_correction(
    old_logp_R: Tensor, sampled_logp_R: Tensor, segment_R: Tensor, included_R: Tensor, options: MismatchConfig
) -> tuple[Tensor, Tensor]:
    """(weights [R], bool [R]: which tokens stay in the loss) of all tokens of one optimizer step: the part of the
    correction that no single micro-batch can know. included_R: bool, the tokens of trajectories that take part; their
    mean is what weights are divided by. Rejection looks at the log-ratio, not at the weights."""
    weight_R = mismatch_weights(old_logp_R, sampled_logp_R, segment_R, options)
    if options.normalise != "none":
        weight_R = normalised_weights(weight_R, segment_R, options.normalise, included_R)
    if options.rejection is None:
        return weight_R, torch.ones_like(included_R)
    return weight_R, rejection_mask(old_logp_R - sampled_logp_R, segment_R, options.rejection)


def rejection_mask(
    log_ratio_R: Tensor, segment_R: Tensor, options: RejectionOptions, mask_R: Tensor | None = None
) -> Tensor:
    """bool [R]: which tokens stay in the loss, given log_ratio_R = old_logp - sampled_logp.

    What is rejected leaves the counts of the reduction too, so take it before `count_batch`. Source: verl b178a3cd
    `rollout_corr_helper.py:compute_rollout_rejection_mask`; masked-out tokens are False, as there.
    """
    log_ratio_R = log_ratio_R.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    own_R = torch.ones_like(log_ratio_R, dtype=torch.bool) if mask_R is None else mask_R.bool()
    if options.statistic == "k1":
        value_R = -log_ratio_R
    elif options.statistic == "k2":
        value_R = log_ratio_R.square() / 2
    else:
        value_R = log_ratio_R.exp() - 1 - log_ratio_R
    if options.level == "sequence_sum":
        value_R = _sequence_sum(value_R * own_R, segment_R)
    elif options.level == "sequence_mean":
        value_R = sequence_mean(value_R, segment_R, own_R)
    elif options.level == "sequence_max":
        value_R = _sequence_max(value_R * own_R, segment_R)  # k2 and k3 are at least 0
    if options.statistic != "k1":
        return own_R & (value_R <= options.upper)
    lower = 1 / options.upper if options.lower is None else options.lower
    return own_R & (value_R >= math.log(lower)) & (value_R <= math.log(options.upper))


def _sequence_sum(value_R: Tensor, segment_R: Tensor) -> Tensor:
    sequences = int(segment_R.max()) + 1 if len(segment_R) else 0
    zero_S = torch.zeros(sequences, dtype=value_R.dtype, device=value_R.device)
    return zero_S.index_add_(0, segment_R, value_R)[segment_R]


def _sequence_max(value_R: Tensor, segment_R: Tensor) -> Tensor:
    sequences = int(segment_R.max()) + 1 if len(segment_R) else 0
    zero_S = torch.zeros(sequences, dtype=value_R.dtype, device=value_R.device)
    return zero_S.scatter_reduce_(0, segment_R, value_R, "amax")[segment_R]


# ---- length --------------------------------------------------------


def soft_overlong_penalty(length: int, max_response_tokens: int, buffer_tokens: int, penalty: float) -> float:
    """DAPO's soft overlong punishment: 0 up to max - buffer, then linear down to -penalty at max.

    Paper: arXiv:2503.14476 eq. 13. Reference: volcengine/verl b178a3cd, `reward_manager/dapo.py`.
    """
    return min(0.0, -(length - (max_response_tokens - buffer_tokens)) / buffer_tokens * penalty)


def needs_reference(kl: KLConfig) -> bool:
    return kl.coef > 0


def describe(objective: ObjectiveConfig) -> str:
    """One line for the derived table."""
    kl = "none"
    if needs_reference(objective.kl):
        kl = f"{objective.kl.estimator} x {objective.kl.coef:g} in the {objective.kl.place}"
    return (f"{objective.advantage.kind} advantage, {objective.loss.kind} loss, {objective.reduce} mean, KL {kl}, "
            f"mismatch {objective.mismatch.kind}")  # fmt: skip
