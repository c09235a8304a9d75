"""Rows of the common datasets, as they are published, to `Problem`s. A row in none of the formats is a `BadGold`."""

from __future__ import annotations

import ast
import base64
import binascii
import builtins
import io
import json
import pickle
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from verifiers.code.cases import AssertTests, FunctionTests, Problem, StdinTests
from verifiers.errors import BadGold

Row = Mapping[str, Any]
_MAX_UNPACKED_BYTES = 512 << 20
_PROMPT_END = "    pass\n"  # the body of a prompt whose function has none yet


def read_problem(gold: Any) -> Problem:
    """The problem that a gold describes. Raises `BadGold`."""
    if not isinstance(gold, Mapping):
        raise BadGold(f"The gold of a code problem must be an object, not {type(gold).__name__}.")
    for fields, reader in _FORMATS:
        if all(field in gold for field in fields):
            try:
                return reader(gold)
            except (KeyError, TypeError, ValueError, AttributeError, SyntaxError, RecursionError, MemoryError) as error:
                raise BadGold(f"The tests cannot be read ({type(error).__name__}: {error}).") from error
    raise BadGold(
        f"The gold has tests in no format that is known; its keys are {', '.join(sorted(map(str, gold)))}.",
        fix="give 'type' (stdin_stdout, functional or assert) and its fields, or a row of HumanEval, MBPP, EvalPlus, "
        "APPS, TACO, CodeContests or LiveCodeBench as published",
    )


def _own(row: Row) -> Problem:
    """``{"type": "stdin_stdout", "inputs", "outputs"}``, ``{"type": "functional", "fn_name", "inputs", "outputs"}`` or
    ``{"type": "assert", "asserts"}``."""
    if row["type"] == "stdin_stdout":
        return Problem(_stdin(row["inputs"], row["outputs"]))
    if row["type"] == "functional":
        return Problem(_functions(row["fn_name"], row["inputs"], row["outputs"]))
    if row["type"] == "assert":
        names = _texts(row.get("candidate_names", ()), may_be_empty=True)
        return Problem(AssertTests(_texts(row["asserts"]), setup=_text(row.get("setup", "")), candidate_names=names))
    raise BadGold(f"Unknown type of tests '{row['type']}'; valid: stdin_stdout, functional, assert.")


def _stdin(inputs: Any, outputs: Any) -> StdinTests:
    """A test of several lines may be a list of them."""
    texts = [tuple("\n".join(map(str, item)) if isinstance(item, list) else _text(item) for item in part)
             for part in (inputs, outputs)]  # fmt: skip
    _require_pairs(*texts)
    for text in texts[0]:
        text.encode("utf-8", "surrogateescape")  # raises for what cannot be written to a program's standard input
    return StdinTests(*texts)


def _functions(name: Any, inputs: Any, outputs: Any, *, wrapped: bool = False) -> FunctionTests:
    _require_pairs(inputs, outputs)
    if any(not isinstance(arguments, list) for arguments in inputs):
        raise ValueError("the arguments of a call must be a list")
    second = tuple(o[0] if isinstance(o, list) and len(o) == 1 else o for o in outputs) if wrapped else None
    return FunctionTests(_text(name), tuple(inputs), tuple(outputs), alternatives=second)


def _require_pairs(inputs: Any, outputs: Any) -> None:
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs, but {len(outputs)} outputs")
    if not inputs:
        raise ValueError("no tests")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of a text")
    return value


def _texts(values: Any, *, may_be_empty: bool = False) -> tuple[str, ...]:
    if isinstance(values, str) or not (values or may_be_empty):
        raise ValueError("no tests, or not a list of them")
    return tuple(_text(value) for value in values)


def _humaneval(row: Row) -> Problem:
    """Also EvalPlus as published on the hub: ``test`` defines check(candidate)."""
    prompt, name, test = _text(row["prompt"]), _text(row["entry_point"]), _text(row["test"])
    asserts = _plain_check(test, name)
    if asserts:
        tests = AssertTests(asserts, given=prompt + _PROMPT_END, candidate_names=(name,))
    else:
        tests = AssertTests((f"check({name})",), given=prompt + _PROMPT_END, setup=test, candidate_names=(name,))
    return Problem(tests, prompt, name)


def _plain_check(test: str, name: str) -> tuple[str, ...]:
    """The asserts of a check function that consists of nothing else, with `candidate` called by its name."""
    functions = [node for node in ast.parse(test).body if isinstance(node, ast.FunctionDef)]
    if [function.name for function in functions] != ["check"]:
        return ()
    statements = [node for node in functions[0].body if not _does_nothing(node)]
    if not all(isinstance(node, ast.Assert) for node in statements):
        return ()
    for node in ast.walk(functions[0]):
        if isinstance(node, ast.Name) and node.id == "candidate":
            node.id = name
    return tuple(ast.unparse(node) for node in statements)


