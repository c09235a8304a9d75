"""Kind `classify`: equality of names, and the loopholes of the reference's substring test."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers import BadGold, ConfigError, Runner, Status, VerifyRequest
from verifiers.classify import ClassifyVerifier, mentioned
from verifiers.visual.labels import fold_label

RECORDS = json.loads((Path(__file__).parents[1] / "golden" / "visual_rft_lisa_cls.json").read_text(encoding="utf-8"))
FLOWERS = ["pink primrose", "primrose", "tulip", "rose"]


def judge(answer, gold, **options):
    response = f"<think>x</think> <answer>{answer}</answer>"
    return ClassifyVerifier(ClassifyVerifier.Options(**options)).verify(VerifyRequest(response, gold))


# The reference pays 1.0 for each of these; its test is whether either string contains the other.
LOOPHOLES = ("exact", "gt in student", "empty answer hack", "empty completion")


@pytest.mark.golden
@pytest.mark.parametrize("record", [pytest.param(r, id=r["notes"]) for r in RECORDS if "classification" in r["method"]])
def test_accuracy_equals_the_reference_but_for_its_substring_test(record):
    verifier = ClassifyVerifier(ClassifyVerifier.Options())
    verdict = verifier.verify(VerifyRequest(record["inputs"]["completion"], record["inputs"]["solution"]))
    if record["notes"].split(";")[0] in LOOPHOLES:
        assert record["outputs"] == 1
        assert verdict.parts["accuracy"] == 0
    else:
        assert verdict.parts["accuracy"] == record["outputs"]


@pytest.mark.parametrize("answer", ["pink primrose", "Pink_Primrose", " PINK  PRIMROSE. ", "'pink primrose'",
                                    "pinkprimrose", "ｐink primrose"])  # fmt: skip
def test_writing_does_not_matter(answer):
    verdict = judge(answer, "pink primrose", classes=FLOWERS)
    assert verdict.status is Status.CORRECT
    assert verdict.score == 1.0


@pytest.mark.parametrize("answer", ["primrose", "pink", "pink primroses", "pink primrose or tulip", ", ".join(FLOWERS),
                                    "not a pink primrose", "p", "pink-primrose"])  # fmt: skip
def test_parts_lists_and_neighbours_of_the_name_are_wrong(answer):
    assert judge(answer, "pink primrose").status is Status.WRONG
    assert judge(answer, "pink primrose", classes=FLOWERS).parts["accuracy"] == 0


@pytest.mark.parametrize("answer", ["", " ", "_", ".", '""'])
def test_an_empty_answer_is_none(answer):
    verdict = judge(answer, "tulip")
    assert verdict.status is Status.NO_ANSWER
    assert verdict.parts["accuracy"] == 0


def test_an_answer_outside_the_classes_is_none():
    assert judge("daisy", "tulip", classes=FLOWERS).status is Status.NO_ANSWER
    assert judge("rose", "tulip", classes=FLOWERS).status is Status.WRONG


def test_numbers_in_names_count():
    assert judge("737-900", "737-800").status is Status.WRONG
    assert judge("737-80", "737-800").status is Status.WRONG
    aliased = {"label": "737-800", "aliases": ["Boeing 737-800"]}
    assert judge("Boeing 737-800", aliased).status is Status.CORRECT
    assert judge("Boeing 737-800", aliased).answer == judge("737-800", aliased).answer


def test_a_sentence_counts_by_option_as_the_one_class_it_names():
    options = {"classes": FLOWERS, "mention": True}
    assert judge("It is a pink primrose flower.", "pink primrose", **options).status is Status.CORRECT
    assert judge("It is a pink primrose flower.", "primrose", **options).status is Status.WRONG
    assert judge("a tulip or a rose", "tulip", **options).status is Status.WRONG
    assert judge("the tulip, a Tulip", "tulip", **options).status is Status.CORRECT
    assert judge("rosetulip", "tulip", **options).status is Status.NO_ANSWER
    assert judge(", ".join(FLOWERS), "tulip", **options).status is Status.WRONG


def test_mentions_are_whole_words_and_the_longest_at_each_place():
    names = [fold_label(name) for name in FLOWERS]
    assert mentioned("a pink primrose", names) == ["pinkprimrose"]
    assert mentioned("pink, (primrose) and tulip!", names) == ["pinkprimrose", "tulip"]
    assert mentioned("prim rose", ["rose"]) == ["rose"]
    assert mentioned("primroses", names) == []
    assert mentioned("", names) == []
    assert mentioned("x " * 1000, names) == []


@pytest.mark.parametrize(
    ("gold", "options", "reason"),
    [
        (None, {}, "string"),
        (3, {}, "string"),
        ("", {}, "not a name"),
        ("_", {}, "not a name"),
        ("<b>", {}, "not a name"),
        ("daisy", {"classes": FLOWERS}, "not in the list"),
        ({"name": "tulip"}, {}, "must have 'label'"),
        ({"label": "tulip", "aliases": "t"}, {}, "list of strings"),
        ({"label": "tulip", "aliases": ["Rose"]}, {"classes": FLOWERS}, "other classes"),
        ({"label": "tulip", "classes": ["tulip", "Tulip"]}, {}, "the same"),
        ({"label": "tulip", "classes": ["rose"]}, {}, "not in the list"),
        ("tulip", {"mention": True}, "needs a list"),
    ],
)
def test_a_bad_gold_says_what_is_wrong(gold, options, reason):
    with pytest.raises(BadGold, match=reason):
        judge("tulip", gold, **options)
    with pytest.raises(BadGold, match=reason):
        ClassifyVerifier(ClassifyVerifier.Options(**options)).gold_response(gold, {})


def test_classes_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ConfigError, match="the same but for case"):
        Runner("classify", {"classes": ["pink primrose", "Pink_Primrose"]})
    with pytest.raises(ConfigError, match="empty"):
        Runner("classify", {"classes": [" "]})


@pytest.mark.parametrize(
    "gold", ["tulip", "Pink Primrose", {"label": "rose", "aliases": ["a rose"]}, "<answer>tulip</answer>"]
)
@pytest.mark.parametrize(
    "options", [{}, {"classes": FLOWERS}, {"classes": FLOWERS, "mention": True}, {"answer_tags": False}]
)
def test_the_gold_response_is_found_correct(gold, options):
    with Runner("classify", options) as runner:
        (verdict,) = runner.verify([VerifyRequest(runner.gold_response(gold, {}), gold)])
    assert verdict.status is Status.CORRECT
    assert verdict.score == 1.0


@given(st.text(max_size=300), st.text(min_size=1, max_size=10))
def test_a_text_that_contains_the_name_is_not_the_name(text, name):
    folded = fold_label(name)
    if not folded or "<" in name + text:
        return
    verdict = judge(text, name)
    assert verdict.score is not None
    assert (verdict.status is Status.CORRECT) == (fold_label(text) == folded)


def test_a_hundred_kilobytes_are_none():
    assert judge("tulip " * 20_000, "tulip", classes=FLOWERS, mention=True).status is Status.NO_ANSWER
