"""`assay serve-verifier`: what it answers, and what it does not put up with."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from trainer.cli import main
from verifiers import ConfigError, Runner
from verifiers.adapters import serve
from verifiers.adapters.serve import VerifierServer
from verifiers.rows import request_of

HERE = Path(__file__).parent
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server():
    with Runner("exact", {}) as runner, VerifierServer(runner, request_of, client_timeout_s=1.0) as server:
        yield server


@pytest.fixture(scope="module")
def guarded():
    with Runner("exact", {}) as runner, VerifierServer(runner, request_of, token="s3cret") as server:
        yield server


def ask(server, method, path, body=None, headers=JSON):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    try:
        with suppress(BrokenPipeError, ConnectionResetError):  # it may answer and close before it has read all
            connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def raw(server, sent: bytes) -> bytes:
    """What comes back for these bytes, until the server closes the connection."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def request(row_id="a", response=r"\boxed{1}", gold="1", **more):
    return {"id": row_id, "response": response, "gold": gold, **more}


def test_each_request_has_its_verdict_in_order(server):
    rows = [request("a"), request("a", "2"), request(7, "", 1), request(gold=None), {"id": "x"}, 5, request(meta=[])]
    status, reply = ask(server, "POST", "/verify", json.dumps({"requests": rows}))
    assert status == 200
    assert [(v["id"], v["score"], v["status"]) for v in reply["verdicts"]] == [
        ("a", 1.0, "correct"), ("a", 0.0, "wrong"), (7, 0.0, "no_answer"), ("a", None, "bad_gold"),
        ("x", None, "verifier_fault"), (None, None, "verifier_fault"), ("a", None, "bad_gold")]  # fmt: skip
    assert set(reply["verdicts"][0]) == {"id", "score", "status", "ms", "answer", "evidence", "parts"}
    assert ask(server, "POST", "/verify", b'{"requests": []}') == (200, {"verdicts": []})
    assert ask(server, "GET", "/health") == (200, {"status": "ok", "kind": "exact"})


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", JSON, 400),
        (b"\xff", JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b"[]", JSON, 400),
        (b'{"requests": {}}', JSON, 400),
        (b'{"requests": [], "more": 1}', JSON, 400),
        (b'{"requests": []}', {"Content-Type": "text/plain"}, 415),
        (b'{"requests": []}', {}, 415),
        (b"", JSON | {"Content-Length": str(10**12)}, 413),
        (b"", JSON | {"Content-Length": "-1"}, 400),
        (b"", JSON | {"Content-Length": "1_0"}, 400),
        (iter([b'{"requests": []}']), JSON, 411),
        (b'{"requests": []}', JSON | {"Host": "evil.example"}, 403),
    ],
)
def test_a_request_that_is_not_as_agreed_has_an_error_that_says_so(server, body, headers, status):
    answered, reply = ask(server, "POST", "/verify", body, headers)
    assert answered == status
    assert list(reply) == ["error"]
    assert ask(server, "GET", "/health")[0] == 200


def test_other_paths_and_methods_do_not_exist(server):
    assert ask(server, "GET", "/verify")[0] == ask(server, "POST", "/health")[0] == 404
    assert ask(server, "PUT", "/verify")[0] == 501
    assert raw(server, b"nonsense\r\n\r\n").split()[1] == b"400"


def test_a_large_body_of_a_refused_client_still_gets_its_answer(guarded):
    body = b'{"requests": ["' + b"x" * 4_000_000 + b'"]}'
    assert ask(guarded, "POST", "/verify", body)[0] == 401


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer no"}, {"Authorization": "Bearer "}, {"Authorization": "Bearer s3cret\xff"}],
)
def test_the_token_is_needed(guarded, headers):
    assert ask(guarded, "POST", "/verify", b'{"requests": []}', JSON | headers)[0] == 401
    right = JSON | {"Authorization": "Bearer s3cret", "Host": "proxy.example"}
    assert ask(guarded, "POST", "/verify", b'{"requests": []}', right)[0] == 200


@pytest.mark.parametrize("sent", [b"", b"POST /ver", b"POST /verify HTTP/1.1\r\nContent-Length: 9\r\n"
                                  b"Host: 127.0.0.1\r\nContent-Type: application/json\r\n\r\n{"])  # fmt: skip
def test_a_client_that_stops_sending_is_cut_off(server, sent):
    started = time.monotonic()
    assert b"200" not in raw(server, sent)
    assert 0.5 < time.monotonic() - started < 3


def test_a_client_that_sends_a_byte_now_and_then_is_cut_off(server):
    host, _, port = server.url.removeprefix("http://").partition(":")
    started = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=0.1) as connection:
        cut_off = False
        while not cut_off and time.monotonic() - started < 10:
            try:
                connection.sendall(b"G")
                cut_off = connection.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                cut_off = True
    assert cut_off
    assert time.monotonic() - started < 3


def test_the_time_of_the_verifier_is_not_the_clients():
    with (
        Runner("hostile_kinds:InProcess", {}) as runner,
        VerifierServer(runner, request_of, client_timeout_s=0.3) as server,
    ):
        rows = {"requests": [request(response="sleep 0.8")]}
        assert ask(server, "POST", "/verify", json.dumps(rows))[1]["verdicts"][0]["score"] == 1.0


def test_connections_are_bounded_and_freed(server, monkeypatch):
    monkeypatch.setattr(serve, "MAX_CONNECTIONS", 4)
    host, _, port = server.url.removeprefix("http://").partition(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(4)]
    time.sleep(0.2)
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(server, "GET", "/health")
    for connection in idle:
        connection.close()
    time.sleep(0.3)
    assert ask(server, "GET", "/health")[0] == 200


def test_many_clients_at_once_each_get_their_own(server):
    failures = []

    def client(number):
        rows = [request(f"{number}-{i}", f"\\boxed{{{i % 2}}}") for i in range(20)]
        verdicts = ask(server, "POST", "/verify", json.dumps({"requests": rows}))[1]["verdicts"]
        if [(v["id"], v["score"]) for v in verdicts] != [(f"{number}-{i}", float(i % 2)) for i in range(20)]:
            failures.append(number)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_other_machines_are_let_in_with_a_token_only(capsys, monkeypatch):
    with Runner("exact", {}) as runner:
        for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
            with pytest.raises(ConfigError, match="without a token"):
                VerifierServer(runner, request_of, host=host)
        with pytest.raises(ConfigError, match="Cannot listen"):
            VerifierServer(runner, request_of, host="192.0.2.1", token="x")
        with pytest.raises(ConfigError, match="Cannot listen"):
            VerifierServer(runner, request_of, port=70_000)
    assert main(["serve-verifier", "exact", "--host", "0.0.0.0"]) == 2
    monkeypatch.setenv("EMPTY_TOKEN", " ")
    assert main(["serve-verifier", "exact", "--token-env", "EMPTY_TOKEN"]) == 2
    assert "EMPTY_TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_its_workers(number):
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", "serve-verifier", "hostile_kinds:Commanded", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE.parents[1],
        env=os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parents[1]}"},
    )  # fmt: skip
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.request("POST", "/verify", json.dumps({"requests": [request(response="pid x")]}), JSON)
    worker = int(json.loads(connection.getresponse().read())["verdicts"][0]["evidence"])
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "stopped\n", "")
    deadline = time.monotonic() + 5
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
