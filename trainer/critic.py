"""The critic: V before each token, trained on the estimator's returns.

On a trunk of its own it starts as a copy of the policy's, with a head of zeros: the first values are 0 and the first
advantages plain rewards to go. Its checkpoint is what `AutoModelForTokenClassification` loads, with one label. Beside a
LoRA policy it is a full model: the base with the adapter merged.

Shapes: N trajectories; R response tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prm.cotrained import CoTrained, ModelSetup
from prm.optim import NonFiniteError
from rollout.packing import TokenSequence
from trainer.config import Config
from trainer.learner import Learner, TrainingBatch, split_by_group, value_loss_term
from trainer.losses.value import ValueLossOptions


class Critic(CoTrained):
    """A value model of its own. Needs `config.critic`."""

    def __init__(self, config: Config, setup: ModelSetup):
        assert config.critic is not None
        steps = config.train.optimizer_steps_per_batch
        assert config.critic.optim is not None
        super().__init__(setup, "scalar", config.critic.optim, zero_head=True, steps_per_round=steps)
        self.config = config
        self.loss_options = ValueLossOptions(clip=config.critic.clip)

    def values(self, sequences: Sequence[TokenSequence]) -> list[Tensor]:
        """V before each token of every response, one CPU tensor [T_i] each."""
        return self.outputs(sequences)

    def update(self, batch: TrainingBatch) -> dict[str, float]:
        """As many passes and mini-batches as the policy's; metrics are means over them. Raises `NonFiniteError` before
        the optimizer touches the weights."""
        train = self.config.train
        parts = [index for index in split_by_group(batch.trajectories, train.minibatches_per_step) if index]
        steps = [self._update(batch, index) for _ in range(train.epochs_per_batch) for index in parts]
        if not steps:
            return {}
        means = {name: sum(s[name] for s in steps) / len(steps) for name in steps[0]}
        return means | value_metrics(batch)

    def _update(self, batch: TrainingBatch, index: list[int]) -> dict[str, float]:
        """One optimizer step on the token mean of the value loss."""
        sequences = [batch.trajectories[i] for i in index]
        try:
            return self.step(sequences, value_loss_term(batch, index, self.loss_options), "The critic")
        except NonFiniteError as error:
            error.sequences = [index[i] for i in error.sequences]  # of the batch, not of this mini-batch
            raise


class SharedCritic:
    """The learner's value head, seen as a critic: its loss is a term of the policy's update."""

    def __init__(self, learner: Learner):
        self.learner = learner

    def values(self, sequences: Sequence[TokenSequence]) -> list[Tensor]:
        return self.learner.values(sequences)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """The trunk is the policy's."""

    def update(self, batch: TrainingBatch) -> dict[str, float]:
        return value_metrics(batch) if batch.trajectories else {}


def make_critic(config: Config, setup: ModelSetup, learner: Learner) -> Critic | SharedCritic | None:
    """What the recipe asks for."""
    if config.critic is None:
        return None
    return Critic(config, setup) if config.critic.trunk == "own" else SharedCritic(learner)


def value_metrics(batch: TrainingBatch) -> dict[str, float]:
    """How much of the variance of the returns the values before the update explained, and their mean."""
    return_R, value_R = torch.cat(batch.returns), torch.cat(batch.values)
    variance = float(return_R.double().var(correction=0))
    explained = 1 - float((return_R - value_R).double().var(correction=0)) / variance if variance > 0 else 0.0
    return {"explained_variance": explained, "value_mean": float(value_R.double().mean())}
