"""Programs whose verdict is known: the reference solutions of HumanEval and MBPP, and completions with labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from verifiers.code.bench.corpus import load
from verifiers.code.judging import IS_PROGRAM
from verifiers.code.verifier import CodeVerifier
from verifiers.errors import DataError
from verifiers.verdict import Status, Verdict, VerifyRequest

Progress = Callable[[str], None]
SAMPLES = "samples.jsonl"
SLOW_FACTOR = 10
_AS_GIVEN = {IS_PROGRAM: True}


def references(every: int) -> dict[str, list[tuple[str, VerifyRequest]]]:
    """Suite -> (task, request) with its own reference solution, each `every`-th task."""
    humaneval = [(row["task_id"], VerifyRequest(row["prompt"] + row["canonical_solution"], row, _AS_GIVEN))
                 for row in load("humaneval.jsonl")[::every]]  # fmt: skip
    mbpp = [(f"MBPP/{row['task_id']}", VerifyRequest(row["code"], row, _AS_GIVEN))
            for row in load("mbpp.jsonl")[::every]]  # fmt: skip
    return {"HumanEval": humaneval, "MBPP": mbpp}


def judge_references(
    verifier: CodeVerifier, patient: Callable[[], CodeVerifier], every: int, progress: Progress
) -> dict[str, Any]:
    """Suite -> {"tasks", "passed", "slow", "failed"}. slow: tasks that pass only under `SLOW_FACTOR` times the time
    limit, which `patient` has."""
    result = {}
    for suite, tasks in references(every).items():
        progress(f"{len(tasks)} reference solutions of {suite}")
        verdicts = verifier.verify_many([request for _, request in tasks])
        late = [task for task, verdict in zip(tasks, verdicts, strict=True) if verdict.status is Status.TIMEOUT]
        slow = []
        if late:
            other = patient()
            slow = [task for task, request in late if other.verify_many([request])[0].score == 1.0]
            other.close()
        failed = {task: _words(verdict) for (task, _), verdict in zip(tasks, verdicts, strict=True)
                  if verdict.score != 1.0 and task not in slow}  # fmt: skip
        result[suite] = {"tasks": len(tasks), "passed": len(tasks) - len(failed), "slow": slow, "failed": failed}
    return result


def labelled(folder: Path, every: int) -> list[tuple[str, bool, str, VerifyRequest]]:
    """(name, label, outcome, request) of completions of HumanEval with labels. Raises `DataError`."""
    golds = {row["task_id"]: row for row in load("humaneval.jsonl")}
    path = folder / SAMPLES
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[::every]
        for row in map(json.loads, lines):
            request = VerifyRequest(row["prompt"] + row["completion"], golds[row["task_id"]], _AS_GIVEN)
            found.append((f"{row['task_id']}#{row['sample']}", bool(row["passed"]), str(row["outcome"]), request))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"The labelled completions cannot be read: {type(error).__name__}: {error}.",
            where=f"--responses {folder}",
            fix=f"a folder with {SAMPLES}: one object a line with task_id, sample, prompt, completion, passed, outcome",
        ) from error
    return found


def judge_labelled(
    verifier: CodeVerifier, samples: Sequence[tuple[str, bool, str, VerifyRequest]], progress: Progress
) -> dict[str, Any]:
    """{"completions", "agreed", "differences": [...]}."""
    progress(f"{len(samples)} labelled completions")
    verdicts = verifier.verify_many([request for *_, request in samples])
    differences = [{"completion": name, "label": "passed" if label else outcome, "verdict": _words(verdict)}
                   for (name, label, outcome, _), verdict in zip(samples, verdicts, strict=True)
                   if verdict.score != float(label)]  # fmt: skip
    return {"completions": len(samples), "agreed": len(samples) - len(differences), "differences": differences}


def _words(verdict: Verdict) -> str:
    return f"{verdict.status}: {verdict.evidence}"
