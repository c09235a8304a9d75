"""A verifier over HTTP.

POST /verify takes ``{"requests": [{"id", "response", "gold", "meta"}, ...]}`` and answers
``{"verdicts": [{"id", "score", "status", "ms", "answer", "evidence", "parts"}, ...]}``, in order, one for each request
whatever it is (`verifiers.rows`). GET /health answers ``{"status": "ok", "kind": ...}``. An error has a body
``{"error": "..."}``.

A request needs Content-Length and Content-Type ``application/json`` (so that no web page can send one unasked), and
with a token ``Authorization: Bearer TOKEN``. One request a connection; a client has `CLIENT_TIMEOUT_S` to send it.
Without a certificate there is no encryption: beyond this machine, give one or put it behind a proxy that has it.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from verifiers.errors import ConfigError, VerifierError
from verifiers.rows import Judge, RequestOf, grade, parse_row, result_of

MAX_REQUEST_BYTES = 16 * 2**20
MAX_CONNECTIONS = 256
CLIENT_TIMEOUT_S = 30.0
DRAIN_S = 5.0
_POLL_S = 0.1


class HttpError(Exception):
    """An answer other than 200."""

    def __init__(self, status: HTTPStatus, what: str):
        super().__init__(what)
        self.status = status


class VerifierServer:
    """Serves `runner` from a thread of its own, from construction until `close`; the runner stays the caller's.

    request_of: how a row of the runner's kind is read. port: 0 picks a free one; see `url`. tls: a server's context,
    for https. info: what /health tells besides, and then only to who has the token.
    Raises `ConfigError` if the address cannot be used, or is open to other machines and there is no token.
    """

    def __init__(
        self,
        runner: Judge,
        request_of: RequestOf,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        client_timeout_s: float = CLIENT_TIMEOUT_S,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        tls: ssl.SSLContext | None = None,
        info: Mapping[str, Any] | None = None,
    ):
        if token is None and not _is_loopback(host):
            raise ConfigError(
                f"Serving on {host} without a token would let everybody on the network use it.",
                where="--host",
                fix="set a token in an environment variable and name it with --token-env, or serve on 127.0.0.1",
            )
        try:
            self._server = _Server((host, port), runner, request_of, token, info)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"Cannot listen on {host} port {port}: {error}.", where="--host, --port") from error
        self._server.client_timeout_s = client_timeout_s
        self._server.max_request_bytes = max_request_bytes
        self._server.tls = tls
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="verifier-server")
        self._thread.start()

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        scheme = "http" if self._server.tls is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in str(host) else f"{scheme}://{host}:{port}"

    def close(self) -> None:
        """Take no more requests, and give those under way `DRAIN_S` to finish."""
        self._server.shutdown()
        self._thread.join()
        deadline = time.monotonic() + DRAIN_S
        while self._server.num_connections and time.monotonic() < deadline:
            time.sleep(0.01)
        self._server.server_close()

    def __enter__(self) -> VerifierServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS
    client_timeout_s = CLIENT_TIMEOUT_S
    max_request_bytes = MAX_REQUEST_BYTES
    tls: ssl.SSLContext | None = None

    def __init__(
        self, address: tuple[str, int], runner: Judge, request_of: RequestOf, token: str | None,
        info: Mapping[str, Any] | None,
    ):  # fmt: skip
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        self.runner, self.request_of, self.token, self.info = runner, request_of, token, info
        self.local_only = token is None
        self._lock = threading.Lock()
        self._reading: dict[socket.socket, float] = {}  # connection -> when its client's time is up
        self.num_connections = 0

    def get_request(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        if self.tls is not None:  # the handshake is for the connection's own thread: a client may take its time
            request = self.tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        return request, address

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            accepted = self.num_connections < MAX_CONNECTIONS
            if accepted:
                self.num_connections += 1
                self._reading[request] = time.monotonic() + self.client_timeout_s
        if accepted:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)  # the client sees a closed connection and tries again

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self.num_connections -= 1
                self._reading.pop(request, None)

    def has_read(self, request: socket.socket) -> None:
        """The client has sent everything: from here on the time is ours."""
        with self._lock:
            self._reading.pop(request, None)

    def service_actions(self) -> None:
        """Cut off clients that are too slow. A time limit per read would not: a byte now and then satisfies it."""
        now = time.monotonic()
        with self._lock:
            late = [request for request, deadline in self._reading.items() if now > deadline]
            for request in late:
                del self._reading[request]
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # it has gone by itself

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not worth a traceback; other errors have been answered with 500."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "assay", ""
    _body_taken = False
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.client_timeout_s)

    def do_GET(self) -> None:
        self._answer(self._health)

    def do_POST(self) -> None:
        self._answer(self._verify)

    def _health(self) -> dict[str, Any]:
        if self.path != "/health":
            raise HttpError(HTTPStatus.NOT_FOUND, "there is GET /health and POST /verify")
        if self.server.info is not None:
            self._authorize()
        return {"status": "ok", "kind": self.server.runner.kind, **(self.server.info or {})}

    def _verify(self) -> dict[str, Any]:
        if self.path != "/verify":
            raise HttpError(HTTPStatus.NOT_FOUND, "there is GET /health and POST /verify")
        self._authorize()
        if self.headers.get_content_type() != "application/json" or "Content-Type" not in self.headers:
            raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json")
        values = self._requests(self._body())
        rows = [parse_row(value, self.server.request_of) for value in values]
        try:
            verdicts = grade(self.server.runner, rows)
        except VerifierError as error:
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
        except RuntimeError as error:
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, f"the server is stopping: {error}") from error
        return {"verdicts": [result_of(row.id, verdict, verbose=True)
                             for row, verdict in zip(rows, verdicts, strict=True)]}  # fmt: skip

    def _authorize(self) -> None:
        token = self.server.token
        sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token is not None and not hmac.compare_digest(sent.encode("utf-8", "replace"), token.encode()):
            raise HttpError(HTTPStatus.UNAUTHORIZED, "the header 'Authorization: Bearer TOKEN' is missing or wrong")
        # A name that a web page made resolve to this machine is not how our clients call it.
        if self.server.local_only and not _is_loopback(_host_of(self.headers.get("Host") or "")):
            raise HttpError(HTTPStatus.FORBIDDEN, "without a token only this machine may ask, by a loopback address")

    def _body(self) -> bytes:
        lengths = self.headers.get_all("Content-Length") or []
        if "Transfer-Encoding" in self.headers or len(lengths) != 1:
            raise HttpError(HTTPStatus.LENGTH_REQUIRED, "send one Content-Length, and no Transfer-Encoding")
        if not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) <= 20):
            raise HttpError(HTTPStatus.BAD_REQUEST, "Content-Length is not a number")
        length = int(lengths[0])
        most = self.server.max_request_bytes
        if length > most:
            raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {most} bytes; send fewer requests at a time")
        self._body_taken = True
        body = self.rfile.read(length)
        if len(body) < length:
            raise HttpError(HTTPStatus.BAD_REQUEST, "the body is shorter than Content-Length")
        self.server.has_read(self.connection)
        return body

    def _discard_body(self) -> None:
        """Read what a refused client still sends: closing before would reset the connection under our answer."""
        self.connection.shutdown(socket.SHUT_WR)
        length = self.headers.get("Content-Length") or ""
        left = (
            min(int(length), self.server.max_request_bytes)
            if length.isascii() and length.isdigit() and len(length) < 20
            else 0
        )
        while left > 0 and (chunk := self.rfile.read1(min(left, 2**16))):
            left -= len(chunk)

    @staticmethod
    def _requests(body: bytes) -> list[Any]:
        try:
            message = json.loads(body.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"the body is not JSON in UTF-8: {error}") from error
        if not isinstance(message, dict) or set(message) != {"requests"} or not isinstance(message["requests"], list):
            raise HttpError(HTTPStatus.BAD_REQUEST, 'the body must be {"requests": [...]}')
        return message["requests"]

    def _answer(self, make: Any) -> None:
        try:
            status, message = HTTPStatus.OK, make()
        except HttpError as error:
            status, message = error.status, {"error": str(error)}
        # The client must get an answer that it can tell from a verdict, whatever our bug is.
        except Exception as error:  # noqa: BLE001
            status, message = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{type(error).__name__}: {error}"}
        self._send(status, message)
        if not self._body_taken:
            self._discard_body()

    def _send(self, status: HTTPStatus, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What `http.server` finds wrong by itself (request line, headers, method), in our form."""
        self.close_connection = True
        if not hasattr(self, "request_version") or self.request_version == "HTTP/0.9":
            self.request_version = "HTTP/1.1"
        status = HTTPStatus(code)
        self._send(status, {"error": message or status.phrase})

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: a line per request would drown the trainer's log."""


def _host_of(header: str) -> str:
    """The name in a Host header, without the port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
