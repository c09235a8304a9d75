"""`Judge`: chat requests in, replies out, and nothing that went wrong on the way becomes a reward."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from verifiers.options import part_of
from verifiers.registry import Registry

if TYPE_CHECKING:
    from prm.signal import SourceContext

RETRY_TEMPERATURE = 0.7  # the same question at temperature 0 brings the same reply


class ReplyStatus(StrEnum):
    """Whether a request was answered, and if not, why."""

    OK = "ok"
    TRUNCATED = "truncated"  # the judge hit max_tokens: what it had said so far is not its judgement
    REFUSED = "refused"  # a content filter or the judge itself declined, or it said nothing
    MALFORMED = "malformed"  # a reply that is not what the interface promises, or too long to be one
    HTTP_ERROR = "http_error"  # the server answered with a status other than 200
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"  # no connection, or it broke
    PROMPT_TOO_LONG = "prompt_too_long"  # for a local judge; a server says so by an HTTP status
    REFUSED_BUDGET = "refused_budget"  # not asked: the budget is used up
    NO_ORACLE = "no_oracle"  # the oracle does not know the truth of this request


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One thing to ask. id: unique within a run, for records and for the draws of an oracle. messages: chat turns with
    ``role`` and ``content``. temperature: 0 asks for the most likely reply. sample: which of several replies to the
    same messages is wanted; it tells them apart in a cache, as the id does not. meta: for judges in process; never
    sent."""

    id: str
    messages: Sequence[Mapping[str, str]]
    max_tokens: int = 1024
    temperature: float = 0.0
    sample: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)

    def content_key(self, *parts: Any) -> str:
        """SHA-256 of what decides the reply: the messages, the sampling, and `parts` (JSON data)."""
        turns = [[m["role"], m["content"]] for m in self.messages]
        text = json.dumps([turns, self.max_tokens, self.temperature, self.sample, *parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """text: what the judge said; None exactly if status is not ``ok``. detail: the cause, for a person. attempts: how
    often it was asked for this reply, 0 if never. cached: the reply was asked for before. tokens_in, tokens_out: as
    the judge counts them, 0 if it does not say. milliseconds: wall time (not part of any deterministic record)."""

    text: str | None
    status: ReplyStatus
    detail: str = ""
    attempts: int = 0
    cached: bool = False
    tokens_in: int = 0
    tokens_out: int = 0
    milliseconds: float = 0.0

    def __post_init__(self) -> None:
        if (self.text is None) == (self.status is ReplyStatus.OK):
            raise ValueError(f"a reply has a text exactly if its status is ok, not with status {self.status}")

    @property
    def counts(self) -> dict[str, int]:
        """asks: 1, for a reply that was wanted; cached: whether it was there already; tokens: what it took otherwise,
        in and out."""
        tokens = 0 if self.cached else self.tokens_in + self.tokens_out
        return {"asks": 1, "cached": int(self.cached), "tokens": tokens}


class Judge(Protocol):
    """Subclass it and write `ask` and `from_context`; register it (``@JUDGES.register("name")``) or name it in a recipe
    as ``package.module:Class``. `Options` is a nested pydantic model."""

    @classmethod
    def from_context(cls, options: Any, context: SourceContext) -> Self:
        """The judge as a recipe asks for it."""
        ...

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """One reply per request, in order. Whatever a model or a server does wrong is a reply without a text."""
        ...

    def submit(self, requests: Sequence[JudgeRequest]) -> Callable[[], list[JudgeReply]]:
        """Start asking and return at once; the function returned waits for the replies. A judge that runs in process
        is asked when they are wanted, in the thread that wants them."""
        return lambda: self.ask(requests)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must go on from, as JSON data, the same on every rank. All ranks must ask."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return

    def close(self) -> None:
        return


JUDGES: Registry[type] = Registry("judge", "prm.judge")


class Heard(Protocol):
    """What was made of one reply, or of several to the same request: a dataclass with the sums of their `counts`."""

    @property
    def asks(self) -> int: ...

    @property
    def cached(self) -> int: ...

    @property
    def tokens(self) -> int: ...


H = TypeVar("H", bound=Heard)


def hear_all(
    judge: Judge,
    requests: Sequence[JudgeRequest],
    replies: Sequence[JudgeReply],
    hear: Callable[[int, JudgeReply], H],
    is_useless: Callable[[H], bool],
    retries: int,
) -> list[H]:
    """What is made of the reply to each request; what is useless is asked for again, up to `retries` times, as another
    sample. hear: (index of the request, reply) -> what it comes to."""
    heard = [hear(i, reply) for i, reply in enumerate(replies)]
    for retry in range(1, retries + 1):
        again = [i for i, one in enumerate(heard) if is_useless(one)]
        asked = [(requests[i], requests[i].temperature or RETRY_TEMPERATURE) for i in again]
        new = judge.ask([replace(request, sample=retry, temperature=t) for request, t in asked])
        for i, reply in zip(again, new, strict=True):
            one, before = hear(i, reply), heard[i]
            sums = {name: getattr(before, name) + getattr(one, name) for name in ("asks", "cached", "tokens")}
            heard[i] = replace(one, **sums)  # type: ignore[type-var]
    return heard


def judge_options(part: Mapping[str, Any], key: str = "judge") -> tuple[type, Any]:
    """(class, its checked options) of ``{"kind": ..., **options}``. Raises `ConfigError` naming ``key.option``."""
    return part_of(JUDGES, part, key)


def build_judge(part: Mapping[str, Any], context: SourceContext, key: str = "judge") -> Judge:
    """The judge that a recipe writes as ``{"kind": ..., **options}``. Raises `ConfigError`."""
    kind, options = judge_options(part, key)
    return kind.from_context(options, context)
