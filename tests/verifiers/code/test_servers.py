"""Programs judged on sandbox servers: the same verdicts, no caller without the secret, and a dead server is no 0."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainer.cli import main
from verifiers import ConfigError, Runner, Status, VerifierError, VerifyRequest
from verifiers.adapters.remote import RemoteRunner
from verifiers.adapters.serve import VerifierServer
from verifiers.code import servers
from verifiers.code.judging import IS_PROGRAM
from verifiers.code.sandbox import Sandbox
from verifiers.code.service import SandboxService, request_of
from verifiers.code.verifier import CodeVerifier
from verifiers.rows import request_of as plain_request_of

SECRET = "a-secret-of-this-test"
ECHO = {"type": "stdin_stdout", "inputs": ["7"], "outputs": ["7"]}
F = {"type": "functional", "fn_name": "f", "inputs": [[1], [2], [3], [4]], "outputs": [1, 4, 9, 16]}
RIGHT = "print(input())"


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("ASSAY_SANDBOX_SECRET", SECRET)
    monkeypatch.setattr(servers, "_DOWN_S", 0.3)
    monkeypatch.setattr(servers, "PATIENCE_S", 1.0)


@pytest.fixture(scope="module")
def service(tier):
    sandbox = Sandbox(isolation=tier, workers=2, packages=())
    yield SandboxService(sandbox, ())
    sandbox.close()


@contextmanager
def serving(service, **more):
    with VerifierServer(service, request_of, token=SECRET, info=service.info(), **more) as server:
        yield server


@pytest.fixture(scope="module")
def server(service):
    with serving(service, max_request_bytes=100_000) as server:
        yield server


def trainer(*urls, timeout_s=1.0, **options):
    return CodeVerifier(CodeVerifier.Options(packages=[], servers=list(urls), **options), timeout_s=timeout_s)


def closed_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


CASES = [
    (RIGHT, ECHO),
    ("print(8)", ECHO),
    ("```python\nprint(input())\n```", ECHO),
    ("", ECHO),
    ("while True: pass", ECHO),
    ("1 / 0", ECHO),
    ("def f(x): return x * x if x < 4 else 0", F),
    (RIGHT, {"type": "riddle"}),
]


@pytest.mark.parametrize("credit", ["all_or_nothing", "share"])
def test_a_server_judges_as_the_machine_itself_does(server, tier, credit):
    requests = [VerifyRequest(program, gold) for program, gold in CASES]
    requests.append(VerifyRequest("s = '```python'\nprint(input())", ECHO, {IS_PROGRAM: True}))
    local = CodeVerifier(CodeVerifier.Options(packages=[], isolation=tier, credit=credit), timeout_s=1.0)
    expected = local.verify_many(requests)
    local.close()
    remote = trainer(server.url, credit=credit)
    found = remote.verify_many(requests)
    assert [(v.score, v.status, v.evidence) for v in found] == [(v.score, v.status, v.evidence) for v in expected]
    remote.close()


def test_verdicts_stream_back_as_they_are_found(server):
    slow = VerifyRequest("import time\ntime.sleep(2)\nprint(input())", ECHO)
    with Runner("code", {"servers": [server.url], "packages": []}, timeout_s=1.0) as runner:
        order = [index for index, _ in runner.stream([slow, VerifyRequest(RIGHT, ECHO), VerifyRequest(RIGHT, ECHO)])]
    assert order[-1] == 0


def test_a_batch_ends_at_its_deadline(server):
    remote = trainer(server.url, batch_timeout_s=1.0, timeout_s=5.0)
    requests = [VerifyRequest("import time\ntime.sleep(8)", ECHO)] * 5
    started = time.monotonic()
    assert {(v.status, v.score) for v in remote.verify_many(requests)} == {(Status.TIMEOUT, None)}
    assert time.monotonic() - started < 4.0


# --- who may ask, and for what


def ask(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": SECRET[:-1]}])
def test_without_the_secret_nothing_is_told_and_nothing_run(server, header):
    for method, path, body in (("GET", "/health", None), ("POST", "/verify", b'{"requests": []}')):
        status, reply = ask(server, method, path, body, **header)
        assert (status, list(reply)) == (401, ["error"])


def test_requests_have_a_size_limit_and_one_that_exceeds_it_is_a_fault(server):
    body = b" " * 100_001
    assert ask(server, "POST", "/verify", body, Authorization=f"Bearer {SECRET}")[0] == 413
    remote = trainer(server.url)
    verdicts = remote.verify_many([VerifyRequest("#" * 100_000, ECHO), VerifyRequest(RIGHT, ECHO)])
    assert [(v.status, v.score) for v in verdicts] == [(Status.VERIFIER_FAULT, None), (Status.CORRECT, 1.0)]
    assert "413" in verdicts[0].evidence


@pytest.mark.parametrize("meta", [None, {}, {"run": 1}, {"run": {}}, {"run": {"timeout_s": 1, "credit": "all"}}])
def test_a_row_that_does_not_say_how_to_judge_is_a_fault(server, meta):
    body = json.dumps({"requests": [{"id": 1, "response": RIGHT, "gold": ECHO, "meta": meta}]})
    status, reply = ask(server, "POST", "/verify", body, Authorization=f"Bearer {SECRET}")
    assert status == 200
    assert (reply["verdicts"][0]["status"], reply["verdicts"][0]["score"]) == ("verifier_fault", None)


def test_a_missing_short_or_wrong_secret_is_an_error_at_the_start(server, monkeypatch):
    monkeypatch.setenv("ASSAY_SANDBOX_SECRET", "wrong-but-long-enough")
    with pytest.raises(VerifierError, match="401"):
        trainer(server.url)
    for secret in ("", "short"):
        monkeypatch.setenv("ASSAY_SANDBOX_SECRET", secret)
        with pytest.raises(ConfigError, match="holds no secret"):
            trainer(server.url)
        assert main(["serve-sandbox", "--port", "0"]) == 2


def test_a_server_that_is_not_fit_is_refused(server, service, tier, monkeypatch):
    with pytest.raises(VerifierError, match="cannot import numpy"):
        CodeVerifier(CodeVerifier.Options(servers=[server.url], packages=["numpy"]))
    other = {"namespaces": "landlock", "landlock": "namespaces"}[tier]
    with pytest.raises(VerifierError, match=f"its tier is {tier}"):
        trainer(server.url, isolation=other)
    unsafe = {**service.info(), "tier": "unsafe"}
    with (
        VerifierServer(service, request_of, token=SECRET, info=unsafe) as server,
        pytest.raises(VerifierError) as caught,
    ):
        trainer(server.url)
    assert "its tier is unsafe" in str(caught.value)
    with (
        Runner("exact", {}) as runner,
        VerifierServer(runner, plain_request_of, token=SECRET) as server,
        pytest.raises(VerifierError, match="no sandbox server"),
    ):
        trainer(server.url)


# --- servers that die


def test_one_dead_server_of_two_costs_retries_only(server):
    remote = trainer(closed_port(), server.url)
    time.sleep(0.4)  # it is asked again
    assert [v.score for v in remote.verify_many([VerifyRequest(RIGHT, ECHO)] * 12)] == [1.0] * 12
    assert remote._servers.counters["retries"] >= 1
    assert remote._servers.counters["faults"] == 0


def test_no_server_at_all_is_an_error_at_the_start():
    with pytest.raises(VerifierError, match="No sandbox server answers"):
        trainer(closed_port(), closed_port())


@contextmanager
def served_elsewhere(tier, *arguments):
    """`assay serve-sandbox` as a process: (process, url)."""
    command = [
        sys.executable,
        "-m",
        "trainer.cli",
        "serve-sandbox",
        "--port",
        "0",
        "--isolation",
        tier,
        "--packages",
        "",
    ]
    process = subprocess.Popen(
        [*command, "--workers", "1", *arguments], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().split()[-1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_server_killed_in_mid_batch_costs_no_verdict_while_another_lives(server, tier):
    slowly = "import time\ntime.sleep(0.3)\nprint(input())"
    with served_elsewhere(tier) as (process, url):
        remote = trainer(url, server.url)
        wait = remote.submit([VerifyRequest(slowly, ECHO)] * 16)
        time.sleep(0.5)
        process.kill()
        assert [(v.status, v.score) for v in wait()] == [(Status.CORRECT, 1.0)] * 16
    assert remote._servers.counters["retries"] >= 1


def test_the_last_server_killed_in_mid_batch_is_a_fault_and_never_a_0(tier):
    with served_elsewhere(tier) as (process, url):
        remote = trainer(url)
        assert remote.verify_many([VerifyRequest(RIGHT, ECHO)])[0].score == 1.0
        wait = remote.submit([VerifyRequest("import time\ntime.sleep(1)\nprint(input())", ECHO)] * 6)
        time.sleep(0.3)
        process.kill()
        verdicts = wait()
    assert {(v.status, v.score) for v in verdicts} <= {(Status.VERIFIER_FAULT, None), (Status.CORRECT, 1.0)}
    assert [v.score for v in verdicts].count(None) >= 5
    assert remote._servers.counters["faults"] >= 5


def test_a_server_that_was_told_to_stop_finishes_and_leaves_nothing(tier):
    with served_elsewhere(tier) as (process, url):
        remote = trainer(url)
        assert remote.verify_many([VerifyRequest(RIGHT, ECHO)])[0].score == 1.0
        process.terminate()
        assert process.wait(timeout=15) == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
def test_over_tls_only_a_trusted_certificate_will_do(tier, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=sandbox",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)  # fmt: skip
    with served_elsewhere(tier, "--tls-cert", str(certificate), "--tls-key", str(key)) as (_, url):
        assert url.startswith("https://")
        remote = trainer(url, servers_ca=str(certificate))
        assert remote.verify_many([VerifyRequest(RIGHT, ECHO)] * 3)[2].score == 1.0
        with pytest.raises(VerifierError, match="CERTIFICATE_VERIFY_FAILED"):
            trainer(url)
        with pytest.raises(VerifierError, match="No sandbox server answers"):
            trainer(url.replace("https", "http"))
    with pytest.raises(ConfigError, match="cannot be read"):
        RemoteRunner("https://127.0.0.1", ca_file=str(tmp_path / "none"))
    for files in (["--tls-key", str(key)], ["--tls-cert", str(Path(__file__))]):
        assert main(["serve-sandbox", "--port", "0", *files]) == 2
