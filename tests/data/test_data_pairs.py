"""Paraphrases: exact by program, or from a file; a pair is on one side of a split, or nowhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Example, Message, is_in_part, load_examples, make_pairs
from data.chain import Expression, Rule, check_steps
from data.chain import paraphrase as chain_paraphrase
from data.pairs import PAIR, paraphrase_of
from verifiers.countdown import CountdownVerifier
from verifiers.errors import DataError
from verifiers.verdict import Status, VerifyRequest


def chain(**options):
    settings = {"count": 200, "min_operands": 2, "max_operands": 5, **options}
    return load_examples("chain", settings, key="data.train")


@pytest.mark.parametrize("precedence", ["left_to_right", "standard"])
@pytest.mark.parametrize("modulus", [2, 5, 10, 97])
def test_a_chain_in_other_words_has_the_same_answer(precedence, modulus):
    found = 0
    for example in chain(precedence=precedence, modulus=modulus, max_operands=4, count=60):
        other = paraphrase_of(example)
        if other is None:
            continue
        found += 1
        expression = Expression.parse(other.meta["expression"])
        assert str(Rule(modulus, precedence).value(expression)) == other.gold == example.gold
        assert other.question == f"{expression.text}="
        assert other.question != example.question
        assert chain_paraphrase(other).question == example.question  # its own inverse
        assert all(step.correct for step in check_steps(other, f"#{example.gold}"))
    assert found > 10


def test_a_chain_of_products_has_no_paraphrase():
    assert all(paraphrase_of(e) is None for e in chain(operators="*", count=30))


def test_a_countdown_in_other_words_has_the_same_numbers_and_solutions():
    examples = load_examples("countdown", {"count": 40}, key="data.train")
    verifier = CountdownVerifier(CountdownVerifier.Options())
    for example in examples:
        other = paraphrase_of(example)
        if other is None:
            assert len(set(example.gold["numbers"])) == 1
            continue
        numbers, target = other.question.removesuffix(":").split(" make ")
        assert sorted(map(int, numbers.split())) == example.gold["numbers"]
        assert int(target) == example.gold["target"]
        verdict = verifier.verify(VerifyRequest(f"#{example.gold['solution']}", other.gold, other.meta))
        assert verdict.status is Status.CORRECT


def ask(name, paraphrase=None, **meta):
    return Example(name, (Message("system", "Be brief."), Message("user", f"What is {name}?")), "1",
                   meta={"paraphrase": paraphrase, **meta})  # fmt: skip


def test_a_paraphrase_from_a_file_replaces_the_last_message_only():
    other = paraphrase_of(ask("x", "Tell me x.", level=3))
    assert other.id == "x/paraphrase"
    assert [m.content for m in other.prompt] == ["Be brief.", "Tell me x."]
    assert other.gold == "1"
    assert other.meta == {"level": 3, PAIR: "x"}
    assert other.solution is None


def test_a_paraphrase_to_the_letter_is_none():
    assert paraphrase_of(ask("x", "what IS  x?")) is None
    assert paraphrase_of(ask("x")) is None


@pytest.mark.parametrize("bad", ["", "  ", 3, ["x"]])
def test_a_paraphrase_that_is_no_question_is_an_error_that_names_the_example(bad):
    with pytest.raises(DataError, match="example 'x'"):
        paraphrase_of(ask("x", bad))


def test_no_paraphrase_is_trained_on_that_belongs_to_the_evaluation_part():
    examples = [e for e in chain(min_operands=3, max_operands=3) if is_in_part(e, "train", 30)]
    pairs = make_pairs(examples, lambda other: is_in_part(other, "train", 30))
    assert pairs.on_the_other_side
    assert pairs.without_paraphrase
    assert all(is_in_part(e, "train", 30) for e in [*pairs.originals, *pairs.paraphrases])
    assert len(pairs.originals) + len(pairs.on_the_other_side) + len(pairs.without_paraphrase) == len(examples)
    assert [e.meta[PAIR] for e in pairs.originals] == [e.meta[PAIR] for e in pairs.paraphrases]
    assert [e.id for e in pairs.originals] == [e.meta[PAIR] for e in pairs.originals]


def test_data_without_paraphrases_is_an_error_that_says_how_to_make_them():
    with pytest.raises(DataError, match="assay paraphrase"):
        make_pairs([ask("x"), ask("y")], lambda other: True)


@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 12)), min_size=1, max_size=8), st.integers(0, 12))
def test_every_chain_expression_keeps_its_value(tail, first):
    text = str(first) + "".join(f"{op}{n}" for op, n in tail)
    meta = {"task": "chain", "expression": text, "modulus": 13, "precedence": "left_to_right"}
    example = Example("e", (Message("user", f"{text}="),), "0", meta=meta)
    other = chain_paraphrase(example)
    rule = Rule(13, "left_to_right")
    if other is None:
        assert {op for op, _ in tail} == {"*"}
    else:
        assert rule.value(Expression.parse(other.meta["expression"])) == rule.value(Expression.parse(text))
