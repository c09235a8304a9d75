"""What a policy loss gets and returns.

Shapes: R response tokens of a micro-batch, packed; S sequences in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from verifiers.options import Options
from verifiers.registry import Registry


@dataclass(frozen=True, slots=True)
class LossInputs:
    """logp_R: log-prob of each token under the policy being trained (with gradient). old_logp_R: under the policy at
    the start of the update (no gradient). advantage_R. segment_R: int64, the sequence of each token."""

    logp_R: Tensor
    old_logp_R: Tensor
    advantage_R: Tensor
    segment_R: Tensor


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """compute(inputs, options) -> (loss_R before reduction, diagnostics by name, each [R], averaged over tokens)."""

    options: type[Options]
    compute: Callable[[LossInputs, Options], tuple[Tensor, dict[str, Tensor]]]


LOSSES: Registry[PolicyLoss] = Registry("policy loss", "trainer.losses")
