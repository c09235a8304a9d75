"""The critic's loss: squared error to the return, with the new value kept near the old one.

    loss = 0.5 max((V - return)^2, (clip(V, V_old - clip, V_old + clip) - return)^2)

The larger of the two: where the clipped value is further from the return, the gradient is 0.

Source: PPO's first implementation, openai/baselines; not in the PPO paper. Reference: volcengine/verl b178a3cd,
`core_algos.py`, `compute_value_loss` (clip 0.5 by default; 0.2 in TRL's PPO). Not in the registry of policy losses: a
critic has values, not log-probs. Returns are those before whitening.

Shapes: R response tokens.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from verifiers.options import Options


class ValueLossOptions(Options):
    """clip: how far the value may move from where it was at the start of the update; None: as far as it likes."""

    clip: float | None = Field(default=0.5, gt=0)


def value_loss(
    value_R: Tensor, old_value_R: Tensor, return_R: Tensor, options: ValueLossOptions
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss before reduction [R], diagnostics [R])."""
    error_R = (value_R - return_R).square()
    if options.clip is None:
        return 0.5 * error_R, {"value_clip_fraction": torch.zeros_like(error_R.detach())}
    clipped_R = torch.clamp(value_R, old_value_R - options.clip, old_value_R + options.clip)
    clipped_error_R = (clipped_R - return_R).square()
    diagnostics = {"value_clip_fraction": (clipped_error_R > error_R).float()}
    return 0.5 * torch.maximum(error_R, clipped_error_R), diagnostics
