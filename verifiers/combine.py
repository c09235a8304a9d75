"""`combine`: one verdict out of several, as weighted sums and gates that the recipe declares.

    verifier:
      kind: combine
      parts:
        answer: {kind: math, weight: 1.0}
        format: {kind: format, weight: 0.2, gate: true}

Beside `kind`, `weight`, `gate`, `decides` and `gold_key`, the keys of a part are the options of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from verifiers.errors import BadGold
from verifiers.options import Options as BaseOptions
from verifiers.verdict import VERIFIERS, Status, Verdict, VerifyRequest

if TYPE_CHECKING:
    from verifiers.runner import Runner


class Gate(BaseOptions):
    """below: the gate is shut for scores under this."""

    below: float = Field(gt=0, le=1)


class PartOptions(BaseModel):
    """One part. weight: its share of the score; 0 observes only. gate: when it fails, the whole score is 0; true fails
    at a score of 0, ``{below: x}`` under x. decides: its status and answer are the whole's (default: the first part).
    gold_key: where the part's gold stands in a gold that is a mapping (default: the part gets the whole gold). All
    other keys are options of `kind`."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    kind: str
    weight: float = Field(default=1.0, ge=0)
    gate: bool | Gate = False
    decides: bool = False
    gold_key: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def is_shut(self, score: float) -> bool:
        return score < self.gate.below if isinstance(self.gate, Gate) else self.gate and score == 0.0


@VERIFIERS.register("combine")
class CombineVerifier:
    """score: 0 if a gate is shut, else the mean of the parts' scores by weight. status and answer: those of the part
    that decides, but `wrong` instead of `correct` where a gate is shut. A part that could not judge makes the whole
    unscored with its status, unless it only observes.

    Every part has the isolation of its own kind, with the limits of the runner and worker processes of its own.
    """

    isolated = False
    composite = True

    class Options(BaseOptions):
        """parts: at least one, by name; see `PartOptions`."""

        parts: dict[str, PartOptions] = Field(min_length=1)

        @model_validator(mode="after")
        def _can_be_scored(self) -> Self:
            if sum(part.weight for part in self.parts.values()) == 0:
                raise ValueError("all weights are 0: give at least one part a weight")
            deciding = [name for name, part in self.parts.items() if part.decides]
            if len(deciding) > 1:
                raise ValueError(f"one part decides status and answer, not {len(deciding)}: {', '.join(deciding)}")
            return self

    @staticmethod
    def part_kinds(options: CombineVerifier.Options) -> dict[str, tuple[str, Mapping[str, Any]]]:
        return {name: (part.kind, part.options) for name, part in options.parts.items()}

    def __init__(self, options: CombineVerifier.Options, runners: Mapping[str, Runner]):
        self._parts, self._runners = options.parts, runners
        self._decider = next((name for name, part in self._parts.items() if part.decides), next(iter(self._parts)))
        self._total = sum(part.weight for part in self._parts.values())

    def submit(self, requests: Sequence[VerifyRequest]) -> Callable[[], list[Verdict]]:
        """Start all parts at once; the function returned waits for the verdicts, in order."""
        waits = {name: self._submit_part(name, requests) for name in self._parts}

        def wait() -> list[Verdict]:
            columns = {name: wait_part() for name, wait_part in waits.items()}
            return [self._join({n: column[i] for n, column in columns.items()}) for i in range(len(requests))]

        return wait

    def verify(self, request: VerifyRequest) -> Verdict:
        return self.submit([request])()[0]

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        """The gold response of the deciding part, wrapped by each part that can wrap one. Raises `BadGold` if it
        shuts a gate or gets nothing from a part that counts: no response could then have the full score."""
        names = sorted(self._parts, key=lambda name: name != self._decider)
        wrappers = [name for name in names if self._runners[name].wraps_gold_response]
        base = next((name for name in names if name not in wrappers), self._decider)
        text = self._runners[base].gold_response(self._gold_of(base, gold), meta)
        for name in wrappers:
            text = text if name == base else self._runners[name].wrap_gold_response(text)
        verdict = self.verify(VerifyRequest(text, gold, meta))
        for name, score in verdict.parts.items():
            part = self._parts[name]
            if score is not None and (part.is_shut(score) or (part.weight and not score)):
                raise BadGold(f"The gold response fails the part '{name}': {verdict.evidence}")
        return text

    def explain(self, request: VerifyRequest) -> dict[str, str]:
        rows: dict[str, str] = {}
        for name, runner in self._runners.items():
            try:
                own = runner.explain(self._request_of(name, request))
            except BadGold as error:
                own = {str(Status.BAD_GOLD): str(error)}
            rows |= {f"{name}: {row}": text for row, text in own.items()}
        verdict = self.verify(request)
        return rows | {"combined": f"{verdict.status}, score {verdict.score}", "parts": verdict.evidence}

    def _submit_part(self, name: str, requests: Sequence[VerifyRequest]) -> Callable[[], list[Verdict]]:
        asked: list[VerifyRequest] = []
        known: dict[int, Verdict] = {}
        for i, request in enumerate(requests):
            try:
                asked.append(self._request_of(name, request))
            except BadGold as error:
                known[i] = Verdict(None, Status.BAD_GOLD, str(error))
        wait_part = self._runners[name].submit(asked)

        def wait() -> list[Verdict]:
            judged = iter(wait_part())
            return [known[i] if i in known else next(judged) for i in range(len(requests))]

        return wait

    def _request_of(self, name: str, request: VerifyRequest) -> VerifyRequest:
        gold = self._gold_of(name, request.gold)
        return VerifyRequest(request.response, gold, request.meta, request.example_id)

    def _gold_of(self, name: str, gold: Any) -> Any:
        key = self._parts[name].gold_key
        if key is None:
            return gold
        if not isinstance(gold, Mapping) or key not in gold:
            raise BadGold(f"The part '{name}' reads gold['{key}'], and the gold is {gold!r:.200}.")
        return gold[key]

    def _join(self, verdicts: Mapping[str, Verdict]) -> Verdict:
        parts = {name: verdict.score for name, verdict in verdicts.items()}
        milliseconds = sum(verdict.milliseconds for verdict in verdicts.values())
        for name, verdict in verdicts.items():
            part = self._parts[name]
            if verdict.score is None and (part.weight or part.gate or name == self._decider):
                evidence = f"{name} could not judge: {verdict.evidence}"
                return Verdict(None, verdict.status, evidence, milliseconds, parts=parts)
        shut = [n for n, score in parts.items() if score is not None and self._parts[n].is_shut(score)]
        mean = sum(self._parts[n].weight * score for n, score in parts.items() if score is not None) / self._total
        decided = verdicts[self._decider]
        status = Status.WRONG if shut and decided.status is Status.CORRECT else decided.status
        evidence = "\n".join(self._line(name, verdict, name in shut) for name, verdict in verdicts.items())
        return Verdict(0.0 if shut else mean, status, evidence, milliseconds, decided.answer, parts)

    def _line(self, name: str, verdict: Verdict, is_shut: bool) -> str:
        part = self._parts[name]
        score = "not judged" if verdict.score is None else f"{verdict.score:g}"
        gate = (", gate shut" if is_shut else ", gate open") if part.gate else ""
        return f"{name}: {score} (weight {part.weight:g}{gate}), {verdict.status}: {verdict.evidence:.500}"
