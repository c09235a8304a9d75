"""One row of a JSONL file or of an HTTP request, and its verdict, as other programs write and read them.

A row that cannot be read has a verdict too, without a score: what is wrong with the row, its id or its response is
`verifier_fault`, what is wrong with the gold or the meta data is `bad_gold`. A kind whose rows have other fields
defines ``request_of(row) -> VerifyRequest`` as a classmethod; it raises `BadGold` or `RowError`, and the id is not its
concern.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from verifiers.errors import AssayError, BadGold, VerifierError
from verifiers.runner import Runner
from verifiers.verdict import VERIFIERS, Status, Verdict, VerifyRequest

MAX_ROW_BYTES = 16 * 2**20

RequestOf = Callable[[Mapping[str, Any]], VerifyRequest]


class RowError(AssayError):
    """A row that is not what the contract says."""


class Judge(Protocol):
    """What is served: a `Runner`, or what judges like one. Raises `VerifierError` or RuntimeError if it cannot now, and
    the client should try later or elsewhere."""

    kind: str

    def verify(self, requests: Sequence[VerifyRequest]) -> list[Verdict]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """id: as written, None if there is none that could be read. request: what to judge, or the verdict that says why
    it cannot be judged."""

    id: str | int | None
    request: VerifyRequest | Verdict


def request_reader(kind: str) -> RequestOf:
    """The function that reads the rows of `kind`. Raises `ConfigError` for an unknown kind."""
    return getattr(VERIFIERS.get(kind, key="kind"), "request_of", request_of)


def request_of(row: Mapping[str, Any]) -> VerifyRequest:
    """The request in the fields ``response``, ``gold`` and, optional, ``meta``. Raises `BadGold` or `RowError`."""
    response = row.get("response")
    if not isinstance(response, str):
        raise RowError("The row has no 'response' that is a string.")
    if "gold" not in row:
        raise BadGold("The row has no 'gold'.")
    meta = row.get("meta")
    if meta is None:
        meta = {}
    if not isinstance(meta, dict):
        raise BadGold(f"'meta' must be an object, not {type(meta).__name__}.")
    if not _is_finite(row["gold"]):
        raise BadGold("The gold contains a number that is not finite.")
    return VerifyRequest(response, row["gold"], meta)


def parse_line(line: bytes | None, read: RequestOf) -> Row:
    """The row that a line is; None stands for a line of more than `MAX_ROW_BYTES`. Never raises."""
    if line is None:
        return _unreadable(None, f"the line is longer than {MAX_ROW_BYTES} bytes")
    if not line.strip():
        return _unreadable(None, "the line is blank")
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return _unreadable(None, f"the line is not UTF-8: {error.reason} at byte {error.start}")
    except RecursionError:
        return _unreadable(None, "the line is nested too deeply")
    except ValueError as error:
        return _unreadable(None, f"the line cannot be read as JSON: {error}")
    return parse_row(value, read)


def parse_row(value: Any, read: RequestOf) -> Row:
    """The row that a JSON value is. Never raises."""
    if not isinstance(value, dict):
        return _unreadable(None, f"a row must be a JSON object, not {type(value).__name__}")
    row_id = value.get("id")
    if isinstance(row_id, bool) or not isinstance(row_id, str | int):
        return _unreadable(None, "the row has no 'id' that is a string or an integer")
    try:
        return Row(row_id, replace(read(value), example_id=str(row_id)))
    except BadGold as error:
        return Row(row_id, Verdict(None, Status.BAD_GOLD, str(error)))
    except RowError as error:
        return _unreadable(row_id, str(error))
    except RecursionError:
        return _unreadable(row_id, "the row is nested too deeply")


def grade(runner: Judge, rows: Sequence[Row]) -> list[Verdict]:
    """One verdict per row, in order. Raises as `Runner.verify`."""
    judged = iter(runner.verify([row.request for row in rows if isinstance(row.request, VerifyRequest)]))
    return [row.request if isinstance(row.request, Verdict) else next(judged) for row in rows]


def stream_surely(runner: Runner, rows: Sequence[Row], on_error: Callable[[VerifierError], None]) -> Iterator[Verdict]:
    """The verdicts as `grade`, each as soon as it and all before it are there. Workers that cannot start are told to
    `on_error`, and are a verdict without a score for each row that was not judged."""
    asked = [number for number, row in enumerate(rows) if isinstance(row.request, VerifyRequest)]
    stream = runner.stream([row.request for row in rows if isinstance(row.request, VerifyRequest)])
    early: dict[int, Verdict] = {}
    for number, row in enumerate(rows):
        if isinstance(row.request, Verdict):
            yield row.request
            continue
        while number not in early:
            try:
                index, verdict = next(stream)
            except VerifierError as error:
                on_error(error)
                fault = Verdict(None, Status.VERIFIER_FAULT, str(error))
                early = {i: early.get(i, fault) for i in asked}
            else:
                early[asked[index]] = verdict
        yield early.pop(number)


def result_of(row_id: str | int | None, verdict: Verdict, *, verbose: bool) -> dict[str, Any]:
    """What is written for a row; with `verbose` also the answer, the evidence and the parts."""
    result = {"id": row_id, "score": verdict.score, "status": str(verdict.status), "ms": round(verdict.milliseconds, 3)}
    if verbose:
        result |= {"answer": verdict.answer, "evidence": verdict.evidence, "parts": dict(verdict.parts)}
    return result


def _unreadable(row_id: str | int | None, why: str) -> Row:
    return Row(row_id, Verdict(None, Status.VERIFIER_FAULT, why))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_is_finite(item) for item in value.values())
    return all(_is_finite(item) for item in value) if isinstance(value, list) else True
