"""`mbpp`: the prompt shows some tests, the gold has all of them."""

import pytest

from data import check_disjoint, load_examples
from verifiers.code.verifier import CodeVerifier
from verifiers.errors import ConfigError, VerifierError
from verifiers.verdict import Status, VerifyRequest


def load(**options):
    return load_examples("mbpp", options, key="data.train")


def test_the_splits_are_those_of_mbpp_and_share_no_question():
    splits = {name: load(split=name) for name in ("train", "validation", "test", "prompt")}
    assert {name: len(examples) for name, examples in splits.items()} == {
        "train": 374, "validation": 90, "test": 500, "prompt": 10,
    }  # fmt: skip
    check_disjoint(splits["train"], {"test": splits["test"], "validation": splits["validation"]})
    assert splits["train"][0].id == "mbpp-601"


@pytest.mark.parametrize("shown", [1, 2, 3])
def test_so_many_tests_stand_in_the_prompt(shown):
    for example in load(split="prompt", shown_tests=shown):
        tests = example.gold["test_list"]
        assert len(tests) == 3
        assert [test in example.question for test in tests] == [i < shown for i in range(3)]


def test_what_the_tests_need_stands_in_the_prompt():
    (tree,) = (e for e in load(split="test") if e.id == "mbpp-367")
    assert "root = Node(1)" in tree.question
    assert "\r" not in tree.question


def test_there_are_no_other_splits():
    with pytest.raises(ConfigError, match="split"):
        load(split="eval")


def test_the_sandbox_passes_the_references_and_fails_a_program_that_repeats_the_test_it_saw():
    try:
        verifier = CodeVerifier(CodeVerifier.Options(packages=[]))
    except VerifierError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    examples = load(split="prompt")
    repeats = "```python\ndef similar_elements(x, y):\n    return (4, 5)\n```"  # task 2, its first test
    try:
        verdicts = verifier.verify_many([VerifyRequest(e.solution, e.gold) for e in examples])
        cheat = verifier.verify(VerifyRequest(repeats, examples[1].gold))
    finally:
        verifier.close()
    assert {v.status for v in verdicts} == {Status.CORRECT}
    assert cheat.status is Status.WRONG
