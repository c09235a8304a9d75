"""Attention over packed sequences, plugged into transformers' attention interface as ``assay_packed``.

Shapes: T packed tokens, H query heads, G key-value heads, D head size, S sequences.

The trap this file closes: with restarted `position_ids` alone, Hugging Face models keep packed sequences apart only
with `use_cache=False` and no attention mask; in any other form sequences read each other without a word. A model
loaded with ``attn_implementation="assay_packed"`` cannot be called in the wrong form: without `cu_seqlens`, or with a
mask or a cache, the forward raises. Use `packed_forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from rollout.packing import PackedBatch
from verifiers.errors import MissingExtraError

NAME = "assay_packed"

# (q_THD, k_TGD, v_TGD, cu_seqlens, max_seqlen, scale) -> out_THD, causal within each sequence
VarlenAttention = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]


def sdpa_varlen(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> Tensor:
    """Causal attention inside each sequence, by one SDPA call for each run of neighbours of equal length. Any
    device."""
    heads, kv_heads, head_dim = q_THD.shape[1], k_TGD.shape[1], q_THD.shape[2]
    if heads != kv_heads:  # SDPA's enable_gqa is several times slower than repeating on a CPU
        k_TGD = k_TGD.repeat_interleave(heads // kv_heads, 1)
        v_TGD = v_TGD.repeat_interleave(heads // kv_heads, 1)
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
    runs = [(length, len(list(group))) for length, group in groupby(lengths)]
    pieces = []
    sizes = [length * count for length, count in runs]
    for (length, count), q, k, v in zip(runs, q_THD.split(sizes), k_TGD.split(sizes), v_TGD.split(sizes), strict=True):
        q, k, v = (t.view(count, length, heads, head_dim).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        pieces.append(out.transpose(1, 2).reshape(count * length, heads, head_dim))
    return torch.cat(pieces)


def flash_varlen(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> Tensor:
    """FlashAttention's variable-length kernel (CUDA, half precision). Source: flash-attn, `flash_attn_varlen_func`."""
    try:
        from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("flash_attn", "gpu", "packed attention on a GPU (hardware.attention=flash)") from error
    return flash_attn_varlen_func(
        q_THD,
        k_TGD,
        v_TGD,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=max_seqlen,
        softmax_scale=scale,
        causal=True,
    )


def choose_varlen(device: torch.device, dtype: torch.dtype, kind: str = "auto") -> VarlenAttention:
    """kind: auto (flash on CUDA in half precision where flash-attn is installed, else SDPA), sdpa, flash."""
    if kind == "flash":
        return flash_varlen
    if kind == "auto" and device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        import importlib.util

        if importlib.util.find_spec("flash_attn") is not None:
            return flash_varlen
    return sdpa_varlen


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    varlen: VarlenAttention = sdpa_varlen,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' signature: query [1, H, T, D], key and value [1, G, T, D] -> ([1, T, H, D], None)."""
    if cu_seqlens is None or max_seqlen is None:
        raise RuntimeError("packed attention was called without cu_seqlens: sequences would read each other; "
                           "call the model through rollout.attention.packed_forward")  # fmt: skip
    if attention_mask is not None:
        raise RuntimeError("packed attention takes no attention mask: the borders are in cu_seqlens")
    if key.shape[2] != query.shape[2]:
        raise RuntimeError("packed attention takes no key-value cache: call the model with use_cache=False")
    if query.shape[0] != 1 or int(cu_seqlens[-1]) != query.shape[2]:
        raise RuntimeError(f"packed attention wants one row of {int(cu_seqlens[-1])} tokens, got {tuple(query.shape)}")
    if dropout:
        raise RuntimeError("packed attention has no dropout: set attention_dropout=0 in the model's config")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    return varlen(q, k, v, cu_seqlens, max_seqlen, scale)[None], None


def _refuse_mask(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    """transformers drops a 2-D mask in silence for an attention that registers no mask function."""
    if attention_mask is not None:
        raise RuntimeError("packed attention takes no attention mask: the borders are in cu_seqlens")


AttentionInterface.register(NAME, _packed_attention)
AttentionMaskInterface.register(NAME, _refuse_mask)


def packed_forward(backbone: nn.Module, batch: PackedBatch, varlen: VarlenAttention = sdpa_varlen) -> Tensor:
    """Hidden states [T, E] of a packed micro-batch. `backbone` is the model without its head, loaded with
    ``attn_implementation="assay_packed"``."""
    implementation = getattr(getattr(backbone, "config", None), "_attn_implementation", None)
    if implementation != NAME:
        raise RuntimeError(f"the model was loaded with attn_implementation={implementation!r}, which would let packed "
                           f"sequences read each other; load it with {NAME!r}")  # fmt: skip
    output = backbone(
        input_ids=batch.ids_T[None],
        position_ids=batch.position_T[None],
        use_cache=False,
        cu_seqlens=batch.cu_seqlens,
        max_seqlen=batch.max_seqlen,
        varlen=varlen,
    )
    return output.last_hidden_state[0]
