"""A chat server that misbehaves as it is told, run as a process of its own: `python judge_server.py [DIE_AFTER]`.

It writes its port to standard output. What it does with a request is the first word of the last message; GET /log tells
what it was asked. With DIE_AFTER it dies, without a word, when it is asked for the DIE_AFTER + 1st time.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HUGE_BYTES = 400 * 2**20
LOCK = threading.Lock()
TIMES: dict[str, list[float]] = defaultdict(list)
LOG: dict = {"calls": 0, "in_flight": 0, "max_in_flight": 0, "huge_bytes_sent": 0, "authorization": None, "bodies": []}


def completion(text: str | None, finish: str = "stop", usage: object = (10, 5), **message: object) -> bytes:
    reply: dict = {"choices": [{"message": {"role": "assistant", "content": text} | message, "finish_reason": finish}]}
    if isinstance(usage, tuple):
        reply["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    elif usage is not None:
        reply["usage"] = usage
    return json.dumps(reply).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    die_after: int | None = None

    def do_GET(self) -> None:
        with LOCK:
            body = json.dumps(LOG | {"times": TIMES}).encode()
        self.answer(200, body)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        with LOCK:
            LOG["calls"] += 1
            LOG["authorization"] = self.headers["Authorization"]
            LOG["bodies"] = [*LOG["bodies"][-20:], body]
            LOG["in_flight"] += 1
            LOG["max_in_flight"] = max(LOG["max_in_flight"], LOG["in_flight"])
            TIMES[content].append(time.time())
            attempt = len(TIMES[content])
            if self.die_after is not None and LOG["calls"] > self.die_after:
                os._exit(1)
        what, _, rest = content.partition(" ")
        try:
            with suppress(ConnectionError):
                getattr(self, "do_" + what)(rest, attempt)
        finally:
            with LOCK:
                LOG["in_flight"] -= 1

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    # ---- what a request can ask for ------------------------------------

    def do_say(self, rest: str, attempt: int) -> None:
        time.sleep(0.02)
        self.answer(200, completion(rest))

    def do_draft(self, rest: str, attempt: int) -> None:
        self.answer(200, completion(rest if attempt > 1 else "I cannot make up my mind."))

    def do_usage(self, rest: str, attempt: int) -> None:
        self.answer(200, completion("Yes", usage=json.loads(rest)))

    def do_fail(self, rest: str, attempt: int) -> None:
        """fail CODE TIMES RETRY_AFTER TEXT; - is no header, _ a space in it."""
        code, times, retry_after, text = rest.split(" ", 3)
        if attempt > int(times):
            self.answer(200, completion(text))
        elif retry_after == "-":
            self.answer(int(code), b'{"error": "Final Judgment: Yes"}')
        else:
            self.answer(int(code), b"slow down", Retry_After=retry_after.replace("_", " "))

    def do_sleep(self, rest: str, attempt: int) -> None:
        time.sleep(float(rest))
        self.answer(200, completion("Final Judgment: Yes"))

    def do_drip(self, rest: str, attempt: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        for _ in range(200):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.05)

    def do_raw(self, rest: str, attempt: int) -> None:
        self.answer(200, rest.encode())

    def do_content(self, rest: str, attempt: int) -> None:
        """content FINISH JSON: a message with exactly this."""
        finish, _, message = rest.partition(" ")
        self.answer(200, completion(None, finish, **json.loads(message)))

    def do_huge(self, rest: str, attempt: int) -> None:
        self.send_response(int(rest))
        self.send_header("Content-Length", str(HUGE_BYTES))
        self.end_headers()
        chunk = b"Yes " * 2**14
        for _ in range(HUGE_BYTES // len(chunk)):
            self.wfile.write(chunk)
            with LOCK:
                LOG["huge_bytes_sent"] += len(chunk)

    def do_reset(self, rest: str, attempt: int) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def do_half(self, rest: str, attempt: int) -> None:
        body = completion("Final Judgment: Yes")
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:-5])
        self.close_connection = True

    def do_echo(self, rest: str, attempt: int) -> None:
        sent = str(self.headers["Authorization"])
        self.answer(int(rest), completion(sent) if rest == "200" else sent.encode())

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    Handler.die_after = int(sys.argv[1]) if len(sys.argv) > 1 else None
    server = Server(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever(0.05)
