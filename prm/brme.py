"""`brme`: a reward model of several heads that say how sure they are, and the frozen model as a reward source.

    head h:   mu_h, sigma_h = softplus(.) + floor      linear in the state h after the last token, one trunk for all
    stage 1:  a reward model of one number, r, trained by a recipe of its own (`bt_rm`, `verify_rm`)
    stage 2:  loss = mean over responses and heads of (mu_h + sigma_h eps - r)^2,      eps ~ N(0, 1)
    in RL:    `prm.ensemble.brme`

The expectation of stage 2's loss is (mu_h - r)^2 + sigma_h^2: it draws every sigma to 0, however wrong mu is, and what
tells one sigma from another is how far training has come. ``loss: nll`` is the likelihood of r under the heads instead:
sigma is then the size of the head's error at such a response.

Paper: arXiv:2409.15360 (heads, both stages, the objective); no code is public. The trunk starts as stage 1's (the
recipe's `model.path`) and learns with the heads, which start at random: ours, the paper's text was not at hand.

Shapes: N responses; S of a micro-batch; K heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import gaussian_nll_loss, softplus

from data.example import Example
from data.labelled import Labelled, LabelledResponse, Pair
from prm.bench.ranking import auc, correlation
from prm.cotrained import BatchLoss, CoTrained
from prm.ensemble import brme
from prm.reward_model import (
    REWARD_MODELS,
    Evaluation,
    FitContext,
    RewardModel,
    TokenIds,
    flat,
    folder_of,
    open_reward_model,
    per_response_loss,
    read_card,
    response_of,
    scores_of,
)
from prm.signal import SOURCES, Signal, Source, SourceContext
from rollout.engine import derive_seed
from rollout.models import load_tokenizer
from rollout.options import ModelConfig
from rollout.trajectory import Trajectory
from verifiers.errors import ConfigError
from verifiers.options import Options as BaseOptions
from verifiers.options import parse_options

SIGMA_FLOOR = 1e-4  # sigma stays above 0, and its logarithm finite


def gaussians(number_NM: Tensor) -> tuple[Tensor, Tensor]:
    """(mu, sigma), each [N, K], from a head's numbers [N, 2K]: the first half are the mu."""
    mean_NK, raw_NK = number_NM.chunk(2, 1)
    return mean_NK, softplus(raw_NK) + SIGMA_FLOOR


def sampled_error(mean_NK: Tensor, sigma_NK: Tensor, eps_NK: Tensor, reward_N: Tensor) -> Tensor:
    """The squared error of one reparameterised sample of each head [N, K]."""
    return (mean_NK + sigma_NK * eps_NK - reward_N[:, None]).square()


def negative_log_likelihood(mean_NK: Tensor, sigma_NK: Tensor, reward_N: Tensor) -> Tensor:
    """Of the rewards under each head, without the constant [N, K]."""
    reward_NK = reward_N[:, None].expand_as(mean_NK)
    return gaussian_nll_loss(mean_NK, reward_NK, sigma_NK.square(), reduction="none", eps=SIGMA_FLOOR**2)


