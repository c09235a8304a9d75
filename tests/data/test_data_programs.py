"""`small_programs`: the reference passes its hidden tests in the real sandbox, and near misses do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import check_disjoint, load_examples, part
from data.programs import Step, Task
from verifiers.code.verifier import CodeVerifier
from verifiers.errors import ConfigError, DataError, VerifierError
from verifiers.verdict import Status, VerifyRequest


def load(**options):
    return load_examples("small_programs", {"count": 50} | options, key="data.train")


def run(program: str, inputs: list[list[int]]) -> list[int]:
    """Our own programs, so no sandbox is needed."""
    namespace = {}
    exec(program, namespace)
    return [namespace["f"](*arguments) for arguments in inputs]


@pytest.fixture(scope="module")
def verifier():
    try:
        verifier = CodeVerifier(CodeVerifier.Options(packages=[]))
    except VerifierError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    yield verifier
    verifier.close()


# ---- the tests decide -------------------------------------------------------------------------------------------


def test_the_sandbox_finds_every_reference_correct_bare_and_fenced(verifier):
    examples = load(count=30, num_arguments=3, max_steps=5)
    requests = [VerifyRequest(e.solution, e.gold) for e in examples]
    requests += [VerifyRequest(verifier.gold_response(e.gold, e.meta), e.gold) for e in examples]
    assert {v.status for v in verifier.verify_many(requests)} == {Status.CORRECT}


def test_the_sandbox_finds_every_naive_program_wrong_where_parentheses_are_needed(verifier):
    examples = [e for e in load(count=60, naive_share=1.0) if e.meta["needs_parentheses"]]
    assert len(examples) > 20
    verdicts = verifier.verify_many([VerifyRequest(e.solution, e.gold) for e in examples])
    assert {(v.status, v.score) for v in verdicts} == {(Status.WRONG, 0.0)}


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("def f(a,b):return ((a+b)*3)%5", Status.CORRECT),
        ("def f(a, b):\n    a += b\n    a *= 3\n    return a % 5", Status.CORRECT),
        ("f = lambda a, b: (b + a) * 3 % 5", Status.CORRECT),
        ("def f(a,b):return a+b*3%5", Status.WRONG),
        ("def f(a,b):return 0", Status.WRONG),
        ("def f(a,b):return (a+b*3%5", Status.ERROR_IN_PROGRAM),
        ("def g(a,b):return (a+b)*3%5", Status.ERROR_IN_PROGRAM),
        ("(a+b)*3%5", Status.ERROR_IN_PROGRAM),
    ],
)
def test_any_program_with_the_same_values_is_right_and_no_other(verifier, program, status):
    calls = [[7, 4], [-3, 8], [0, 1], [12, -5]]
    gold = {"type": "functional", "fn_name": "f", "inputs": calls, "outputs": [(a + b) * 3 % 5 for a, b in calls]}
    assert verifier.verify(VerifyRequest(program, gold)).status is status


def test_the_hidden_calls_tell_the_task_from_every_shortened_one():
    for example in load(count=300):
        start, *steps = example.question.rstrip(":").replace(",", "").split(" ", 1)
        words = steps[0].split()
        parsed = [Step(word, operand) for word, operand in zip(words[::2], words[1::2], strict=True)]
        inputs, outputs = example.gold["inputs"], example.gold["outputs"]
        assert run(example.gold["solution"], inputs) == outputs
        for left_out in range(len(parsed)):
            shorter = Task(start, tuple(parsed[:left_out] + parsed[left_out + 1 :]))
            assert run(f"def f(a,b):return {shorter.expression()}", inputs) != outputs


# ---- the two readings -------------------------------------------------------------------------------------------

VALUES = st.integers(-50, 50)
STEPS = st.one_of(
    st.builds(Step, st.sampled_from(["plus", "minus", "times"]), st.sampled_from(["a", "b", "2", "9"])),
    st.builds(Step, st.sampled_from(["over", "mod"]), st.sampled_from(["2", "3", "7"])),
)


@given(st.builds(Task, st.sampled_from(["a", "b"]), st.lists(STEPS, min_size=1, max_size=8).map(tuple)), VALUES, VALUES)
def test_python_computes_what_the_task_and_its_naive_reading_say(task, a, b):
    arguments = {"a": a, "b": b}
    assert run(f"def f(a,b):return {task.expression()}", [[a, b]]) == [task.value(arguments)]
    assert run(f"def f(a,b):return {task.expression(naive=True)}", [[a, b]]) == [task.naive_value(arguments)]


def test_parentheses_stand_only_where_a_product_follows_a_sum():
    task = Task("a", (Step("times", "2"), Step("plus", "b"), Step("minus", "3"), Step("over", "4"), Step("mod", "5")))
    assert task.text == "a times 2, plus b, minus 3, over 4, mod 5"
    assert task.expression() == "(a*2+b-3)//4%5"
    assert task.expression(naive=True) == "a*2+b-3//4%5"


# ---- examples ---------------------------------------------------------------------------------------------------


def test_examples_are_distinct_deterministic_and_differ_by_seed():
    first, again, other = load(count=300), load(count=300), load(count=300, seed=1)
    assert first == again
    assert len({e.content_key() for e in first}) == 300
    assert {e.id for e in first} != {e.id for e in other}


def test_the_hidden_calls_of_a_task_do_not_depend_on_where_it_was_drawn():
    first = {e.id: e.gold for e in load(count=800, min_steps=2, max_steps=2)}
    other = {e.id: e.gold for e in load(count=800, min_steps=2, max_steps=2, seed=1)}
    both = first.keys() & other.keys()
    assert both
    assert all(first[name] == other[name] for name in both)


def test_the_naive_share_changes_the_demonstrations_and_not_the_golds():
    plain, mixed = load(count=200), load(count=200, naive_share=0.7)
    assert sum(e.meta["naive"] for e in mixed) == 140
    assert [e.gold for e in plain] == [e.gold for e in mixed]
    for right, shown in zip(plain, mixed, strict=True):
        differs = shown.meta["naive"] and shown.meta["needs_parentheses"]
        assert (right.solution != shown.solution) == differs


def test_the_parts_share_no_task_whatever_the_count_and_the_share():
    train, held_out = part(load(count=400, naive_share=0.7), "train", 20), part(load(count=900), "eval", 20)
    check_disjoint(train, {"eval": held_out})


def test_options_reach_the_tasks():
    for example in load(num_arguments=3, min_steps=4, max_steps=4, tests=5, max_input=9):
        assert example.solution.startswith("def f(a,b,c):return ")
        assert example.meta["steps"] == 4
        assert len(example.gold["inputs"]) == 5
        assert all(abs(x) <= 9 for arguments in example.gold["inputs"] for x in arguments)


def test_a_space_that_is_used_up_is_said_with_how_many_there_are():
    small = {"num_arguments": 1, "min_steps": 1, "max_steps": 1}
    with pytest.raises(DataError, match="distinct examples: after"):
        load(count=200, **small)
    assert len(load(count=30, **small)) == 30


@pytest.mark.parametrize(
    "bad",
    [{"count": 0}, {"count": "3"}, {"num_arguments": 5}, {"min_steps": 5}, {"max_steps": 9}, {"naive_share": 1.5},
     {"tests": 1}, {"operators": "+"}],
)  # fmt: skip
def test_impossible_options_are_config_errors(bad):
    with pytest.raises(ConfigError, match=r"data\.train"):
        load(**bad)
