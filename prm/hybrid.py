"""`hybrid`: the rule where it can be trusted, a model where it cannot, and a reward for the format (HARMO).

    R = R_hybrid + R_fmt
    R_hybrid = c r_rule + (1 - c) r_model        c = 1: the rule read reference and answer; 0: open-ended; else c0
    R_fmt = format_reward, if the response keeps the format

Only what the rule is not sure of is shown to the model. The method's third part, the length term, is the shaping
``relative_length``, which the recipe adds (`objective.shaping`).

Paper: arXiv:2510.05283 (the sum of three parts, the routing, GRPO without the division by the standard deviation). It
does not give c or the size of the format reward: these are ours.

Shapes: N trajectories.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from data.example import Example
from prm.cotrained import CoTrained
from prm.members import Members, build_member, check_folders, member_options, planned_by, prefixed
from prm.rule import judge_all, verify_request
from prm.signal import SOURCES, Signal, Source, SourceContext
from rollout.trajectory import Trajectory
from verifiers.options import Options as BaseOptions
from verifiers.runner import Runner
from verifiers.verdict import Status, Verdict

Route = Literal["rule", "both", "model", "fault"]


class HybridOptions(BaseOptions):
    """model: a source that judges with numbers in [0, 1], ``{kind: verify_rm, ...}``; it stays as it is.
    open_ended_field: of `Example.meta`; true there: no rule can judge this example. unparsed_confidence: c0. format:
    options of the verifier ``format``; null: no format term. format_reward: below 1, what being right is worth."""

    model: dict[str, Any]
    open_ended_field: str = "open_ended"
    unparsed_confidence: float = Field(default=0.5, ge=0, le=1)
    format: dict[str, Any] | None = None
    format_reward: float = Field(default=0.2, ge=0, lt=1)

    @field_validator("model")
    @classmethod
    def _is_a_source(cls, part: dict[str, Any]) -> dict[str, Any]:
        member_options(part, "model")
        return part


@SOURCES.register("hybrid")
class Hybrid(Source):
    """outcome = R. NaN where the verifier failed, or the model was needed and could not judge.

    Labels: ``verdict``; ``hybrid_parts``: {confidence, rule, model, format} of each trajectory. Models: the
    model's, ``model_...``. Metrics: the share of each route (`rule`, `both`, `model`, `fault`), the means of the parts,
    and the model's own.
    """

    phase = "judge"
    gives_verdicts = True

    class Options(HybridOptions):
        pass

    def __init__(self, options: Hybrid.Options, context: SourceContext):
        super().__init__(options, context)
        self.member = Members({"model": build_member(options.model, context, "model")})
        self.format = None if options.format is None else Runner("format", options.format, key="sources, kind hybrid")

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        self.member.start_from(weights)

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        o = self.options
        verdicts = judge_all(self.context, trajectories, examples)
        routes: list[Route] = [route(v, e, o) for v, e in zip(verdicts, examples, strict=True)]
        confidence_N = torch.tensor([{"rule": 1.0, "both": o.unparsed_confidence, "model": 0.0, "fault": math.nan}[r]
                                     for r in routes])  # fmt: skip
        rule_N = torch.tensor([v.score if r in ("rule", "both") and v.score is not None else 0.0
                               for v, r in zip(verdicts, routes, strict=True)])  # fmt: skip
        model_N, metrics = self._model(trajectories, examples, confidence_N)
        format_N = self._format(trajectories, examples)
        # 0 * NaN is NaN: what the model was not asked about does not count
        said_N = torch.where(confidence_N < 1, (1 - confidence_N) * model_N, torch.zeros_like(model_N))
        hybrid_N = confidence_N * rule_N + said_N
        columns = {"confidence": confidence_N, "rule": rule_N, "model": model_N, "format": format_N}
        values = {name: column.tolist() for name, column in columns.items()}
        parts = [{name: _json(values[name][i]) for name in values} for i in range(len(trajectories))]
        metrics |= _health(routes, hybrid_N, format_N)
        return Signal(hybrid_N + format_N, labels={"verdict": verdicts, "hybrid_parts": parts}, metrics=metrics)

    def _model(
        self, trajectories: Sequence[Trajectory], examples: Sequence[Example], confidence_N: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """What the model says where it counts [N], NaN elsewhere."""
        model_N = torch.full((len(trajectories),), math.nan)
        asked = (confidence_N < 1).nonzero().flatten().tolist()
        if not asked:
            return model_N, {}
        source = self.member.sources["model"]
        signal = source.score([trajectories[i] for i in asked], [examples[i] for i in asked])
        model_N[asked] = signal.outcome_N
        return model_N, prefixed("model", signal.metrics)

    def _format(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Tensor:
        if self.format is None:
            return torch.zeros(len(trajectories))
        verdicts = self.format.verify([verify_request(t, e) for t, e in zip(trajectories, examples, strict=True)])
        scores = [math.nan if v.score is None else v.score for v in verdicts]
        return self.options.format_reward * torch.tensor(scores)

    @classmethod
    def check(cls, options: HybridOptions, key: str) -> None:
        check_folders({"model": options.model}, key)

    @classmethod
    def planned_models(cls, options: HybridOptions) -> dict[str, Literal["trained", "frozen"]]:
        return planned_by({"model": options.model})

    def models(self) -> dict[str, CoTrained]:
        return self.member.models()

    def state_dict(self) -> dict[str, Any]:
        return self.member.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.member.load_state_dict(state)

    def close(self) -> None:
        self.member.close()
        if self.format is not None:
            self.format.close()


def route(verdict: Verdict, example: Example, options: HybridOptions) -> Route:
    """Who says whether a response is right. A reference that the verifier cannot read is no fault of the response: the
    model judges it. Any other fault of the verifier judges nothing."""
    if example.meta.get(options.open_ended_field) or verdict.status is Status.BAD_GOLD:
        return "model"
    if verdict.is_fault:
        return "fault"
    could_read = verdict.status is not Status.NO_ANSWER and (verdict.status is not Status.WRONG or verdict.answer)
    return "rule" if could_read else "both"


def _health(routes: Sequence[Route], hybrid_N: Tensor, format_N: Tensor) -> dict[str, float]:
    count = Counter(routes)
    shares = {f"route/{name}_share": count[name] / len(routes) for name in ("rule", "both", "model", "fault")}
    means = {"hybrid_mean": hybrid_N, "format_mean": format_N}
    return shares | {n: float(v[~v.isnan()].double().mean()) for n, v in means.items() if not bool(v.isnan().all())}


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value