@REWARD_MODELS.register("brme")
class Brme(RewardModel):
    """Stage 2, on responses of the form that stage 1 was trained on; their labels are for the evaluation only."""

    class Options(BaseOptions):
        """stage1: folder of the trained model of one number. reader: kind and options by which stage 1 reads a
        response; a recipe leaves it out, a trained folder brings it along and needs stage 1 no more."""

        stage1: str
        heads: int = Field(default=5, ge=1)
        loss: Literal["mse", "nll"] = "mse"
        reader: dict[str, Any] | None = None

    options: Brme.Options

    def __init__(self, options: Brme.Options, context: FitContext):
        reader = options.reader or stage1_reader(options.stage1, context)
        super().__init__(options.model_copy(update={"reader": reader}), context)
        kind = REWARD_MODELS.get(reader["kind"], key="reward_model.reader.kind")
        given = {name: value for name, value in reader.items() if name != "kind"}
        self.reader = kind(parse_options(kind.Options, given, "reward_model.reader"), context)
        self.kind, self.takes, self.numbers = reader["kind"], self.reader.takes, 2 * options.heads
        self._stage1: CoTrained | None = None

    def encode(self, example: Labelled) -> list[TokenIds]:
        return self.reader.encode(example)

    def encode_response(self, asked: LabelledResponse) -> TokenIds:
        return self.reader.encode_response(asked)

    # ---- stage 2 -------------------------------------------------------

    def stage1_rewards(self, model: CoTrained, sequences: Sequence[TokenIds]) -> Tensor:
        """float32 [N]: what the frozen model of stage 1, run as `model` is, gives."""
        if self._stage1 is None:
            self._stage1, _ = open_reward_model(self.options.stage1, self.kind, model.setup, key="reward_model.stage1")
        return torch.tensor(scores_of(self._stage1, sequences))

    def batch_loss(
        self, model: CoTrained, examples: Sequence[Labelled], sequences: Sequence[Sequence[TokenIds]]
    ) -> BatchLoss:
        """eps is drawn by seed and step for all responses of the step, so neither the micro-batches nor a resumed run
        change it."""
        options, read = self.options, flat(sequences)
        reward_N = self.stage1_rewards(model, read)
        seed = derive_seed(self.context.seed, "brme", "eps", model.optimizer_steps)
        eps_NK = torch.randn(len(read), options.heads, generator=torch.Generator().manual_seed(seed))

        def loss_of(number_SM: Tensor, index: list[int]) -> Tensor:
            mean_SK, sigma_SK = gaussians(number_SM)
            reward_S = reward_N[index].to(mean_SK)
            if options.loss == "nll":
                return negative_log_likelihood(mean_SK, sigma_SK, reward_S).mean(1)
            return sampled_error(mean_SK, sigma_SK, eps_NK[index].to(mean_SK), reward_S).mean(1)

        return per_response_loss(loss_of, len(read))

    def evaluate(
        self, model: CoTrained, examples: Sequence[Labelled], sequences: Sequence[Sequence[TokenIds]]
    ) -> Evaluation:
        read = flat(sequences)
        mean_NK, sigma_NK = heads_of(model, read)
        reward_N = self.stage1_rewards(model, read)
        nominal_N = brme(mean_NK.T, sigma_NK.T, 1.0)
        labels = [label for one in examples for label in _labels(one)]
        of_labels = {"auc": auc(nominal_N.tolist(), labels), "stage1_auc": auc(reward_N.tolist(), labels)}
        metrics = head_metrics(mean_NK, sigma_NK, reward_N, nominal_N) | of_labels
        ids = [one.id for one, own in zip(examples, sequences, strict=True) for _ in own]
        rows = [{"id": id_, "stage1": reward, "mean": mean, "sigma": sigma} for id_, reward, mean, sigma
                in zip(ids, reward_N.tolist(), mean_NK.tolist(), sigma_NK.tolist(), strict=True)]  # fmt: skip
        return Evaluation({name: value for name, value in metrics.items() if value is not None}, rows)

    def score(self, model: CoTrained, asked: Sequence[LabelledResponse]) -> list[float | None]:
        """The nominal reward, of the most certain head."""
        sequences = self.readable(asked)
        mean_NK, sigma_NK = heads_of(model, list(sequences.values()))
        known = dict(zip(sequences, brme(mean_NK.T, sigma_NK.T, 1.0).tolist(), strict=True)) if sequences else {}
        return [known.get(i) for i in range(len(asked))]


def stage1_reader(stage1: str, context: FitContext) -> dict[str, Any]:
    """Kind and options of a trained model of one number. Raises `ConfigError` unless the recipe reads responses exactly
    as it did: same template, tokenizer and size."""
    where = "reward_model.stage1"
    card = read_card(stage1, key=where)
    if card.kind == "brme" or REWARD_MODELS.get(card.kind, key=where).head != "scalar":
        raise ConfigError(f"{stage1} holds a reward model of kind '{card.kind}', which has no single number.",
                          where=where, fix="train a bt_rm or a verify_rm first")  # fmt: skip
    if card.template != context.template:
        raise ConfigError("The recipe's template is not the one of stage 1.", where="template",
                          fix=f"template={card.template.model_dump()}")  # fmt: skip
    if card.max_tokens != context.max_tokens:
        raise ConfigError(f"Stage 1 reads {card.max_tokens} tokens, this recipe {context.max_tokens}.",
                          where="data.max_tokens", fix=f"data.max_tokens={card.max_tokens}")  # fmt: skip
    own = load_tokenizer(ModelConfig(path=str(folder_of(stage1))))
    if own.get_vocab() != context.tokenizer.get_vocab():
        raise ConfigError("The recipe's tokenizer is not the one of stage 1.", where="model.path",
                          fix=f"model.path={folder_of(stage1)}")  # fmt: skip
    return {"kind": card.kind, **card.options}


