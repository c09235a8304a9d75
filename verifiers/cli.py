"""The commands `assay verify`, `assay serve-verifier` and `assay serve-sandbox`: verifiers from the shell, for files
and over HTTP.

The form of the files is a contract with other programs: docs/verify-command.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import ssl
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from verifiers.errors import ConfigError, RunError, VerifierError
from verifiers.rows import MAX_ROW_BYTES, Row, parse_line, request_reader, result_of, stream_surely
from verifiers.runner import Runner
from verifiers.verdict import VerifyRequest

BATCH_ROWS = 256
BATCH_BYTES = 8 * 2**20
FLUSH_S = 1.0
INTERRUPTED = 130
NOT_JUDGED = 1


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `verify` and `serve-verifier` to a command line; each sets `command`, a function of the parsed arguments."""
    text = "Grade one response, or a file of responses, with a rule verifier."
    verify = commands.add_parser("verify", help=text, description=text)
    verify.set_defaults(command=run_verify, takes_overrides=False)
    _add_runner_arguments(verify)
    verify.add_argument("response", metavar="RESPONSE", nargs="?", help="one response to grade; '-' reads stdin")
    gold = verify.add_mutually_exclusive_group()
    gold.add_argument("--gold", metavar="TEXT", help="the gold answer for RESPONSE, as text")
    gold.add_argument("--gold-json", metavar="JSON", help="the gold answer for RESPONSE, as a JSON value")
    verify.add_argument("--meta", metavar="JSON", default="{}", help="the example's meta data for RESPONSE")
    verify.add_argument("--jsonl", metavar="IN", help="file with one object a line: id, response, gold; '-' is stdin")
    verify.add_argument("--out", metavar="OUT", help="where to write one verdict a line; '-' is stdout")
    verify.add_argument("--verbose", action="store_true", help="write answer, evidence and parts to OUT as well")

    text = "Judge responses over HTTP, for trainers in other processes."
    serve = commands.add_parser("serve-verifier", help=text, description=text)
    serve.set_defaults(command=run_serve, takes_overrides=False)
    _add_runner_arguments(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    serve.add_argument("--port", type=int, default=8300, help="port to listen on; 0 picks a free one")
    serve.add_argument("--token-env", metavar="NAME", help="environment variable with the token that clients must send")
    _add_serve_sandbox(commands)


def _add_serve_sandbox(commands: argparse._SubParsersAction[Any]) -> None:
    text = "Run model-written programs in a sandbox here, for trainers on other machines."
    serve = commands.add_parser("serve-sandbox", help=text, description=text)
    serve.set_defaults(command=run_serve_sandbox, takes_overrides=False)
    add = serve.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    add("--port", type=int, default=8301, help="port to listen on; 0 picks a free one")
    add("--secret-env", metavar="NAME", default="ASSAY_SANDBOX_SECRET",
        help="environment variable with the secret that trainers must know (default: %(default)s)")  # fmt: skip
    add("--tls-cert", metavar="FILE", help="certificate (PEM), for https")
    add("--tls-key", metavar="FILE", help="its private key (PEM), if it is not in the same file")
    add("--workers", metavar="N", type=int, default=os.cpu_count() or 1, help="programs at one time (default: cores)")
    add("--packages", metavar="A,B", default="numpy", help="what programs may import besides the standard library")
    add("--isolation", choices=["auto", "namespaces", "landlock", "unsafe"], default="auto", help="see docs/sandbox.md")
    add("--max-request-mb", metavar="MIB", type=int, default=64, help="largest request that is read (default: 64)")


def _add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="KIND", help="a verifier, e.g. math, exact, choice, or package.module:Class")
    parser.add_argument("--option", metavar="KEY=VALUE", action="append", default=[],
                        help="an option of the kind; JSON where it can be read as JSON, else text")  # fmt: skip
    parser.add_argument("--timeout-s", metavar="S", type=float, default=5.0, help="time limit of one judgement")
    parser.add_argument("--memory-mb", metavar="MIB", type=int, default=1024, help="memory limit of one judgement")
    parser.add_argument("--workers", metavar="N", type=int, default=2, help="worker processes, for isolated kinds")


