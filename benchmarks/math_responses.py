"""The verifier `math` on real responses of models: agreement with their labels, and verdicts a second.

DIR holds the files named in `SETS`, as their publishers wrote them except that each is JSON Lines:

- math100_qwen_rm8: QwenLM/Qwen2.5-Math, evaluation/data/eval_rm_maj_example, one row per sample: `id`, `sample`,
  `gold`, `response`, `correct`.
- gsm8k_gpt3_solutions: openai/grade-school-math, example_model_solutions.jsonl, one row per problem and model: `id`,
  `model`, `gold`, `response`, `correct`. The answer is the last line, "A: 42".
- processbench: QwenLM/ProcessBench, its gsm8k and math parts: `id`, `problem`, `steps`, `final_answer_correct`. It has
  no gold answers: they are those of GSM8K (`question`, `final_answer`) and MATH (`problem`, `solution`), found by the
  text of the problem. Its parts olympiadbench and omnimath have no golds here and are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Report, progress, show, spread, table
from verifiers.errors import DataError, RunError
from verifiers.math.bench.report import percent
from verifiers.math.bench.statistics import Agreement, Outcome, agreement
from verifiers.runner import Runner
from verifiers.text import final_boxes
from verifiers.verdict import Verdict, VerifyRequest

WARM_UP_REQUESTS = 200
_TAIL_CHARS = 300


@dataclass(frozen=True, slots=True)
class Labelled:
    """One response. id: of the problem and the sample or model."""

    id: str
    gold: str
    response: str
    label: bool


@dataclass(frozen=True, slots=True)
class ResponseSet:
    name: str
    load: Callable[[Path], list[Labelled]]


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets (needed; none is shipped)")
    command.add_argument("--rounds", type=int, default=3, help="timed passes with one and with two processes")


def run(options: argparse.Namespace, report: Report) -> None:
    if options.data is None:
        raise RunError("The labelled responses are not shipped.", fix="give their folder as --data DIR")
    sets = {one.name: one.load(options.data) for one in SETS}
    verdicts = {name: _judge(name, responses) for name, responses in sets.items()}
    body = {
        "settings": {"options": "the defaults of the kind math", "warm_up_requests": WARM_UP_REQUESTS},
        "agreement": {name: _agreement(responses, verdicts[name]).as_dict() for name, responses in sets.items()},
        "throughput": _timed_rounds([one for responses in sets.values() for one in responses], options.rounds),
        "disagreements": [
            row for name, responses in sets.items() for row in _disagreements(name, responses, verdicts[name])
        ],
    }
    report.write(body, _tables(body))


# Agreement -----------------------------------------------------------------------------------------------------------


def _judge(name: str, responses: Sequence[Labelled]) -> list[Verdict]:
    progress(f"{name}: {len(responses)} responses")
    with Runner("math", {}) as runner:
        return runner.verify(_requests(responses))


def _requests(responses: Sequence[Labelled]) -> list[VerifyRequest]:
    return [VerifyRequest(one.response, one.gold, example_id=one.id) for one in responses]


def _agreement(responses: Sequence[Labelled], verdicts: Sequence[Verdict]) -> Agreement:
    return agreement(
        Outcome(one.label, None if verdict.score is None else verdict.score >= 0.5, str(verdict.status))
        for one, verdict in zip(responses, verdicts, strict=True)
    )


def _disagreements(name: str, responses: Sequence[Labelled], verdicts: Sequence[Verdict]) -> Iterator[dict[str, Any]]:
    """Every response that we judge otherwise than its label, or do not judge."""
    for one, verdict in zip(responses, verdicts, strict=True):
        if verdict.score is None or (verdict.score >= 0.5) != one.label:
            yield {
                "set": name,
                "id": one.id,
                "gold": one.gold,
                "answer": verdict.answer,
                "label": one.label,
                "status": str(verdict.status),
                "evidence": verdict.evidence,
                "response_end": one.response[-_TAIL_CHARS:],
            }


# Throughput ----------------------------------------------------------------------------------------------------------


def _timed_rounds(responses: Sequence[Labelled], rounds: int) -> dict[str, Any]:
    """Verdicts a second of wall time with one and with two worker processes, alternating."""
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for workers in (1, 2) if number % 2 == 0 else (2, 1):
            speeds[workers].append(_verdicts_per_second(responses, workers))
            progress(f"round {number + 1}/{rounds}: {workers} processes, {speeds[workers][-1]:.0f} verdicts/s")
    return {
        "verdicts_per_second": {str(number): spread(values) | {"rounds": values} for number, values in speeds.items()},
        "two_over_one": spread([two / one for one, two in zip(speeds[1], speeds[2], strict=True)]),
    }


def _verdicts_per_second(responses: Sequence[Labelled], workers: int) -> float:
    """New processes, warm: they run, have loaded everything, and have judged some of the responses (which are judged
    again, so a cache may know them)."""
    requests = _requests(responses)
    step = max(1, len(requests) // (WARM_UP_REQUESTS * workers))
    with Runner("math", {}, workers=workers) as runner:
        runner.verify(requests[::step])
        started = time.perf_counter()
        runner.verify(requests)
        return len(requests) / (time.perf_counter() - started)


# Tables --------------------------------------------------------------------------------------------------------------


def _tables(body: Mapping[str, Any]) -> str:
    columns = ["set", "responses", "agreement", "FPR", "FNR", "unjudged"]
    rows = [
        [name, str(result["agreement"]["total"]), percent(result["agreement"], interval=True),
         percent(result["false_positive_rate"]), percent(result["false_negative_rate"]),
         str(sum(result["unjudged"].values()))]
        for name, result in body["agreement"].items()
    ]  # fmt: skip
    speeds = body["throughput"]["verdicts_per_second"]
    speed_rows = [[workers, show(values)] for workers, values in speeds.items()]
    return "\n".join(
        [
            table(columns, rows),
            table(["processes", "verdicts a second"], speed_rows),
            f"Two processes over one: {show(body['throughput']['two_over_one'], 2)}.\n",
            "## Every disagreement\n",
            *(_disagreement_text(row) for row in body["disagreements"]),
        ]
    )


def _disagreement_text(row: Mapping[str, Any]) -> str:
    label = "right" if row["label"] else "wrong"
    end = row["response_end"].replace("\n", "\n    ")
    return (
        f"- **{row['set']} {row['id']}**: gold `{row['gold']}`, read `{row['answer']}`, label {label}, verdict "
        f"{row['status']}. {row['evidence']}\n\n    {end}\n"
    )


# Data ----------------------------------------------------------------------------------------------------------------


def _rows(file: Path, *fields: str) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file. Raises `DataError` naming file and line."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        fix = "the head of this benchmark says which files it reads"
        raise DataError(f"The file cannot be read: {error}.", where=str(file), fix=fix) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            missing = [field for field in fields if field not in row]
        except (json.JSONDecodeError, TypeError) as error:
            raise DataError(f"This is not a JSON object: {error}.", where=f"{file}, line {number}") from error
        if missing:
            raise DataError(f"The row has no {', '.join(missing)}.", where=f"{file}, line {number}")
        yield row


def _math100(folder: Path) -> list[Labelled]:
    file = folder / "responses" / "math100_qwen_rm8" / "responses.jsonl"
    return [
        Labelled(f"{row['id']}#{row['sample']}", row["gold"], row["response"], row["correct"])
        for row in _rows(file, "id", "sample", "gold", "response", "correct")
    ]


def _gsm8k_gpt3(folder: Path) -> list[Labelled]:
    file = folder / "responses" / "gsm8k_gpt3_solutions" / "responses.jsonl"
    return [
        Labelled(f"{row['id']}/{row['model']}", row["gold"], row["response"], row["correct"])
        for row in _rows(file, "id", "model", "gold", "response", "correct")
    ]


def _processbench(part: str) -> Callable[[Path], list[Labelled]]:
    golds = {"gsm8k": _gsm8k_golds, "math": _math_golds}[part]

    def load(folder: Path) -> list[Labelled]:
        file = folder / "responses" / "processbench" / f"{part}.jsonl"
        gold_of = golds(folder)
        found = []
        for row in _rows(file, "id", "problem", "steps", "final_answer_correct"):
            gold = gold_of.get(_folded(row["problem"]))
            if gold is None:
                raise DataError(f"No gold answer for the problem of '{row['id']}'.", where=str(file))
            found.append(Labelled(row["id"], gold, "\n\n".join(row["steps"]), row["final_answer_correct"]))
        return found

    return load


def _gsm8k_golds(folder: Path) -> dict[str, str]:
    file = folder / "math" / "gsm8k" / "test.jsonl"
    return {_folded(row["question"]): row["final_answer"] for row in _rows(file, "question", "final_answer")}


def _math_golds(folder: Path) -> dict[str, str]:
    """The last box of each reference solution."""
    file = folder / "math" / "math" / "test.jsonl"
    return {
        _folded(row["problem"]): ", ".join(final_boxes(row["solution"]) or [])
        for row in _rows(file, "problem", "solution")
    }


def _folded(problem: str) -> str:
    return " ".join(problem.split())


SETS = (
    ResponseSet("math100_qwen_rm8", _math100),
    ResponseSet("gsm8k_gpt3_solutions", _gsm8k_gpt3),
    ResponseSet("processbench_gsm8k", _processbench("gsm8k")),
    ResponseSet("processbench_math", _processbench("math")),
)
