"""`RemoteRunner`: a `Runner` at the other end of a connection."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from verifiers import ConfigError, Runner, Status, VerifierError, VerifyRequest
from verifiers.adapters import remote
from verifiers.adapters.remote import RemoteRunner
from verifiers.adapters.serve import VerifierServer
from verifiers.rows import request_of


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "_BACKOFF_S", 0.01)


@pytest.fixture
def answers():
    """A server that gives the listed answers, (status, body) or None for none at all, and counts requests."""

    class Handler(BaseHTTPRequestHandler):
        listed, seen = [], 0

        def do_POST(self):
            Handler.seen += 1
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = Handler.listed[min(Handler.seen, len(Handler.listed)) - 1]
            if answer is None:
                self.connection.close()
                return
            status, reply = answer
            reply = reply(json.loads(body)) if callable(reply) else reply
            self.send_response(status)
            self.end_headers()
            self.wfile.write(reply if isinstance(reply, bytes) else json.dumps(reply).encode())

        def log_message(self, *_):
            pass

    class Quiet(HTTPServer):
        def handle_error(self, *_):
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    Handler.url = f"http://127.0.0.1:{server.server_port}"
    yield Handler
    server.shutdown()
    thread.join()
    server.server_close()


def right(message):
    return {"verdicts": [{"id": r["id"], "score": 1.0, "status": "correct", "ms": 1} for r in message["requests"]]}


def requests(count=3):
    return [VerifyRequest(f"\\boxed{{{i}}}", "1", {"n": i}, f"example {i}") for i in range(count)]


@pytest.mark.parametrize("kind", ["exact", "format"])
def test_the_verdicts_are_those_of_the_runner(kind):
    asked = [*requests(), VerifyRequest("x", None), VerifyRequest("\ud800", "\ud800"), VerifyRequest("", "é")]
    with Runner(kind, {}) as runner, VerifierServer(runner, request_of, token="t") as server:
        here, there = runner.verify(asked), RemoteRunner(server.url, token="t").verify(asked)
        assert RemoteRunner(server.url, token="t").verify([]) == []
    for mine, theirs in zip(here, there, strict=True):
        assert (mine.score, mine.status, mine.answer, mine.evidence, dict(mine.parts)) == (
            theirs.score, theirs.status, theirs.answer, theirs.evidence, dict(theirs.parts))  # fmt: skip


def test_many_requests_go_in_several_exchanges(answers):
    answers.listed = [(200, right)]
    assert len(RemoteRunner(answers.url).verify(requests(2 * remote.MAX_CHUNK_REQUESTS + 1))) == 513
    assert answers.seen == 3
    large = VerifyRequest("x" * remote.MAX_CHUNK_BYTES, "1")
    assert len(RemoteRunner(answers.url).verify([large, large])) == 2
    assert answers.seen == 5


def test_a_passing_fault_is_tried_again(answers):
    answers.listed = [None, (503, b"later"), (200, right)]
    assert [v.score for v in RemoteRunner(answers.url).verify(requests())] == [1.0] * 3
    assert answers.seen == 3


@pytest.mark.parametrize(
    "answer",
    [
        None, (503, b"no"), (500, b"no"), (400, b"no"), (413, b"no"), (302, b""), (200, b"<html>"), (200, []),
        (200, {}),
        (200, {"verdicts": []}), (200, lambda m: {"verdicts": right(m)["verdicts"][::-1]}),
        (200, lambda m: {"verdicts": [v | {"score": 2} for v in right(m)["verdicts"]]}),
        (200, lambda m: {"verdicts": [v | {"score": True} for v in right(m)["verdicts"]]}),
        (200, lambda m: {"verdicts": [v | {"score": None} for v in right(m)["verdicts"]]}),
        (200, lambda m: {"verdicts": [v | {"status": "fine"} for v in right(m)["verdicts"]]}),
        (200, lambda m: {"verdicts": [v | {"status": "verifier_fault"} for v in right(m)["verdicts"]]}),
        (200, lambda m: b"[" * 100_000),
    ],
)  # fmt: skip
def test_whatever_comes_back_a_fault_has_no_score(answers, answer):
    answers.listed = [answer]
    verdicts = RemoteRunner(answers.url).verify(requests())
    assert [(v.score, v.status) for v in verdicts] == [(None, Status.VERIFIER_FAULT)] * 3
    assert answers.url in verdicts[0].evidence


def test_a_server_that_is_not_there_is_a_fault_without_a_score():
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as free:
        port = free.server_port
    (verdict,) = RemoteRunner(f"http://127.0.0.1:{port}").verify(requests(1))
    assert (verdict.score, verdict.status) == (None, Status.VERIFIER_FAULT)


def test_a_server_that_does_not_answer_in_time_is_a_fault_without_a_score():
    with Runner("hostile_kinds:InProcess", {}) as runner, VerifierServer(runner, request_of) as server:
        (verdict,) = RemoteRunner(server.url, timeout_s=0.1).verify([VerifyRequest("sleep 0.5", "")])
    assert (verdict.score, verdict.status) == (None, Status.VERIFIER_FAULT)


def test_a_wrong_token_is_an_error_that_says_so():
    with Runner("exact", {}) as runner, VerifierServer(runner, request_of, token="right") as server:
        for token in (None, "wrong"):
            with pytest.raises(VerifierError, match="token"):
                RemoteRunner(server.url, token=token).verify(requests())


def test_a_gold_that_is_not_json_is_a_bad_gold_and_the_others_are_judged(answers):
    answers.listed = [(200, right)]
    asked = [VerifyRequest("a", object()), *requests(1), VerifyRequest("a", "1", {"x": {1}})]
    assert [v.status for v in RemoteRunner(answers.url).verify(asked)] == ["bad_gold", "correct", "bad_gold"]


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80", "ftp://x", "http://", "http://x:y", "http://x:99999", "http://u@x"]
)
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ConfigError):
        RemoteRunner(url)
