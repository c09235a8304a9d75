"""`RemoteRunner`: a verifier served by `assay serve-verifier`, called like a `Runner`."""

from __future__ import annotations

import http.client
import json
import math
import socket
import ssl
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
CONNECT_TIMEOUT_S = 10.0
_BACKOFF_S = 0.2
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a machine that vanished is noticed in 25 s
_RETRIED = frozenset({500, 502, 503, 504})
_MISCONFIGURED = frozenset({401, 403, 404, 405, 411, 415})
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError)


class Unanswered(Exception):
    """One exchange that brought no verdicts. may_retry: whether another can."""

    def __init__(self, cause: str, *, may_retry: bool):
        super().__init__(cause)
        self.may_retry = may_retry


class RemoteRunner:
    """url: as `assay serve-verifier` prints it. timeout_s: seconds for one exchange of up to `MAX_CHUNK_REQUESTS`
    judgements; each is tried `ATTEMPTS` times. ca_file: the certificates to trust instead of the system's, for https.
    Thread safe; a connection lives for one exchange.

    Raises `ConfigError` if the url is not one, or the certificates cannot be read.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 120.0, ca_file: str | None = None):
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"The url {url!r} has no valid port.") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ConfigError(f"The url {url!r} is not of the form http://HOST:PORT.")
        self.url = url
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            try:
                self._tls = ssl.create_default_context(cafile=ca_file)
            except OSError as error:
                raise ConfigError(f"The certificates in {ca_file} cannot be read: {error}.") from error
        self._host, self._port, self._path = parts.hostname, port, parts.path.rstrip("/")
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

    def verify_once(self, request: VerifyRequest, timeout_s: float) -> Verdict:
        """One verdict by one exchange. Raises `Unanswered`, `VerifierError` if the server refuses us, and TypeError,
        ValueError or RecursionError if the request is not JSON data."""
        reply = self._ask("POST", "/verify", f'{{"requests": [{_encode(0, request)}]}}'.encode(), timeout_s)
        try:
            return _verdicts([0], reply)[0]
        except _UNREADABLE as error:
            raise Unanswered(f"the reply cannot be read: {error}", may_retry=False) from error

    def health(self) -> dict[str, Any]:
        """What the server says of itself. Raises as `verify_once`."""
        reply = self._ask("GET", "/health", None, CONNECT_TIMEOUT_S)
        if not isinstance(reply, dict):
            raise Unanswered("the reply cannot be read", may_retry=False)
        return reply

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
                return _verdicts(indices, self._ask("POST", "/verify", body, self._timeout_s))
            except Unanswered as error:
                cause = str(error)
                if not error.may_retry:
                    break
            except _UNREADABLE as error:
                cause = f"the reply cannot be read: {error}"
                break
        fault = Verdict(None, Status.VERIFIER_FAULT, f"no verdict from {self.url}: {cause}")
        return dict.fromkeys(indices, fault)

    def _ask(self, method: str, path: str, body: bytes | None, timeout_s: float) -> Any:
        """The JSON of the reply. Raises `Unanswered`, and `VerifierError` if the server refuses us."""
        try:
            status, reply = self._exchange_bytes(method, path, body, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(f"{type(error).__name__}: {error}", may_retry=True) from error
        if status == 200:
            try:
                return json.loads(reply)
            except (ValueError, RecursionError) as error:
                raise Unanswered(f"the reply cannot be read: {error}", may_retry=False) from error
        cause = f"HTTP {status}: {reply[:500].decode('utf-8', 'replace')}"
        if status in _MISCONFIGURED:
            raise VerifierError(
                f"The verifier at {self.url} refuses the request: {cause}",
                why="without it no response can be judged",
                fix="check the url and the token",
            )
        raise Unanswered(cause, may_retry=status in _RETRIED)

    def _exchange_bytes(self, method: str, path: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
        if self._tls is not None:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=CONNECT_TIMEOUT_S, context=self._tls
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_TIMEOUT_S)
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):
                    connection.sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            connection.request(method, self._path + path, body, self._headers)
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
