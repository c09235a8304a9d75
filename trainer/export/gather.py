"""From a run folder to a Hugging Face folder: which checkpoint, which of its models, its files.

A model of a checkpoint is a folder with a config.json: ``hf/`` (the policy), ``critic/`` and
``sources/SOURCE/MODEL/``. A critic on the policy's trunk is the policy's folder and a head in state.pt.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from rollout.attention import NAME as PACKED
from rollout.models import DTYPES, load_policy, read_weights, save_weights
from trainer.checkpoint import checkpoint_step, list_checkpoints
from trainer.compose import load_resolved
from trainer.config import Config
from trainer.learner import merged_lora_weights
from trainer.records import check_writable, disk_errors
from trainer.sharded_checkpoint import read_policy
from verifiers.errors import ConfigError, ModelError, RunError, did_you_mean

_NOT_COPIED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")
_HEADS = {"ForCausalLM": "lm", "ForTokenClassification": "token", "ForSequenceClassification": "sequence"}


@dataclass(frozen=True, slots=True)
class Chosen:
    """One model of one checkpoint.

    what: ``policy``, ``critic`` or ``SOURCE/MODEL``. folder: its config and weights. shared: a critic whose trunk is
    the policy's. head: ``lm``, ``token`` (one or more numbers a token) or ``sequence`` (of the last token).
    """

    run: Path
    config: Config
    checkpoint: Path
    what: str
    folder: Path
    architecture: str
    head: str
    shared: bool = False

    @property
    def step(self) -> int:
        return checkpoint_step(self.checkpoint)

    @property
    def source(self) -> str | None:
        """The reward source that owns the model."""
        return self.what.partition("/")[0] if "/" in self.what else None

    @property
    def lora(self) -> bool:
        """The model's weights are a base and an adapter."""
        return self.what == "policy" and self.config.model.lora is not None

    @property
    def master_dtype(self) -> torch.dtype:
        return DTYPES[self.config.model.master_dtype]


# ---- choosing ----------------------------------------------------


def find_run(run: Path) -> tuple[Path, Config]:
    """The run folder that is meant, and its recipe. Raises `RunError`."""
    for folder in (run, Path("runs") / run):
        if (folder / "resolved.yaml").is_file():
            return folder, load_resolved(folder / "resolved.yaml")
    parent = run.parent if run.parent != Path() else Path("runs")
    near = [p.parent.name for p in parent.glob("*/resolved.yaml")] if parent.is_dir() else []
    raise RunError(
        f"There is no run in {run}." if run.is_dir() else f"There is no run folder {run}.",
        where=str(run.absolute()),
        why="a run folder holds resolved.yaml and checkpoints/",
        fix=f"name the folder that `assay train` printed; in {parent}/: {did_you_mean(run.name, near)}",
    )


def choose_checkpoint(run: Path, config: Config, step: str | None) -> Path:
    """step: None (the newest), a number, or ``best`` (by checkpoint.best_by). Raises `RunError`, `ConfigError`."""
    found = {checkpoint_step(path): path for path in list_checkpoints(run / "checkpoints")}
    if not found:
        raise RunError(
            "The run has no checkpoint.",
            where=str(run / "checkpoints"),
            fix="run the recipe again with checkpoint.every_steps set; a run that ends saves its last step",
        )
    newest = max(found)
    if step is None:
        return found[newest]
    if step != "best" and not step.isdecimal():
        raise ConfigError(f"--step {step} is neither a number nor 'best'.", where="--step", fix="--step 80, or best")
    number = _best_step(found[newest], config) if step == "best" else int(step)
    if number not in found:
        raise RunError(
            f"There is no checkpoint of step {number}.",
            where=str(run / "checkpoints"),
            why="a run keeps its newest checkpoints (checkpoint.keep_last) and the best",
            fix=f"--step {' or '.join(str(s) for s in sorted(found))}",
        )
    return found[number]


def _best_step(newest: Path, config: Config) -> int:
    by = config.checkpoint.best_by
    if by is None:
        raise ConfigError("The recipe does not say what is best.", where="checkpoint.best_by",
                          fix="name the step: --step N")  # fmt: skip
    values = {int(s): m[by]["value"] for s, m in read_meta(newest)["evaluations"].items() if by in m}
    if not values:
        raise RunError(f"No evaluation has the metric {by}.", where=str(newest), fix="name the step: --step N")
    return min(values, key=lambda s: (-values[s], s))  # of equals the first, as the trainer keeps it


def read_meta(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "meta.json").read_text(encoding="utf-8"))


def choose_model(run: Path, config: Config, checkpoint: Path, what: str) -> Chosen:
    """`what`: policy, critic, ``SOURCE/MODEL``, or either name alone where it means one model. Raises `ModelError`."""
    folders = {"policy": checkpoint / "hf"}
    shared = config.critic is not None and config.critic.trunk == "shared"
    if shared or (checkpoint / "critic" / "config.json").exists():
        folders["critic"] = checkpoint / ("hf" if shared else "critic")
    for path in sorted(checkpoint.glob("sources/*/*/config.json")):
        folders[f"{path.parent.parent.name}/{path.parent.name}"] = path.parent
    meant = [name for name in folders if what in (name, *name.split("/"))]
    if len(meant) != 1:
        names = meant or [*folders, *(part for name in folders for part in name.split("/"))]
        problem = "means several models" if meant else "is not a model of this checkpoint"
        raise ModelError(f"'{what}' {problem}.", where=f"--what, in {checkpoint}", fix=did_you_mean(what, names))
    name, folder = meant[0], folders[meant[0]]
    architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    shared = shared and name == "critic"
    if shared:
        architecture = architecture.replace("ForCausalLM", "ForTokenClassification")
    ending = next((e for e in _HEADS if architecture.endswith(e)), None)
    if ending is None or not hasattr(transformers, architecture):
        raise ModelError(
            f"Models of the class {architecture} cannot be exported.",
            where=str(folder / "config.json"),
            why="the export is for plain transformers: language models, token and sequence classification",
            fix="copy the folder itself; it is what the run holds",
        )
    return Chosen(run, config, checkpoint, name, folder, architecture, _HEADS[ending], shared)


