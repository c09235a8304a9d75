"""`ensemble`: several reward sources as one outcome: their mean, or something more careful where they disagree.

The objectives are those of `prm.ensemble`. Members are put on one scale first: the scores that each gives to a fixed
set, responses of the policy as it is before the first step, become mean 0 and standard deviation 1.

Shapes: K members, N trajectories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from data.example import Example
from prm.bench.ranking import correlation
from prm.cotrained import CoTrained
from prm.ensemble import EnsembleOptions, combine
from prm.members import Members, build_member, check_folders, check_members, only, planned_by, prefixed
from prm.signal import SOURCES, Kept, Signal, Source, SourceContext
from prm.step_scorer import TrainingOptions, sample_solutions
from rollout.trajectory import Trajectory
from verifiers.errors import RunError
from verifiers.options import Options as BaseOptions


class Calibration(BaseOptions):
    """The fixed set: samples_per_prompt responses to `prompts` training prompts."""

    prompts: int = Field(default=64, ge=2)
    samples_per_prompt: int = Field(default=4, ge=1)


@SOURCES.register("ensemble")
class Ensemble(Source):
    """outcome = the objective of the members' scores; NaN where a member could not judge.

    Models: those of the members, ``member0_...``. Labels: ``member_scores``, on the common scale, and the members' own
    as ``member0/...``. Metrics: the members' own likewise; ``disagreement``, the mean over responses of the members'
    standard deviation; ``penalty``, how far the outcome lies below the mean; ``member_correlation``, the mean over
    pairs of members. Members that learn go on learning.
    """

    phase = "judge"

    class Options(EnsembleOptions):
        """members: sources that judge, as in a recipe: ``[{kind: verify_rm, ...}, ...]``. calibrate: null leaves the
        scores as they are, for members that are on one scale already."""

        members: list[dict[str, Any]] = Field(min_length=1)
        calibrate: Calibration | None = Calibration()

        @field_validator("members")
        @classmethod
        def _are_sources(cls, members: list[dict[str, Any]]) -> list[dict[str, Any]]:
            check_members(members, "members")
            return members

    def __init__(self, options: Ensemble.Options, context: SourceContext):
        super().__init__(options, context)
        made = {f"member{k}": build_member(p, context, f"members.{k}") for k, p in enumerate(options.members)}
        self.members = Members(made)
        self.mean_K, self.std_K = torch.zeros(len(made)), torch.ones(len(made))

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        self.members.start_from(weights)
        if self.options.calibrate is None:
            return
        set_ = self.options.calibrate
        asked = TrainingOptions(prompts=set_.prompts, samples_per_prompt=set_.samples_per_prompt, steps=1,
                                solutions_per_step=1)  # fmt: skip
        scores_KN = self._ask(*sample_solutions(self.context, asked, "ensemble"))[1]
        known_KN = scores_KN[:, ~scores_KN.isnan().any(0)]
        self.mean_K, self.std_K = known_KN.mean(1), known_KN.std(1)
        for name, std in zip(self.members.sources, self.std_K.tolist(), strict=True):
            if not std > 0:
                raise RunError(f"{name} gives the same score to every response of the calibration set.",
                               where="sources, kind ensemble", why="it cannot be put on the scale of the others",
                               fix="train it longer, or set calibrate=null if it is meant to be so")  # fmt: skip

    def _ask(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> tuple[list[Signal], Tensor]:
        signals = [source.score(trajectories, examples) for source in self.members.sources.values()]
        return signals, torch.stack([signal.outcome_N for signal in signals])

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        signals, raw_KN = self._ask(trajectories, examples)
        scores_KN = (raw_KN - self.mean_K[:, None]) / self.std_K[:, None]
        outcome_N = combine(scores_KN, self.options)
        labels: dict[str, list[Any]] = {"member_scores": scores_KN.T.tolist()}
        metrics = disagreement(scores_KN, outcome_N)
        for name, signal in zip(self.members.sources, signals, strict=True):
            labels |= prefixed(name, signal.labels | {"outcome": signal.outcome_N.tolist()})
            metrics |= prefixed(name, signal.metrics)
        verdicts = next((s.labels["verdict"] for s in signals if "verdict" in s.labels), None)
        return Signal(outcome_N, labels=labels if verdicts is None else labels | {"verdict": verdicts}, metrics=metrics)

    def learn(self, kept: Kept, signal: Signal) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name, source in self.members.sources.items():
            said = only(name, signal.labels)
            own = Signal(torch.tensor(said.pop("outcome", [])), labels=said)
            metrics |= prefixed(name, source.learn(kept, own))
        return metrics

    @classmethod
    def check(cls, options: Ensemble.Options, key: str) -> None:
        check_folders({f"members.{k}": part for k, part in enumerate(options.members)}, key)

    @classmethod
    def planned_models(cls, options: Ensemble.Options) -> dict[str, Literal["trained", "frozen"]]:
        return planned_by({f"member{k}": part for k, part in enumerate(options.members)})

    def models(self) -> dict[str, CoTrained]:
        return self.members.models()

    def state_dict(self) -> dict[str, Any]:
        return {"members": self.members.state_dict(), "mean_K": self.mean_K, "std_K": self.std_K}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.members.load_state_dict(state["members"])
        self.mean_K, self.std_K = state["mean_K"], state["std_K"]

    def close(self) -> None:
        self.members.close()


def disagreement(scores_KN: Tensor, outcome_N: Tensor) -> dict[str, float]:
    known_KN = scores_KN[:, ~scores_KN.isnan().any(0)]
    known_N = outcome_N[~outcome_N.isnan()]
    if known_KN.shape[1] == 0 or len(scores_KN) < 2:
        return {}
    pairs = [(i, k) for i in range(len(known_KN)) for k in range(i)]
    related = [correlation(known_KN[i].tolist(), known_KN[k].tolist()) for i, k in pairs]
    known = [r for r in related if r is not None]
    found = {"disagreement": float(known_KN.std(0).mean()), "penalty": float((known_KN.mean(0) - known_N).mean())}
    return found | ({"member_correlation": sum(known) / len(known)} if known else {})
