"""One chat completion over HTTP: sent once, read within bounds of time and size, understood or not."""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from prm.judge.base import ReplyStatus

_RETRIED_STATUSES = frozenset({408, 409, 429})
_ERROR_BYTES = 4096
_DETAIL_CHARS = 500
_MAX_TOKENS_REPORTED = 10**9


@dataclass(frozen=True, slots=True)
class Exchange:
    """What one exchange brought. text is None exactly if status is not ``ok``. tokens: None if the server does not
    say. may_retry: whether another exchange can do better. retry_after_s: how long the server asks to wait."""

    text: str | None
    status: ReplyStatus
    detail: str = ""
    may_retry: bool = False
    retry_after_s: float = 0.0
    tokens_in: int | None = None
    tokens_out: int | None = None


async def exchange(
    client: httpx.AsyncClient, url: str, body: bytes, *, timeout_s: float, max_reply_bytes: int
) -> Exchange:
    """POST `body`. timeout_s: for all of it, so that a server that sends a byte a second is a time-out too."""
    try:
        async with asyncio.timeout(timeout_s), client.stream("POST", url, content=body) as response:
            limit = max_reply_bytes if response.status_code == 200 else _ERROR_BYTES
            received, is_whole = await _read(response, limit)
    except httpx.ConnectTimeout:
        return Exchange(None, ReplyStatus.UNREACHABLE, "no connection in time", may_retry=True)
    except (TimeoutError, httpx.TimeoutException):
        return Exchange(None, ReplyStatus.TIMEOUT, f"no reply within {timeout_s:g} s", may_retry=True)
    except httpx.HTTPError as error:
        return Exchange(None, ReplyStatus.UNREACHABLE, f"{type(error).__name__}: {error}", may_retry=True)
    if response.status_code != 200:
        return _refused_by_http(response, received)
    if not is_whole:
        return Exchange(None, ReplyStatus.MALFORMED, f"the reply is longer than {limit} bytes")
    return understand(received)


async def _read(response: httpx.Response, limit: int) -> tuple[bytes, bool]:
    """(at most `limit` bytes of the body, whether that is all of it). Not decompressed: we asked for plain text."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.aiter_raw():
        chunks.append(chunk[: limit - size])
        size += len(chunk)
        if size > limit:
            return b"".join(chunks), False
    return b"".join(chunks), True


def _refused_by_http(response: httpx.Response, received: bytes) -> Exchange:
    code = response.status_code
    return Exchange(
        None,
        ReplyStatus.HTTP_ERROR,
        f"HTTP {code}: {received.decode('utf-8', 'replace')}",
        may_retry=code in _RETRIED_STATUSES or code >= 500,
        retry_after_s=_retry_after_s(response.headers) if code in (429, 503) else 0.0,
    )


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds to wait, from a number or a date; 0 if there is neither."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value[:10])
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return max(0.0, moment.timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def understand(received: bytes) -> Exchange:
    """The reply in the body of a chat completion."""
    try:
        reply = json.loads(received)
        choice = reply["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        content, declined = message.get("content"), message.get("refusal")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        shown = received[:_ERROR_BYTES].decode("utf-8", "replace")
        return Exchange(None, ReplyStatus.MALFORMED, f"not a chat completion ({error!r}): {shown}", may_retry=True)
    tokens = _usage(reply, "prompt_tokens"), _usage(reply, "completion_tokens")
    if content is not None and not isinstance(content, str):
        return Exchange(None, ReplyStatus.MALFORMED, "the content is not a text", True, 0.0, *tokens)
    text = _without_lone_surrogates(content or "")
    if finish == "content_filter" or declined or (not text.strip() and finish != "length"):
        cause = str(declined or (f"finish_reason {finish}" if finish == "content_filter" else "an empty reply"))
        return Exchange(None, ReplyStatus.REFUSED, cause, False, 0.0, *tokens)
    if finish == "length":
        return Exchange(None, ReplyStatus.TRUNCATED, f"cut off: ...{text[-80:]}", False, 0.0, *tokens)
    return Exchange(text, ReplyStatus.OK, "", False, 0.0, *tokens)


def _usage(reply: dict[str, Any], name: str) -> int | None:
    usage = reply.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    is_count = isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= _MAX_TOKENS_REPORTED
    return count if is_count else None


def _without_lone_surrogates(text: str) -> str:
    """JSON can hold them, files and databases cannot."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def clip(detail: str) -> str:
    return detail if len(detail) <= _DETAIL_CHARS else detail[:_DETAIL_CHARS] + "..."
