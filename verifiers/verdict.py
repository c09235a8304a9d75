"""`Verdict`: what a verifier says about one response, and why.

The one rule: only what the *model* did may cost it reward. A fault of ours (the verifier crashed, the gold is broken)
has score None; such a trajectory leaves its group, is counted, and stops the run when its share passes a limit.
Nothing in assay turns an exception into a 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from verifiers.registry import Registry


class Status(StrEnum):
    """Why a verdict has its score. The first group is about the model, the second about us."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"  # nothing in the response could be read as an answer
    TRUNCATED = "truncated"  # the response hit the length limit before it ended
    ERROR_IN_PROGRAM = "error_in_program"  # the model's program raised
    OUTPUT_LIMIT = "output_limit"  # the model's program printed too much
    TIMEOUT = "timeout"  # score 0.0 if the model's program ran too long, None if our verifier did
    MEMORY = "memory"  # likewise
    BAD_GOLD = "bad_gold"  # the gold answer cannot be read: always None
    VERIFIER_FAULT = "verifier_fault"  # the verifier crashed: always None


ALWAYS_UNSCORED = frozenset({Status.BAD_GOLD, Status.VERIFIER_FAULT})
ALWAYS_SCORED = frozenset({Status.CORRECT, Status.WRONG, Status.NO_ANSWER, Status.TRUNCATED, Status.ERROR_IN_PROGRAM,
                           Status.OUTPUT_LIMIT})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """score: reward in [0, 1], or None when we could not judge. evidence: what was compared, for a person to read.
    milliseconds: wall time of the judgement (not part of any deterministic record). answer: the response's answer in a
    canonical form, None if it has none; equal strings are the same answer (majority votes count them). parts: scores
    of the named parts that the score is made of, for the records (None: that part could not judge)."""

    score: float | None
    status: Status
    evidence: str = ""
    milliseconds: float = 0.0
    answer: str | None = None
    parts: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status in ALWAYS_UNSCORED and self.score is not None:
            raise ValueError(f"a verdict with status {self.status} is a fault of ours and carries no score")
        if self.status in ALWAYS_SCORED and self.score is None:
            raise ValueError(f"a verdict with status {self.status} needs a score")

    @property
    def is_fault(self) -> bool:
        """True when the trajectory could not be judged and must leave its group."""
        return self.score is None


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """One response to judge against one gold. `meta` is the example's; `example_id` is for messages."""

    response: str
    gold: Any
    meta: Mapping[str, Any] = field(default_factory=dict)
    example_id: str = ""


@runtime_checkable
class Verifier(Protocol):
    """Judges one response. Pure: no global state, no signals, no I/O, and raises only on a broken gold or a bug (the
    runner maps those to `bad_gold` and `verifier_fault`). `isolated` verifiers run in killable worker processes,
    because third-party code inside them may hang, eat memory or crash.

    A verifier is a class with a nested pydantic model `Options`, built as ``Kind(options)``. It may have a method
    ``explain(request) -> dict[str, str]``: how the verdict came about, as ordered rows for a person."""

    isolated: bool

    def verify(self, request: VerifyRequest) -> Verdict: ...

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        """The text of a perfect response, which `verify` must find correct. Raises `BadGold`, and `NoReference` if
        the gold can be read and holds none."""
        ...


VERIFIERS: Registry[type] = Registry("verifier", "verifiers")
