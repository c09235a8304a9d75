"""`step_prm` and `orm`: reward models of steps and of whole responses, with their training.

    score = sigmoid(w . h + b),  h: the policy's architecture at the last token of the step (of the response)
    loss  = mean over labelled steps of BCE(score, label)

A model is trained before the RL on samples of the policy as it is then (`train`), or loaded (`path`), and may go on
learning from the rollouts (`update_every`); without that it is frozen.

Source: Math-Shepherd, arXiv:2312.08935 (automatic labels, BCE); used as in arXiv:2410.15115.

Shapes: N trajectories; K_i steps and T_i tokens of trajectory i; R response tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from data.example import Example
from data.sampler import Sampler
from data.sources import oracle_of
from prm.cotrained import CoTrained
from prm.scorer_source import ScorerSource
from prm.signal import SOURCES, Kept, Signal, SourceContext
from prm.step_labels import Labelled, MonteCarloOptions, correctness, labelled, labels_from_file, monte_carlo
from prm.step_source import StepSource, Truth, score_health, step_truth
from prm.steps import Steps
from rollout.engine import Prompt, SamplingParams, derive_seed
from rollout.options import OptimConfig
from rollout.packing import PackedBatch
from rollout.trajectory import Trajectory
from verifiers.errors import ConfigError, ModelError
from verifiers.options import Options as BaseOptions


class TrainingOptions(BaseOptions):
    """Before the RL: samples_per_prompt responses to `prompts` training prompts by the policy (or the solutions of
    `file`) are labelled, and the model takes `steps` optimizer steps on solutions_per_step of them at a time."""

    prompts: int | None = Field(default=None, ge=1)
    samples_per_prompt: int = Field(default=1, ge=1)
    file: str | None = None
    steps: int = Field(ge=1)
    solutions_per_step: int = Field(ge=1)

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.prompts is None) == (self.file is None):
            raise ValueError("set exactly one of prompts (sample them) and file (given labels)")
        return self


def sample_solutions(
    context: SourceContext, train: TrainingOptions, what: str
) -> tuple[list[Trajectory], list[Example]]:
    """Responses of the present policy to `train.prompts` training prompts, chosen by the run's seed and `what`, the
    source that wants them."""
    assert train.prompts is not None
    if train.prompts > len(context.train_examples):
        raise ConfigError(f"{what} wants {train.prompts} prompts, data.train has {len(context.train_examples)}.",
                          where="train.prompts", fix="lower it")  # fmt: skip
    order = Sampler(len(context.train_examples), derive_seed(context.seed, what, "prompts"))
    examples = [context.train_examples[i] for i in order.next(train.prompts)]
    prompts = [Prompt(e.id, g, context.prompt_ids[e.id]) for g, e in enumerate(examples)]
    sampling = SamplingParams(context.max_response_tokens, context.models.temperature, stop=context.stop)
    trajectories = context.generate(
        prompts, train.samples_per_prompt, sampling, derive_seed(context.seed, what, "samples")
    )
    return trajectories, [examples[t.group] for t in trajectories]


class ScorerOptions(BaseOptions):
    """path: the exported folder of a model of the recipe's architecture. update_every: rounds between two optimizer
    steps on the rollouts, null: none."""

    path: str | None = None
    train: TrainingOptions | None = None
    optim: OptimConfig | None = None
    update_every: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _gets_its_weights(self) -> Self:
        if self.path is not None and self.train is not None:
            raise ValueError("set path (a trained model) or train, not both")
        if self.path is None and self.train is None and self.update_every is None:
            raise ValueError("nothing trains this model: set path, train or update_every")
        if (self.optim is None) != (self.train is None and self.update_every is None):
            raise ValueError("optim is for train and update_every, and needed there")
        return self


def check_scorer_folder(folder: Path, key: str) -> None:
    """Raises `ModelError` if there are no weights in it."""
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"There are no weights of a scorer in {folder}.",
            where=f"{key}.path",
            fix="give the folder of a checkpoint: checkpoints/step-NNNNNN/sources/KIND/scorer",
        )


class Scorer:
    """The model, its two phases of training, and its state. what: its name in messages."""

    def __init__(self, options: ScorerOptions, context: SourceContext, what: str):
        self.options, self.context, self.what = options, context, what
        self.model = CoTrained(context.models, "scalar", options.optim, read="after", zero_head=True)
        online = context.models.total_steps // options.update_every if options.update_every is not None else 0
        self.model.total_steps = online + (options.train.steps if options.train is not None else 0)
        self.fitted: dict[str, float] = {}

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """The policy's trunk, or the folder's weights."""
        if self.options.path is None:
            self.model.start_from(weights)
            return
        folder = Path(self.options.path)
        check_scorer_folder(folder, f"sources, kind {self.what}")
        optimizer, self.model.optimizer = self.model.optimizer, None  # the folder's weights, a fresh optimizer
        try:
            self.model.load(folder, {})
        except (RuntimeError, KeyError) as error:
            raise ModelError(f"These are weights of another model: {str(error)[:300]}", where=f"path={folder}",
                             fix="the scorer has the architecture of the recipe's model") from error  # fmt: skip
        self.model.optimizer = optimizer

    def fit(self, solutions: Sequence[Labelled], train: TrainingOptions) -> None:
        """`train.steps` optimizer steps. Leaves what the last of them said in `fitted`."""
        sampler = Sampler(len(solutions), derive_seed(self.context.seed, self.what, "order"))
        size = min(train.solutions_per_step, len(solutions))
        for _ in range(train.steps):
            metrics = self.step([solutions[i] for i in sampler.next(size)])
        self.fitted = {f"trained/{n}": metrics[n] for n in ("loss", "accuracy")}
        targets = torch.cat([s.target_T for s in solutions])
        self.fitted["trained/labels"] = float((~targets.isnan()).sum())
        self.fitted["trained/label_mean"] = float(targets.nanmean())

    def step(self, solutions: Sequence[Labelled]) -> dict[str, float]:
        """One optimizer step on the mean over the labels of these solutions. Raises `NonFiniteError`."""
        targets = [s.target_T for s in solutions]
        total = max(1, sum(int((~t.isnan()).sum()) for t in targets))

        def loss(mb: PackedBatch, logit_R: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            target_R = mb.flatten(targets).to(logit_R)
            known_R = ~target_R.isnan()
            logit, target = logit_R[known_R], target_R[known_R]
            right = ((logit > 0) == (target > 0.5)).sum() / total
            return F.binary_cross_entropy_with_logits(logit, target, reduction="sum") / total, {"accuracy": right}

        return self.model.step(solutions, loss, self.what)

    def probabilities(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        """The score after each token: one float32 CPU tensor [T_i] a response."""
        return [torch.sigmoid(logit_T).float() for logit_T in self.model.outputs(trajectories)]

    def is_due(self, step: int) -> bool:
        return self.options.update_every is not None and (step + 1) % self.options.update_every == 0


# ---- steps ---------------------------------------------------------


@SOURCES.register("step_prm")
class StepPrm(ScorerSource[Scorer], StepSource):
    """A discriminative process reward model: the state after each step's last token is scored.

    Models: ``scorer``. Metrics beside those of `StepSource`: ``trained/...`` in the first round, of the training before
    it; ``loss``, ``grad_norm``, ``lr`` and ``label_mean`` of rounds with an update.
    """

    reading: ClassVar[Mapping[str, str]] = {
        "scorer": "The sigmoid of the number at the last token of a step is the score of the step."
    }

    class Options(StepSource.Options, ScorerOptions):
        """labels: how sampled solutions are labelled, by the data source's oracle (`truth` says with what) or by
        completing prefixes with the policy (monte_carlo)."""

        labels: Literal["oracle", "monte_carlo"] = "monte_carlo"
        monte_carlo: MonteCarloOptions = MonteCarloOptions()

    @classmethod
    def check(cls, options: ScorerOptions, key: str) -> None:
        if options.path is not None:
            check_scorer_folder(Path(options.path), key)

    def __init__(self, options: Any, context: SourceContext):
        super().__init__(options, context)
        self.scorer = Scorer(options, context, "step_prm")
        without = next((e for e in context.train_examples if oracle_of(e) is None), None)
        if options.labels == "oracle" and without is not None:
            raise ConfigError("There is no oracle for the steps of these examples.", where=f"example '{without.id}'",
                              fix="labels: monte_carlo, or train.file")  # fmt: skip

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        self.scorer.start_from(weights)
        train = self.options.train
        if train is None:
            return
        if train.file is not None:
            solutions = labels_from_file(train.file, self.context, self.splitter)
        else:
            solutions = self.label(*sample_solutions(self.context, train, "step_prm"), "before")
        self.scorer.fit(solutions, train)

    def label(self, trajectories: Sequence[Trajectory], examples: Sequence[Example], when: str) -> list[Labelled]:
        """The trajectories with a label at the last token of each step; `when` makes the completions' seed."""
        steps = [self.splitter.split(t.text, t.response_ids) for t in trajectories]
        if self.options.labels == "oracle":
            truth: Truth = self.options.truth
            labels = [step_truth(e, t.text, s, truth) for t, e, s in zip(trajectories, examples, steps, strict=True)]
        else:
            seed = derive_seed(self.context.seed, "step_prm", "completions", when)
            labels = monte_carlo(self.context, trajectories, examples, steps, self.options.monte_carlo, seed)
        return [
            labelled(t.prompt_ids, t.response_ids, s.last_tokens, values)
            for t, s, values in zip(trajectories, steps, labels, strict=True)
        ]

    @property
    def bears_overlap(self) -> bool:
        """Not if prefixes are completed by the policy between the steps."""
        return self.options.update_every is None or self.options.labels == "oracle"

    def scores(self, kept: Kept, steps: Sequence[Steps]) -> list[Tensor]:
        probabilities = self.scorer.probabilities(kept.trajectories)
        return [p_T[s.last_tokens] for p_T, s in zip(probabilities, steps, strict=True)]

    def credit(self, kept: Kept) -> Signal:
        signal = super().credit(kept)
        signal.metrics |= self.scorer.fitted if kept.step == 0 else {}
        return signal

    def learn(self, kept: Kept, signal: Signal) -> dict[str, float]:
        if not kept.trajectories or not self.scorer.is_due(kept.step):
            return {}
        solutions = self.label(kept.trajectories, kept.examples, str(kept.step))
        label_mean = float(torch.cat([s.target_T for s in solutions]).nanmean())
        metrics = self.scorer.step(solutions)
        return {name: metrics[name] for name in ("loss", "grad_norm", "lr")} | {"label_mean": label_mean}


