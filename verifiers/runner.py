"""`Runner`: the one way to call a verifier. It checks options, isolates what may hang, turns faults into verdicts."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from verifiers.errors import BadGold, ConfigError, VerifierError
from verifiers.options import parse_options
from verifiers.pool import CallResult, Ending, Pool, encode
from verifiers.verdict import VERIFIERS, Status, Verdict, Verifier, VerifyRequest

MAX_EVIDENCE_CHARS = 2_000
_CONTRACT = ("Options", "isolated", "verify", "gold_response")


class Runner:
    """A verifier of `kind`, ready to judge.

    options: the mapping a recipe gives, validated by the kind's `Options`. timeout_s, memory_mb, workers: limits of
    each judgement and number of processes, for isolated kinds only (others run in process, in the caller's thread);
    memory_mb is MiB of address space beyond what the loaded verifier takes. key: the recipe key, for messages.

    Raises `ConfigError` for an unknown kind or a wrong option, naming ``key.option``. Thread safe; usable in a forked
    child.
    """

    def __init__(
        self,
        kind: str,
        options: Mapping[str, Any],
        *,
        timeout_s: float = 5.0,
        memory_mb: int = 1024,
        workers: int = 2,
        key: str = "verifier",
    ):
        verifier_class = _verifier_class(kind, key)
        checked = parse_options(verifier_class.Options, options, key=key)
        self.kind, self.key = kind, key
        self._timeout_s = timeout_s
        self._verifier: Verifier | None = None
        self._pool: Pool | None = None
        if verifier_class.isolated:
            setup = {"kind": kind, "options_json": checked.model_dump_json(), "memory_mb": memory_mb,
                     "timeout_s": timeout_s}  # fmt: skip
            self._pool = Pool(setup, timeout_s=timeout_s, workers=workers, key=key)
        else:
            self._verifier = verifier_class(checked)

    def verify(self, requests: Sequence[VerifyRequest]) -> list[Verdict]:
        """One verdict per request, in order. A fault of the verifier is a verdict without a score, never an exception;
        `VerifierError` is raised only if the worker processes cannot start at all."""
        if self._pool is None:
            assert self._verifier is not None
            return [judge(self._verifier, request) for request in requests]
        frames = [_encode_request(request) for request in requests]
        results = iter(self._pool.run([frame for frame in frames if isinstance(frame, bytes)]))
        return [self._to_verdict(next(results)) if isinstance(frame, bytes) else frame for frame in frames]

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        """The text of a perfect response. Raises `BadGold` if the gold cannot be read, `VerifierError` on a fault."""
        if self._pool is None:
            assert self._verifier is not None
            return self._verifier.gold_response(gold, meta)
        try:
            frame = encode({"call": "gold_response", "gold": gold, "meta": dict(meta)})
        except (TypeError, ValueError) as error:
            raise BadGold(f"The gold or the meta data is not plain JSON data: {error}.") from error
        (result,) = self._pool.run([frame])
        if "text" in result.reply:
            return result.reply["text"]
        if "bad_gold" in result.reply:
            raise BadGold(result.reply["bad_gold"])
        cause = result.reply.get("fault", result.detail)
        raise VerifierError(f"The verifier '{self.kind}' failed on a gold answer: {cause}", where=self.key)

    def close(self) -> None:
        """End the worker processes, if there are any. The runner cannot be used afterwards."""
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _to_verdict(self, result: CallResult) -> Verdict:
        reply = result.reply
        if result.ending is Ending.REPLY:
            status = Status(reply["status"])
            return Verdict(reply["score"], status, reply["evidence"], reply["milliseconds"], reply["answer"])
        status, evidence = {
            Ending.TIMEOUT: (Status.TIMEOUT, f"our verifier ran too long ({self._timeout_s:g} s): not judged"),
            Ending.MEMORY: (Status.MEMORY, result.detail),
            Ending.CRASH: (Status.VERIFIER_FAULT, result.detail),
        }[result.ending]
        return Verdict(None, status, _clip(evidence), result.milliseconds)


def judge(verifier: Verifier, request: VerifyRequest) -> Verdict:
    """Call the verifier in this process; whatever it raises becomes a verdict without a score."""
    started = time.perf_counter()
    try:
        verdict = verifier.verify(request)
        if not isinstance(verdict, Verdict):
            raise TypeError(f"verify returned {type(verdict).__name__}, not a Verdict")
    except BadGold as error:
        verdict = Verdict(None, Status.BAD_GOLD, str(error))
    except MemoryError:
        verdict = Verdict(None, Status.MEMORY, "our verifier ran out of memory: not judged")
    # The one place that may catch everything: a bug in a verifier must cost neither the run nor the model's reward.
    except Exception as error:  # noqa: BLE001
        verdict = Verdict(None, Status.VERIFIER_FAULT, describe_error(error))
    milliseconds = 1000 * (time.perf_counter() - started)
    return replace(verdict, evidence=_clip(verdict.evidence), milliseconds=milliseconds)


def describe_error(error: Exception) -> str:
    """Type, message and the place it was raised at."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} (in {place.name}, {place.filename}:{place.lineno})"


def _clip(evidence: str) -> str:
    return evidence if len(evidence) <= MAX_EVIDENCE_CHARS else evidence[: MAX_EVIDENCE_CHARS - 4] + " ..."


def _encode_request(request: VerifyRequest) -> bytes | Verdict:
    try:
        return encode({"call": "verify", "response": request.response, "gold": request.gold,
                       "meta": dict(request.meta), "example_id": request.example_id})  # fmt: skip
    except (TypeError, ValueError) as error:
        return Verdict(None, Status.BAD_GOLD, f"the gold or the meta data is not plain JSON data: {error}")


def _verifier_class(kind: str, key: str) -> Any:
    verifier_class = VERIFIERS.get(kind, key=f"{key}.kind")
    missing = [name for name in _CONTRACT if not hasattr(verifier_class, name)]
    if missing:
        raise ConfigError(
            f"'{kind}' is not a verifier: it has no {', '.join(missing)}.",
            where=f"{key}.kind",
            fix="a verifier class has a pydantic model 'Options', 'isolated', 'verify' and 'gold_response'",
        )
    return verifier_class
