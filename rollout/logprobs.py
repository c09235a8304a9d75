"""Log-probabilities of given tokens from hidden states, in chunks: no [R, V] tensor ever exists.

Shapes: R response tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ChunkedLogp(torch.autograd.Function):
    """Recomputes the logits of each chunk in the backward pass instead of keeping them: one more head product buys
    R * V floats of memory."""

    @staticmethod
    def forward(
        ctx: Any, hidden_RE: Tensor, weight_VE: Tensor, target_R: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logp, entropy, normaliser = [], [], []
        weight = weight_VE.to(hidden_RE.dtype)
        wide = torch.promote_types(hidden_RE.dtype, torch.float32)
        for hidden, target in zip(hidden_RE.split(chunk), target_R.split(chunk), strict=True):
            logits = (hidden @ weight.T).to(wide).div_(temperature)
            lse = torch.logsumexp(logits, -1)
            logp.append(logits.gather(1, target[:, None])[:, 0] - lse)
            normaliser.append(lse)
            # H = lse - sum_v p_v logit_v
            entropy.append(lse - (logits - lse[:, None]).exp_().mul_(logits).sum(-1))
        lse_R = torch.cat(normaliser) if normaliser else hidden_RE.new_zeros(0, dtype=wide)
        ctx.save_for_backward(hidden_RE, weight_VE, target_R, lse_R)
        ctx.temperature, ctx.chunk = temperature, chunk
        entropy_R = torch.cat(entropy) if entropy else torch.zeros_like(lse_R)
        ctx.mark_non_differentiable(entropy_R)
        return torch.cat(logp) if logp else torch.zeros_like(lse_R), entropy_R

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_R = grad_outputs[0]
        hidden_RE, weight_VE, target_R, lse_R = ctx.saved_tensors
        weight = weight_VE.to(hidden_RE.dtype)
        grad_hidden = torch.empty_like(hidden_RE)
        wide = lse_R.dtype
        grad_weight = torch.zeros_like(weight_VE) if ctx.needs_input_grad[1] else None
        for at in range(0, hidden_RE.shape[0], ctx.chunk):
            rows = slice(at, at + ctx.chunk)
            hidden, grad = hidden_RE[rows], grad_R[rows, None].to(wide)
            # d logp / d logits = (onehot - softmax) / temperature
            d = (hidden @ weight.T).to(wide).div_(ctx.temperature).sub_(lse_R[rows, None]).exp_().mul_(-grad)
            d.scatter_add_(1, target_R[rows, None], grad)
            d = d.div_(ctx.temperature).to(hidden.dtype)
            grad_hidden[rows] = d @ weight
            if grad_weight is not None:
                grad_weight += d.T @ hidden
        return grad_hidden, grad_weight, None, None, None


def chunked_logp(
    hidden_RE: Tensor, weight_VE: Tensor, target_R: Tensor, *, temperature: float, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Return (logp_R, entropy_R) under softmax(hidden W^T / temperature); the entropy without gradient.

    The product runs in the dtype of `hidden_RE` (half precision under autocast), everything after it in float32
    (float64 for float64 hidden states).
    """
    return _ChunkedLogp.apply(hidden_RE, weight_VE, target_R, temperature, chunk_tokens)  # type: ignore[return-value]
