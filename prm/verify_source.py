"""`verify_rm`: a VerifyRM as a reward source, frozen: trained by a recipe of its own (`path`), or before the RL on
samples of the policy as it is then (`train`), which the recipe's verifier labels.

    r = sigmoid(logit)      or, hard, 1 if logit > 0 else 0

Shapes: N trajectories.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from data.example import Example
from data.sampler import Sampler
from prm.cotrained import CoTrained
from prm.reward_model import open_reward_model, read_card, whole
from prm.scorer_source import ScorerSource
from prm.signal import SOURCES, Signal, SourceContext
from prm.step_labels import correctness
from prm.step_scorer import TrainingOptions, sample_solutions
from prm.verify_rm import VerifyInput, VerifyRM, bce
from rollout.engine import derive_seed
from rollout.models import load_tokenizer
from rollout.options import ModelConfig, OptimConfig
from rollout.packing import TokenIds
from rollout.trajectory import Trajectory
from verifiers.errors import ConfigError, DataError
from verifiers.options import Options as BaseOptions

MAX_TOKENS = 8192


class VerifyTraining(TrainingOptions):
    """lr: the learning rate here, if it is not that of `optim`. label_noise: share of the labels that are turned round,
    for experiments."""

    lr: float | None = Field(default=None, ge=0)
    label_noise: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _sampled(self) -> Self:
        if self.prompts is None:
            raise ValueError("set prompts: labelled responses from a file train a model of their own "
                             "(assay train verify_rm), whose folder is then named in path")  # fmt: skip
        return self


class VerifyOptions(BaseOptions):
    """path: folder of a trained VerifyRM with its tokenizer. train: train it before the RL instead, from the policy, or
    from `model`, which has its own tokenizer. max_tokens: of its input (default: the model's positions, at most 8,192;
    a path brings its own). answer_chars: as in `VerifyInput`. hard: 1 or 0 instead of the probability. member: models
    that differ in nothing but this number learn from the same samples, from another head and in another order."""

    path: str | None = None
    train: VerifyTraining | None = None
    optim: OptimConfig | None = None
    model: ModelConfig | None = None
    max_tokens: int | None = Field(default=None, ge=16)
    answer_chars: int = Field(default=200, ge=1)
    hard: bool = False
    member: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.path is not None and (self.train is not None or self.model is not None or self.max_tokens is not None):
            raise ValueError("path brings a trained model with its size and its input: no train, model, max_tokens")
        return self


class VerifyScorer:
    """The model with its input, its training before the RL, and its state. optim: of what it learns later, `rounds`
    steps in all; None if it does not. what: its name in messages."""

    def __init__(self, options: VerifyOptions, context: SourceContext, what: str, later: OptimConfig | None = None):
        self.options, self.context, self.what = options, context, what
        self.fitted: dict[str, float] = {}
        if options.path is not None:
            key = f"sources, kind {what}"
            self.model, made = open_reward_model(options.path, "verify_rm", context.models, key=key, optim=later)
            assert isinstance(made, VerifyRM)
            self.input = made.input
        else:
            self.model, self.input = self._from_recipe(later)
        self.model.total_steps = (context.models.total_steps if later is not None else 0) + (
            options.train.steps if options.train is not None else 0)  # fmt: skip

    def _from_recipe(self, later: OptimConfig | None) -> tuple[CoTrained, VerifyInput]:
        options, context = self.options, self.context
        setup, tokenizer = context.models, context.tokenizer
        if options.model is not None:
            setup, tokenizer = dataclasses.replace(setup, model=options.model), load_tokenizer(options.model)
        if options.member:
            setup = dataclasses.replace(setup, seed=derive_seed(setup.seed, "member", options.member))
        model = CoTrained(setup, "scalar", options.optim or later, read="after", head_bias=False,
                          zero_head=options.train is None, exported_as="sequence")  # fmt: skip
        positions = getattr(model.hf_config, "max_position_embeddings", None) or MAX_TOKENS
        limit = options.max_tokens or min(positions, MAX_TOKENS)
        if limit > positions:
            raise ConfigError(f"A VerifyRM that reads {limit} tokens needs a model with as many positions; this one "
                              f"has {positions}.", where=f"sources, kind {self.what}, max_tokens",
                              fix=f"max_tokens={positions} or less")  # fmt: skip
        return model, VerifyInput(tokenizer, limit, options.answer_chars)

    # ---- training before the RL ----------------------------------------

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        if self.options.path is not None:
            return
        if self.options.model is None:
            self.model.start_from(weights)
        if self.options.train is not None:
            self._fit(self.options.train)

    def _fit(self, train: VerifyTraining) -> None:
        trajectories, examples = sample_solutions(self.context, train, "verify_rm")
        labels = correctness(self.context, trajectories, examples)
        rng = random.Random(derive_seed(self.context.seed, "verify_rm", "label_noise"))
        labels = [1 - y if rng.random() < train.label_noise else y for y in labels]  # NaN stays NaN
        rows = [(ids, y) for ids, y in zip(self.encode(trajectories, examples), labels, strict=True)
                if ids is not None and not math.isnan(y)]  # fmt: skip
        if not rows:
            raise DataError("No sampled response has a label and fits into the model's input.",
                            where=f"sources, kind {self.what}, train",
                            fix="look at the verifier with `assay verify`, or raise max_tokens")  # fmt: skip
        sampler = Sampler(len(rows), derive_seed(self.context.seed, "verify_rm", "order", self.options.member))
        size = min(train.solutions_per_step, len(rows))
        done: dict[str, float] = {}
        later = self.model.optim
        if later is not None and train.lr is not None:
            self.model.optim = later.model_copy(update={"lr": train.lr})
        for _ in range(train.steps):
            some = [rows[i] for i in sampler.next(size)]
            done = self.step([ids for ids, _ in some], [y for _, y in some])
        self.model.optim = later
        self.fitted = {"trained/loss": done["loss"], "trained/labels": float(len(rows)),
                       "trained/label_mean": sum(y for _, y in rows) / len(rows)}  # fmt: skip

    def step(self, sequences: Sequence[TokenIds], labels: Sequence[float]) -> dict[str, float]:
        """One optimizer step on the mean BCE. Raises `NonFiniteError`."""
        label_N = torch.tensor(labels, dtype=torch.float32)
        return self.model.step(sequences, bce(label_N), self.what)

    # ---- scoring -------------------------------------------------------

    def encode(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> list[TokenIds | None]:
        return [self.encode_text(e, t.text) for t, e in zip(trajectories, examples, strict=True)]

    def encode_text(self, example: Example, response: str) -> TokenIds | None:
        """None: too long for the model."""
        ids = self.input.ids(example.question, example.gold, response)
        return None if ids is None else whole(ids)

    def logits(self, sequences: Sequence[TokenIds | None]) -> Tensor:
        """float32 [N]; NaN where there is nothing to read."""
        logit_N = torch.full((len(sequences),), math.nan)
        known = [i for i, ids in enumerate(sequences) if ids is not None]
        outputs = self.model.outputs([ids for ids in sequences if ids is not None])
        for i, logit_T in zip(known, outputs, strict=True):
            logit_N[i] = logit_T[-1]
        return logit_N


@SOURCES.register("verify_rm")
class VerifyRmSource(ScorerSource[VerifyScorer]):
    """outcome = what the frozen model gives. A response that does not fit gives NaN and leaves its group.

    Labels: ``verify_logit``. Models: ``scorer``. Metrics: ``score_mean``, ``score_std`` (over the batch),
    ``too_long_share``, and ``trained/...``, what the last step of a training before the RL said.
    """

    phase = "judge"
    reading: ClassVar[Mapping[str, str]] = {
        "scorer": "The sigmoid of the number after the last token is the probability that the completion's final "
        "answer is the reference; both are fields of one tagged string (docs/methods/verify_rm.md)."
    }

    class Options(VerifyOptions):
        @model_validator(mode="after")
        def _trained(self) -> Self:
            if (self.path is None) == (self.train is None):
                raise ValueError("set exactly one of path (a trained model) and train")
            if (self.train is None) != (self.optim is None):
                raise ValueError("optim is for train, and needed there")
            return self

    def __init__(self, options: Any, context: SourceContext):
        super().__init__(options, context)
        self.scorer = VerifyScorer(options, context, "verify_rm")

    @classmethod
    def check(cls, options: VerifyOptions, key: str) -> None:
        if options.path is not None:
            read_card(options.path, key=f"{key}.path")

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        self.scorer.start_from(weights)

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        logit_N = self.scorer.logits(self.scorer.encode(trajectories, examples))
        reward_N = rewards(logit_N, self.options.hard)
        known = reward_N[~reward_N.isnan()]
        metrics = {"too_long_share": 1 - len(known) / max(1, len(reward_N)), **self.scorer.fitted}
        if len(known) > 1:
            metrics |= {"score_mean": float(known.mean()), "score_std": float(known.std())}
        return Signal(reward_N, labels={"verify_logit": logit_N.tolist()}, metrics=metrics)


def rewards(logit_N: Tensor, hard: bool) -> Tensor:
    """In [0, 1]; NaN stays NaN. p > 0.5 exactly if the logit is above 0."""
    if hard:
        return torch.where(logit_N.isnan(), logit_N, (logit_N > 0).to(logit_N))
    return logit_N.sigmoid()
