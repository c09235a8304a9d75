"""`ScorerSource`: what sources with one scorer have in common, whatever it reads."""

from __future__ import annotations

from typing import Any, Generic, Literal, Protocol, TypeVar

from prm.cotrained import CoTrained
from prm.signal import Source
from rollout.options import OptimConfig


class ScorerOptionsLike(Protocol):
    @property
    def optim(self) -> OptimConfig | None: ...


class ScorerLike(Protocol):
    model: CoTrained
    fitted: dict[str, float]


S = TypeVar("S", bound=ScorerLike)


class ScorerSource(Source, Generic[S]):
    """The model ``scorer``, frozen without `options.optim`, and what its training before the RL reported (`fitted`)."""

    scorer: S

    @classmethod
    def planned_models(cls, options: ScorerOptionsLike) -> dict[str, Literal["trained", "frozen"]]:
        return {"scorer": "frozen" if options.optim is None else "trained"}

    def models(self) -> dict[str, CoTrained]:
        return {"scorer": self.scorer.model}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"fitted": self.scorer.fitted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.scorer.fitted = state["fitted"]