# ---- whole responses -----------------------------------------------


@SOURCES.register("orm")
class Orm(ScorerSource[Scorer]):
    """An outcome reward model: one score at the end of the response, its outcome. Trained on the verifier's verdicts.

    Models: ``scorer``. Metrics: as `step_prm`, with the verdicts of the rollouts as the truth.
    """

    reading: ClassVar[Mapping[str, str]] = {
        "scorer": "The sigmoid of the number at the last token of a response is the probability that it is right."
    }

    class Options(ScorerOptions):
        """role: `outcome`, the score is part of the reward by which groups are chosen and shuffled; `credit`, it is
        added for what was kept."""

        role: Literal["outcome", "credit"] = "credit"

        @model_validator(mode="after")
        def _no_file(self) -> Self:
            if self.train is not None and self.train.file is not None:
                raise ValueError("train.file holds labels of steps: use the source step_prm")
            return self

    @classmethod
    def check(cls, options: ScorerOptions, key: str) -> None:
        if options.path is not None:
            check_scorer_folder(Path(options.path), key)

    def __init__(self, options: Any, context: SourceContext):
        super().__init__(options, context)
        self.phase = "judge" if options.role == "outcome" else "credit"
        self.scorer = Scorer(options, context, "orm")

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        self.scorer.start_from(weights)
        if self.options.train is not None:
            trajectories, examples = sample_solutions(self.context, self.options.train, "orm")
            labels = correctness(self.context, trajectories, examples)
            self.scorer.fit(_at_the_end(trajectories, labels), self.options.train)

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        last = [float(p_T[-1]) for p_T in self.scorer.probabilities(trajectories)]
        return Signal(torch.tensor(last, dtype=torch.float32), labels={"orm_score": last})

    def credit(self, kept: Kept) -> Signal:
        return self.score(kept.trajectories, kept.examples)

    def learn(self, kept: Kept, signal: Signal) -> dict[str, float]:
        if not kept.trajectories:
            return {}
        metrics = self.scorer.fitted if kept.step == 0 else {}
        known = [float(c) for c in kept.correct_N] if kept.verdicts or kept.permuted else None
        unknown = [float("nan")] * len(kept.trajectories)
        metrics = metrics | score_health(signal.labels["orm_score"], known or unknown)
        if not self.scorer.is_due(kept.step):
            return metrics
        labels = known or correctness(self.context, kept.trajectories, kept.examples)  # no source asked the verifier
        done = self.scorer.step(_at_the_end(kept.trajectories, labels))
        return metrics | {name: done[name] for name in ("loss", "grad_norm", "lr")}


def _at_the_end(trajectories: Sequence[Trajectory], labels: Sequence[float]) -> list[Labelled]:
    return [
        labelled(t.prompt_ids, t.response_ids, [t.num_response_tokens - 1], [label])
        for t, label in zip(trajectories, labels, strict=True)
    ]