def heads_of(model: CoTrained, sequences: Sequence[TokenIds]) -> tuple[Tensor, Tensor]:
    """(mu, sigma) of each sequence, float32 [N, K] on the CPU."""
    assert model.head is not None
    outputs = model.outputs(sequences)
    return gaussians(torch.stack([out[-1] for out in outputs]) if outputs else torch.zeros(0, model.head.out_features))


def head_metrics(mean_NK: Tensor, sigma_NK: Tensor, reward_N: Tensor, nominal_N: Tensor) -> dict[str, float | None]:
    """error: the root mean square of mu - r, over responses and heads; within_sigma: how often it is smaller than
    sigma, 0.68 if sigma is the error's standard deviation; head_spread: the heads' standard deviation, in the mean over
    responses; correlation: of the nominal reward with r."""
    error_NK = (mean_NK - reward_N[:, None]).double()
    return {
        "error": float(error_NK.square().mean().sqrt()),
        "sigma_mean": float(sigma_NK.double().mean()),
        "within_sigma": float((error_NK.abs() <= sigma_NK).double().mean()),
        "head_spread": float(mean_NK.double().std(1, correction=0).mean()),
        "correlation": correlation(nominal_N.tolist(), reward_N.tolist()),
    }


def _labels(example: Labelled) -> list[bool]:
    return [True, False] if isinstance(example, Pair) else [example.label > 0.5]


# ---- in the loop -----------------------------------------------------


@SOURCES.register("brme")
class BrmeSource(Source):
    """outcome = alpha * (mu of the response's most certain head) + (1 - alpha) * (mu of the one head whose mean over
    the batch is lowest), from the frozen model. The batch is what one call holds: all groups of a step, on every rank,
    or of one refill. A response that is too long is not judged (NaN) and does not count in that mean.

    Labels: ``head_means`` and ``head_sigmas``, None for what is too long. Metrics: ``too_long_share``,
    ``nominal_mean``, ``worst_mean`` and ``worst_head`` (counted from 0), ``sigma_mean``, ``head_spread``.
    """

    class Options(BaseOptions):
        """path: what `assay train` left. alpha: 1 is the nominal reward alone; sources contradict each other about the
        best one, so there is no default. output: mu as it is, or its sigmoid, within (0, 1)."""

        path: str
        alpha: float = Field(ge=0, le=1)
        output: Literal["raw", "sigmoid"] = "raw"

    options: BrmeSource.Options

    def __init__(self, options: BrmeSource.Options, context: SourceContext):
        super().__init__(options, context)
        self.model, self.kind = open_reward_model(options.path, "brme", context.models, key="sources, kind brme, path")

    @classmethod
    def check(cls, options: BrmeSource.Options, key: str) -> None:
        read_card(options.path, key=f"{key}.path")

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        asked = self.kind.readable([response_of(t, e) for t, e in zip(trajectories, examples, strict=True)])
        mean_NK, sigma_NK = heads_of(self.model, list(asked.values()))
        if self.options.output == "sigmoid":
            mean_NK = mean_NK.sigmoid()
        outcome_N = torch.full((len(trajectories),), math.nan)
        metrics = {"too_long_share": 1 - len(asked) / max(1, len(trajectories))}
        if asked:
            outcome_N[list(asked)] = brme(mean_NK.T, sigma_NK.T, self.options.alpha)
            metrics |= _health(mean_NK, sigma_NK)
        labels = {"head_means": _by_index(asked, mean_NK, len(trajectories)),
                  "head_sigmas": _by_index(asked, sigma_NK, len(trajectories))}  # fmt: skip
        return Signal(outcome_N, labels=labels, metrics=metrics)


def _health(mean_NK: Tensor, sigma_NK: Tensor) -> dict[str, float]:
    by_head_K = mean_NK.double().mean(0)
    return {
        "nominal_mean": float(brme(mean_NK.T, sigma_NK.T, 1.0).double().mean()),
        "worst_mean": float(by_head_K.min()),
        "worst_head": float(by_head_K.argmin()),
        "sigma_mean": float(sigma_NK.double().mean()),
        "head_spread": float(mean_NK.double().std(1, correction=0).mean()),
    }


def _by_index(asked: Mapping[int, TokenIds], values_NK: Tensor, count: int) -> list[list[float] | None]:
    known = dict(zip(asked, values_NK.tolist(), strict=True))
    return [known.get(i) for i in range(count)]
