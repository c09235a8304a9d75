"""Rows of the datasets as published."""

import base64
import json
import pickle
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import data
from verifiers import BadGold, VerifyRequest
from verifiers.code.cases import AssertTests, FunctionTests, StdinTests
from verifiers.code.readers import read_problem
from verifiers.code.verifier import CodeVerifier

ASSETS = Path(data.__file__).parent / "assets" / "sandbox"


def rows_of(name):
    return [json.loads(line) for line in ASSETS.joinpath(name).read_text().splitlines()]


def judge_references(verifier, rows):
    """The evidence of those whose reference solution does not pass, by task."""
    verdicts = verifier.verify_many([VerifyRequest(verifier.gold_response(row, {}), row) for row in rows])
    judged_rows = zip(rows, verdicts, strict=True)
    return {row["task_id"]: verdict.evidence for row, verdict in judged_rows if verdict.score != 1.0}


@pytest.fixture(scope="module")
def verifier(tier):
    """With more time than the slowest reference needs (MBPP 123, a few seconds)."""
    verifier = CodeVerifier(CodeVerifier.Options(isolation=tier), timeout_s=20.0)
    yield verifier
    verifier.close()


# In this order: helper functions of the prompt, loops, asserts on the candidate itself, setup before the tests.
HUMANEVAL_SAMPLE = [0, 2, 4, 33, 38, 44, 50, 53, 129, 151]
# A function called sum, fixtures and classes of the candidate's, types as arguments, a module of the program.
MBPP_SAMPLE = [1, 126, 367, 486, 533, 596, 601, 927]


def test_sample_of_humaneval_references_passes(verifier):
    rows = [row for row in rows_of("humaneval.jsonl") if int(row["task_id"].split("/")[1]) in HUMANEVAL_SAMPLE]
    assert len(rows) == len(HUMANEVAL_SAMPLE)
    assert judge_references(verifier, rows) == {}


def test_sample_of_mbpp_references_passes(verifier):
    rows = [row for row in rows_of("mbpp.jsonl") if row["task_id"] in MBPP_SAMPLE]
    assert len(rows) == len(MBPP_SAMPLE)
    assert judge_references(verifier, rows) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("humaneval.jsonl", 164), ("mbpp.jsonl", 974)])
def test_all_references_pass(verifier, name, count):
    rows = rows_of(name)
    assert len(rows) == count
    assert judge_references(verifier, rows) == {}


def test_a_reference_of_another_task_fails(verifier):
    rows = [row for row in rows_of("humaneval.jsonl") if row["task_id"] in ("HumanEval/0", "HumanEval/2")]
    swapped = [row | {"canonical_solution": other["canonical_solution"]}
               for row, other in zip(rows, rows[::-1], strict=True)]  # fmt: skip
    assert len(judge_references(verifier, swapped)) == 2


def test_a_candidate_cannot_replace_the_helpers_of_the_prompt(verifier):
    """HumanEval/38 decodes what a function of the prompt encodes."""
    (row,) = [row for row in rows_of("humaneval.jsonl") if row["task_id"] == "HumanEval/38"]
    cheat = "def encode_cyclic(s):\n    return s\n\ndef decode_cyclic(s):\n    return s\n"
    assert verifier.verify(VerifyRequest(cheat, row)).score == 0.0


def lcb_private(tests):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


STDIN = StdinTests(("1\n", "2\n"), ("1\n", "4\n"))
FUNCTION = FunctionTests("f", ([1], [2]), (1, 4))


