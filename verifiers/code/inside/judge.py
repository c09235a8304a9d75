"""Tests that cannot be split, run apart from the program they test.

The candidate's names are bound to stand-ins: using one sends a line to the parent, which hands it to the run that holds
the program. Results come back as plain data; an object that is not plain data stays over there and is known here by a
number (`Remote`), which equals nothing but itself.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import plain


class CandidateError(Exception):
    """What the candidate raised, if it is not a built-in exception."""


class NotSendable(Exception):
    """A test gives the candidate something that cannot be sent, such as a function."""


class CandidateRaised(Exception):
    """Marks an exception as the candidate's: mixed into the built-in class that it raised."""


def run(header: dict[str, Any], namespace: dict[str, Any], receive: Callable[[], bytes | None],
        send: Callable[[str], None]) -> None:  # fmt: skip
    """Run header["setup"], then each of header["tests"]; send one line {"done": [outcome, words]} for each. Outcomes:
    passed, wrong, error (the candidate raised), unsupported (the tests are at fault). A setup that does not pass is the
    last step."""
    channel = _Channel(receive, send)
    setup, tests = header["setup"], header["tests"]
    try:
        _execute(header["given"], namespace)
        _bind_names(namespace, [setup, *tests], set(header["candidate_names"]), channel)
    except Exception as error:  # noqa: BLE001 (nothing of the candidate has run yet)
        send(json.dumps({"done": ["unsupported", _words(error)]}))
        return
    if not _report(channel, lambda: _execute(setup, namespace)):
        return
    for test in tests:
        _report(channel, lambda test=test: _execute(test, namespace))


def _execute(source: str, namespace: dict[str, Any]) -> None:
    exec(compile(source, "tests.py", "exec", dont_inherit=True), namespace)


def _report(channel: _Channel, step: Callable[[], None]) -> bool:
    try:
        step()
        outcome = ["passed", ""]
    except AssertionError as error:
        outcome = ["error" if isinstance(error, CandidateRaised) else "wrong", _words(error)]
    except (CandidateRaised, CandidateError) as error:
        outcome = ["error", _words(error)]
    except (NotSendable, ImportError) as error:  # the test itself cannot be run here
        outcome = ["unsupported", _words(error)]
    # What a test trips over is the candidate's doing: a value of the wrong type, too short, without the key.
    except Exception as error:  # noqa: BLE001
        outcome = ["wrong", _words(error)]
    channel.send(json.dumps({"done": outcome}))
    return outcome[0] == "passed"


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _bind_names(namespace: dict[str, Any], sources: list[str], candidate: set[str], channel: _Channel) -> None:
    """Stand-ins for the candidate's names, modules of the standard library for theirs."""
    for name in candidate:
        namespace[name] = _stand_in(name, channel)
    trees = [ast.parse(source) for source in sources]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {alias.asname or alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)
              for alias in node.names}  # fmt: skip
    for node in nodes:
        if isinstance(node, ast.Name) and node.id not in bound | set(namespace) and not hasattr(builtins, node.id):
            known = node.id in sys.stdlib_module_names
            namespace[node.id] = importlib.import_module(node.id) if known else _stand_in(node.id, channel)


def _stand_in(name: str, channel: _Channel) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        return channel.ask(f"call:{name}", list(arguments), keywords)

    return call


class _Channel:
    def __init__(self, receive: Callable[[], bytes | None], send: Callable[[str], None]):
        self._receive, self.send = receive, send

    def ask(self, operation: str, arguments: list[Any], keywords: dict[str, Any] | None = None) -> Any:
        self.send('{"ask": ' + plain.encode([operation, arguments, keywords or {}], self._opaque) + "}")
        reply = json.loads(self._receive() or b'{"e": ["EOFError", "the candidate has ended"]}')
        if "e" in reply:
            raise _candidate_exception(*reply["e"])
        if "m" in reply:
            for argument, changed in zip(arguments, self._decode(reply["m"]), strict=True):
                _change(argument, changed)
        return self._decode(reply["v"])

    def _decode(self, content: Any) -> Any:
        return plain.decode(json.dumps(content).encode(), self._resolve)

    def _opaque(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return {"o": object.__getattribute__(value, "_number")}
        if isinstance(value, type) and plain.TYPES.get(value.__name__) is value:
            return {"y": value.__name__}
        raise NotSendable(f"a test gives the program a {type(value).__name__}, which cannot be sent")

    def _resolve(self, key: str, content: Any) -> Any:
        return Remote(self, content) if key == "o" else plain.TYPES[content]


def _change(argument: Any, changed: Any) -> None:
    """Do to the test's own argument what the candidate did to its copy."""
    if type(argument) is not type(changed) or argument == changed:
        return
    if type(argument) is list:
        argument[:] = changed
    elif type(argument) in (dict, set):
        argument.clear()
        argument.update(changed)


def _candidate_exception(name: str, words: str) -> Exception:
    kind = getattr(builtins, name, None)
    # StopIteration would end a test's own loop as if it had come to its end.
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(kind, StopIteration):
        return CandidateError(words)
    try:
        return type(name, (CandidateRaised, kind), {})(words)
    except TypeError:  # UnicodeDecodeError and the like want other arguments
        return CandidateError(words)


class Remote:
    """An object that stayed with the candidate."""

    def __init__(self, channel: _Channel, number: int):
        object.__setattr__(self, "_channel", channel)
        object.__setattr__(self, "_number", number)

    def _ask(self, operation: str, *arguments: Any, **keywords: Any) -> Any:
        return object.__getattribute__(self, "_channel").ask(operation, [self, *arguments], keywords)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remote):
            return False
        return bool(object.__getattribute__(self, "_number") == object.__getattribute__(other, "_number"))

    def __hash__(self) -> int:
        return hash(object.__getattribute__(self, "_number"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask(f"get:{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask(f"set:{name}", value)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._ask("invoke", *arguments, **keywords)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __len__(self) -> int:
        length = self._ask("length")
        return length if type(length) is int else 0

    def __iter__(self) -> Iterator[Any]:
        items = self._ask("items")
        return iter(items if type(items) is list else [])

    def __bool__(self) -> bool:
        return True
