"""`openai`: any server with an OpenAI-compatible chat endpoint (vLLM, SGLang, llama.cpp, a provider)."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import httpx
from pydantic import Field, field_validator

from prm.judge.base import JUDGES, Judge, JudgeReply, JudgeRequest, ReplyStatus
from prm.judge.cache import CachedReply, ReplyCache
from prm.judge.exchange import Exchange, clip, exchange
from rollout.engine import derive_seed
from rollout.world import World
from verifiers.errors import ConfigError
from verifiers.options import Options as BaseOptions

CONNECT_TIMEOUT_S = 10.0
_BYTES_PER_TOKEN = 4  # where a server does not count its tokens
_MIN_SECRET_CHARS = 8  # a shorter key is a placeholder, and replacing it would garble texts
_OURS = frozenset({"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "n", "stream"})


class Budget:
    """What a run may spend, and what was spent. A call is one exchange that was begun, repeated ones included.

    Of several ranks each may spend an equal share of what is left, newly dealt out whenever all are asked what was
    spent (`spent`), so that all together never begin a call beyond the budget."""

    def __init__(self, max_calls: int | None, max_tokens: int | None, world: World):
        self.max_calls, self.max_tokens, self.world = max_calls, max_tokens, world
        self.go_on_from({})

    def go_on_from(self, before: Mapping[str, int]) -> None:
        """before: what the run has spent so far, as `spent` says it."""
        self._before = {name: int(before.get(name, 0)) for name in ("calls", "tokens_in", "tokens_out")}
        self.calls = self.tokens_in = self.tokens_out = 0  # of this rank, since then
        self._deal_out(self._before)

    def spent(self) -> dict[str, int]:
        """By the run, on all ranks. All must ask."""
        own = self.world.total({"calls": self.calls, "tokens_in": self.tokens_in, "tokens_out": self.tokens_out})
        total = {name: self._before[name] + int(own[name]) for name in own}
        self._deal_out(total)
        return total

    def take_call(self) -> bool:
        """Count one more call; False if this rank's share of the budget is used up."""
        if self.calls >= self._call_limit or self.tokens_in + self.tokens_out >= self._token_limit:
            return False
        self.calls += 1
        return True

    def __str__(self) -> str:
        before, world = self._before, self.world
        calls = self.calls + before["calls"]
        tokens = self.tokens_in + self.tokens_out + before["tokens_in"] + before["tokens_out"]
        of_rank = f" as far as rank {world.rank} of {world.size} may spend it" if world.size > 1 else ""
        return (f"the budget is used up{of_rank}: {calls} calls (max_calls={self.max_calls}), "
                f"{tokens} tokens (max_total_tokens={self.max_tokens})")  # fmt: skip

    def _deal_out(self, total: Mapping[str, int]) -> None:
        self._call_limit = self.calls + self._share(self.max_calls, total["calls"])
        tokens = total["tokens_in"] + total["tokens_out"]
        self._token_limit = self.tokens_in + self.tokens_out + self._share(self.max_tokens, tokens)

    def _share(self, limit: int | None, spent: int) -> float:
        if limit is None:
            return math.inf
        each, rest = divmod(max(0, limit - spent), self.world.size)
        return each + (self.world.rank < rest)


