"""HARMO's length term: keep responses near the length of the group's correct ones. It is added to the outcome.

    d_i = max(0, |L_i - L_c| / L_c - tolerance)        term_i = -max_penalty min(1, d_i)

L_c is the mean length of the group's correct responses; without one the term is 0 for the whole group. It counters
answers that become too short as well as too long.

Paper: HARMO, arXiv:2510.05283, names a term inside the group, relative to its correct members, with a cap and a
tolerance; the exact formula was not available to us. This form and its constants are our own choice, and there is no
reference implementation to compare with.

Shapes: N trajectories.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from trainer.advantages.base import group_sum
from trainer.shaping.base import SHAPINGS, Shaped, Shaping, ShapingInputs
from verifiers.options import Options


class RelativeLengthOptions(Options):
    """tolerance: relative deviation that is free. max_penalty: with everything else that shapes, keep it below the gap
    between right and wrong, or a wrong answer of good length may win. wrong_only: right answers are spared."""

    max_penalty: float = Field(default=0.5, ge=0)
    tolerance: float = Field(default=0.5, ge=0)
    wrong_only: bool = False


def relative_length_term(
    length_N: Tensor, correct_N: Tensor, group_N: Tensor, options: RelativeLengthOptions
) -> Tensor:
    """The term of each trajectory, in [-max_penalty, 0], float64 [N]."""
    length_N = length_N.double()
    correct = group_sum(correct_N.double(), group_N)
    ideal_N = group_sum(length_N * correct_N, group_N) / correct.clamp(min=1)
    deviation_N = ((length_N - ideal_N).abs() / ideal_N.clamp(min=1) - options.tolerance).clamp(0, 1)
    applies_N = correct > 0
    if options.wrong_only:
        applies_N = applies_N & ~correct_N.bool()
    return torch.where(applies_N, -options.max_penalty * deviation_N, torch.zeros_like(deviation_N))


def _compute(inputs: ShapingInputs, options: RelativeLengthOptions) -> Shaped:
    length_N = torch.tensor([len(ids) for ids in inputs.response_ids])
    term_N = relative_length_term(length_N, inputs.correct_N, inputs.group_N, options)
    return Shaped(inputs.reward_N + term_N.to(inputs.reward_N.dtype))


SHAPINGS.register("relative_length")(Shaping(RelativeLengthOptions, _compute))  # type: ignore[arg-type]
