"""Reward sources whose model does not learn, beside verl's policy: the recipe's source itself in a Ray actor.

The actor is on the first of the policy's GPUs, with all of its model: nothing is sharded, and the other GPUs wait while
it reads a step's responses.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from data.example import Example
from prm.signal import SOURCES, Kept, Signal, Source, SourceContext
from rollout.models import load_tokenizer
from rollout.options import ModelConfig
from rollout.trajectory import Trajectory
from trainer.config import Config, Part
from trainer.session import model_setup
from verifiers.errors import AssayError
from verifiers.options import parse_options


class _Actor:
    """The source with its model. It has neither verifier nor policy: `translate.check` lets no source in that asks
    for one."""

    def open(self, recipe: Config, part: Part, tokenizer: str) -> str:
        """The source's phase."""
        if recipe.hardware.threads is not None:
            torch.set_num_threads(recipe.hardware.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        setup = model_setup(recipe, device)
        own = load_tokenizer(ModelConfig(path=tokenizer))
        context = SourceContext(None, own, device, recipe.seed, setup, None, recipe.rollout.max_response_tokens)  # type: ignore[arg-type]
        kind = SOURCES.get(part.kind)
        self.source: Source = kind(parse_options(kind.Options, part.options), context)
        self.source.start_from({})
        return self.source.phase

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        return self.source.score(trajectories, examples)

    def credit(self, kept: Kept) -> Signal:
        return self.source.credit(kept)

    def learn(self, kept: Kept, signal: Signal) -> dict[str, float]:
        return self.source.learn(kept, signal)

    def state_dict(self) -> dict[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state)


class FrozenSource(Source):
    """The source as the trainer sees it: every question goes to the actor."""

    def __init__(self, recipe: Config, part: Part, tokenizer: str, pool: Any, device_name: str):
        group = pool.get_placement_groups(device_name=device_name)[0]
        place = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=0)
        share = 1 / pool.max_colocate_count
        actor: Any = ray.remote(_Actor).options(num_cpus=1, num_gpus=share, scheduling_strategy=place)
        self.actor = actor.remote()
        try:
            self.phase = ray.get(self.actor.open.remote(recipe, part, tokenizer))
        except ray.exceptions.RayTaskError as error:  # of a folder without such a model, say
            raise error.cause if isinstance(error.cause, AssayError) else error from None

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        return ray.get(self.actor.score.remote(trajectories, examples))

    def credit(self, kept: Kept) -> Signal:
        return ray.get(self.actor.credit.remote(kept))

    def learn(self, kept: Kept, signal: Signal) -> dict[str, float]:
        return ray.get(self.actor.learn.remote(kept, signal))

    def save(self, folder: Path, _: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(ray.get(self.actor.state_dict.remote()), folder / "state.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=True)
        ray.get(self.actor.load_state_dict.remote(state))