@JUDGES.register("openai")
class OpenAIJudge(Judge):
    """Asks up to `max_concurrency` requests at a time, from all callers together, in an event loop in a thread of its
    own; begins with the first request. Equal requests of one batch are asked once. Thread safe.

    The API key is read from the environment at construction and goes into the Authorization header alone: it is in no
    message, record or file, and is cut out of what a server echoes. Raises `ConfigError` if it is not set, `RunError`
    if the cache file cannot be used.
    """

    class Options(BaseOptions):
        """base_url: up to and without ``/chat/completions``. api_key_env: the NAME of the environment variable with
        the key; None sends none. timeout_s: for one whole exchange. max_attempts: exchanges for one reply. backoff_s:
        the wait after the first failure, doubled after each further one up to max_backoff_s, times a random factor
        from 0.5 to 1; a longer Retry-After is waited for up to max_retry_after_s, and beyond that given up.

        cache_file: SQLite file that keeps replies for good; None keeps none. max_calls, max_total_tokens: the budget
        of a run, all its ranks together; None is no limit. max_tokens_field: what the server calls the limit of the
        reply. extra_body: further fields of each request (``chat_template_kwargs``, ``top_p``).
        """

        base_url: str
        model: str
        api_key_env: str | None = None
        timeout_s: float = Field(default=120.0, gt=0)
        max_concurrency: int = Field(default=16, ge=1)
        max_attempts: int = Field(default=4, ge=1)
        backoff_s: float = Field(default=0.5, ge=0)
        max_backoff_s: float = Field(default=30.0, ge=0)
        max_retry_after_s: float = Field(default=120.0, ge=0)
        max_reply_bytes: int = Field(default=4 * 2**20, ge=1)
        cache_file: str | None = None
        max_calls: int | None = Field(default=None, ge=0)
        max_total_tokens: int | None = Field(default=None, ge=0)
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
        extra_body: dict[str, Any] = Field(default_factory=dict)

        @field_validator("base_url")
        @classmethod
        def _is_url(cls, base_url: str) -> str:
            parts = urlsplit(base_url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError("must be of the form http://HOST:PORT/v1")
            if parts.username is not None or parts.password is not None:
                raise ValueError("must not hold a password: name an environment variable in api_key_env")
            try:
                parts.hostname.encode("idna")
                httpx.URL(base_url)
            except (httpx.InvalidURL, UnicodeError) as error:
                raise ValueError(f"is no address: {error}") from error
            if parts.port == 0:
                raise ValueError("port 0 is none")
            return base_url.rstrip("/")

        @field_validator("api_key_env")
        @classmethod
        def _is_a_name(cls, api_key_env: str | None) -> str | None:
            if api_key_env is not None and not (api_key_env.isascii() and api_key_env.isidentifier()):
                raise ValueError("must be the name of an environment variable, never the key itself")
            return api_key_env

        @field_validator("extra_body")
        @classmethod
        def _leaves_ours_alone(cls, extra_body: dict[str, Any]) -> dict[str, Any]:
            if taken := sorted(_OURS & extra_body.keys()):
                raise ValueError(f"must not set {', '.join(taken)}: assay does")
            return extra_body

    def __init__(self, options: OpenAIJudge.Options, *, seed: int = 0, world: World | None = None):
        self.options, self.seed = options, seed
        self._url = options.base_url + "/chat/completions"
        self._key = _api_key(options.api_key_env)
        self._budget = Budget(options.max_calls, options.max_total_tokens, world or World())
        self._cache = ReplyCache(options.cache_file) if options.cache_file is not None else None
        self._starting = threading.Lock()
        self._worker: _Worker | None = None

    @classmethod
    def from_context(cls, options: OpenAIJudge.Options, context: Any) -> Self:
        return cls(options, seed=context.seed, world=context.world)

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        return self.submit(requests)()

    def submit(self, requests: Sequence[JudgeRequest]) -> Callable[[], list[JudgeReply]]:
        with self._starting:
            if self._worker is None:
                self._worker = _Worker(self._new_client, self.options.max_concurrency)
            worker = self._worker
        future = asyncio.run_coroutine_threadsafe(self._answer(list(requests), worker), worker.loop)

        def wait() -> list[JudgeReply]:
            try:
                return future.result()
            finally:
                future.cancel()  # no-op when done; an interrupted caller wants no more calls

        return wait

    def state_dict(self) -> dict[str, Any]:
        """What the run has spent. What is left is dealt out anew among the ranks."""
        return dict(self._budget.spent())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._budget.go_on_from(state)

    def close(self) -> None:
        """Withdraw what is still being asked."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        if self._cache is not None:
            self._cache.close()

    # ---- in the thread of the event loop -------------------------------

    async def _answer(self, requests: list[JudgeRequest], worker: _Worker) -> list[JudgeReply]:
        o = self.options
        keys = [r.content_key(o.model, o.max_tokens_field, o.extra_body) for r in requests]
        first: dict[str, JudgeRequest] = {}
        for key, request in zip(keys, requests, strict=True):
            first.setdefault(key, request)
        tasks = [asyncio.create_task(self._reply(key, request, worker)) for key, request in first.items()]
        try:
            replies = dict(zip(first, await asyncio.gather(*tasks), strict=True))
        finally:
            for task in tasks:
                task.cancel()
        return [
            replies[key] if first[key] is request else _copy(replies[key])
            for key, request in zip(keys, requests, strict=True)
        ]

    async def _reply(self, key: str, request: JudgeRequest, worker: _Worker) -> JudgeReply:
        if self._cache is not None and (hit := self._cache.get(key)) is not None:
            return JudgeReply(hit.text, ReplyStatus.OK, "", 0, True, hit.tokens_in, hit.tokens_out)
        async with worker.slots:
            started = time.perf_counter()
            reply = await self._ask_until_answered(key, self._body(request), worker.client)
        if self._cache is not None and reply.text is not None:
            self._cache.put(key, CachedReply(reply.text, reply.tokens_in, reply.tokens_out))
        return replace(reply, milliseconds=(time.perf_counter() - started) * 1000)

    async def _ask_until_answered(self, key: str, body: bytes, client: httpx.AsyncClient) -> JudgeReply:
        o = self.options
        tokens_in = tokens_out = 0
        result = Exchange(None, ReplyStatus.REFUSED_BUDGET)
        for attempt in range(1, o.max_attempts + 1):
            if not self._budget.take_call():
                detail = f"{self._budget}; last: {result.detail or 'not asked'}"
                return JudgeReply(None, ReplyStatus.REFUSED_BUDGET, detail, attempt - 1, False, tokens_in, tokens_out)
            result = self._without_key(
                await exchange(client, self._url, body, timeout_s=o.timeout_s, max_reply_bytes=o.max_reply_bytes)
            )
            used = self._count_tokens(result, body)
            tokens_in, tokens_out = tokens_in + used[0], tokens_out + used[1]
            wait_s = max(self._backoff_s(key, attempt), result.retry_after_s)
            if not result.may_retry or attempt == o.max_attempts or result.retry_after_s > o.max_retry_after_s:
                break
            await asyncio.sleep(wait_s)  # the slot stays taken: a server in trouble is not asked more meanwhile
        return JudgeReply(result.text, result.status, result.detail, attempt, False, tokens_in, tokens_out)

    def _backoff_s(self, key: str, attempt: int) -> float:
        jitter = 0.5 + 0.5 * random.Random(derive_seed(self.seed, "judge", key, attempt)).random()
        return jitter * min(self.options.max_backoff_s, self.options.backoff_s * 2.0 ** min(attempt - 1, 60))

    def _count_tokens(self, result: Exchange, body: bytes) -> tuple[int, int]:
        """(in, out) of one exchange, now part of what was spent; nothing for one that brought no completion."""
        if result.status in (ReplyStatus.HTTP_ERROR, ReplyStatus.TIMEOUT, ReplyStatus.UNREACHABLE):
            return 0, 0
        said = (result.text or "").encode()
        tokens_in = math.ceil(len(body) / _BYTES_PER_TOKEN) if result.tokens_in is None else result.tokens_in
        tokens_out = math.ceil(len(said) / _BYTES_PER_TOKEN) if result.tokens_out is None else result.tokens_out
        self._budget.tokens_in += tokens_in
        self._budget.tokens_out += tokens_out
        return tokens_in, tokens_out

    def _body(self, request: JudgeRequest) -> bytes:
        fields = {
            **self.options.extra_body,
            "model": self.options.model,
            "messages": [{"role": m["role"], "content": m["content"]} for m in request.messages],
            "temperature": request.temperature,
            self.options.max_tokens_field: request.max_tokens,
        }
        return json.dumps(fields).encode()

    def _without_key(self, result: Exchange) -> Exchange:
        def clean(text: str) -> str:
            hide = self._key is not None and len(self._key) >= _MIN_SECRET_CHARS
            return text.replace(self._key or "", "[API key]") if hide else text

        text = None if result.text is None else clean(result.text)
        return replace(result, text=text, detail=clip(clean(result.detail)))

    def _new_client(self) -> httpx.AsyncClient:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "assay"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        return httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=self.options.max_concurrency),
            trust_env=not _is_this_machine(self.options.base_url),  # no proxy stands between us and ourselves
        )


class _Worker:
    """An event loop in a thread, with what belongs to it."""

    def __init__(self, new_client: Callable[[], httpx.AsyncClient], max_concurrency: int):
        self.loop = asyncio.new_event_loop()
        self.client = new_client()
        self.slots = asyncio.Semaphore(max_concurrency)
        self._thread = threading.Thread(target=self.loop.run_forever, name="judge", daemon=True)
        self._thread.start()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._withdraw(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _withdraw(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.client.aclose()


def _copy(reply: JudgeReply) -> JudgeReply:
    """The reply to an equal request of the same batch, which cost nothing more."""
    return replace(reply, cached=reply.text is not None, attempts=0, milliseconds=0.0)


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"The environment variable {variable} {'does not hold an API key' if key else 'is not set'}.",
            where="api_key_env",
            fix=f"export {variable}=... before the run; a recipe names the variable and never holds the key",
        )
    return key


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
