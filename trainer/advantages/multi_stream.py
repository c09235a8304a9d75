"""Several reward streams, each with a discount of its own, against one critic.

    A_t = sum_k sum_{s >= t} gamma_k^(s - t) r_{s,k} - V_t

An outcome wants gamma 1, or the model forgets it over a long response; a penalty on single tokens (repetition) wants
less than 1, or it blames what came long before. lambda is 1: with two discounts there is no single TD error.

Paper: arXiv:2502.03373 (0.99 for repetition). Reference: eddycmu/demystify-long-cot e90cf9b3,
`get_advantages_and_returns` with several gammas; it leaves whitening to the replay buffer, hence `whiten=false`.
Without a critic (no value_R) the advantage is the return. All gammas 1: the single-stream return of the summed rewards.

Shapes: R response tokens, K streams.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from trainer.advantages.base import (
    ADVANTAGES,
    AdvantageEstimator,
    AdvantageInputs,
    always,
    discounted_to_go,
    needed,
    own_tokens,
    whiten,
)
from verifiers.errors import ConfigError
from verifiers.options import Options


class MultiStreamOptions(Options):
    """gammas: one discount for each stream, in the order of the sources. whiten: over the batch's tokens."""

    gammas: list[float] = Field(min_length=1)
    whiten: bool = False


def multi_stream_return(inputs: AdvantageInputs, options: MultiStreamOptions) -> Tensor:
    """The sum of the streams' discounted rewards to go [R], 0 outside the own tokens."""
    stream_RK = needed(inputs, "stream_RK")
    if stream_RK.shape[1] != len(options.gammas):
        raise ConfigError(f"{len(options.gammas)} discounts for {stream_RK.shape[1]} reward streams.",
                          where="objective.advantage.gammas", fix="one discount for each reward source")  # fmt: skip
    columns = [discounted_to_go(stream_RK[:, k], inputs, gamma) for k, gamma in enumerate(options.gammas)]
    return torch.stack(columns).sum(0)


def _compute(inputs: AdvantageInputs, options: MultiStreamOptions) -> Tensor:
    advantage_R = multi_stream_return(inputs, options)
    if inputs.value_R is not None:
        advantage_R = advantage_R - inputs.value_R * own_tokens(inputs)
    return whiten(advantage_R, inputs) if options.whiten else advantage_R


ADVANTAGES.register("multi_stream")(
    AdvantageEstimator(
        MultiStreamOptions,
        _compute,
        multi_stream_return,
        needs=("stream_RK",),
        uses_rewards_to_go=True,
        teaches_from_flat_groups=always,
    )
)
