"""`RemoteRunner`: a verifier served by `assay serve-verifier`, called like a `Runner`."""

from __future__ import annotations

import http.client
import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from verifiers.errors import ConfigError, VerifierError
from verifiers.verdict import Status, Verdict, VerifyRequest

MAX_CHUNK_REQUESTS = 256
MAX_CHUNK_BYTES = 8 * 2**20
MAX_REPLY_BYTES = 64 * 2**20
ATTEMPTS = 3
_BACKOFF_S = 0.2
_RETRIED = frozenset({500, 502, 503, 504})
_MISCONFIGURED = frozenset({401, 403, 404, 405, 411, 415})


class RemoteRunner:
    """url: as `assay serve-verifier` prints it. timeout_s: seconds for one exchange of up to `MAX_CHUNK_REQUESTS`
    judgements; each is tried `ATTEMPTS` times. Thread safe; a connection lives for one exchange.

    Raises `ConfigError` if the url is not one.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 120.0):
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"The url {url!r} has no valid port.") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ConfigError(f"The url {url!r} is not of the form http://HOST:PORT.")
        self.url = url
        self._connection_class = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._path = parts.hostname, port, parts.path.rstrip("/") + "/verify"
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def verify(self, requests: Sequence[VerifyRequest]) -> list[Verdict]:
        """One verdict per request, in order. What the network or the server does wrong is a verdict without a score;
        `VerifierError` is raised only if the server refuses us (a wrong token or url)."""
        verdicts: dict[int, Verdict] = {}
        encoded: list[tuple[int, str]] = []
        for index, request in enumerate(requests):
            try:
                encoded.append((index, _encode(index, request)))
            except (TypeError, ValueError, RecursionError) as error:
                verdicts[index] = Verdict(None, Status.BAD_GOLD, f"the gold or the meta data is not JSON data: {error}")
        for chunk in _chunks(encoded):
            verdicts |= self._exchange(chunk)
        return [verdicts[index] for index in range(len(requests))]

    def close(self) -> None:
        """Nothing to do: it is here because a `Runner` has it."""

    def __enter__(self) -> RemoteRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(self, chunk: list[tuple[int, str]]) -> dict[int, Verdict]:
        body = f'{{"requests": [{", ".join(text for _, text in chunk)}]}}'.encode()
        indices = [index for index, _ in chunk]
        cause = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(_BACKOFF_S * 2**attempt)
            try:
                status, reply = self._post(body)
            except (OSError, http.client.HTTPException) as error:
                cause = f"{type(error).__name__}: {error}"
                continue
            if status == 200:
                try:
                    return _verdicts(indices, json.loads(reply))
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                    cause = f"the reply cannot be read: {error}"
                    break
            cause = f"HTTP {status}: {reply[:500].decode('utf-8', 'replace')}"
            if status in _MISCONFIGURED:
                raise VerifierError(
                    f"The verifier at {self.url} refuses the request: {cause}",
                    why="without it no response can be judged",
                    fix="check the url and the token",
                )
            if status not in _RETRIED:
                break
        fault = Verdict(None, Status.VERIFIER_FAULT, f"no verdict from {self.url}: {cause}")
        return dict.fromkeys(indices, fault)

    def _post(self, body: bytes) -> tuple[int, bytes]:
        connection = self._connection_class(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request("POST", self._path, body, self._headers)
            response = connection.getresponse()
            reply = response.read(MAX_REPLY_BYTES + 1)
        finally:
            connection.close()
        if len(reply) > MAX_REPLY_BYTES:
            raise OSError(f"the reply is longer than {MAX_REPLY_BYTES} bytes")
        return response.status, reply


def _encode(index: int, request: VerifyRequest) -> str:
    return json.dumps({"id": index, "response": request.response, "gold": request.gold, "meta": dict(request.meta)})


def _chunks(encoded: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    chunk: list[tuple[int, str]] = []
    size = 0
    for item in encoded:
        if chunk and (len(chunk) >= MAX_CHUNK_REQUESTS or size + len(item[1]) > MAX_CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += len(item[1])
    if chunk:
        yield chunk


def _verdicts(indices: list[int], reply: Any) -> dict[int, Verdict]:
    """The reply's verdicts by index. Raises ValueError, TypeError or KeyError if it is not what was agreed."""
    rows = reply["verdicts"]
    if [row["id"] for row in rows] != indices:
        raise ValueError("the verdicts are not those of the requests")
    return {row["id"]: _verdict(row) for row in rows}


def _verdict(row: dict[str, Any]) -> Verdict:
    score, answer = row["score"], row.get("answer")
    if score is not None and (isinstance(score, bool) or not math.isfinite(score) or not 0 <= score <= 1):
        raise ValueError(f"a score must be a number from 0 to 1 or null, not {score!r}")
    if answer is not None and not isinstance(answer, str):
        raise ValueError("an answer must be a string or null")
    return Verdict(score, Status(row["status"]), str(row.get("evidence", "")), float(row["ms"]), answer,
                   dict(row.get("parts") or {}))  # fmt: skip
