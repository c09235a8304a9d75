"""Warm start: a short supervised fine-tuning on given solutions, for models that could not earn a first reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data.sampler import Sampler
from rollout.engine import derive_seed
from rollout.packing import TokenIds
from trainer.config import WarmStartConfig
from trainer.learner import Learner


def warm_start(
    learner: Learner,
    options: WarmStartConfig,
    demonstrations: Sequence[TokenIds],
    seed: int,
    on_step: Callable[[int, dict[str, float]], None],
) -> None:
    """`options.steps` steps of token-mean maximum likelihood, with an optimizer of its own."""
    learner.use_optimizer(options.optim, options.steps)
    sampler = Sampler(len(demonstrations), derive_seed(seed, "warm start"))
    for step in range(options.steps):
        batch = [demonstrations[i] for i in sampler.next(options.examples_per_step)]
        on_step(step + 1, learner.supervised_step(batch))
