"""Checkpoints of several ranks: each writes its own shards, in the background, and any number of ranks reads them.

    checkpoints/step-000020/
        sharded/      weights and optimizer state of the policy and of all models beside it (torch distributed
                      checkpoint)
        state.pt, meta.json, hf/, critic/, sources/      as in `trainer.checkpoint`, written by rank 0

The weights are copied when `start` is called, so that training goes on while they are written. The folder gets its name
in `finish`, when every rank has written all of its own.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from transformers import PreTrainedTokenizerBase

from prm.cotrained import CoTrained
from rollout.sharding import on_host
from rollout.world import World
from trainer.checkpoint import disk_error, export_hf, name_it, prune, rng_state
from trainer.learner import Learner
from verifiers.errors import RunError

FOLDER = "sharded"


def tensors(learner: Learner, models: Mapping[str, CoTrained]) -> dict[str, Tensor]:
    """Everything with a place on the ranks, live, by name: what is saved, and what a checkpoint is read into."""
    out = {f"policy.{name}": tensor for name, tensor in learner.tensors().items()}
    for folder, model in models.items():
        out |= {f"{folder}.{name}": tensor for name, tensor in model.tensors().items()}
    return out


def read_tensors(path: Path, live: dict[str, Tensor]) -> None:
    """Fill the live tensors with those of `path`, in place. Raises what torch raises for a damaged folder."""
    with torch.no_grad():
        load(live, checkpoint_id=path / FOLDER, no_dist=not dist.is_initialized())


def read_policy(path: Path) -> dict[str, dict[str, Tensor]]:
    """{"policy": trained parameters, "value_head": ...} of a checkpoint in whole tensors, without a model to put them
    into, in one process."""
    metadata = FileSystemReader(path / FOLDER).read_metadata().state_dict_metadata
    wanted = {
        name: torch.empty(stored.size, dtype=stored.properties.dtype)
        for name, stored in metadata.items()
        if isinstance(stored, TensorStorageMetadata)
        and name.startswith("policy.")
        and not name.startswith(("policy.optimizer.", "policy.reference."))
    }
    load(wanted, checkpoint_id=path / FOLDER, no_dist=True)
    out: dict[str, dict[str, Tensor]] = {"policy": {}, "value_head": {}}
    for name, tensor in wanted.items():
        part = "value_head" if name.startswith("policy.value_head.") else "policy"
        out[part][name.removeprefix("policy.").removeprefix("value_head.")] = tensor
    return out


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a checkpoint is made of. tensors: everything with a place on the ranks, live, by name. content: of
    ``state.pt``. export: fills the Hugging Face folders below the one it is given, in the background, so from copies.
    Of content and export only rank 0's count."""

    tensors: dict[str, Tensor]
    content: dict[str, Any]
    export: Callable[[Path], None]


def snapshot(
    learner: Learner, tokenizer: PreTrainedTokenizerBase, state: dict[str, Any], models: Mapping[str, CoTrained]
) -> Snapshot:
    """Of a run of reinforcement learning, as `trainer.checkpoint.save_checkpoint` writes it. All ranks must ask."""
    is_main = learner.world.is_main
    policy = on_host(learner.weights(), is_main)
    exports = {name: on_host(model.weights(), is_main) for name, model in models.items()}
    content = {"learner": learner.plain_state(), "rng": rng_state(), **state,
               "models": {name: model.plain_state() for name, model in models.items()}}  # fmt: skip

    def export(folder: Path) -> None:
        export_hf(folder / "hf", learner, tokenizer, policy)
        for name, weights in exports.items():
            (folder / name).mkdir(parents=True)
            models[name].export_hf(folder / name, weights)

    return Snapshot(tensors(learner, models), content, export)


class ShardedWriter:
    """Writes one checkpoint at a time. keep_last: how many stay beside the best one."""

    def __init__(self, world: World, keep_last: int):
        self.world, self.keep_last = world, keep_last
        # collectives of the background thread, apart from those of the training
        self._group: Any = dist.new_group(backend="gloo")
        self._finish: Callable[[], None] | None = None
        self._is_written: Callable[[], bool] = lambda: True  # by this rank

    def start(self, final: Path, what: Snapshot, meta: Mapping[str, Any], best: int | None) -> None:
        """Copy the tensors and begin to write the checkpoint `final`. best: the step of the checkpoint that is kept
        however old. All ranks call it, with the one before finished."""
        assert self._finish is None
        partial = final.with_name(f".partial-{final.name}")
        if self.world.from_main(lambda: (final / "meta.json").exists()):
            return
        failed: list[OSError] = []
        if self.world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / "hf").mkdir(parents=True)
        self.world.barrier()
        written = async_save(what.tensors, checkpoint_id=partial / FOLDER, process_group=self._group)
        thread: threading.Thread | None = None
        if self.world.is_main:
            torch.save(what.content, partial / "state.pt")

            def export() -> None:
                try:
                    what.export(partial)
                except OSError as error:
                    failed.append(error)

            thread = threading.Thread(target=export, name="assay-checkpoint")
            thread.start()

        def finish() -> None:
            failure = _failure(written)
            if thread is not None:
                thread.join()
            problems = [f for f in self.world.gather(failure or (str(failed[0]) if failed else None)) if f]
            if problems:
                if self.world.is_main:
                    shutil.rmtree(partial, ignore_errors=True)
                raise disk_error(failed[0], final) if failed else RunError(
                    f"The checkpoint could not be written: {problems[0]}.", where=str(final),
                    why="earlier checkpoints are untouched", fix="free disk space and resume")  # fmt: skip
            if self.world.is_main:
                name_it(partial, final, meta)
                prune(final.parent, self.keep_last, best)
            self.world.barrier()

        self._finish = finish
        self._is_written = lambda: bool(written.done()) and (thread is None or not thread.is_alive())  # type: ignore[union-attr]

    def finish(self, *, wait: bool = True) -> None:
        """Give the checkpoint begun, if there is one, its name, and prune: when it is whole, or if it is, without
        waiting. All ranks call it. Raises `RunError` on a full disk, leaving the older checkpoints as they were."""
        if self._finish is None or (not wait and self.world.any(not self._is_written())):
            return
        finish, self._finish = self._finish, None
        finish()


def _failure(written: Any) -> str | None:
    try:
        written.result()
    except (OSError, RuntimeError, CheckpointException) as error:
        return str(error).splitlines()[0]
    return None
