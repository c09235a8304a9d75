"""Clip and Delta: step rewards whose sum cannot be raised by more steps.

    clip        c_k = min(rho_k - eta, 0)
    delta       r_k = rho_k - rho_{k+1} for k < K-1,   r_{K-1} = rho_{K-1},   r_K = 0
    clip_delta  Clip first, then Delta of c

rho_k is the score of the prefix that ends with step k. The sum of Clip is at most 0; that of Delta telescopes to rho_1
(from step k on: to rho_k), whatever the number of steps. In the other order nothing telescopes. One step alone earns 0.

Delta is not causal: -rho_k stands at step k - 1, before the step that decides it. Rewards to go from step k leave it
out and pay rho_k for every step. See docs/methods/clip_delta.md for what that does.

Paper: arXiv:2410.15115. eta and alpha are not published. Do not whiten what comes out of Clip: re-centred, good steps
earn again. Normalise advantages.

Shapes: K steps of one solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from verifiers.options import Options


class RefineOptions(Options):
    """eta: the score from which a step is good enough to Clip, a number or the running mean of all step scores.
    momentum: of that mean, over batches; 0 is the mean of the batch alone."""

    kind: Literal["none", "clip", "delta", "clip_delta"] = "none"
    eta: float | Literal["running_mean"] | None = None
    momentum: float = Field(default=0.9, ge=0, lt=1)

    @model_validator(mode="after")
    def _eta_is_for_clip(self) -> Self:
        if ("clip" in self.kind) != (self.eta is not None):
            raise ValueError("eta is for kind=clip and kind=clip_delta, and needed there (a number or running_mean)")
        return self


def clip(score_K: Tensor, eta: float) -> Tensor:
    """min(rho - eta, 0) [K]."""
    return (score_K - eta).clamp(max=0)


def delta(score_K: Tensor) -> Tensor:
    """Differences that telescope to the first score, 0 at the last step [K]."""
    reward_K = torch.zeros_like(score_K)
    reward_K[:-1] = score_K[:-1]
    reward_K[:-2] -= score_K[1:-1]
    return reward_K


class Refiner:
    """Step scores -> step rewards, with the threshold's running mean."""

    def __init__(self, options: RefineOptions):
        self.options = options
        self.mean: float | None = None

    def refine(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """One tensor [K_i] a solution -> its step rewards [K_i]. The running mean takes these scores in first."""
        eta = self._threshold(scores)
        kind = self.options.kind
        clipped = [clip(s, eta) for s in scores] if "clip" in kind else list(scores)
        return [delta(c) for c in clipped] if "delta" in kind else clipped

    def _threshold(self, scores: Sequence[Tensor]) -> float:
        if isinstance(self.options.eta, float):
            return self.options.eta
        if self.options.eta is None:
            return 0.0
        every = torch.cat(list(scores)).double()
        if len(every):
            old = self.options.momentum if self.mean is not None else 0.0
            self.mean = old * (self.mean or 0.0) + (1 - old) * float(every.mean())
        return self.mean or 0.0

    def metrics(self) -> dict[str, float]:
        return {"eta": self.mean} if self.mean is not None else {}

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]
