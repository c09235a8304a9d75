"""One run: reads its request, locks itself in, executes the program. Everything here happens in the run's own process.

The request is a header line (JSON: kind, sizes, limits) and then what the header announces. Kinds:

- ``stdin``: the program's standard input is in the request, its standard output is the answer.
- ``calls``: the program is loaded, then each line of input is a call, each line of output its result.
- ``judge``: the trusted side of tests that cannot be split. The program is the tests; what they call on the candidate
  goes out as a line and comes back as one.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import resource
import signal
import sys
import threading
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import judge
import kernel
import plain

_OUT, _IN, _NOTE = 61, 62, 63  # where the run's own descriptors stand while the program runs; 0, 1, 2 are the program's
_MAX_NOTE_CHARS = 300
_READY = b"+"
EXIT_ERROR = 1


class Request:
    """The request, read from `descriptor`; what follows it there can be read by `line`."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._buffer = b""
        self.header: dict[str, Any] = json.loads(self.line() or b"{}")
        self.source = self._exactly(self.header["source_bytes"]).decode("utf-8", "surrogatepass")
        self.stdin = self._exactly(self.header["stdin_bytes"])

    def move_to(self, descriptor: int) -> None:
        os.dup2(self._descriptor, descriptor, inheritable=False)
        self._descriptor = descriptor

    def line(self) -> bytes | None:
        """The next line without its end, None at the end of input."""
        chunks = [self._buffer]
        while b"\n" not in chunks[-1]:
            chunk = os.read(self._descriptor, 1 << 16)
            if not chunk:
                return None
            chunks.append(chunk)
        line, _, self._buffer = b"".join(chunks).partition(b"\n")
        return line

    def _exactly(self, length: int) -> bytes:
        while len(self._buffer) < length:
            chunk = os.read(self._descriptor, 1 << 20)
            if not chunk:
                raise EOFError
            self._buffer += chunk
        data, self._buffer = self._buffer[:length], self._buffer[length:]
        return data


def prepare(walls: dict[str, Any]) -> None:
    """Once in the zygote: what is the same for all runs. A page that a run need not write need not be copied."""
    os.environ["HOME"] = os.environ["TMPDIR"] = walls["home"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _make_standard_streams()
    walls["filter"] = kernel.SeccompFilter(walls["seccomp"])
    _limit(resource.RLIMIT_NOFILE, 64)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_STACK, 64 << 20)


def run(request_fd: int, out_fd: int, note_fd: int, walls: dict[str, Any]) -> None:
    """Never returns. walls: what the zygote knows about this sandbox (see `zygote.main`)."""
    request = Request(request_fd)
    header = request.header
    home_bytes = walls["home_bytes"] + len(request.stdin)
    home = _enter_private_folder(walls, home_bytes)
    for number, descriptor in ((_OUT, out_fd), (_NOTE, note_fd)):
        os.dup2(descriptor, number, inheritable=False)
    request.move_to(_IN)
    _give_standard_files(request, header["kind"])
    os.closerange(3, min(_OUT, _IN, _NOTE))
    os.closerange(max(_OUT, _IN, _NOTE) + 1, 1024)
    if header["kind"] == "stdin":
        os.close(_IN)
        os.close(_OUT)  # it has become the program's standard output
    _lock_in(header, walls, home, home_bytes)
    os.write(_NOTE, _READY)  # from here on nothing that happens is a fault of ours
    os._exit(_execute(request))


def _enter_private_folder(walls: dict[str, Any], home_bytes: int) -> str:
    home = walls["home"]
    if walls["tier"] == "namespaces":
        kernel.mount_private_tmpfs(home, home_bytes, walls["home_files"])
    else:
        kernel.die_with_parent(walls["zygote_pid"])
    os.chdir(home)
    return home


def _give_standard_files(request: Request, kind: str) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 2)
    if kind == "stdin":
        descriptor = os.open(".stdin", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        rest = memoryview(request.stdin)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.close(descriptor)
        os.dup2(os.open(".stdin", os.O_RDONLY), 0)
        os.dup2(_OUT, 1)
    else:
        os.dup2(null, 0)
        os.dup2(null, 1)


def _lock_in(header: dict[str, Any], walls: dict[str, Any], home: str, file_bytes: int) -> None:
    memory = walls["baseline_bytes"] + header["memory_bytes"]
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_CPU, header["cpu_s"])
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    if walls["tier"] == "namespaces":  # elsewhere it would count the trainer's own threads
        _limit(resource.RLIMIT_NPROC, 64)
    kernel.drop_capabilities()
    kernel.no_new_privileges()
    if walls["landlock"]:
        kernel.restrict_files(walls["read"], [home, "/dev/null"])
    if walls["seccomp"]:
        walls["filter"].install()


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def _execute(request: Request) -> int:
    """The exit code. The program has the same interpreter and may change anything of it: nothing here is evidence."""
    kind = request.header["kind"]
    stdout = sys.__stdout__
    module = types.ModuleType("__main__" if kind == "stdin" else "program")
    sys.modules[module.__name__] = module
    sys.argv = ["main.py"]
    code = 0
    try:
        if kind == "judge":
            judge.run(request.header, module.__dict__, request.line, _send)
        else:
            exec(compile(request.source, "main.py", "exec", dont_inherit=True), module.__dict__)
            if kind == "calls":
                _serve_calls(request, module.__dict__)
    except SystemExit as stop:
        code = 0 if stop.code in (None, 0) else EXIT_ERROR
        note(f"SystemExit: {stop.code!r}")
    except BaseException as error:  # noqa: BLE001 (the program's own, of any kind)
        code = EXIT_ERROR
        note(describe(error))
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, stdout):  # it may have put another in its place
            if stream is not None:
                stream.flush()
    except BaseException as error:  # noqa: BLE001
        code = EXIT_ERROR
        note(describe(error))
    return code


