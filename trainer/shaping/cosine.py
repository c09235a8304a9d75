"""Cosine length reward: an outcome that changes smoothly with the response's length. It replaces the outcome.

    reward = exceed                                                    if L + margin >= L_max, right or wrong
           = at_max + (at_0 - at_max) (1 + cos(pi L / L_max)) / 2      else, with the two values of right or wrong

The defaults want short right answers and long wrong ones: right and short 2 > right and long 1 > wrong and long 0 >
wrong and short -10.

Paper: arXiv:2502.03373. Reference: eddycmu/demystify-long-cot e90cf9b3, `CosineScaledSparseReward.reward`, whose
`min_value_wrong` and `max_value_wrong` are swapped against `min_value_correct` and `max_value_correct`: here each value
is named by the length it holds at. Use it without normalising rewards over the group if the values are to mean what
they say.

Shapes: N trajectories.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field

from trainer.shaping.base import SHAPINGS, Shaped, Shaping, ShapingInputs
from verifiers.options import Options


class CosineOptions(Options):
    """Values at length 0 and at the limit. exceed: of responses within margin_tokens of the limit."""

    correct_at_0: float = 2.0
    correct_at_max: float = 1.0
    wrong_at_0: float = -10.0
    wrong_at_max: float = 0.0
    exceed: float = -10.0
    margin_tokens: int = Field(default=16, ge=0)


def cosine_reward(length: int, correct: bool, max_response_tokens: int, options: CosineOptions) -> float:
    if length + options.margin_tokens >= max_response_tokens:
        return options.exceed
    at_0 = options.correct_at_0 if correct else options.wrong_at_0
    at_max = options.correct_at_max if correct else options.wrong_at_max
    return at_max + (at_0 - at_max) * (1 + math.cos(math.pi * length / max_response_tokens)) / 2


def _compute(inputs: ShapingInputs, options: CosineOptions) -> Shaped:
    values = [
        cosine_reward(len(ids), bool(correct), inputs.max_response_tokens, options)
        for ids, correct in zip(inputs.response_ids, inputs.correct_N, strict=True)
    ]
    reward_N = torch.tensor(values, dtype=inputs.reward_N.dtype, device=inputs.reward_N.device)
    return Shaped(torch.where(torch.isnan(inputs.reward_N), inputs.reward_N, reward_N))  # unjudged stays unjudged


SHAPINGS.register("cosine")(Shaping(CosineOptions, _compute))  # type: ignore[arg-type]
