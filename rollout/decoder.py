"""A Llama-family forward pass made for decoding: fused weights, shared prompt prefixes, one new token a row.

Covers Llama, Mistral (full attention), Qwen2 and Qwen3: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Shapes: R rows (samples in flight), U prompts in flight, H query heads, G key-value heads,
D head size, P prompt tokens (padded), C suffix columns, E hidden size, L layers.

Why it is shaped so (measured on a CPU, see benchmarks/decode): folding the query heads of a group into rows beats
`scaled_dot_product_attention(enable_gqa=True)` four times over; reading a prompt's keys once for all its samples
halves the rest; keys are stored transposed ([D, C]) so that both products are plain batched matrix products.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from verifiers.errors import ModelError

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")


class FusedLinear:
    """y = silu?(x W^T + b) (+ add | * mul). In bfloat16 on a CPU the weight is packed once for oneDNN and the tail is
    fused into the product; everywhere else this is `F.linear` and plain arithmetic."""

    def __init__(self, weight: Tensor, bias: Tensor | None, silu: bool = False):
        self.silu, self.bias = silu, bias
        self.packed = _can_pack(weight)
        self.weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()) if self.packed else weight.contiguous()
        )

    def __call__(self, x: Tensor, add: Tensor | None = None, mul: Tensor | None = None) -> Tensor:
        if self.packed:
            if add is not None:
                return torch.ops.mkldnn._linear_pointwise.binary(x, add, self.weight, self.bias, "add")
            if mul is not None:
                return torch.ops.mkldnn._linear_pointwise.binary(x, mul, self.weight, self.bias, "mul")
            return torch.ops.mkldnn._linear_pointwise(
                x, self.weight, self.bias, "swish" if self.silu else "none", [], ""
            )
        y = F.linear(x, self.weight, self.bias)
        y = F.silu(y) if self.silu else y
        y = y + add if add is not None else y
        return y * mul if mul is not None else y


def _can_pack(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


@dataclass(slots=True)
class _Layer:
    qkv: FusedLinear
    out: FusedLinear
    gate: FusedLinear
    up: FusedLinear
    down: FusedLinear
    q_norm: Tensor | None
    k_norm: Tensor | None


@dataclass(slots=True)
class DecodeState:
    """Key-value cache and row bookkeeping of one decode loop. Rows are dense; `slot_R` maps a row into the padded
    [U * rows_per_prompt] grid in which the prompt part of attention is computed."""

    prefix_k: Tensor  # [L, U, G, D, P]
    prefix_v: Tensor  # [L, U, G, P, D]
    prefix_mask: Tensor | None  # [U, 1, 1, P], 0 or -inf; None when all prompts have P tokens
    suffix_k: Tensor  # [L, R, G, D, C]
    suffix_v: Tensor  # [L, R, G, C, D]
    suffix_mask: Tensor | None  # [R, 1, 1, columns]; None when all rows started at `first_column`
    slot_R: Tensor | None  # None when the grid is full and in order
    rows_per_prompt: int
    first_column: int
    column: int  # where the next token's key is written


def _layer_of(name: str) -> str:
    """``model.layers.7.`` of a weight of layer 7, nothing of the others."""
    return ".".join(name.split(".")[:3]) + "." if name.startswith("model.layers.") else ""


def check_decodable(config: PretrainedConfig) -> None:
    """Raise `ModelError` for an architecture that `LlamaDecoder` does not know."""
    if config.model_type not in SUPPORTED:
        raise ModelError(
            f"The torch engine cannot decode architecture '{config.model_type}'.",
            where="rollout.engine",
            fix=f"use a model of type {', '.join(SUPPORTED)}",
        )
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise ModelError("The torch engine has no sliding-window attention.", where="rollout.engine",
                         fix="use a model without sliding_window")  # fmt: skip


class LlamaDecoder:
    """Weights of a Llama-family model in decode layout. Raises `ModelError` for architectures it does not know."""

    def __init__(self, config: PretrainedConfig, dtype: torch.dtype, device: torch.device, max_positions: int):
        check_decodable(config)
        self.dtype, self.device = dtype, device
        self.num_layers = config.num_hidden_layers
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.per_group = self.heads // self.kv_heads
        self.scale = self.head_dim**-0.5
        self.eps = config.rms_norm_eps
        self.tied = config.tie_word_embeddings
        positions = torch.arange(max_positions)[None]
        # every family here has Llama's rotary embedding, with its own parameters in the config
        cos, sin = LlamaRotaryEmbedding(cast(Any, config))(torch.zeros(1, dtype=torch.float32), positions)
        half = self.head_dim // 2
        # rotate_half(x) = roll(x, half) with the first half negated; the sign is folded into the sine table
        sign = torch.cat([-torch.ones(half), torch.ones(half)])
        self.cos_TD = cos[0].to(device, dtype)
        self.sin_TD = (sin[0] * sign).to(device, dtype)
        self.layers: list[_Layer] = []

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Cast, fuse and pack weights given by their Hugging Face names, read once, in their order: a layer is made
        when its last tensor has come. RMSNorm gains are folded into the matrices that follow them (in float32, before
        the cast)."""
        self.unload()
        head = "model.embed_tokens.weight" if self.tied or "lm_head.weight" not in weights else "lm_head.weight"
        left = Counter(map(_layer_of, weights))
        waiting: dict[str, dict[str, Tensor]] = {}
        layers: dict[str, _Layer] = {}
        ends: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            if layer := _layer_of(name):
                waiting.setdefault(layer, {})[name.removeprefix(layer)] = tensor.detach()
                left[layer] -= 1
                if not left[layer]:
                    layers[layer] = self._layer(waiting.pop(layer))
            elif name in (head, "model.norm.weight"):
                ends[name] = tensor.detach().to(self.device, torch.float32)
            if name == "model.embed_tokens.weight":
                # a copy: the matrices are copies too, and weights may be views of a model that is being trained
                self.embedding_VE = tensor.detach().to(self.device, self.dtype, copy=True)
            del tensor  # before the next one is read
        self.head = FusedLinear((ends[head] * ends["model.norm.weight"]).to(self.dtype), None)
        self.layers = [layers[f"model.layers.{i}."] for i in range(self.num_layers)]

    def _layer(self, tensors: Mapping[str, Tensor]) -> _Layer:
        """tensors: of one layer, by their names inside it."""

        def get(name: str) -> Tensor:
            return tensors[name].to(self.device, torch.float32)

        def linear(names: list[str], gain: Tensor | None = None, silu: bool = False) -> FusedLinear:
            weight = torch.cat([get(f"{n}.weight") for n in names])
            weight = weight if gain is None else weight * gain
            has_bias = f"{names[0]}.bias" in tensors
            bias = torch.cat([get(f"{n}.bias") for n in names]).to(self.dtype) if has_bias else None
            return FusedLinear(weight.to(self.dtype), bias, silu)

        norm_1, norm_2 = get("input_layernorm.weight"), get("post_attention_layernorm.weight")
        head_norms = [
            get(f"self_attn.{n}.weight").to(self.dtype, copy=True) if f"self_attn.{n}.weight" in tensors else None
            for n in ("q_norm", "k_norm")
        ]
        return _Layer(
            qkv=linear([f"self_attn.{n}_proj" for n in "qkv"], norm_1),
            out=linear(["self_attn.o_proj"]),
            gate=linear(["mlp.gate_proj"], norm_2, silu=True),
            up=linear(["mlp.up_proj"], norm_2),
            down=linear(["mlp.down_proj"]),
            q_norm=head_norms[0],
            k_norm=head_norms[1],
        )

    def unload(self) -> None:
        """Give the weights' memory back."""
        self.layers = []
        self.embedding_VE = torch.empty(0, 0)
        self.head = FusedLinear(torch.empty(0, 0), None)

    def _normalise(self, x: Tensor) -> Tensor:
        """RMSNorm without gain (folded into the next matrix); the mean square is taken in float32."""
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return x * scale.to(x.dtype)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x * cos + torch.roll(x, self.head_dim // 2, -1) * sin

    def _project(self, layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, E] -> rotated q [N, H, D], rotated k [N, G, D], v [N, G, D]."""
        y = layer.qkv(self._normalise(x)).view(x.shape[0], self.heads + 2 * self.kv_heads, self.head_dim)
        qk, v = y[:, : self.heads + self.kv_heads], y[:, self.heads + self.kv_heads :]
        if layer.q_norm is not None and layer.k_norm is not None:
            q = self._normalise(qk[:, : self.heads]) * layer.q_norm
            k = self._normalise(qk[:, self.heads :]) * layer.k_norm
            qk = torch.cat([q, k], 1)
        qk = self._rotate(qk, cos, sin)
        return qk[:, : self.heads], qk[:, self.heads :], v

    def _feed_forward(self, layer: _Layer, x: Tensor) -> Tensor:
        h = self._normalise(x)
        return layer.down(layer.up(h, mul=layer.gate(h)), add=x)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self._normalise(x))

    def prefill(self, ids_UP: Tensor, length_U: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Right-padded prompts -> (logits of each prompt's last token [U, V], keys [L, U, G, D, P], values [L, U, G,
        P, D]).
        Padding stands behind the causal horizon of every real token, so no mask is needed here."""
        prompts, width = ids_UP.shape
        x = self.embedding_VE[ids_UP].view(prompts * width, -1)
        cos = self.cos_TD[:width].repeat(prompts, 1)[:, None]
        sin = self.sin_TD[:width].repeat(prompts, 1)[:, None]
        shape_k = (self.num_layers, prompts, self.kv_heads, self.head_dim, width)
        keys = torch.empty(shape_k, dtype=self.dtype, device=self.device)
        values = torch.empty((*shape_k[:3], width, self.head_dim), dtype=self.dtype, device=self.device)
        for i, layer in enumerate(self.layers):
            q, k, v = (
                t.view(prompts, width, -1, self.head_dim).transpose(1, 2) for t in self._project(layer, x, cos, sin)
            )
            keys[i], values[i] = k.transpose(2, 3), v
            k, v = k.repeat_interleave(self.per_group, 1), v.repeat_interleave(self.per_group, 1)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = layer.out(a.transpose(1, 2).reshape(prompts * width, -1), add=x)
            x = self._feed_forward(layer, x)
        last = x.view(prompts, width, -1)[torch.arange(prompts, device=x.device), length_U - 1]
        return self.logits(last), keys, values

    def step(self, token_R: Tensor, position_R: Tensor, state: DecodeState) -> Tensor:
        """Feed one token a row, write its keys and values at `state.column`, return the next token's logits [R, V]."""
        x = self.embedding_VE[token_R]
        cos, sin = self.cos_TD[position_R][:, None], self.sin_TD[position_R][:, None]
        for i, layer in enumerate(self.layers):
            q, k, v = self._project(layer, x, cos, sin)
            state.suffix_k[i, : len(k), :, :, state.column] = k
            state.suffix_v[i, : len(v), :, state.column] = v
            x = layer.out(self._attend(i, q, state).reshape(x.shape[0], -1), add=x)
            x = self._feed_forward(layer, x)
        return self.logits(x)

    def _attend(self, i: int, q_RHD: Tensor, s: DecodeState) -> Tensor:
        """Softmax over [prompt part, own part]; the prompt part is one product per prompt for all of its rows."""
        rows, d, g, per = q_RHD.shape[0], self.head_dim, self.kv_heads, self.per_group
        q = q_RHD.view(rows, g, per, d) * self.scale
        prompts, n, width = s.prefix_k.shape[1], s.rows_per_prompt, s.prefix_k.shape[-1]
        first, end = s.first_column, s.column + 1
        columns = end - first

        grid = q if s.slot_R is None else q.new_zeros(prompts * n, g, per, d).index_copy_(0, s.slot_R, q)
        grid = grid.view(prompts, n, g, per, d).transpose(1, 2).reshape(prompts * g, n * per, d)
        scores = torch.bmm(grid, s.prefix_k[i].view(prompts * g, d, width)).view(prompts, g, n * per, width)
        if s.prefix_mask is not None:
            scores = scores + s.prefix_mask
        prefix = scores.view(prompts, g, n, per, width).transpose(1, 2).reshape(prompts * n, g, per, width)
        prefix = prefix if s.slot_R is None else prefix[s.slot_R]

        own_k = s.suffix_k[i, :rows, :, :, first:end].reshape(rows * g, d, columns)
        own = torch.bmm(q.reshape(rows * g, per, d), own_k).view(rows, g, per, columns)
        if s.suffix_mask is not None:
            own = own + s.suffix_mask[..., :columns]

        weights = torch.softmax(torch.cat([prefix, own], -1), -1)
        w_prefix, w_own = weights[..., :width], weights[..., width:]
        grid = (
            w_prefix if s.slot_R is None else q.new_zeros(prompts * n, g, per, width).index_copy_(0, s.slot_R, w_prefix)
        )
        grid = grid.reshape(prompts, n, g, per, width).transpose(1, 2).reshape(prompts * g, n * per, width)
        out = torch.bmm(grid, s.prefix_v[i].view(prompts * g, width, d)).view(prompts, g, n, per, d)
        out = out.transpose(1, 2).reshape(prompts * n, g, per, d)
        out = out if s.slot_R is None else out[s.slot_R]
        own_v = s.suffix_v[i, :rows, :, first:end].reshape(rows * g, columns, d)
        return out + torch.bmm(w_own.reshape(rows * g, per, columns), own_v).view(rows, g, per, d)
