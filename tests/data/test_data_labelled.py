"""Labelled data: the forms that are read, and what is refused, by line."""

import json
import math
import random

import pytest

from data import load_examples
from data.chain import check_steps, conciseness_level
from data.chain_labels import wrong_solution
from data.labelled import LabelledResponse, Pair, expect, load_labelled
from data.split import check_disjoint, part
from verifiers.errors import ConfigError, DataError

CHAIN = {"count": 60, "min_operands": 4, "max_operands": 4, "modulus": 5, "operators": "+-*"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(tmp_path, rows, **options):
    return load_labelled("pairs", {"path": write(tmp_path / "p.jsonl", rows), **options}, key="data.train")


def turn(role, text):
    return {"role": role, "content": text}


def talk(question, answer):
    return [turn("user", question), turn("assistant", answer)]


def test_the_plain_and_both_conversation_forms_give_the_same_pair(tmp_path):
    plain = pairs(tmp_path, [{"prompt": "2+2?", "chosen": "4", "rejected": "5"}])
    listed = pairs(tmp_path, [{"prompt": [turn("user", "2+2?")], "chosen": [turn("assistant", "4")],
                               "rejected": [turn("assistant", "5")]}])  # fmt: skip
    whole = pairs(
        tmp_path,
        [{"chosen": [turn("user", "2+2?"), turn("assistant", "4")],
          "rejected": [turn("user", "2+2?"), turn("assistant", "5")]}],
        prompt_field=None,
    )  # fmt: skip
    assert plain == listed == whole
    assert (plain[0].prompt[-1].content, plain[0].chosen, plain[0].rejected, plain[0].id) == ("2+2?", "4", "5", "p-0")


def test_a_dataset_of_hugging_face_gives_what_the_jsonl_gives(tmp_path):
    import datasets

    rows = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no", "margin": i / 2} for i in range(3)]
    folder = tmp_path / "saved"
    datasets.Dataset.from_list(rows).save_to_disk(str(folder))
    from_hub = load_labelled("pairs", {"path": str(folder), "margin_field": "margin"}, key="data.train")
    from_file = pairs(tmp_path, rows, margin_field="margin")
    assert [(p.prompt, p.chosen, p.margin) for p in from_hub] == [(p.prompt, p.chosen, p.margin) for p in from_file]


GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("bad", "options", "message"),
    [
        ({"prompt": "q", "chosen": "a"}, {}, "'rejected' is missing"),
        ({**GOOD, "rejected": "a"}, {}, "says the same"),
        ({**GOOD, "margin": -1.0}, {"margin_field": "margin"}, "is -1"),
        ({**GOOD, "margin": math.nan}, {"margin_field": "margin"}, "finite number"),
        ({**GOOD, "chosen": [turn("user", "a")]}, {}, "one message of the assistant"),
        ({"chosen": talk("q", "a"), "rejected": talk("other", "b")}, {"prompt_field": None}, "share all turns"),
    ],
)  # fmt: skip
def test_a_pair_that_is_none_is_an_error_with_its_line(tmp_path, bad, options, message):
    good = GOOD | ({"margin": 1.0} if "margin_field" in options else {})
    if options.get("prompt_field", "prompt") is None:
        good = {"chosen": talk("q", "a"), "rejected": talk("q", "b")}
    with pytest.raises(DataError) as caught:
        pairs(tmp_path, [good, bad], **options)
    assert message in str(caught.value)
    assert "p.jsonl, line 2" in str(caught.value)


@pytest.mark.parametrize("label", [None, math.nan, "yes", "missing"])
def test_a_missing_label_is_an_error_and_never_a_wrong_answer(tmp_path, label):
    row = {"prompt": "q", "response": "r", "label": label}
    if label == "missing":
        del row["label"]
    path = write(tmp_path / "l.jsonl", [{"prompt": "q", "response": "r", "label": True}, row])
    with pytest.raises(DataError, match=r"l\.jsonl, line 2"):
        load_labelled("labelled", {"path": path}, key="data.train")


def test_labelled_responses_keep_reference_and_meta_and_may_be_empty(tmp_path):
    rows = [{"q": "1+1", "answer": "", "right": False, "gold": "2", "source": "x"}]
    options = {"path": write(tmp_path / "l.jsonl", rows), "prompt_field": "q", "response_field": "answer",
               "label_field": "right", "reference_field": "gold", "meta_fields": ["source"]}  # fmt: skip
    (found,) = load_labelled("labelled", options, key="data.train")
    assert (found.response, found.label, found.reference, found.meta) == ("", 0.0, "2", {"source": "x"})


def test_parts_of_labelled_data_share_no_question(tmp_path):
    rows = [{"prompt": f"question {i % 20}", "chosen": f"{i}", "rejected": "no"} for i in range(60)]
    found = pairs(tmp_path, rows)
    train, held_out = part(found, "train", 30), part(found, "eval", 30)
    assert len(train) + len(held_out) == 60
    check_disjoint(train, {"held out": held_out})


def test_a_source_of_the_other_form_is_refused():
    with pytest.raises(ConfigError, match="trained on pairs"):
        expect([LabelledResponse("a", (), "", 1.0)], Pair, key="data.train")


# ---- generated ---------------------------------------------------


def test_wrong_solutions_are_as_long_as_right_ones_and_end_in_a_wrong_answer():
    for example in load_examples("chain", CHAIN, key="data"):
        wrong = wrong_solution(example, random.Random(example.id))
        right = check_steps(example, example.solution)
        judged = check_steps(example, wrong)
        assert len(wrong) == len(example.solution)
        assert all(label.correct for label in right)
        assert not judged[-1].on_track
        assert sum(not label.follows for label in judged) == 1  # one error, carried on


def test_swapped_pairs_are_the_stated_share():
    clean, noisy = (load_labelled("chain_pairs", {**CHAIN, "flip_share": f}, key="d") for f in (0.0, 0.25))
    assert sum(a.chosen != b.chosen for a, b in zip(clean, noisy, strict=True)) == 15
    assert all({a.chosen, a.rejected} == {b.chosen, b.rejected} for a, b in zip(clean, noisy, strict=True))


def test_several_pairs_of_an_expression_have_the_same_question():
    found = load_labelled("chain_pairs", {**CHAIN, "per_expression": 3}, key="d")
    assert len(found) == 180
    assert len({pair.content_key() for pair in found}) == 60


@pytest.mark.parametrize(
    ("response", "level"),
    [("#3", 1.0), ("", 1.0), ("7*2\n4\n#4", 0.8), ("7*2\n7*2\n4\n#4", 0.6), ("1\n" * 9, 0.1), ("nonsense", 0.9)],
)
def test_the_conciseness_level_counts_working_and_repeats(response, level):
    assert conciseness_level(response) == level


def test_generated_levels_are_those_of_the_responses_and_say_nothing_about_being_right():
    found = load_labelled("chain_levels", {**CHAIN, "count": 400, "direct_share": 0.25}, key="d")
    assert all(one.label == conciseness_level(one.response) for one in found)
    assert {0.7, 1.0} < {one.label for one in found}


def test_repeated_demonstrations_are_only_longer():
    plain, repeated = (load_examples("chain", {**CHAIN, "repeat_share": s}, key="d") for s in (0.0, 1.0))
    for a, b in zip(plain, repeated, strict=True):
        assert list(dict.fromkeys(b.solution.splitlines())) == a.solution.splitlines()
        assert b.gold == a.gold
    assert conciseness_level(repeated[0].solution) < conciseness_level(plain[0].solution)
