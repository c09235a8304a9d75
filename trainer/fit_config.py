"""The recipe of a reward model that is trained on labelled data: one frozen, typed tree, as `trainer/config.py` is for
reinforcement learning. A recipe is of this form if it has the key ``reward_model``.
"""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from data.template import TemplateOptions
from rollout.options import ModelConfig, OptimConfig, WriterConfig
from trainer.config import CheckpointConfig, DataPart, EvalSet, HardwareConfig, Part, RecordConfig, RunConfig
from verifiers.options import Options


class FitDataConfig(Options):
    """train and eval name sources of labelled data. max_tokens: of an encoded example; on_too_long: an error, or the
    example is left out and counted."""

    train: DataPart
    eval: list[EvalSet] = Field(default_factory=list)
    max_tokens: int = Field(ge=2)
    on_too_long: Literal["stop", "skip"] = "stop"


class FitTrainConfig(Options):
    """Either steps or epochs. examples_per_step: of an optimizer step; a pair is one example. At the end of an epoch a
    step takes the rest from the next."""

    steps: int | None = Field(default=None, ge=0)
    epochs: float | None = Field(default=None, gt=0)
    examples_per_step: int = Field(ge=1)
    max_tokens_per_microbatch: int = Field(ge=1)
    logprob_chunk_tokens: int = Field(default=1024, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set exactly one of train.steps and train.epochs")
        return self

    def total_steps(self, num_examples: int) -> int:
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return math.ceil(self.epochs * num_examples / self.examples_per_step)


class FitEvalConfig(Options):
    every_steps: int | None = Field(default=None, ge=1)


class FitConfig(Options):
    """One recipe of a reward model. rollout: the engine of a model that writes its score, under the name that the
    hardware profiles know."""

    recipe: str = ""
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    description: str
    seed: int = Field(ge=0)
    model: ModelConfig
    template: TemplateOptions
    data: FitDataConfig
    reward_model: Part
    optim: OptimConfig
    train: FitTrainConfig
    eval: FitEvalConfig = FitEvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    rollout: WriterConfig = WriterConfig()
    record: RecordConfig = RecordConfig()
    hardware: HardwareConfig = HardwareConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _possible_combinations(self) -> Self:
        if self.model.lora is not None:
            raise ValueError("model.lora: a reward model trains all its weights, so remove it")
        if self.eval.every_steps is not None and not self.data.eval:
            raise ValueError("eval.every_steps is set and data.eval is empty: add a set or set eval.every_steps=null")
        if self.model.scratch is not None and self.data.max_tokens > self.model.scratch.max_positions:
            raise ValueError(f"data.max_tokens={self.data.max_tokens} exceeds model.scratch.max_positions="
                             f"{self.model.scratch.max_positions}")  # fmt: skip
        best_by = self.checkpoint.best_by
        if best_by is not None and not any(best_by.startswith(f"{e.name}/") for e in self.data.eval):
            raise ValueError(f"checkpoint.best_by={best_by!r} names none of the evaluation sets "
                             f"{[e.name for e in self.data.eval] or '(none)'}")  # fmt: skip
        names = [e.name for e in self.data.eval]
        if len(set(names)) != len(names):
            raise ValueError(f"data.eval has two sets of the same name: {names}")
        return self
