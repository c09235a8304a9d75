"""What scores responses: a trained reward model, a verifier, a file; and the controls each is read beside."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

from data.labelled import LabelledResponse
from prm.bench.items import read_rows, validate
from prm.bench.scorers import Scale
from prm.judge.parsing import parse_yes_no
from verifiers.errors import DataError

if TYPE_CHECKING:
    from prm.cotrained import CoTrained
    from prm.reward_model import RewardModel


class ResponseScorer(Protocol):
    """A higher score says that the response is better. None: it could not be scored."""

    name: str
    scale: Scale

    def score(self, asked: Sequence[LabelledResponse]) -> list[float | None]: ...


@dataclass(slots=True)
class Control:
    """``length``: shorter is better; ``constant``: all are right; ``random``: by hash of id and seed."""

    name: str
    seed: int = 0
    scale: Scale = "probability"

    def score(self, asked: Sequence[LabelledResponse]) -> list[float | None]:
        if self.name == "length":
            return [1 / (1 + len(one.response)) for one in asked]
        if self.name == "constant":
            return [1.0] * len(asked)
        return [_uniform(f"{self.seed}/{one.id}") for one in asked]


def _uniform(text: str) -> float:
    return random.Random(hashlib.sha256(text.encode()).hexdigest()).random()


@dataclass(slots=True)
class FromFile:
    """Rows ``{"id", "score"}`` (null: none), or ``{"id", "output"}``, a judge's text whose last yes or no counts."""

    name: str
    scale: Scale
    values: Mapping[str, float | None]

    def score(self, asked: Sequence[LabelledResponse]) -> list[float | None]:
        missing = next((one.id for one in asked if one.id not in self.values), None)
        if missing is not None:
            raise DataError(f"There is no score for '{missing}'.", where=self.name, fix="score every item; null is one")
        return [self.values[one.id] for one in asked]


class _ScoreRow(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    id: str
    score: float | None = None
    output: str | None = None


def scores_from_file(path: str) -> FromFile:
    """Probabilities if all scores lie in 0..1. Raises `DataError` naming the line."""
    values: dict[str, float | None] = {}
    for raw in read_rows(path):
        row = validate(_ScoreRow, raw, path)
        if row.output is not None:
            said = parse_yes_no(row.output)
            values[row.id] = None if said is None else float(said)
        else:
            values[row.id] = row.score
    known = [value for value in values.values() if value is not None]
    return FromFile("scores", "probability" if all(0 <= value <= 1 for value in known) else "real", values)


class Trained:
    """A reward model that `assay train` left, of any kind that scores responses."""

    def __init__(self, folder: str, max_tokens_per_microbatch: int, device: str):
        import torch

        from prm.cotrained import ModelSetup
        from prm.reward_model import open_reward_model, read_card
        from rollout.options import ModelConfig

        setup = ModelSetup(ModelConfig(path=folder), 0, torch.device(device), "auto", max_tokens_per_microbatch, 1024,
                           1.0, 0)  # fmt: skip
        kind = read_card(folder, key="--model").kind
        self._model: CoTrained
        self._kind: RewardModel
        self._model, self._kind = open_reward_model(folder, kind, setup, key="--model")
        self.name: str = kind
        self.scale: Scale = self._kind.scale

    def score(self, asked: Sequence[LabelledResponse]) -> list[float | None]:
        return self._kind.score(self._model, asked)


class Verified:
    """A rule verifier against the reference answer: 1 right, 0 wrong, None for what it could not judge."""

    scale: Scale = "probability"

    def __init__(self, kind: str, options: Mapping[str, Any]):
        from verifiers.runner import Runner

        self.name, self._runner = f"verifier {kind}", Runner(kind, options, workers=1)

    def score(self, asked: Sequence[LabelledResponse]) -> list[float | None]:
        from verifiers.verdict import VerifyRequest

        verdicts = self._runner.verify([VerifyRequest(one.response, one.reference, {}, one.id) for one in asked])
        return [verdict.score for verdict in verdicts]

    def close(self) -> None:
        self._runner.close()