def run_verify(parsed: argparse.Namespace) -> int:
    """Grade one response or a file. 0: judged, or every line got a line; 1: the one response could not be judged."""
    if (parsed.response is None) == (parsed.jsonl is None):
        raise ConfigError("Give either a RESPONSE with --gold, or --jsonl IN with --out OUT.")
    if parsed.jsonl is None:
        return _verify_one(parsed)
    if parsed.out is None or parsed.gold is not None or parsed.gold_json is not None:
        raise ConfigError("--jsonl IN goes with --out OUT; the gold answers are in the file.")
    return _verify_file(parsed)


def run_serve(parsed: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from verifiers.adapters.serve import VerifierServer

    token = None
    if parsed.token_env is not None:
        token = os.environ.get(parsed.token_env, "").strip()
        if not token:
            raise ConfigError(f"The environment variable {parsed.token_env} holds no token.", where="--token-env")
    with ExitStack() as stack:
        runner = stack.enter_context(_runner(parsed))
        server = VerifierServer(runner, request_reader(parsed.kind), host=parsed.host, port=parsed.port, token=token)
        stack.enter_context(server)
        _wait_for_the_end(f"verifier '{parsed.kind}' listens on {server.url}")
    sys.stdout.write("stopped\n")
    return 0


def run_serve_sandbox(parsed: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from verifiers.adapters.serve import VerifierServer
    from verifiers.code.sandbox import Sandbox
    from verifiers.code.servers import secret_of
    from verifiers.code.service import SandboxService, request_of

    _require_positive({"--workers": parsed.workers, "--max-request-mb": parsed.max_request_mb})
    secret = secret_of(parsed.secret_env, "--secret-env")
    tls = _tls(parsed.tls_cert, parsed.tls_key)
    packages = [name.strip() for name in parsed.packages.split(",") if name.strip()]
    with ExitStack() as stack:
        sandbox = Sandbox(workers=parsed.workers, packages=packages, isolation=parsed.isolation, key="serve-sandbox")
        stack.callback(sandbox.close)
        service = SandboxService(sandbox, packages)
        server = VerifierServer(service, request_of, host=parsed.host, port=parsed.port, token=secret, tls=tls,
                                max_request_bytes=parsed.max_request_mb << 20, info=service.info())  # fmt: skip
        stack.enter_context(server)
        _wait_for_the_end(f"sandbox in tier {sandbox.tier}, {parsed.workers} workers, listens on {server.url}")
    sys.stdout.write("stopped\n")
    return 0


def _wait_for_the_end(greeting: str) -> None:
    """Until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    sys.stdout.write(f"{greeting}\n")
    sys.stdout.flush()
    stop.wait()


def _tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        if key is not None:
            raise ConfigError("--tls-key goes with --tls-cert.", where="--tls-key")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise ConfigError(
            f"The certificate or its key cannot be used: {error}.", where="--tls-cert, --tls-key"
        ) from error
    return context


def _runner(parsed: argparse.Namespace) -> Runner:
    _require_positive({"--timeout-s": parsed.timeout_s, "--memory-mb": parsed.memory_mb, "--workers": parsed.workers})
    return Runner(parsed.kind, key_values(parsed.option), timeout_s=parsed.timeout_s, memory_mb=parsed.memory_mb,
                  workers=parsed.workers, key="--option")  # fmt: skip


def _require_positive(values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name} must be positive, not {value}.", where=name)


def key_values(words: Sequence[str], where: str = "--option") -> dict[str, Any]:
    """KEY=VALUE words as a mapping; values are JSON where they can be read as JSON. Raises `ConfigError` naming
    `where`."""
    options: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key or key in options:
            raise ConfigError(f"{where} {word!r} is not KEY=VALUE with a key of its own.", where=where)
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    return options


def _verify_one(parsed: argparse.Namespace) -> int:
    if parsed.gold is None and parsed.gold_json is None:
        raise ConfigError("--gold is missing: there is nothing to compare the response with.", where="--gold")
    if parsed.out is not None:
        raise ConfigError("--out is for --jsonl; one verdict is printed.", where="--out")
    gold = parsed.gold if parsed.gold is not None else _json_argument("--gold-json", parsed.gold_json)
    meta = _json_argument("--meta", parsed.meta)
    if not isinstance(meta, dict):
        raise ConfigError("--meta must be a JSON object.", where="--meta")
    response = parsed.response
    if response == "-":
        response = sys.stdin.buffer.read(MAX_ROW_BYTES).decode("utf-8", errors="replace")
    request = VerifyRequest(response, gold, meta, example_id="command line")
    with _runner(parsed) as runner:
        (verdict,) = runner.verify([request])
        rows = runner.explain(request)
    shown = {"status": str(verdict.status), "score": "none" if verdict.score is None else f"{verdict.score:g}",
             "ms": f"{verdict.milliseconds:.1f}"}  # fmt: skip
    shown |= {f"part {name}": str(score) for name, score in verdict.parts.items()}
    shown |= {name: text for name, text in rows.items() if name not in shown}
    shown.setdefault("evidence", verdict.evidence)
    width = max(len(name) for name in shown)
    for name, text in shown.items():
        line = f"{name:<{width}}  {text}\n"
        sys.stdout.write(line.encode("utf-8", errors="backslashreplace").decode("utf-8"))
    return NOT_JUDGED if verdict.is_fault else 0


def _json_argument(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name} is not JSON: {error}.", where=name) from error


def _verify_file(parsed: argparse.Namespace) -> int:
    read = request_reader(parsed.kind)
    counts: Counter[str] = Counter()
    errors: list[VerifierError] = []
    told, flushed = False, time.monotonic()
    try:
        with (
            _sigterm_interrupts(),
            _runner(parsed) as runner,
            _source(parsed.jsonl) as source,
            _sink(parsed.jsonl, parsed.out) as sink,
        ):
            for lines in _batches(source):
                rows: list[Row] = [parse_line(line, read) for line in lines]
                for row, verdict in zip(rows, stream_surely(runner, rows, errors.append), strict=True):
                    result = result_of(row.id, verdict, verbose=parsed.verbose)
                    sink.write(json.dumps(result).encode() + b"\n")
                    counts[result["status"]] += 1
                    if time.monotonic() - flushed > FLUSH_S:
                        sink.flush()
                        flushed = time.monotonic()
                sink.flush()
                if errors and not told:
                    sys.stderr.write(f"{errors[0]}\n")
                    told = True
    except KeyboardInterrupt:
        place = parsed.out if parsed.out == "-" or not _replaces(parsed.out) else _partial(parsed.out)
        sys.stderr.write(f"interrupted: the first {counts.total()} verdicts are in {place}\n")
        return INTERRUPTED
    except OSError as error:
        raise RunError(
            f"Reading or writing failed after {counts.total()} verdicts: {error}.",
            where=f"--jsonl {parsed.jsonl} --out {parsed.out}",
        ) from error
    by_status = ", ".join(f"{status} {count}" for status, count in sorted(counts.items()))
    sys.stderr.write(f"{counts.total()} lines: {by_status or 'none'}\n")
    return 0


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM as Ctrl-C: KeyboardInterrupt, so that the workers are ended and the user is told what is done."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _batches(source: BinaryIO) -> Iterator[list[bytes | None]]:
    """The lines in batches, None for one that is too long, which is skipped without holding it."""
    batch: list[bytes | None] = []
    size, first = 0, True
    while line := source.readline(MAX_ROW_BYTES + 1):
        too_long = len(line) > MAX_ROW_BYTES
        while too_long and line and not line.endswith(b"\n"):
            line = source.readline(2**16)
        batch.append(None if too_long else line.removeprefix(b"\xef\xbb\xbf") if first else line)
        size, first = size + len(line), False
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@contextmanager
def _source(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.", where="--jsonl") from error
    with file:
        yield file


@contextmanager
def _sink(source: str, path: str) -> Iterator[BinaryIO]:
    """OUT, written beside itself and renamed when complete; a pipe or device is written directly."""
    if path == "-":
        yield sys.stdout.buffer
        return
    if source != "-" and os.path.exists(path) and os.path.samefile(source, path):
        raise ConfigError(f"{path} cannot be both read and written.", where="--out")
    written = _partial(path) if _replaces(path) else Path(path)
    try:
        file = open(written, "wb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise ConfigError(f"Cannot write {written}: {error.strerror}.", where="--out") from error
    with file:
        yield file
    if _replaces(path):
        os.replace(written, path)


def _partial(path: str) -> Path:
    return Path(f"{path}.partial")


def _replaces(path: str) -> bool:
    """Whether OUT is a regular file, or will be one."""
    return not os.path.exists(path) or stat.S_ISREG(os.stat(path).st_mode)