@pytest.mark.parametrize(
    ("row", "tests"),
    [
        ({"type": "stdin_stdout", "inputs": ["1\n", "2\n"], "outputs": ["1\n", "4\n"]}, STDIN),
        ({"inputs": ["1\n", "2\n"], "outputs": ["1\n", "4\n"]}, STDIN),
        ({"problem": "p", "tests": {"inputs": ["1\n", "2\n"], "outputs": ["1\n", "4\n"]}}, STDIN),
        ({"tests": [{"input": "1\n", "output": "1\n"}, {"input": "2\n", "output": "4\n"}]}, STDIN),
        ({"input_output": json.dumps({"inputs": ["1\n", "2\n"], "outputs": ["1\n", "4\n"]})}, STDIN),
        ({"input_output": {"inputs": [["1", "2"]], "outputs": [["3"]]}}, StdinTests(("1\n2",), ("3",))),
        ({"public_tests": {"input": ["1\n"], "output": ["1\n"]}, "private_tests": {"input": ["2\n"], "output": ["4\n"]},
          "generated_tests": {"input": [], "output": []}}, STDIN),
        ({"public_test_cases": json.dumps([{"input": "1\n", "output": "1\n", "testtype": "stdin"}]),
          "private_test_cases": lcb_private([{"input": "2\n", "output": "4\n", "testtype": "stdin"}])}, STDIN),
        ({"public_test_cases": json.dumps([{"input": "1", "output": "1", "testtype": "functional"}]),
          "private_test_cases": lcb_private([{"input": "2", "output": "4", "testtype": "functional"}]),
          "metadata": json.dumps({"func_name": "f"})}, FUNCTION),
        ({"type": "functional", "fn_name": "f", "inputs": [[1], [2]], "outputs": [1, 4]}, FUNCTION),
        ({"input_output": json.dumps({"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], 4]})},
         FunctionTests("f", ([1], [2]), ([1], 4), alternatives=(1, 4))),
        ({"type": "assert", "asserts": ["assert f(1) == 1"]}, AssertTests(("assert f(1) == 1",))),
        ({"test_list": ["assert f(1) == 1"], "test_setup_code": "x = 1", "test_imports": ["import math"]},
         AssertTests(("assert f(1) == 1",), setup="import math\nx = 1")),
        ({"base_input": [[1]], "plus_input": [[2]], "prompt": "def f(x):\n", "canonical_solution": "    return x\n",
          "entry_point": "f", "atol": 0},
         FunctionTests("f", ([1], [2]), None, reference="def f(x):\n    return x\n", tolerance=0.0)),
    ],
)  # fmt: skip
def test_formats(row, tests):
    assert read_problem(row).tests == tests


def test_evalplus_takes_the_outputs_from_the_reference(verifier):
    row = {"base_input": [[1]], "plus_input": [[2], [3]], "prompt": "def f(x):\n", "entry_point": "f", "atol": 0,
           "canonical_solution": "    return (x, {x})\n"}  # fmt: skip
    assert verifier.verify(VerifyRequest("    return (x, {x})\n", row)).score == 1.0
    assert verifier.verify(VerifyRequest("    return (x, {1})\n", row)).score == 0.0
    with pytest.raises(BadGold, match="reference solution"):
        verifier.verify(VerifyRequest("    return 1\n", row | {"canonical_solution": "    return x / 0\n"}))


def test_evalplus_of_the_hub_runs_beside_the_program(verifier):
    test = ("import numpy as np\n"
            "def assertion(out, exp, atol):\n    assert np.allclose(out, exp) if atol else out == exp\n"
            "def check(candidate):\n    inputs = [[1], [2]]\n    results = [1, 4]\n"
            "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
            "        assertion(candidate(*inp), exp, 1e-6)\n")  # fmt: skip
    row = {"prompt": "def f(x):\n", "entry_point": "f", "test": test}
    assert verifier.verify(VerifyRequest("    return x * x + 1e-9\n", row)).score == 1.0
    assert verifier.verify(VerifyRequest("    return x + x\n", row)).score == 0.0


class Harmful:
    def __reduce__(self):
        return (print, ("harm",))


@pytest.mark.parametrize(
    "row",
    [
        "no object",
        {},
        {"type": "unit"},
        {"type": "stdin_stdout", "inputs": [], "outputs": []},
        {"type": "stdin_stdout", "inputs": ["1"], "outputs": []},
        {"type": "stdin_stdout", "inputs": [1], "outputs": ["1"]},
        {"type": "functional", "fn_name": "f", "inputs": [1], "outputs": [1]},
        {"type": "assert", "asserts": []},
        {"type": "assert", "asserts": "assert f(1)"},
        {"test_list": []},
        {"input_output": "{"},
        {"input_output": ""},
        {"public_tests": {"input": ["1"]}},
        {"public_test_cases": "!"},
        {"public_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Harmful()))).decode()},
        {"prompt": "def f(): pass", "entry_point": "f", "test": "def ("},
    ],
)
def test_what_cannot_be_read_is_bad_gold(row, capsys):
    with pytest.raises(BadGold):
        read_problem(row)
    assert capsys.readouterr().out == ""


@given(
    st.dictionaries(
        st.sampled_from(["type", "inputs", "outputs", "tests", "test_list", "input_output", "public_tests", "fn_name",
                         "public_test_cases", "asserts"]),
        st.recursive(
            st.one_of(st.none(), st.integers(), st.sampled_from(["stdin_stdout", "functional", "assert", "[1]"])),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["input", "output", "inputs"]), inner),
        ),
    )
)  # fmt: skip
def test_any_row_is_a_problem_or_bad_gold(row):
    try:
        read_problem(row)
    except BadGold:
        return
