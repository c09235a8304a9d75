"""What a reward shaping gets and returns: between the verdicts and the advantages.

Shapes: N trajectories; R response tokens of all of them, end to end in trajectory order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from verifiers.options import Options
from verifiers.registry import Registry


@dataclass(frozen=True, slots=True)
class ShapingInputs:
    """reward_N: the outcomes so far, weighted and added. correct_N: bool, what the verifier said. group_N: int64, equal
    for samples of one prompt. response_ids: N lists of token ids. max_response_tokens: the rollout's limit."""

    reward_N: Tensor
    correct_N: Tensor
    group_N: Tensor
    response_ids: Sequence[Sequence[int]]
    max_response_tokens: int


@dataclass(frozen=True, slots=True)
class Shaped:
    """reward_N: the new outcomes. token_reward_R: a dense reward to add, None: there is none."""

    reward_N: Tensor
    token_reward_R: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Shaping:
    """options: the typed options of this kind. compute(inputs, options) -> Shaped, without changing its inputs."""

    options: type[Options]
    compute: Callable[[ShapingInputs, Options], Shaped]


SHAPINGS: Registry[Shaping] = Registry("reward shaping", "trainer.shaping")
