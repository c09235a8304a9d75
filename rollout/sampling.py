"""Token sampling by inverse CDF, with the log-probability under the distribution really sampled from.

Shapes: R rows, V vocabulary.

One uniform number a row decides its token, so a row's stream does not depend on the batch around it. For large
vocabularies the CDF is built in two levels (blocks, then inside one block): a full cumulative sum over V is the slowest
thing in a decode step on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TOP_P_CANDIDATES = 1024  # the nucleus is searched among these first; a wider one falls back to a full sort


def sample_tokens(
    logits_RV: Tensor, uniform_R: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (token_R, logp_sampled_R, logp_model_R).

    logits_RV in any float dtype; the arithmetic is float32. uniform_R in [0, 1). logp_sampled is under softmax(logits /
    temperature) renormalised to its nucleus; logp_model is under softmax(logits).
    """
    logits_RV = logits_RV.float()
    scaled_RV = logits_RV if temperature == 1.0 else logits_RV / temperature
    max_R1 = scaled_RV.amax(-1, keepdim=True)
    mass_RV = torch.exp(scaled_RV - max_R1)
    if top_p < 1.0:
        mass_RV = _nucleus(mass_RV, top_p)
    token_R, total_R = _inverse_cdf(mass_RV, uniform_R)
    chosen_R1 = token_R[:, None]
    logp_sampled_R = (scaled_RV.gather(1, chosen_R1) - max_R1)[:, 0] - total_R.log()
    if temperature == 1.0 and top_p == 1.0:
        return token_R, logp_sampled_R, logp_sampled_R
    logp_model_R = logits_RV.gather(1, chosen_R1)[:, 0] - torch.logsumexp(logits_RV, -1)
    return token_R, logp_sampled_R, logp_model_R


def greedy_tokens(logits_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The most likely token of each row. A greedy choice is certain, so logp_sampled is 0."""
    logits_RV = logits_RV.float()
    token_R = logits_RV.argmax(-1)
    logp_model_R = logits_RV.gather(1, token_R[:, None])[:, 0] - torch.logsumexp(logits_RV, -1)
    return token_R, torch.zeros_like(logp_model_R), logp_model_R


def _nucleus(mass_RV: Tensor, top_p: float) -> Tensor:
    """Zero everything outside the smallest set of likeliest tokens that holds at least `top_p` of the mass."""
    threshold_R1 = top_p * mass_RV.sum(-1, keepdim=True)
    vocabulary = mass_RV.shape[-1]
    candidates = min(vocabulary, _TOP_P_CANDIDATES)
    top_RK, index_RK = mass_RV.topk(candidates, dim=-1)
    if candidates < vocabulary and bool((top_RK.sum(-1, keepdim=True) < threshold_R1).any()):
        top_RK, index_RK = mass_RV.sort(dim=-1, descending=True)
    before_RK = top_RK.cumsum(-1) - top_RK  # mass of the likelier tokens: a token is in if they do not reach top_p yet
    kept_RK = torch.where(before_RK < threshold_R1, top_RK, torch.zeros_like(top_RK))
    return torch.zeros_like(mass_RV).scatter_(-1, index_RK, kept_RK)


def _inverse_cdf(mass_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    rows, vocabulary = mass_RV.shape
    block = next((b for b in (256, 128, 64, 32) if vocabulary % b == 0 and vocabulary >= 16 * b), 0)
    if not block:
        token_R, total_R = _search(mass_RV, uniform_R)
        return token_R, total_R
    blocks_RKB = mass_RV.view(rows, -1, block)
    block_mass_RK = blocks_RKB.sum(-1)
    cdf_RK = block_mass_RK.cumsum(-1)
    total_R1 = cdf_RK[:, -1:]
    target_R1 = _below(uniform_R[:, None] * total_R1, total_R1)
    which_R1 = torch.searchsorted(cdf_RK, target_R1, right=True).clamp_(max=cdf_RK.shape[1] - 1)
    chosen_mass_R1 = block_mass_RK.gather(1, which_R1)
    rest_R1 = target_R1 - (cdf_RK.gather(1, which_R1) - chosen_mass_R1)
    inside_RB = blocks_RKB.gather(1, which_R1[:, :, None].expand(rows, 1, block))[:, 0]
    inner_R, _ = _search(inside_RB, (rest_R1 / chosen_mass_R1)[:, 0].clamp_(0.0, 1.0))
    return which_R1[:, 0] * block + inner_R, total_R1[:, 0]


def _search(mass_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    cdf_RV = mass_RV.cumsum(-1)
    total_R1 = cdf_RV[:, -1:]
    # right=True: the first index whose CDF exceeds the target, hence always a token with positive mass
    token_R1 = torch.searchsorted(cdf_RV, _below(uniform_R[:, None] * total_R1, total_R1), right=True)
    return token_R1[:, 0], total_R1[:, 0]


def _below(target: Tensor, total: Tensor) -> Tensor:
    """Rounding may lift uniform * total up to total; keep it strictly below."""
    return torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
