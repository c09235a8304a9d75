"""Train and eval never ask the same question."""

import random

import pytest

from data import Example, Message, check_disjoint, load_examples, part
from verifiers.errors import ConfigError, DataError


def ask(name: str, question: str) -> Example:
    return Example(name, (Message("user", question),), "?")


EXAMPLES = [ask(str(i), f"question {i}") for i in range(2000)]


def test_train_and_eval_partition_the_examples_in_order():
    train, held_out = part(EXAMPLES, "train", 10), part(EXAMPLES, "eval", 10)
    assert sorted(train + held_out, key=EXAMPLES.index) == EXAMPLES
    assert train == [e for e in EXAMPLES if e in train]
    assert 140 <= len(held_out) <= 260
    check_disjoint(train, {"held_out": held_out})


def test_an_example_keeps_its_part_whatever_the_order_the_size_and_the_id():
    held_out = {e.question for e in part(EXAMPLES, "eval", 10)}
    shuffled = random.Random(0).sample(EXAMPLES, 500)
    renamed = [ask(f"other-{e.id}", f"  {e.question.upper()} ") for e in shuffled]
    assert {" ".join(e.question.lower().split()) for e in part(renamed, "eval", 10)} == {
        e.question for e in shuffled if e.question in held_out
    }


def test_a_larger_percentage_only_adds_to_eval():
    assert {e.id for e in part(EXAMPLES, "eval", 10)} < {e.id for e in part(EXAMPLES, "eval", 20)}


def test_the_bucket_of_a_known_question_never_changes():
    assert [e.id for e in part(EXAMPLES[:60], "eval", 10)] == KNOWN_EVAL_IDS


KNOWN_EVAL_IDS: list[str] = ["10", "22", "26", "58"]


def test_generated_data_of_any_seed_is_disjoint_from_the_eval_part_of_any_other():
    train = part(load_examples("chain", {"count": 3000, "modulus": 3, "seed": 0}, key="d"), "train", 20)
    held_out = part(load_examples("chain", {"count": 3000, "modulus": 3, "seed": 1}, key="d"), "eval", 20)
    check_disjoint(train, {"chain": held_out})


def test_all_is_everything():
    assert part(EXAMPLES, "all", 10) == EXAMPLES
    assert part(EXAMPLES, "train", 0) == EXAMPLES


def test_an_empty_part_is_a_data_error_and_a_wrong_percentage_a_config_error():
    with pytest.raises(DataError, match="eval part of 2000 examples is empty"):
        part(EXAMPLES, "eval", 0)
    with pytest.raises(ConfigError, match="eval_percent"):
        part(EXAMPLES, "eval", 101)


def test_overlap_is_found_by_content_and_names_at_most_five_pairs():
    evals = {"a": [ask("e0", "QUESTION  3"), ask("e1", "new")], "b": [ask(f"b{i}", f"question {i}") for i in range(9)]}
    with pytest.raises(DataError) as caught:
        check_disjoint(EXAMPLES, evals)
    assert "10 evaluation examples" in str(caught.value)
    assert "e0 (a) = 3 (train)" in str(caught.value)
    assert str(caught.value).count("(train)") == 5
