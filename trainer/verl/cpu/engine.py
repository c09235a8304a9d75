"""verl's FSDP2 engines on the CPU."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from transformers import AutoModelForTokenClassification
from verl.utils import model as loaders
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead


class _WithoutPinnedMemory:
    """A model that is only asked, such as the reference, is offloaded to pinned memory by verl, which needs a GPU."""

    engine_config: Any

    def _build_fsdp_module(self, module: Any) -> Any:
        only_asked = self.engine_config.forward_only
        object.__setattr__(self.engine_config, "forward_only", False)  # verl's dataclass is frozen
        try:
            return super()._build_fsdp_module(module)  # type: ignore[misc]
        finally:
            object.__setattr__(self.engine_config, "forward_only", only_asked)


class CpuLanguageModel(_WithoutPinnedMemory, FSDPEngineWithLMHead):
    pass


class CpuValueModel(_WithoutPinnedMemory, FSDPEngineWithValueHead):
    def _build_module(self) -> Any:
        """verl's loader of value models insists on flash_attention_2."""
        theirs = loaders.load_valuehead_model
        loaders.load_valuehead_model = _load_value_model
        try:
            return super()._build_module()
        finally:
            loaders.load_valuehead_model = theirs


def _load_value_model(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
    return AutoModelForTokenClassification.from_pretrained(
        local_path, dtype=torch_dtype, config=model_config, attn_implementation="sdpa",
        trust_remote_code=trust_remote_code,
    )  # fmt: skip


def register() -> None:
    backends = ["fsdp", "fsdp2"]
    EngineRegistry.register(model_type="language_model", backend=backends, device="cpu")(CpuLanguageModel)
    EngineRegistry.register(model_type="value_model", backend=backends, device="cpu")(CpuValueModel)
