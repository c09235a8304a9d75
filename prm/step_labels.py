"""Labels for step reward models: from a generator's oracle, from completions by the policy, or from a file.

Shapes: N trajectories; K steps and T tokens of one.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from data.example import Example
from prm.rule import judge_all
from prm.signal import SourceContext
from prm.steps import Steps, StepSplitter
from rollout.engine import Prompt, SamplingParams, derive_seed
from rollout.trajectory import Finish, Trajectory
from verifiers.errors import DataError
from verifiers.options import Options
from verifiers.verdict import Status, Verdict, VerifyRequest


@dataclass(slots=True, eq=False)
class Labelled:
    """A prompt and a response in token ids; target_T: float32, the probability that the tokens up to and with this one
    are right, NaN where nothing is known."""

    prompt_ids: list[int]
    response_ids: list[int]
    target_T: Tensor


def labelled(
    prompt_ids: list[int], response_ids: list[int], positions: Sequence[int], labels: Sequence[float]
) -> Labelled:
    """Labels at the tokens `positions`; a NaN stays unknown."""
    target_T = torch.full((len(response_ids),), math.nan)
    target_T[list(positions)] = torch.tensor(list(labels), dtype=torch.float32)
    return Labelled(prompt_ids, response_ids, target_T)


# ---- completions by the policy -------------------------------------


class MonteCarloOptions(Options):
    """completions: of each prefix. estimate: `hard` is 1 if any of them is right, `soft` their share."""

    completions: int = Field(default=8, ge=1)
    estimate: Literal["hard", "soft"] = "hard"


@dataclass(frozen=True, slots=True)
class _Prefix:
    """A prompt and some steps; owners: the (trajectory, step) that it is the end of."""

    ids: list[int]
    text: str
    example: Example
    tokens: int
    owners: list[tuple[int, int]]


def monte_carlo(
    context: SourceContext,
    trajectories: Sequence[Trajectory],
    examples: Sequence[Example],
    steps: Sequence[Steps],
    options: MonteCarloOptions,
    seed: int,
) -> list[list[float]]:
    """For each step, what completions of the prefix that ends with it by the present policy say: one list [K_i] a
    trajectory. The last step's label is the correctness of the response. A completion that hits the limit of a whole
    response is wrong; NaN if no completion could be judged. Equal prefixes are completed once.

    Source: Math-Shepherd, arXiv:2312.08935, equations 3 (hard) and 4 (soft).
    """
    labels = [[math.nan] * len(s) for s in steps]
    for i, value in enumerate(correctness(context, trajectories, examples)):
        if labels[i]:
            labels[i][-1] = value
    prefixes = list(_prefixes(trajectories, examples, steps))
    if not prefixes:
        return labels
    limit = context.max_response_tokens - min(p.tokens for p in prefixes)
    sampling = SamplingParams(limit, context.models.temperature, stop=context.stop)
    prompts = [Prompt(f"{p.example.id}/{derive_seed(*p.ids)}", g, p.ids) for g, p in enumerate(prefixes)]
    completed = context.generate(prompts, options.completions, sampling, seed)
    for prefix, values in zip(prefixes, _values(context, prefixes, completed), strict=True):
        known = [v for v in values if not math.isnan(v)]
        share = sum(known) / len(known) if known else math.nan
        for i, k in prefix.owners:
            labels[i][k] = share if options.estimate == "soft" or not known else float(share > 0)
    return labels


def _prefixes(
    trajectories: Sequence[Trajectory], examples: Sequence[Example], steps: Sequence[Steps]
) -> Iterator[_Prefix]:
    """All steps but the last, equal prefixes together."""
    found: dict[tuple[int, ...], _Prefix] = {}
    for i, (t, example, s) in enumerate(zip(trajectories, examples, steps, strict=True)):
        for k in range(len(s) - 1):
            ids = [*t.prompt_ids, *t.response_ids[: s.ends[k]]]
            new = _Prefix(ids, t.text[: s.spans[k][1]], example, s.ends[k], [])
            found.setdefault(tuple(ids), new).owners.append((i, k))
    return iter(found.values())


def _values(context: SourceContext, prefixes: Sequence[_Prefix], completed: Sequence[Trajectory]) -> list[list[float]]:
    """1 or 0 (NaN: could not be judged) for every completion of every prefix."""
    values: list[list[float]] = [[] for _ in prefixes]
    requests: list[VerifyRequest] = []
    owners: list[int] = []
    for t in completed:
        prefix = prefixes[t.group]
        if t.finish is Finish.LENGTH or prefix.tokens + t.num_response_tokens > context.max_response_tokens:
            values[t.group].append(0.0)
            continue
        e = prefix.example
        requests.append(VerifyRequest(prefix.text + t.text, e.gold, e.meta, e.id))
        owners.append(t.group)
    for group, verdict in zip(owners, context.world.shared_work(requests, context.runner.verify), strict=True):
        values[group].append(_value(verdict))
    return values


def correctness(context: SourceContext, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> list[float]:
    """1 or 0 for each response [N], by the recipe's verifier; NaN where it could not judge. A response that hit the
    token limit is wrong."""
    return [_value(verdict) for verdict in judge_all(context, trajectories, examples)]


def _value(verdict: Verdict) -> float:
    return math.nan if verdict.score is None else float(verdict.status is Status.CORRECT)


# ---- a file --------------------------------------------------------


class _Row(Options):
    """question: the last user turn of a training example (or example_id). steps: the parts of the response, with their
    separators. labels: for each step, 0 to 1; null: unknown."""

    question: str | None = None
    example_id: str | None = None
    steps: list[str] = Field(min_length=1)
    labels: list[float | None] = Field(min_length=1)


def labels_from_file(path: str, context: SourceContext, splitter: StepSplitter) -> list[Labelled]:
    """One labelled solution a line of a JSON Lines file; see `_Row`. The end-of-sequence token belongs to the last
    step. Raises `DataError` for a row that cannot be used, naming its line."""
    file = Path(path)
    if not file.exists():
        raise DataError("The file of step labels does not exist.", where=path, fix="correct train.file of the source")
    by_name: dict[str, list[Example]] = defaultdict(list)
    for example in context.train_examples:
        by_name[example.question].append(example)
        by_name[example.id].append(example)
    lines = file.read_text(encoding="utf-8").splitlines()
    return [_from_row(line, f"{path}, line {n}", by_name, context, splitter) for n, line in enumerate(lines, 1)]


def _from_row(
    line: str, where: str, by_name: dict[str, list[Example]], context: SourceContext, splitter: StepSplitter
) -> Labelled:
    try:
        row = _Row.model_validate(json.loads(line))
    except (json.JSONDecodeError, ValidationError) as error:
        raise DataError(
            f"Not a row of step labels: {error}.",
            where=where,
            fix='one object a line: {"question": ..., "steps": [...], "labels": [...]}',
        ) from error
    examples = by_name.get(row.example_id or row.question or "", [])
    if len(row.labels) != len(row.steps) or not examples:
        what = "No training example has this question or id." if not examples else (
            f"{len(row.labels)} labels for {len(row.steps)} steps.")  # fmt: skip
        raise DataError(what, where=where, fix="give every step a label (null: unknown), and questions of data.train")
    tokenizer = context.tokenizer
    text = "".join(row.steps)
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    borders = list(accumulate(map(len, row.steps)))
    steps = splitter.cut(text, ids, borders[:-1])
    label_at = dict(zip(borders, row.labels, strict=True))
    labels = [label_at.get(end) for _, end in steps.spans]
    known = [math.nan if label is None else label for label in labels]
    return labelled(context.prompt_ids[examples[0].id], ids, steps.last_tokens, known)
