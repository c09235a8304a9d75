"""Penalty on repeated n-grams of tokens, spread over the repeats (dense) or one number a response (sparse).

dense: from left to right, every n-gram that was seen before puts `penalty` on its n tokens (set, not added up); first
occurrences are free. With only_start, repeats that overlap the repeat before are skipped.
sparse: (1 - distinct n-grams / n-grams) * penalty, added to the outcome.

Paper: arXiv:2502.03373 (dense, n = 40, with a discount of its own: `advantage.kind=multi_stream`). Reference:
eddycmu/demystify-long-cot e90cf9b3, `RepetitionDensePenalty.reward`; with only_start its skip pointer moves on even at
a skipped repeat, which we keep. Its sparse form counts words and divides by zero on texts shorter than n; here and in
TRL (`get_repetition_penalty_reward`, n = 3, -1) it counts tokens, and such a response gets 0.

Shapes: R response tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from pydantic import Field

from trainer.shaping.base import SHAPINGS, Shaped, Shaping, ShapingInputs
from verifiers.options import Options


class RepetitionOptions(Options):
    """ngram_tokens: n. penalty: at most 0. only_start: dense form, skip repeats that overlap the repeat before."""

    form: Literal["dense", "sparse"] = "dense"
    ngram_tokens: int = Field(default=40, ge=1)
    penalty: float = Field(default=-0.05, le=0)
    only_start: bool = False


def dense_penalty(tokens: Sequence[Hashable], ngram: int, penalty: float, only_start: bool = False) -> list[float]:
    """One value a token: `penalty` where it is part of a repeated n-gram, else 0."""
    out = [0.0] * len(tokens)
    seen: set[tuple[Hashable, ...]] = set()
    end = 0  # of the last repeat
    for start in range(len(tokens) - ngram + 1):
        gram = tuple(tokens[start : start + ngram])
        if gram in seen:
            if not (only_start and start < end):
                out[start : start + ngram] = [penalty] * ngram
            end = start + ngram
        seen.add(gram)
    return out


def sparse_penalty(tokens: Sequence[Hashable], ngram: int, penalty: float) -> float:
    """`penalty` times the share of repeated n-grams; 0 for fewer than n tokens."""
    grams = [tuple(tokens[i : i + ngram]) for i in range(len(tokens) - ngram + 1)]
    return (1 - len(set(grams)) / len(grams)) * penalty if grams else 0.0


def _compute(inputs: ShapingInputs, options: RepetitionOptions) -> Shaped:
    n, penalty = options.ngram_tokens, options.penalty
    if options.form == "sparse":
        values = [sparse_penalty(ids, n, penalty) for ids in inputs.response_ids]
        return Shaped(inputs.reward_N + torch.tensor(values, dtype=inputs.reward_N.dtype))
    rows = [dense_penalty(ids, n, penalty, options.only_start) for ids in inputs.response_ids]
    return Shaped(inputs.reward_N, torch.tensor([v for row in rows for v in row], dtype=inputs.reward_N.dtype))


SHAPINGS.register("repetition")(Shaping(RepetitionOptions, _compute))  # type: ignore[arg-type]
