"""`Runner`: the one way to call a verifier. It checks options, isolates what may hang, turns faults into verdicts."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from verifiers.errors import BadGold, ConfigError, VerifierError
from verifiers.options import parse_options
from verifiers.pool import CallResult, Pool
from verifiers.process import Ending, encode
from verifiers.verdict import VERIFIERS, Status, Verdict, Verifier, VerifyRequest

MAX_EVIDENCE_CHARS = 2_000
DEFAULT_TIMEOUT_S = 1.5
DEFAULT_MEMORY_MB = 768
_CONTRACT = ("Options", "isolated", "verify", "gold_response")


class Runner:
    """A verifier of `kind`, ready to judge.

    options: the mapping a recipe gives, validated by the kind's `Options`. timeout_s, memory_mb, workers: limits of
    each judgement and number of processes, for isolated kinds and those that take limits (others run in process, in the
    caller's thread); memory_mb is MiB of address space beyond what the loaded verifier takes. None: the kind's own
    ``default_timeout_s`` and ``default_memory_mb``, else the defaults above. key: the recipe key, for messages.

    A composite kind (``composite = True``) is built as ``Kind(options, runners)``, with a runner under the same limits
    for each entry of ``Kind.part_kinds(options)``: {name: (kind, options)}.

    Raises `ConfigError` for an unknown kind or a wrong option, naming ``key.option``. Thread safe; usable in a forked
    child. A fault of the verifier is a verdict without a score, never an exception; `VerifierError` is raised only if
    the worker processes cannot start at all.
    """

    def __init__(
        self,
        kind: str,
        options: Mapping[str, Any],
        *,
        timeout_s: float | None = None,
        memory_mb: int | None = None,
        workers: int = 2,
        key: str = "verifier",
    ):
        verifier_class = _verifier_class(kind, key)
        checked = parse_options(verifier_class.Options, options, key=key)
        self.kind, self.key = kind, key
        given: dict[str, Any] = {"timeout_s": timeout_s, "memory_mb": memory_mb, "workers": workers}
        default_s, default_mb = _default_limits(verifier_class)
        limit_s, limit_mb = timeout_s or default_s, memory_mb or default_mb
        self._timeout_s = limit_s
        self._verifier: Any = None
        self._pool: Pool | None = None
        self._parts: dict[str, Runner] = {}
        if verifier_class.isolated:
            setup = {"kind": kind, "options_json": checked.model_dump_json(), "memory_mb": limit_mb,
                     "timeout_s": limit_s}  # fmt: skip
            self._pool = Pool(setup, timeout_s=limit_s, workers=workers, key=key)
        elif getattr(verifier_class, "composite", False):
            for name, (part_kind, part_options) in verifier_class.part_kinds(checked).items():
                self._parts[name] = Runner(part_kind, part_options, **given, key=f"{key}.parts.{name}")
            self._verifier = verifier_class(checked, self._parts)
        elif getattr(verifier_class, "takes_limits", False):
            self._verifier = verifier_class(checked, timeout_s=limit_s, memory_mb=limit_mb, workers=workers, key=key)
        else:
            self._verifier = verifier_class(checked)

    def verify(self, requests: Sequence[VerifyRequest]) -> list[Verdict]:
        """One verdict per request, in order."""
        return self.submit(requests)()

    def submit(self, requests: Sequence[VerifyRequest]) -> Callable[[], list[Verdict]]:
        """Let the workers begin and return at once; the function returned waits for the verdicts, in order. A kind
        that runs in process is called when they are asked for, in the thread that asks."""
        if self._pool is not None:
            frames = [_encode_request(request) for request in requests]
            wait = self._pool.submit([frame for frame in frames if isinstance(frame, bytes)])
            return lambda: self._merge(frames, wait())
        if hasattr(self._verifier, "submit"):
            wait = self._verifier.submit(requests)
            return lambda: [replace(verdict, evidence=_clip(verdict.evidence)) for verdict in wait()]
        return lambda: [judge(self._verifier, request) for request in requests]

    def stream(self, requests: Sequence[VerifyRequest]) -> Iterator[tuple[int, Verdict]]:
        """(index, verdict) of each request as it is judged; what a composite kind makes of its parts comes at the
        end."""
        if self._pool is None and hasattr(self._verifier, "stream"):
            yield from self._verifier.stream(requests)
            return
        if self._pool is None:
            verdicts = self.verify(requests) if self._parts else (judge(self._verifier, r) for r in requests)
            yield from enumerate(verdicts)
            return
        frames = [_encode_request(request) for request in requests]
        yield from ((i, frame) for i, frame in enumerate(frames) if isinstance(frame, Verdict))
        sent = [i for i, frame in enumerate(frames) if isinstance(frame, bytes)]
        for k, result in self._pool.stream([frame for frame in frames if isinstance(frame, bytes)]):
            yield sent[k], self._to_verdict(result)

    async def averify(self, requests: Sequence[VerifyRequest]) -> list[Verdict]:
        """`verify` without blocking the event loop."""
        if self._pool is None:
            return await asyncio.to_thread(self.verify, requests)
        frames = [_encode_request(request) for request in requests]
        return self._merge(frames, await self._pool.arun([frame for frame in frames if isinstance(frame, bytes)]))

    def explain(self, request: VerifyRequest) -> dict[str, str]:
        """How the verdict on this request comes about, as ordered rows for a person; a fault is a row of its own. A
        kind without a method ``explain`` shows its verdict."""
        if self._pool is None:
            try:
                return explain(self._verifier, request)
            except Exception as error:  # noqa: BLE001 (shown to the person who asked)
                return {"fault": describe_error(error)}
        frame = _encode_request(request, "explain")
        if isinstance(frame, Verdict):
            return {str(frame.status): frame.evidence}
        (result,) = self._pool.run([frame])
        problem = {key: text for key, text in result.reply.items() if key != "rows"} or {"fault": result.detail}
        return result.reply.get("rows") or problem

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        """The text of a perfect response. Raises `BadGold` if the gold cannot be read, `VerifierError` on a fault."""
        if self._pool is None:
            return self._verifier.gold_response(gold, meta)
        return self._ask_text({"call": "gold_response", "gold": gold, "meta": dict(meta)})

    @property
    def wraps_gold_response(self) -> bool:
        """Whether the kind has a method ``wrap_gold_response(text) -> str``: a perfect response by its own lights that
        holds `text` as its answer."""
        return hasattr(VERIFIERS.get(self.kind), "wrap_gold_response")

    def wrap_gold_response(self, text: str) -> str:
        """Raises `VerifierError` on a fault."""
        if self._pool is None:
            return self._verifier.wrap_gold_response(text)
        return self._ask_text({"call": "wrap_gold_response", "text": text})

    def warm(self) -> None:
        """Start all worker processes now, so that no judgement waits for them."""
        if self._pool is not None:
            self._pool.warm()
        for runner in self._parts.values():
            runner.warm()

    def close(self) -> None:
        """End the worker processes, if there are any. The runner cannot be used afterwards."""
        if self._pool is not None:
            self._pool.close()
        if hasattr(self._verifier, "close"):
            self._verifier.close()
        for runner in self._parts.values():
            runner.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask_text(self, message: Mapping[str, Any]) -> str:
        assert self._pool is not None
        try:
            frame = encode(message)
        except (TypeError, ValueError) as error:
            raise BadGold(f"The gold or the meta data is not plain JSON data: {error}.") from error
        (result,) = self._pool.run([frame])
        if "text" in result.reply:
            return result.reply["text"]
        if "bad_gold" in result.reply:
            raise BadGold(result.reply["bad_gold"])
        cause = result.reply.get("fault", result.detail)
        raise VerifierError(f"The verifier '{self.kind}' failed on a gold answer: {cause}", where=self.key)

    def _merge(self, frames: Sequence[bytes | Verdict], results: Sequence[CallResult]) -> list[Verdict]:
        """The verdicts of the workers, and those on requests that could not be sent, in order."""
        judged = iter(results)
        return [frame if isinstance(frame, Verdict) else self._to_verdict(next(judged)) for frame in frames]

    def _to_verdict(self, result: CallResult) -> Verdict:
        reply = result.reply
        if result.ending is Ending.REPLY:
            status = Status(reply["status"])
            return Verdict(reply["score"], status, reply["evidence"], reply["milliseconds"], reply["answer"],
                           reply["parts"])  # fmt: skip
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


def explain(verifier: Verifier, request: VerifyRequest) -> dict[str, str]:
    """The verifier's own explanation, or what its verdict tells if it has none."""
    own = getattr(verifier, "explain", None)
    if own is not None:
        return {str(name): str(text) for name, text in own(request).items()}
    verdict = judge(verifier, request)
    return {"answer": str(verdict.answer), "evidence": verdict.evidence, "status": str(verdict.status)}


def describe_error(error: Exception) -> str:
    """Type, message and the place it was raised at."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} (in {place.name}, {place.filename}:{place.lineno})"


def _clip(evidence: str) -> str:
    return evidence if len(evidence) <= MAX_EVIDENCE_CHARS else evidence[: MAX_EVIDENCE_CHARS - 4] + " ..."


def _encode_request(request: VerifyRequest, call: str = "verify") -> bytes | Verdict:
    try:
        return encode({"call": call, "response": request.response, "gold": request.gold,
                       "meta": dict(request.meta), "example_id": request.example_id})  # fmt: skip
    except (TypeError, ValueError) as error:
        return Verdict(None, Status.BAD_GOLD, f"the gold or the meta data is not plain JSON data: {error}")


def _default_limits(verifier_class: Any) -> tuple[float, int]:
    return (getattr(verifier_class, "default_timeout_s", DEFAULT_TIMEOUT_S),
            getattr(verifier_class, "default_memory_mb", DEFAULT_MEMORY_MB))  # fmt: skip


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
