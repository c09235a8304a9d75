"""`implicit`: a language model trained on outcomes alone gives a reward to every token (PRIME).

    q_t = log phi(y_t | x, y_<t) - log ref(y_t | x, y_<t)        P(right | y) = sigmoid(beta * sum_t q_t)
    CE  = -mean_i [a_i log P_i + (1 - a_i) log(1 - P_i)]         a_i in [0, 1]: the outcome

phi, ref and the policy start as the same model, so the first rewards are 0 and the first CE is ln 2. Tokens get q as it
is (`scale: raw`; beta then shapes the CE only) or beta q, divided by one number for the whole batch: the largest
|sum_{s >= t} q_s| (`normalise: batch_norm`). No return then exceeds 1, signs and proportions stay, beta cancels.

Paper: arXiv:2502.01456. Reference: PRIME-RL/PRIME 18ad596f (`DataParallelPRIME`, `compute_ce_dpo_loss_rm`,
`compute_dpo_accuracy`); verl-project/verl-recipe 48ea0a79, prime/. Not copied from them: the recipe drops the reward of
the last token, and its `whole` cannot run; the repository's `before` cannot run, its maximum is that of one rank, and
its reference log-probs stay in half precision.

Shapes: N trajectories; T_i response tokens of one; R response tokens and S sequences of a micro-batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from prm.cotrained import CoTrained
from prm.health import LineOracle, outcome_health
from prm.signal import SOURCES, Kept, Signal, Source, SourceContext
from rollout.options import OptimConfig
from rollout.packing import PackedBatch
from rollout.trajectory import Trajectory
from verifiers.errors import RunError
from verifiers.options import Options

EPS = 1e-6


class ImplicitOptions(Options):
    """beta: of the CE. update: `after` gives the rewards of the model before it learns from the batch (one forward
    serves both), `before` those after it (a second forward); `none` never learns. reference: `frozen`, the policy
    that RL starts from; `moving`, the policy that wrote the rollouts, by the engine's log-probs. weights: a Hugging
    Face folder that the PRM starts from, instead of the policy. granularity: `whole` puts the sum of q on the last
    token. label: the outcome, which must lie in [0, 1], or whether the verifier said correct."""

    beta: float = Field(default=0.05, gt=0)
    update: Literal["before", "after", "none"] = "after"
    reference: Literal["frozen", "moving"] = "frozen"
    normalise: Literal["batch_norm", "none"] = "batch_norm"
    scale: Literal["raw", "beta"] = "raw"
    granularity: Literal["token", "whole"] = "token"
    label: Literal["outcome", "correct"] = "outcome"
    optim: OptimConfig | None = None
    weights: str | None = None

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if (self.update == "none") != (self.optim is None):
            raise ValueError("optim is needed with update=before and update=after, and does nothing with none")
        if self.update == "none" and self.weights is None:
            raise ValueError("update=none needs weights: a PRM that starts as the policy and never learns says "
                             "nothing about it")  # fmt: skip
        if self.scale == "beta" and self.normalise == "batch_norm":
            raise ValueError("scale=beta does nothing with normalise=batch_norm, where beta cancels")
        return self


@SOURCES.register("implicit")
class ImplicitSource(Source):
    """token_reward for every kept trajectory. Models: ``prm``, co-trained, and ``reference``, if it is a frozen one.

    Labels: ``implicit_logit``, beta * sum of q, before the model has learnt from the batch. Metrics are of that moment
    too, but `line_auc` is of the rewards that were given.
    """

    phase = "credit"
    gives = ("token_reward_R",)
    reading: ClassVar[Mapping[str, str]] = {
        "prm": "An implicit process reward model: the reward of a token is beta times its log-prob under this model "
        "less that under the reference (the policy before RL), both at the rollouts' temperature.",
        "reference": "The frozen reference of the implicit process reward model `prm`.",
    }

    class Options(ImplicitOptions):
        pass

    def __init__(self, options: ImplicitOptions, context: SourceContext):
        super().__init__(options, context)
        setup = context.models
        if options.weights is not None:
            tokenizer = setup.model.tokenizer or setup.model.path
            changes = {"path": options.weights, "scratch": None, "revision": None, "tokenizer": tokenizer}
            setup = dataclasses.replace(setup, model=setup.model.model_copy(update=changes))
        self.prm = CoTrained(setup, "lm", options.optim)
        self.reference = CoTrained(context.models, "lm", None) if options.reference == "frozen" else None
        self.lines = LineOracle(context.tokenizer)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        if self.options.weights is None:
            self.prm.start_from(weights)
        if self.reference is not None:
            self.reference.start_from(weights)

    @classmethod
    def planned_models(cls, options: ImplicitOptions) -> dict[str, Literal["trained", "frozen"]]:
        prm: dict[str, Literal["trained", "frozen"]] = {"prm": "frozen" if options.optim is None else "trained"}
        return prm if options.reference == "moving" else {**prm, "reference": "frozen"}

    def models(self) -> dict[str, CoTrained]:
        return {"prm": self.prm} if self.reference is None else {"prm": self.prm, "reference": self.reference}

    def credit(self, kept: Kept) -> Signal:
        label_N = self.labels(kept)
        reference = self.reference_logp(kept.trajectories)
        optimised: dict[str, float] = {}
        if self.options.update == "none":
            first = log_ratio(self.prm.outputs(kept.trajectories), reference)
        else:
            first, optimised = self._update(kept.trajectories, reference, label_N)
        q = first
        if self.options.update == "before":
            q = log_ratio(self.prm.outputs(kept.trajectories), reference)
        rewards, peak = process_rewards(q, self.options)
        logit_N = self.options.beta * torch.stack([q_T.double().sum() for q_T in first])
        metrics = outcome_health(logit_N, label_N, kept.group_N) | {"return_peak": peak} | optimised
        metrics |= self.lines.health(kept.trajectories, kept.examples, rewards)
        silent = torch.zeros(len(kept.trajectories))
        return Signal(silent, rewards, labels={"implicit_logit": logit_N.tolist()}, metrics=metrics)

    def labels(self, kept: Kept) -> Tensor:
        """a [N], float64. Raises `RunError` for an outcome that is no probability."""
        if self.options.label == "correct":
            return kept.correct_N.double()
        outcome_N = kept.outcome_N.double()
        outside = (outcome_N < 0) | (outcome_N > 1)
        if bool(outside.any()):
            raise RunError(
                f"The outcome of example '{kept.examples[int(outside.nonzero()[0])].id}' is "
                f"{float(outcome_N[outside][0]):g}; the label of an implicit PRM lies in [0, 1].",
                where="sources, kind implicit",
                why="the cross-entropy has no minimum for a label outside",
                fix="give this source label: correct, or the other sources weights that add up to 1",
            )
        return outcome_N

    def reference_logp(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        """One float32 tensor [T_i] each, under the distribution that the PRM's log-probs are of: temperature applied,
        nothing cut off."""
        if self.reference is not None:
            return self.reference.outputs(trajectories)
        untempered = self.context.models.temperature == 1
        return [torch.tensor(t.logp_model if untempered else t.logp_sampled) for t in trajectories]

    def _update(
        self, trajectories: Sequence[Trajectory], reference: list[Tensor], label_N: Tensor
    ) -> tuple[list[Tensor], dict[str, float]]:
        """(q from before the optimizer step, gradient norm and learning rate)."""
        seen: dict[int, Tensor] = {}

        def batch_loss(batch: PackedBatch, logp_R: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            q_R = logp_R - batch.flatten(reference)
            seen.update({i: q_T.cpu() for i, q_T in batch.split(q_R.detach()).items()})
            label_S = label_N[batch.sequence_index].to(q_R.device)
            ce_S = cross_entropy(list(batch.split(q_R).values()), label_S, self.options.beta)
            return ce_S.sum() / len(trajectories), {}

        found = self.prm.step(trajectories, batch_loss, "The implicit PRM")
        seen = self.prm.world.union(seen)
        return [seen[i] for i in range(len(trajectories))], {name: found[name] for name in ("grad_norm", "lr")}


def log_ratio(logp: Sequence[Tensor], reference: Sequence[Tensor]) -> list[Tensor]:
    """q, one tensor [T_i] each."""
    return [a - b for a, b in zip(logp, reference, strict=True)]


def cross_entropy(q: Sequence[Tensor], label_S: Tensor, beta: float) -> Tensor:
    """-a log sigma(beta sum q) - (1 - a) log(1 - sigma(beta sum q)) of each sequence, float64 [S]."""
    logit_S = beta * torch.stack([q_T.double().sum() for q_T in q])
    return binary_cross_entropy_with_logits(logit_S, label_S.double(), reduction="none")


def process_rewards(q: Sequence[Tensor], options: ImplicitOptions) -> tuple[list[Tensor], float]:
    """(reward of every token, the largest |reward still to come| before it was divided by that)."""
    rewards = [q_T * options.beta if options.scale == "beta" else q_T for q_T in q]
    if options.granularity == "whole":
        rewards = [torch.cat([torch.zeros_like(r[:-1]), r.sum()[None]]) for r in rewards]
    peak = max(float(r.flip(0).cumsum(0).abs().max()) for r in rewards)
    if options.normalise == "none":
        return rewards, peak
    return [r / (peak + EPS) for r in rewards], peak
