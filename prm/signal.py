"""`Signal` and `RewardSource`: how every reward, ruled or learned, reaches the trainer.

Shapes: N trajectories; T_i response tokens of trajectory i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.example import Example
from rollout.trajectory import Trajectory
from verifiers.registry import Registry
from verifiers.runner import Runner
from verifiers.verdict import Verdict


@dataclass(slots=True)
class Signal:
    """What one source says about N trajectories.

    outcome_N: float32 [N], NaN = not judged (the trajectory leaves its group).
    token_reward: None, or one float32 tensor [T_i] a trajectory (dense process reward).
    token_weight: None, or one float32 tensor [T_i] a trajectory (multiplies the advantage).
    labels: lists of N values for the records and the report, by name.
    """

    outcome_N: Tensor
    token_reward: list[Tensor] | None = None
    token_weight: list[Tensor] | None = None
    labels: dict[str, list[Any]] = field(default_factory=dict)

    def select(self, index: Sequence[int]) -> Signal:
        """The same signal for a subset of the trajectories, in the order of `index`."""
        return Signal(
            self.outcome_N[torch.as_tensor(index, dtype=torch.long)],
            None if self.token_reward is None else [self.token_reward[i] for i in index],
            None if self.token_weight is None else [self.token_weight[i] for i in index],
            {name: [values[i] for i in index] for name, values in self.labels.items()},
        )

    @staticmethod
    def concat(signals: Sequence[Signal]) -> Signal:
        """One signal for the trajectories of several, all from the same source."""
        first = signals[0]
        return Signal(
            torch.cat([s.outcome_N for s in signals]),
            None if first.token_reward is None else [t for s in signals for t in s.token_reward or []],
            None if first.token_weight is None else [t for s in signals for t in s.token_weight or []],
            {name: [v for s in signals for v in s.labels[name]] for name in first.labels},
        )


def verdicts_in(signals: Sequence[Signal]) -> list[Verdict]:
    """The verdicts of the first source that gives some; [] if none does."""
    return next((s.labels["verdict"] for s in signals if "verdict" in s.labels), [])


@dataclass(slots=True)
class SourceContext:
    """What a source may use: the recipe's verifier, the policy's tokenizer, the device, the run's seed."""

    runner: Runner
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    seed: int


@runtime_checkable
class RewardSource(Protocol):
    """A rule verifier, an implicit PRM, a judge over HTTP, a VerifyRM: all of them are this.

    A source is built as ``Source(options, context)``; `options` is an instance of its nested pydantic model `Options`
    (so a recipe's typos are caught before compute) and `context` a `SourceContext`.

    A source that judges elsewhere may also have ``start(trajectories, examples) -> Callable[[], Signal]``, which
    returns at once: the loop calls it with each group as soon as it is generated, and the functions it returned when
    all are. Sources without it are asked with `score` when all groups are generated.
    """

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        """Judge trajectories[i], an answer to examples[i]. Never raises for what a model wrote."""
        ...

    def learn(self, trajectories: Sequence[Trajectory], signal: Signal) -> dict[str, float]:
        """Co-train on what was kept. Sources that do not learn return {}."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


SOURCES: Registry[type] = Registry("reward source", "prm")
