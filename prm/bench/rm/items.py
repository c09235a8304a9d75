"""What is scored: RewardMATH problems, VerifyBench items, samples of a policy; and the files they are read from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from data.example import Message
from data.labelled import LabelledResponse
from data.rows import Row
from prm.bench.items import read_rows, validate
from verifiers.errors import DataError, did_you_mean


@dataclass(frozen=True, slots=True)
class Problem:
    """RewardMATH: one right solution, then the wrong ones. asked[0] is the right one."""

    id: str
    asked: tuple[LabelledResponse, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """VerifyBench: a completion with its label, by type and subtype of the answer."""

    asked: LabelledResponse
    type: str
    subtype: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A response of a policy with its true score. step: of the run, None outside one. proxy: what the run's records
    say; None where a scorer is to say it."""

    asked: LabelledResponse
    group: str
    step: int | None
    gold: float
    proxy: float | None


class _RewardMathRow(BaseModel):
    model_config = ConfigDict(strict=True)

    id: str | int
    problem: str
    chosen: str | list[str]
    rejected: list[str] = Field(min_length=1)


class _VerifyRow(BaseModel):
    model_config = ConfigDict(strict=True)

    question: str
    gold_answer: str
    completion: str
    gold_correct: bool
    answer_type: str = "unknown"
    answer_subtype: str = "unknown"
    id: str | int | None = None


def asked(id_: str, question: str, response: str, label: float, reference: str | None = None) -> LabelledResponse:
    return LabelledResponse(id_, (Message("user", question),), response, label, reference)


def read_rewardmath(paths: Sequence[str]) -> list[Problem]:
    """Rows ``{"id", "problem", "chosen": one solution, "rejected": [solutions]}``; solution k of a problem has the id
    ``ID/k``, the right one 0. Raises `DataError` naming the line."""
    problems = []
    for path in paths:
        for raw in read_rows(path):
            row = validate(_RewardMathRow, raw, path)
            chosen = [row.chosen] if isinstance(row.chosen, str) else row.chosen
            if len(chosen) != 1:
                raise DataError(f"There are {len(chosen)} right solutions; RewardMATH has one.",
                                where=f"{path}, {raw.place}")  # fmt: skip
            solutions = [*chosen, *row.rejected]
            problems.append(
                Problem(
                    str(row.id),
                    tuple(asked(f"{row.id}/{k}", row.problem, s, float(k == 0)) for k, s in enumerate(solutions)),
                )
            )
    _check_ids([problem.id for problem in problems], "--rewardmath")
    return problems


def read_verifybench(paths: Sequence[str]) -> list[Item]:
    """Rows ``{"question", "gold_answer", "completion", "gold_correct", "answer_type", "answer_subtype"}``, if you like
    with an ``id`` (default: file stem and line). Raises `DataError` naming the line."""
    items = []
    for path in paths:
        for raw in read_rows(path):
            row = validate(_VerifyRow, raw, path)
            id_ = f"{Path(path).stem}-{raw.place.removeprefix('line ')}" if row.id is None else str(row.id)
            one = asked(id_, row.question, row.completion, float(row.gold_correct), row.gold_answer)
            items.append(Item(one, row.answer_type, f"{row.answer_type}/{row.answer_subtype}"))
    _check_ids([item.asked.id for item in items], "--verifybench")
    return items


def read_samples(path: str, proxy: str | None) -> list[Sample]:
    """Rows of a run's ``trajectories/`` or ``evaluations/`` (the true score is the verdict's), or your own ``{"group",
    "prompt", "response", "gold"}``. proxy: the dotted key of a number in a row (``reward``,
    ``sources.bt_rm.score``). Responses that nobody judged are left out. Raises `DataError` naming the line."""
    samples = []
    for raw in read_rows(path):
        gold = _lookup(raw, "gold" if "verdict" not in raw.fields else "verdict.score", path)
        said = None if proxy is None else _lookup(raw, proxy, path)
        if gold is None or (proxy is not None and said is None):
            continue
        group = str(raw.fields.get("example_id", raw.fields.get("group")))
        text = _text(raw, path)
        one = asked(f"{Path(path).stem}-{raw.place.removeprefix('line ')}", text.prompt, text.response, gold)
        samples.append(Sample(one, group, _step_of(path), gold, said))
    return samples


def read_run(folder: str, proxy: str) -> list[Sample]:
    """Every ``trajectories/step-NNNNNN.jsonl`` of a run. Raises `DataError`."""
    files = sorted((Path(folder).expanduser() / "trajectories").glob("step-*.jsonl"))
    if not files:
        raise DataError("The run has no trajectories.", where=folder,
                        fix="name a run folder; it must have been recorded with record.trajectories=true")  # fmt: skip
    return [sample for file in files for sample in read_samples(str(file), proxy)]


class _Text(BaseModel):
    model_config = ConfigDict(strict=True)

    prompt: str
    response: str


def _text(raw: Row, path: str) -> _Text:
    return validate(_Text, raw, path)


def _step_of(path: str) -> int | None:
    parts = Path(path).stem.split("-")
    return int(parts[1]) if len(parts) > 1 and parts[0] == "step" and parts[1].isdecimal() else None


def _lookup(raw: Row, key: str, path: str) -> float | None:
    """The number at a dotted key, None for null. Raises `DataError` where the key is not there or holds no number."""
    value: Any = raw.fields
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            near = did_you_mean(part, value) if isinstance(value, dict) else "a number stands above it"
            # a response that was not trained on has no words of credit sources
            if isinstance(value, dict) and not value and key.startswith("sources."):
                return None
            raise DataError(f"There is no '{key}' in this row.", where=f"{path}, {raw.place}", fix=near)
        value = value[part]
    if value is None:
        return None
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    raise DataError(f"'{key}' is not a finite number: {value!r}.", where=f"{path}, {raw.place}")


def _check_ids(ids: Sequence[str], where: str) -> None:
    twice = next((id_ for i, id_ in enumerate(ids) if id_ in set(ids[:i])), None) if len(set(ids)) < len(ids) else None
    if twice is not None:
        raise DataError(f"The id '{twice}' is used twice.", where=where, fix="name each file and item once")
