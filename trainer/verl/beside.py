"""Reward sources with a model of their own beside verl's policy: the recipe's source itself, in a Ray actor.

The actor is on the first of the GPUs of the policy, with all of its models: nothing is sharded, and the other GPUs wait
while it reads the responses of a step.
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
from rollout.models import load_tokenizer, read_weights
from rollout.options import ModelConfig
from rollout.trajectory import Trajectory
from trainer.config import Config, SourcePart
from trainer.preflight import make_runner
from trainer.session import model_setup
from verifiers.errors import AssayError
from verifiers.options import parse_options


class _Actor:
    """The source with its models. It has no policy to sample from: `translate.check` lets no source in that asks for
    one."""

    def open(self, recipe: Config, part: SourcePart, policy: str) -> str:
        """policy: the folder that the run starts from, with its tokenizer. Returns the source's phase."""
        if recipe.hardware.threads is not None:
            torch.set_num_threads(recipe.hardware.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer, setup = load_tokenizer(ModelConfig(path=policy)), model_setup(recipe, device)
        runner, limit = make_runner(recipe.verifier), recipe.rollout.max_response_tokens
        context = SourceContext(runner, tokenizer, device, recipe.seed, setup, None, limit)  # type: ignore[arg-type]
        kind = SOURCES.get(part.kind)
        self.source: Source = kind(parse_options(kind.Options, part.options), context)
        self.source.start_from(read_weights(Path(policy)))
        return self.source.phase

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        return self.source.score(trajectories, examples)

    def credit(self, kept: Kept) -> Signal:
        return self.source.credit(kept)

    def learn(self, kept: Kept, signal: Signal) -> dict[str, float]:
        return self.source.learn(kept, signal)

    def save(self, folder: Path) -> None:
        """As a checkpoint of assay has it: a folder for each model that learns, and the rest in ``state.pt``."""
        learning = {name: model for name, model in self.source.models().items() if model.optimizer is not None}
        folder.mkdir(parents=True, exist_ok=True)
        for name, model in learning.items():
            model.export_hf(folder / name)
        models = {name: model.state_dict() for name, model in learning.items()}
        torch.save({"source": self.source.state_dict(), "models": models}, folder / "state.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        for name, saved in state["models"].items():
            self.source.models()[name].load(folder / name, saved)
        self.source.load_state_dict(state["source"])


class SourceBeside(Source):
    """The source as the trainer sees it: every question goes to the actor."""

    def __init__(self, recipe: Config, part: SourcePart, policy: str, pool: Any, device_name: str):
        group = pool.get_placement_groups(device_name=device_name)[0]
        place = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=0)
        # a small share: verl's worker groups take a third of a GPU each, and there may be several sources
        actor: Any = ray.remote(_Actor).options(num_cpus=0, num_gpus=0.05, scheduling_strategy=place)
        self.actor = actor.remote()
        try:
            self.phase = ray.get(self.actor.open.remote(recipe, part, policy))
        except ray.exceptions.RayTaskError as error:  # of a folder without such a model, say
            raise error.cause if isinstance(error.cause, AssayError) else error from None

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        return ray.get(self.actor.score.remote(trajectories, examples))

    def credit(self, kept: Kept) -> Signal:
        return ray.get(self.actor.credit.remote(kept))

    def learn(self, kept: Kept, signal: Signal) -> dict[str, float]:
        return ray.get(self.actor.learn.remote(kept, signal))

    def save(self, folder: Path, _: int) -> None:
        ray.get(self.actor.save.remote(folder))

    def load(self, folder: Path) -> None:
        ray.get(self.actor.load.remote(folder))
