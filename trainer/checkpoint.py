"""Checkpoints: atomic, exact, and each with a folder that `transformers` loads directly.

    checkpoints/step-000020/
        meta.json     step, metrics; written last but one, so a folder without it is not a checkpoint
        state.pt      optimizer, schedule position, RNGs, sampler, sources, evaluation history (tensors and plain data)
        critic/       the same of the critic, if there is one: a token classification model with one label
        sources/      the same of every model of a reward source: NAME OF THE SOURCE/NAME OF THE MODEL/
        hf/           config, tokenizer and weights in safetensors, in the master dtype; LoRA merged

A checkpoint is written under a temporary name, flushed to disk and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import copy
import errno
import json
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prm.cotrained import CoTrained
from rollout.models import read_weights, save_weights
from rollout.sharding import on_host
from trainer.learner import Learner
from trainer.records import fsync_path
from verifiers.errors import RunError

_NAME = re.compile(r"step-(\d{6,})$")


def checkpoint_step(path: Path) -> int:
    match = _NAME.match(path.name)
    assert match is not None
    return int(match[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if _NAME.match(p.name) and (p / "meta.json").exists()]
    return sorted(found, key=checkpoint_step)


def rng_state() -> dict[str, Any]:
    """Every global random state a step could read."""
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(internal), gauss]}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(
    folder: Path,
    step: int,
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    state: dict[str, Any],
    meta: dict[str, Any],
    models: Mapping[str, CoTrained] | None = None,
) -> Path:
    """Write `folder`/step-XXXXXX. `state` is everything outside the learner and `models` (by folder). Raises
    `RunError` on a full disk, leaving the older checkpoints as they were."""
    final = folder / f"step-{step:06d}"
    if (final / "meta.json").exists():  # the same step of the same run: its state is the same to the last bit
        return final
    with writing(final, {"step": step, **meta}) as partial:
        export_hf(partial / "hf", learner, tokenizer)
        learner_state = learner.state_dict()
        if learner.config.model.lora is None:
            del learner_state["policy"]  # hf/ holds the very same tensors
        content = {"learner": learner_state, "rng": rng_state(), "models": {}, **state}
        for name, model in (models or {}).items():
            (partial / name).mkdir(parents=True)
            model.export_hf(partial / name)
            content["models"][name] = model.state_dict()
        torch.save(content, partial / "state.pt")
    return final


@contextmanager
def writing(final: Path, meta: Mapping[str, Any]) -> Iterator[Path]:
    """The folder to fill, with an empty ``hf/`` in it; it becomes the checkpoint `final` when all is in it, or is gone.
    Raises `RunError` on a full disk."""
    partial = final.with_name(f".partial-{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "hf").mkdir(parents=True)
        yield partial
        name_it(partial, final, meta)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise disk_error(error, final) from error
    except RuntimeError as error:  # torch.save reports a full disk as a RuntimeError of its zip writer
        shutil.rmtree(partial, ignore_errors=True)
        if "write" not in str(error) and "zip" not in str(error).lower():
            raise
        raise disk_error(OSError(errno.ENOSPC, str(error).splitlines()[0]), final) from error


def name_it(partial: Path, final: Path, meta: Mapping[str, Any]) -> None:
    """Write ``meta.json``; from here on it is a checkpoint, also after a power cut."""
    (partial / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
    for path in sorted(partial.rglob("*")):
        fsync_path(path)
    partial.rename(final)
    fsync_path(final.parent)


def export_hf(
    folder: Path, learner: Learner, tokenizer: PreTrainedTokenizerBase, weights: Mapping[str, Tensor] | None = None
) -> None:
    """config.json, generation_config.json, tokenizer files and safetensors, as `from_pretrained` wants them. weights:
    the learner's, where they were asked for before; else all ranks must call this, and rank 0 writes."""
    world = learner.world
    if weights is None:
        weights = learner.weights() if world.size == 1 else on_host(learner.weights(), world.is_main)
    if not world.is_main:
        return
    policy = learner.policy
    config = copy.deepcopy(policy.config)
    config.use_cache = True
    config._attn_implementation = None
    config.dtype = next(learner.model.parameters()).dtype
    causal_lm = learner.causal_lm(learner.model)
    config.architectures = [type(causal_lm).__name__]
    config.save_pretrained(folder)
    generation = copy.deepcopy(causal_lm.generation_config)
    generation.eos_token_id = list(policy.eos_ids)
    generation.pad_token_id = tokenizer.pad_token_id
    generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if config.tie_word_embeddings:
        weights = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    save_weights(weights, folder)


def load_checkpoint(path: Path, learner: Learner, models: Mapping[str, CoTrained] | None = None) -> dict[str, Any]:
    """Restore learner, `models` (by folder) and RNGs exactly; return the rest of the state. Raises `RunError` for a
    damaged checkpoint, or one that lacks a model."""
    with reading(path):
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        learner_state = state.pop("learner")
        saved = state.pop("models")
        if (path / "sharded").is_dir():
            from trainer.sharded_checkpoint import read_tensors, tensors

            read_tensors(path, tensors(learner, models or {}))
            learner.load_plain_state(learner_state)
            for name, model in (models or {}).items():
                model.load_plain_state(saved[name])
            set_rng_state(state.pop("rng"))
            return state
        if learner.config.model.lora is None:
            learner_state["policy"] = _read_policy(path / "hf", learner)
        for name, model in (models or {}).items():
            model.load(path / name, saved[name])
    learner.load_state_dict(learner_state)
    set_rng_state(state.pop("rng"))
    return state


def _read_policy(folder: Path, learner: Learner) -> dict[str, Tensor]:
    weights = read_weights(folder)
    return {name: weights[name] for name, p in learner.model.named_parameters() if p.requires_grad}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what a damaged checkpoint raises into a `RunError` that says what to do."""
    try:
        yield
    except (OSError, KeyError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"The checkpoint cannot be read: {cause}",
            where=str(path),
            fix="delete this folder to resume from the one before it",
        ) from error


def prune(folder: Path, keep_last: int, best: int | None) -> None:
    """Delete all but the newest `keep_last` checkpoints and the best one (a step)."""
    for path in list_checkpoints(folder)[:-keep_last]:
        if checkpoint_step(path) != best:
            shutil.rmtree(path)


def remove_partial(folder: Path) -> None:
    """Drop what a killed run left half written."""
    for path in folder.glob(".partial-*"):
        shutil.rmtree(path)


def disk_error(error: OSError, path: Path) -> RunError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return RunError(
        f"The checkpoint could not be written: {'the disk is full' if full else error}.",
        where=str(path),
        why="earlier checkpoints are untouched; the run stops so that no progress is lost unseen",
        fix="free disk space (checkpoint.keep_last lowers the need) and run the same command again to resume",
    )
