"""`PackedModel`: a language model, or its trunk with a head of one number, on packed micro-batches.

One forward of one module, because FSDP gathers weights around the forward of the module that it was applied to.

Shapes: R response tokens of a micro-batch; T tokens of a micro-batch; E hidden size.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from rollout.attention import VarlenAttention, packed_forward
from rollout.logprobs import chunked_logp
from rollout.models import autocast
from rollout.packing import PackedBatch


class PackedModel(nn.Module):
    """model: a causal language model (a peft model with LoRA), or a trunk without a language model's head. head: one
    number a token, or several, read ``before`` the token (at the position that predicts it) or ``after`` it (at its
    own)."""

    def __init__(
        self,
        model: Any,
        head: nn.Linear | None,
        *,
        varlen: VarlenAttention,
        compute_dtype: torch.dtype,
        temperature: float,
        chunk_tokens: int,
        read: Literal["before", "after"] = "before",
    ):
        super().__init__()
        self.model, self.head, self.read = model, head, read
        self.varlen, self.compute_dtype = varlen, compute_dtype
        self.temperature, self.chunk_tokens = temperature, chunk_tokens

    def causal_lm(self) -> Any:
        """The transformers model inside: with LoRA, the one peft wraps."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(
        self, batch: PackedBatch, logp: bool = True, temperature: float | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(log-prob of each response token under softmax(logits / temperature), its entropy, the head's number for it),
        each [R], the last [R, numbers] of a head of several; None for what there is no head for, and for the first two
        with logp=False.
        temperature: None is that of the rollouts.

        A tuple, since FSDP looks for the tensors that lead back here in tuples, lists and dictionaries only."""
        lm = self.causal_lm()
        vocabulary_head = lm.get_output_embeddings()
        with autocast(batch.ids_T.device, self.compute_dtype):
            hidden_TE = packed_forward(lm if vocabulary_head is None else lm.model, batch, self.varlen)
        value_R = None
        if self.head is not None:
            hidden_RE = hidden_TE[batch.predict_R + (self.read == "after")]
            value_R = self.head(hidden_RE.to(self.head.weight.dtype))
            if self.head.out_features == 1:
                value_R = value_R[:, 0]
        if not logp or vocabulary_head is None:
            return None, None, value_R
        logp_R, entropy_R = chunked_logp(
            hidden_TE[batch.predict_R].to(self.compute_dtype),
            vocabulary_head.weight,
            batch.target_R,
            temperature=self.temperature if temperature is None else temperature,
            chunk_tokens=self.chunk_tokens,
        )
        return logp_R, entropy_R, value_R