# ---- the live model ----------------------------------------------


class LiveModel:
    """The model as the trainer holds it: packed attention, LoRA not merged; arithmetic in float32, on the CPU."""

    def __init__(self, chosen: Chosen):
        self.chosen = chosen
        self.peft: Any = None
        if chosen.lora:
            self.peft = _with_adapter(chosen)
            self.model: Any = self.peft.get_base_model()
        else:
            self.model = plain_model(chosen, _weights(chosen))
        self.hf_config = hf_config(chosen)

    def weights(self) -> dict[str, Tensor]:
        """By the names of the transformers class, LoRA merged, without a head that is tied to the embedding."""
        weights = dict(merged_lora_weights(self.model) if self.peft is not None else self.model.state_dict())
        if self.chosen.head == "lm" and self.hf_config.tie_word_embeddings:
            weights.pop("lm_head.weight", None)
        return weights


def hf_config(chosen: Chosen) -> PretrainedConfig:
    """The exported config.json, but for its dtype."""
    config = AutoConfig.from_pretrained(chosen.folder)
    if chosen.shared:
        config.num_labels = 1
    config.architectures = [chosen.architecture]
    return config


def plain_model(chosen: Chosen, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """The transformers class with these weights in float32 and packed attention. Raises `ModelError` where they are
    another model's."""
    config = hf_config(chosen)
    config._attn_implementation = PACKED
    model = getattr(transformers, chosen.architecture)._from_config(config, dtype=torch.float32)
    found = model.load_state_dict({n: t.float() for n, t in weights.items()}, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    wrong = [*found.unexpected_keys, *(set(found.missing_keys) - tied)]
    if wrong:
        raise ModelError(f"The weights are not those of {chosen.architecture}: {', '.join(sorted(wrong)[:3])}.",
                         where=str(chosen.folder), fix="export another checkpoint")  # fmt: skip
    return model.eval()


def _weights(chosen: Chosen) -> dict[str, Tensor]:
    weights = read_weights(chosen.folder)
    if not chosen.shared:
        return weights
    trunk = {n: t for n, t in weights.items() if n != "lm_head.weight"}
    return trunk | {f"score.{n}": t for n, t in _learner_state(chosen)["value_head"].items()}


def _with_adapter(chosen: Chosen) -> nn.Module:
    model = load_policy(chosen.config.model, chosen.config.seed, torch.device("cpu")).model
    saved = _learner_state(chosen)["policy"]
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if parameters.keys() != saved.keys():
        raise ModelError("The checkpoint's adapter is not one of this recipe.", where=str(chosen.checkpoint),
                         fix="export the run with the resolved.yaml that it was trained by")  # fmt: skip
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    return model.float().eval()


def _learner_state(chosen: Chosen) -> dict[str, Any]:
    """Mapped, not read: the optimizer's part stays on the disk."""
    if (chosen.checkpoint / "sharded").is_dir():
        return read_policy(chosen.checkpoint)
    return torch.load(chosen.checkpoint / "state.pt", map_location="cpu", weights_only=True, mmap=True)["learner"]


# ---- writing -----------------------------------------------------


def shard_bytes(size: str) -> int:
    """``5GB`` in bytes. Raises `ConfigError`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT])B", size.strip(), re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"'{size}' is not a size.", where="--max-shard-size", fix="for example 5GB or 500MB")
    return int(float(match[1]) * 1000 ** (1 + "KMGT".index(match[2].upper())))


def write_model(live: LiveModel, folder: Path, dtype: torch.dtype, max_shard_bytes: int) -> None:
    """config.json, weights, tokenizer, chat template and generation config. Raises `RunError` on a full disk."""
    config = hf_config(live.chosen)
    config.dtype = dtype
    weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in live.weights().items()}
    need_mb = sum(t.numel() * t.element_size() for t in weights.values()) // 2**20 + 64
    check_writable(folder, min_free_mb=need_mb)
    folder.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder):
        config.save_pretrained(folder)
        save_weights(weights, folder, max_shard_bytes)
        _copy_beside(live.chosen, folder)


def write_adapter(live: LiveModel, folder: Path, dtype: torch.dtype, base_model: str) -> None:
    """The adapter in peft's layout, and tokenizer and generation config. base_model: hub id."""
    check_writable(folder, min_free_mb=64)
    folder.mkdir(parents=True, exist_ok=True)
    adapter = live.peft
    adapter.peft_config["default"].base_model_name_or_path = base_model
    state = {n: p.detach().to(dtype) for n, p in adapter.named_parameters() if "lora_" in n}
    with disk_errors(folder):
        # with "auto" peft would ask the hub for the base's vocabulary; embeddings are never adapted here
        adapter.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        _copy_beside(live.chosen, folder)


def _copy_beside(chosen: Chosen, folder: Path) -> None:
    """Tokenizer and chat template as the checkpoint has them; how to generate, for a language model."""
    for path in sorted((chosen.checkpoint / "hf").iterdir()):
        if path.is_file() and not any(path.match(pattern) for pattern in _NOT_COPIED):
            shutil.copyfile(path, folder / path.name)
    if chosen.head == "lm":
        shutil.copyfile(chosen.checkpoint / "hf" / "generation_config.json", folder / "generation_config.json")