def _make_standard_streams() -> None:
    """As an interpreter starts with, for the descriptors that a run will have."""
    kept = [os.dup(descriptor) for descriptor in range(3)]
    reader, writer = os.pipe()
    os.dup2(writer, 1)  # as in a run: whether a stream can seek is found out when it is made

    def text(descriptor: int, mode: str, name: str) -> io.TextIOWrapper:
        raw = io.FileIO(descriptor, mode, closefd=False)
        raw.name = name  # type: ignore[misc]
        buffered = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
        stream = io.TextIOWrapper(buffered, encoding="utf-8", errors="surrogateescape")
        stream.mode = mode  # type: ignore[misc] (a well-known idiom for fast input reads it)
        return stream

    sys.stdin, sys.stdout, sys.stderr = text(0, "r", "<stdin>"), text(1, "w", "<stdout>"), text(2, "w", "<stderr>")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    for number, descriptor in enumerate(kept):
        os.dup2(descriptor, number)
    for descriptor in (*kept, reader, writer):
        os.close(descriptor)


def note(text: str) -> None:
    """A few words for a person; the parent trusts none of them."""
    os.write(_NOTE, text[:_MAX_NOTE_CHARS].encode("utf-8", "backslashreplace"))


def say_setup_failed(error: BaseException, note_fd: int) -> None:
    """Where the note goes depends on how far the set-up has come."""
    for descriptor in (note_fd, _NOTE):
        with suppress(OSError):
            os.write(descriptor, describe(error)[:_MAX_NOTE_CHARS].encode("utf-8", "replace"))


def describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 (a program's exception may raise when printed)
        return type(error).__name__


def _send(frame: str) -> None:
    rest = memoryview(frame.encode() + b"\n")
    while rest:
        rest = rest[os.write(_OUT, rest) :]


# --- the candidate's side of calls


def _serve_calls(request: Request, namespace: dict[str, Any]) -> None:
    kept: list[Any] = []

    def keep(value: Any) -> Any:
        kept.append(value)
        return {"o": len(kept) - 1}

    def resolve(key: str, content: Any) -> Any:
        return kept[content] if key == "o" else plain.TYPES[content]

    for_judge = request.header["keep_objects"]
    opaque: Callable[[Any], Any] | None = keep if for_judge else None
    while (line := request.line()) is not None:
        try:
            operation, arguments, keywords = plain.decode(line, resolve)
            reply = '{"v": ' + plain.encode(_perform(operation, arguments, keywords, namespace), opaque)
            if for_judge and any(type(argument) in (list, dict, set) for argument in arguments):
                reply += ', "m": ' + plain.encode(arguments, opaque)  # the program may have changed them
            _send(reply + "}")
        except plain.Unsupported as error:
            _send(json.dumps({"x": str(error)[:_MAX_NOTE_CHARS]}))
        except Exception as error:  # noqa: BLE001 (the program's own)
            _send(json.dumps({"e": [type(error).__name__, describe(error)[:_MAX_NOTE_CHARS]]}))


def _perform(operation: str, arguments: list[Any], keywords: dict[str, Any], namespace: dict[str, Any]) -> Any:
    """operation: "call:NAME", or what a test does to an object that stayed here."""
    verb, _, name = operation.partition(":")
    if verb == "call":
        return _named(name, namespace)(*arguments, **keywords)
    if verb == "name":
        return _named(name, namespace)
    target, *rest = arguments
    if verb == "invoke":
        return target(*rest, **keywords)
    if verb == "get":
        return getattr(target, name)
    if verb == "set":
        return setattr(target, name, rest[0])
    if verb == "item":
        return target[rest[0]]
    if verb == "length":
        return len(target)
    return list(target)  # "items"


def _named(name: str, namespace: dict[str, Any]) -> Any:
    if name in namespace:
        return namespace[name]
    if "Solution" in namespace:
        return getattr(namespace["Solution"](), name)
    raise NameError(f"the program does not define {name!r}")
