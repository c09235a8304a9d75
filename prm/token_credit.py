"""`token_credit`: OREAL's token-level reward model. It says which tokens of a response count, not what they are worth.

    s_t  score of the state before token t, from a linear head without bias (it knows the token from t + 1 on)
    P_t = sigmoid((s_1 + ... + s_t) / t)                                     probability of success, without gradient
    w+_t = clamp((P_t - c) / (1 - c), 0, 1)           on the tokens of correct responses, c = correct_threshold
    w-_t = clamp((1 - P_t - w) / (1 - w), 0, 1)       on the tokens of wrong responses, w = wrong_threshold
    loss = mean over responses of BCE(sigmoid(mean_t s_t), correct)

The weights multiply the advantage; `objective.advantage.kind=oreal` gives OREAL's. With both thresholds at least 0.5
at most one of w+ and w- is above 0 at any token.

Who is correct is said in one place, `Kept.correct_N`: for the pairs, for the weights and for the label (the reference
filters by reward == 1, weighs by reward > 0 and labels by int(reward), which fractional rewards tell apart).

Paper: arXiv:2502.06781, section 2.3. Reference: InternLM/OREAL 2859cc09, `train_oreal.py`. `uniform` is ours: weights
of 1, for ablations; there the model learns and changes nothing.

Shapes: N trajectories; T response tokens of one; R response tokens of a micro-batch; S sequences in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from prm.cotrained import CoTrained
from prm.signal import SOURCES, Kept, Signal, Source, SourceContext
from rollout.engine import derive_seed
from rollout.options import OptimConfig
from rollout.packing import PackedBatch
from verifiers.options import Options as BaseOptions


@SOURCES.register("token_credit")
class TokenCredit(Source):
    """Phase credit: token weights, and with `pairs` who takes part in the loss. Its model starts as the policy."""

    phase = "credit"
    reading: ClassVar[Mapping[str, str]] = {
        "model": "The number at a position belongs to the token after it, which it does not see. The sigmoid of the "
        "mean over the first t tokens of a response is the probability, after them, that the response is right."
    }

    class Options(BaseOptions):
        """pairs: one correct and one wrong response of each group take part, drawn by the run's seed; groups without
        both take no part. Advantages are still those of the whole group.

        weights: threshold, top_k (the *_share of a response's tokens of highest probability, rescaled to 0 .. 1 among
        themselves; the rest 0) or uniform. warmup_steps: rounds at the start in which the policy waits."""

        optim: OptimConfig
        weights: Literal["threshold", "top_k", "uniform"] = "threshold"
        correct_threshold: float = Field(default=0.5, ge=0, lt=1)
        wrong_threshold: float = Field(default=0.5, ge=0, lt=1)
        correct_share: float = Field(default=0.25, gt=0, le=1)
        wrong_share: float = Field(default=0.25, gt=0, le=1)
        pairs: bool = True
        warmup_steps: int = Field(default=0, ge=0)

    options: TokenCredit.Options

    def __init__(self, options: TokenCredit.Options, context: SourceContext):
        super().__init__(options, context)
        self.warmup_steps = options.warmup_steps
        self.model = CoTrained(context.models, "scalar", options.optim, head_bias=False)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        self.model.start_from(weights)

    @classmethod
    def planned_models(cls, options: TokenCredit.Options) -> dict[str, Literal["trained", "frozen"]]:
        return {"model": "trained"}

    def models(self) -> dict[str, CoTrained]:
        return {"model": self.model}

    def credit(self, kept: Kept) -> Signal:
        correct_N = kept.correct_N
        included_N = torch.ones(len(correct_N), dtype=torch.bool)
        if self.options.pairs:
            seed = derive_seed(self.context.seed, "token_credit/pairs", kept.step)
            included_N = choose_pairs(correct_N, kept.group_N, seed)
        weight = [torch.zeros(t.num_response_tokens) for t in kept.trajectories]
        included = _indices(included_N)
        for i, score_T in zip(included, self.model.outputs([kept.trajectories[i] for i in included]), strict=True):
            weight[i] = token_weight(score_T, bool(correct_N[i]), self.options)
        metrics = {"included_share": float(included_N.double().mean())}
        for name, right in (("correct", True), ("wrong", False)):
            own = [weight[i] for i in included if bool(correct_N[i]) is right]
            if own:
                metrics[f"weight_{name}"] = float(torch.cat(own).double().mean())
                metrics[f"silent_{name}_share"] = sum(not bool(w.any()) for w in own) / len(own)
        return Signal(torch.zeros(len(correct_N)), token_weight=weight, included_N=included_N, metrics=metrics)

    def learn(self, kept: Kept, signal: Signal) -> dict[str, float]:
        """One step on the responses that took part in the policy's; accuracy and Brier score are from before it."""
        included = [] if signal.included_N is None else _indices(signal.included_N)  # None: nothing was kept
        if not included:
            return {}
        label_N = kept.correct_N[included].float()

        def loss(batch: PackedBatch, score_R: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            label_S = label_N[batch.sequence_index].to(score_R)
            mean_S = response_means(score_R, batch.segment_R, len(label_S))
            sums = {
                "accuracy": ((mean_S > 0) == (label_S > 0)).sum() / len(label_N),
                "brier": (mean_S.detach().sigmoid() - label_S).square().sum() / len(label_N),
            }
            return binary_cross_entropy_with_logits(mean_S, label_S, reduction="sum") / len(label_N), sums

        return self.model.step([kept.trajectories[i] for i in included], loss, "The token-level reward model")


def response_means(score_R: Tensor, segment_R: Tensor, sequences: int) -> Tensor:
    """The mean score of each response [S]: the logit of its success."""
    zero_S = torch.zeros(sequences, dtype=score_R.dtype, device=score_R.device)
    count_S = zero_S.index_add(0, segment_R, torch.ones_like(score_R))
    return zero_S.index_add(0, segment_R, score_R) / count_S.clamp(min=1)


def success_probability(score_T: Tensor) -> Tensor:
    """sigmoid of the mean score so far [T], without gradient."""
    score_T = score_T.detach()
    return (score_T.cumsum(0) / torch.arange(1, len(score_T) + 1, device=score_T.device)).sigmoid()


def token_weight(score_T: Tensor, correct: bool, options: TokenCredit.Options) -> Tensor:
    """w+ of a correct response's tokens, w- of a wrong one's, in [0, 1] [T]."""
    if options.weights == "uniform":
        return torch.ones_like(score_T)
    p_T = success_probability(score_T)
    p_T = p_T if correct else 1 - p_T
    if options.weights == "threshold":
        return threshold_weight(p_T, options.correct_threshold if correct else options.wrong_threshold)
    return top_k_weight(p_T, options.correct_share if correct else options.wrong_share)


def threshold_weight(p_T: Tensor, threshold: float) -> Tensor:
    return ((p_T - threshold) / (1 - threshold)).clamp(0, 1)


def top_k_weight(p_T: Tensor, share: float) -> Tensor:
    """The `share` of highest tokens, at least one (the reference has none, and fails, where share * T is below 1),
    min-max rescaled among themselves, so that the lowest of them gets 0; all 1 where they are equal. Of equals the
    later ones are taken."""
    if not len(p_T):
        return p_T
    kept = p_T.argsort(stable=True)[-max(1, int(len(p_T) * share)) :]
    low, high = p_T[kept].min(), p_T[kept].max()
    weight_T = torch.zeros_like(p_T)
    weight_T[kept] = (p_T[kept] - low) / (high - low) if high > low else torch.ones_like(p_T[kept])
    return weight_T


def choose_pairs(correct_N: Tensor, group_N: Tensor, seed: int) -> Tensor:
    """bool [N]: one correct and one wrong response of every group that has both."""
    generator = torch.Generator().manual_seed(seed)
    chosen_N = torch.zeros_like(correct_N)
    for group in torch.unique(group_N):
        sides = [torch.nonzero((group_N == group) & side_N).flatten() for side_N in (correct_N, ~correct_N)]
        if all(len(side) for side in sides):
            for side in sides:
                chosen_N[side[torch.randint(len(side), (1,), generator=generator)]] = True
    return chosen_N


def _indices(mask_N: Tensor) -> list[int]:
    return torch.nonzero(mask_N).flatten().tolist()
