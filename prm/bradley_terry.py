"""`bt_rm`: a reward model from preference pairs, and the frozen model as a reward source.

    loss = mean over pairs of
        -log sigmoid(s_w - s_l - margin)  +  score_l2 (s_w^2 + s_l^2) / 2  +  centre (s_w + s_l)^2

s_w and s_l are the scores of the preferred and of the other response. The likelihood knows differences only, so scores
may drift; the two regularisers hold them. A margin asks for a distance where the data say how much better one is.

Sources: Bradley and Terry 1952; margin: Llama 2, arXiv:2307.09288, eq. 2; score_l2: Open-Assistant's `RMLoss`, with
which the ensembles of arXiv:2310.02743 are trained (0.001); centre: Eisenstein et al., arXiv:2312.09244 (0.01 in TRL).

Shapes: P pairs; N sequences, chosen and rejected of each pair in turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from data.example import Example, Message
from data.labelled import LabelledResponse, Pair
from data.template import encode_demonstration
from prm.bench.calibration import brier, expected_calibration_error
from prm.bench.ranking import auc, rank_correlation
from prm.cotrained import BatchLoss, CoTrained
from prm.reward_model import (
    REWARD_MODELS,
    Evaluation,
    RewardModel,
    TokenIds,
    TooLong,
    flat,
    loss_of_scores,
    open_reward_model,
    read_card,
    response_of,
    scores_of,
    sigmoid,
    whole,
)
from prm.signal import SOURCES, Signal, Source, SourceContext
from rollout.trajectory import Trajectory
from verifiers.options import Options as BaseOptions


def bradley_terry_loss(
    chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor, *, score_l2: float = 0.0, centre: float = 0.0
) -> Tensor:
    """The mean over the pairs."""
    loss_P = -logsigmoid(chosen_P - rejected_P - margin_P)
    loss_P = loss_P + score_l2 * (chosen_P.square() + rejected_P.square()) / 2
    return (loss_P + centre * (chosen_P + rejected_P).square()).mean()


@REWARD_MODELS.register("bt_rm")
class BradleyTerry(RewardModel):
    head = "scalar"
    takes = Pair

    class Options(BaseOptions):
        """margin: factor of the margin that the data give (0: they are ignored; pairs without one have margin 0).
        score_l2, centre: the regularisers of the scores."""

        margin: float = Field(default=0.0, ge=0)
        score_l2: float = Field(default=0.0, ge=0)
        centre: float = Field(default=0.0, ge=0)

    options: BradleyTerry.Options

    def encode(self, example: Pair) -> list[TokenIds]:
        return [self.sequence(example.id, example.prompt, text) for text in (example.chosen, example.rejected)]

    def encode_response(self, asked: LabelledResponse) -> TokenIds:
        return self.sequence(asked.id, asked.prompt, asked.response)

    def sequence(self, id_: str, prompt: tuple[Message, ...], response: str) -> TokenIds:
        """Prompt, response and end-of-sequence token, as in a demonstration. Raises `TooLong`."""
        example = Example(id_, prompt, None, solution=response)
        prompt_ids, response_ids = encode_demonstration(example, self.context.template, self.context.tokenizer)
        tokens = len(prompt_ids) + len(response_ids)
        if tokens > self.context.max_tokens:
            raise TooLong(tokens, self.context.max_tokens, id_)
        return whole(prompt_ids + response_ids)

    def batch_loss(
        self, model: CoTrained, examples: Sequence[Pair], sequences: Sequence[Sequence[TokenIds]]
    ) -> BatchLoss:
        options = self.options
        margin_P = torch.tensor([options.margin * (pair.margin or 0.0) for pair in examples])

        def loss(score_N: Tensor) -> tuple[Tensor, dict[str, float]]:
            chosen_P, rejected_P = score_N[0::2], score_N[1::2]
            value = bradley_terry_loss(chosen_P, rejected_P, margin_P.to(score_N), score_l2=options.score_l2,
                                       centre=options.centre)  # fmt: skip
            difference_P = (chosen_P - rejected_P).detach()
            facts = {"accuracy": (difference_P > 0).double().mean(), "difference": difference_P.double().mean(),
                     "score_mean": score_N.detach().double().mean()}  # fmt: skip
            return value, {name: float(fact) for name, fact in facts.items()}

        return loss_of_scores(model, flat(sequences), loss)

    def evaluate(
        self, model: CoTrained, examples: Sequence[Pair], sequences: Sequence[Sequence[TokenIds]]
    ) -> Evaluation:
        scores = scores_of(model, flat(sequences))
        rows = [
            {"id": pair.id, "chosen": chosen, "rejected": rejected}
            for pair, chosen, rejected in zip(examples, scores[0::2], scores[1::2], strict=True)
        ]
        lengths = [float(len(one.prompt_ids)) for one in flat(sequences)]
        return Evaluation(pair_metrics(scores[0::2], scores[1::2]) | length_bias(scores, lengths), rows)

    def score(self, model: CoTrained, asked: Sequence[LabelledResponse]) -> list[float | None]:
        sequences = self.readable(asked)
        known = dict(zip(sequences, scores_of(model, list(sequences.values())), strict=True))
        return [known.get(i) for i in range(len(asked))]


def pair_metrics(chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, float]:
    """accuracy: pairs whose chosen one scores strictly higher. tied_share. auc: of all chosen against all rejected, so
    also across prompts. log_loss, brier and calibration_error: of sigmoid(difference) as the chance that the first of
    two is preferred, each pair asked both ways round."""
    differences = [w - l for w, l in zip(chosen, rejected, strict=True)]
    probability = [sigmoid(d) for d in differences] + [sigmoid(-d) for d in differences]
    label = [True] * len(chosen) + [False] * len(rejected)
    found = {
        "accuracy": sum(d > 0 for d in differences) / len(differences),
        "tied_share": sum(d == 0 for d in differences) / len(differences),
        "difference": math.fsum(differences) / len(differences),
        "log_loss": float(-logsigmoid(torch.tensor(differences, dtype=torch.float64)).mean()),
        "auc": auc([*chosen, *rejected], label),
        "brier": brier(probability, label),
        "calibration_error": expected_calibration_error(probability, label),
    }
    return {name: value for name, value in found.items() if value is not None}


def length_bias(scores: Sequence[float], lengths: Sequence[float]) -> dict[str, float]:
    """Rank correlation of score and length, where it is defined: far from 0, the model may score length."""
    value = rank_correlation(scores, lengths)
    return {} if value is None else {"length_correlation": value}


@SOURCES.register("bt_rm")
class BradleyTerrySource(Source):
    """outcome = the frozen model's score of the response. A response that is too long for the model is not judged (NaN,
    counted in ``too_long_share``): a score of a part of it would be of another response."""

    class Options(BaseOptions):
        """path: what `assay train` left. output: the score as it is, or its sigmoid, within (0, 1)."""

        path: str
        output: Literal["raw", "sigmoid"] = "raw"

    options: BradleyTerrySource.Options

    def __init__(self, options: BradleyTerrySource.Options, context: SourceContext):
        super().__init__(options, context)
        self.model, kind = open_reward_model(options.path, "bt_rm", context.models, key="sources, kind bt_rm, path")
        assert isinstance(kind, BradleyTerry)
        self.kind = kind

    @classmethod
    def check(cls, options: BradleyTerrySource.Options, key: str) -> None:
        read_card(options.path, key=f"{key}.path")

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        asked = [response_of(t, e) for t, e in zip(trajectories, examples, strict=True)]
        scores = self.kind.score(self.model, asked)
        raw_N = torch.tensor([math.nan if s is None else s for s in scores], dtype=torch.float32)
        known_N = ~raw_N.isnan()
        outcome_N = raw_N.sigmoid() if self.options.output == "sigmoid" else raw_N
        metrics = {"too_long_share": 1 - float(known_N.double().mean())}
        if bool(known_N.any()):
            metrics |= {"score_mean": float(raw_N[known_N].double().mean())}
        return Signal(outcome_N, labels={"score": scores}, metrics=metrics)