def _does_nothing(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assert):  # HumanEval's `assert True, "..."`
        return isinstance(node.test, ast.Constant) and bool(node.test.value)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func) == "print"
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _mbpp(row: Row) -> Problem:
    """Also the sanitized rows (``test_imports``) and EvalPlus's MBPP (``test``, one text with all its tests)."""
    tests = (_text(row["test"]),) if "test" in row else _texts(row["test_list"])
    imports = row.get("test_imports") or []
    setup = "\n".join([*imports, row.get("test_setup_code") or ""]).strip()
    return Problem(AssertTests(tests, setup=setup, candidate_names=_shadowed(row.get("code") or "")))


def _shadowed(reference: str) -> tuple[str, ...]:
    """Built-in names that the reference solution defines anew (MBPP has a task whose function is called sum)."""
    names = re.findall(r"^def +(\w+)", reference, re.MULTILINE)
    return tuple(name for name in dict.fromkeys(names) if hasattr(builtins, name))


def _evalplus(row: Row) -> Problem:
    """EvalPlus's own files: inputs, and the reference solution instead of outputs."""
    inputs = [*row["base_input"], *row["plus_input"]]
    if not inputs:
        raise ValueError("no tests")
    prompt, name = _text(row["prompt"]), _text(row["entry_point"])
    reference = prompt + _text(row["canonical_solution"])
    tests = FunctionTests(name, tuple(inputs), None, reference=reference, tolerance=float(row.get("atol") or 0.0))
    return Problem(tests, prompt, name)


def _apps(row: Row) -> Problem:
    """APPS and TACO: ``input_output`` as JSON text."""
    content = row["input_output"]
    return _inputs_outputs(json.loads(content) if isinstance(content, str) else content)


def _inputs_outputs(row: Row) -> Problem:
    name = row.get("fn_name")
    if not name:
        return Problem(_stdin(row["inputs"], row["outputs"]))
    return Problem(_functions(name, row["inputs"], row["outputs"], wrapped=True))


def _nested(row: Row) -> Problem:
    """A row that holds its tests in a field of that name."""
    tests = row["tests"]
    tests = json.loads(tests) if isinstance(tests, str) else tests
    if isinstance(tests, list):  # objects with "input" and "output"
        return Problem(_stdin([t["input"] for t in tests], [t["output"] for t in tests]))
    return read_problem(tests)


def _code_contests(row: Row) -> Problem:
    """DeepMind's CodeContests: public, private and generated tests."""
    parts = [row[key] for key in ("public_tests", "private_tests", "generated_tests") if row.get(key)]
    inputs = [text for part in parts for text in part["input"]]
    return Problem(_stdin(inputs, [text for part in parts for text in part["output"]]))


def _livecodebench(row: Row) -> Problem:
    tests = [*_lcb_tests(row["public_test_cases"]), *_lcb_tests(row.get("private_test_cases") or "[]")]
    inputs, outputs = [t["input"] for t in tests], [t["output"] for t in tests]
    if not tests or tests[0].get("testtype", "stdin") == "stdin":
        return Problem(_stdin(inputs, outputs))
    metadata = json.loads(row.get("metadata") or "{}")
    arguments = [[json.loads(line) for line in text.split("\n")] for text in inputs]
    return Problem(_functions(metadata["func_name"], arguments, [json.loads(text) for text in outputs]))


def _lcb_tests(content: Any) -> list[Any]:
    """JSON, or JSON pickled, compressed and encoded, as the private tests are."""
    if not isinstance(content, str):
        return list(content)
    if content.lstrip().startswith("["):
        return json.loads(content)
    try:
        stream = zlib.decompressobj()
        unpacked = stream.decompress(base64.b64decode(content, validate=True), _MAX_UNPACKED_BYTES)
        return json.loads(_OnlyText(io.BytesIO(unpacked)).load())
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"private tests: {error}") from error


class _OnlyText(pickle.Unpickler):
    """A pickle that holds a text and can hold nothing that runs code."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} in a pickle of tests")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("a persistent id in a pickle of tests")


_FORMATS: tuple[tuple[tuple[str, ...], Callable[[Row], Problem]], ...] = (
    (("type",), _own),
    (("base_input", "plus_input", "entry_point"), _evalplus),
    (("test", "entry_point", "prompt"), _humaneval),
    (("test_list",), _mbpp),
    (("input_output",), _apps),
    (("public_test_cases",), _livecodebench),
    (("public_tests",), _code_contests),
    (("tests",), _nested),
    (("inputs", "outputs"), _inputs_outputs),
)
