"""Kind `grounding`: one box, GIoU, and the reference's numbers."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers import BadGold, Runner, Status, VerifyRequest
from verifiers.grounding import GroundingVerifier
from verifiers.visual.photographs import photographs

RECORDS = json.loads((Path(__file__).parents[1] / "golden" / "visual_rft_lisa_cls.json").read_text(encoding="utf-8"))
GOLD = [100, 100, 500, 500]


def judge(answer, gold=GOLD, meta=None, **options):
    response = f"<think>x</think> <answer>{answer}</answer>"
    return GroundingVerifier(GroundingVerifier.Options(**options)).verify(VerifyRequest(response, gold, meta or {}))


@pytest.mark.golden
@pytest.mark.parametrize(
    "record", [pytest.param(r, id=r["notes"]) for r in RECORDS if r["method"].endswith("lisa_reward")]
)
def test_giou_plus_one_equals_the_reference(record):
    verifier = GroundingVerifier(GroundingVerifier.Options())
    verdict = verifier.verify(VerifyRequest(record["inputs"]["completion"], record["inputs"]["solution"]))
    if record["notes"].startswith("two boxes"):
        # The reference takes corners of two boxes for a reversed one and pays it 1.06 of 2.
        assert record["outputs"] > 1
        assert verdict.parts["giou"] == 0
        assert verdict.status is Status.WRONG
    else:
        assert 2 * verdict.parts["giou"] == pytest.approx(record["outputs"], abs=1e-6)


@pytest.mark.parametrize(
    "answer",
    [
        "(100,100),(500,500)",
        "\n( 100 , 100 ) , ( 500 , 500 )\n",
        "<box>(100,100),(500,500)</box>",
        "<|object_ref_start|>the cat<|object_ref_end|><|box_start|>(100,100),(500,500)<|box_end|>",
        "[100, 100, 500, 500]",
        '{"bbox_2d": [100, 100, 500, 500], "label": "the cat"}',
        "[{'Position': [100, 100, 500, 500]}]",
        '```json\n[{"bbox_2d": [100, 100, 500, 500]}]\n```',
    ],
)
def test_every_form_of_the_right_box(answer):
    verdict = judge(answer)
    assert verdict.status is Status.CORRECT
    assert verdict.score == 1.0
    assert verdict.answer == judge("(100,100),(500,500)").answer


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("(100,100),(500,500),(100,100),(500,500)", Status.WRONG),
        ("[[100, 100, 500, 500]]", Status.NO_ANSWER),
        ("(500,500),(100,100)", Status.WRONG),
        ("(100,100),(100,500)", Status.WRONG),
        ("No Objects", Status.WRONG),
        ("(0.1,0.1),(0.5,0.5)", Status.NO_ANSWER),
        ("(100,100)", Status.NO_ANSWER),
        ("100,100,500,500", Status.NO_ANSWER),
        ("(100,100),(500,500) is where it is", Status.NO_ANSWER),
        ("(1e2,1e2),(5e2,5e2)", Status.NO_ANSWER),
        ("(NaN,100),(500,500)", Status.NO_ANSWER),
        ("(१००,100),(500,500)", Status.NO_ANSWER),
        ("[true, 100, 500, 500]", Status.NO_ANSWER),
        ("(100,100),(500," + "5" * 5000 + ")", Status.NO_ANSWER),
        ("", Status.NO_ANSWER),
    ],
)
def test_what_is_not_one_box_earns_nothing_but_the_format(answer, status):
    verdict = judge(answer)
    assert verdict.status is status
    assert dict(verdict.parts) == {"giou": 0.0, "format": 1.0}
    assert verdict.score == 0.5


def test_correct_is_an_iou_above_the_threshold():
    assert judge("(100,100),(500,300)").status is Status.WRONG  # exactly one half
    assert judge("(100,100),(500,301)").status is Status.CORRECT
    assert judge("(100,100),(500,301)", iou_threshold=0.75).status is Status.WRONG


@pytest.mark.parametrize(("measure", "value"), [("iou", 0.25), ("giou", 0.25), ("diou", 0.25 - 0.0)])
def test_measures_of_a_box_within_the_gold(measure, value):
    # Same centre, half the sides: the enclosing box is the gold, and the distance is 0.
    verdict = judge("(200,200),(400,400)", measure=measure)
    assert verdict.parts[measure] == pytest.approx(value if measure == "iou" else (value + 1) / 2)


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4), st.sampled_from(["iou", "giou", "diou"]))
def test_parts_are_in_their_range_for_any_box(corners, measure):
    x1, y1, x2, y2 = corners
    verdict = judge(f"({x1},{y1}),({x2},{y2})", measure=measure)
    assert 0 <= verdict.parts[measure] <= 1
    assert 0 <= verdict.score <= 1


@given(st.text(max_size=200) | st.text("(),[]{}'\" 0123456789.-<>boxref|", max_size=200))
def test_any_text_gets_a_scored_verdict(text):
    assert judge(text).score is not None


SIZES = {"image_size": [640, 480], "resized_size": [644, 476]}


@pytest.mark.parametrize("written", ["absolute", "resized", "relative_1000", "relative_1"])
def test_a_perfect_response_is_found_correct_in_every_convention(written):
    verifier = GroundingVerifier(GroundingVerifier.Options(coordinates=written, gold_coordinates="absolute"))
    response = verifier.gold_response([64, 48, 321, 241], SIZES)
    verdict = verifier.verify(VerifyRequest(response, [64, 48, 321, 241], SIZES))
    assert verdict.status is Status.CORRECT
    assert verdict.score > 0.99


def test_white_cells_on_the_photographs():
    golds = [
        {**image.gold, "boxes": [box for box in image.gold["boxes"] if box["label"] == "WBC"]}
        for image in photographs()
    ]
    golds = [gold for gold in golds if len(gold["boxes"]) == 1]
    assert len(golds) == 68
    with Runner("grounding", {"coordinates": "absolute", "form": "json"}) as runner:
        verdicts = runner.verify([VerifyRequest(runner.gold_response(gold, {}), gold) for gold in golds])
    assert all(v.status is Status.CORRECT and v.score == 1.0 for v in verdicts)


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        ([], "0 boxes"),
        ([[1, 2, 3, 4], [5, 6, 7, 8]], "2 boxes"),
        ([5, 5, 5, 9], "no area"),
        ("the cat", "cannot be read"),
        ([0, 0, 1200, 10], "outside"),
        (None, "must be a list"),
    ],
)
def test_a_bad_gold_says_what_is_wrong(gold, reason):
    with pytest.raises(BadGold, match=reason):
        judge("(1,1),(2,2)", gold)
    with pytest.raises(BadGold, match=reason):
        GroundingVerifier(GroundingVerifier.Options()).gold_response(gold, {})


def test_a_gold_too_small_to_be_written_is_bad():
    verifier = GroundingVerifier(GroundingVerifier.Options(gold_coordinates="absolute"))
    with pytest.raises(BadGold, match="too small"):
        verifier.gold_response([0, 0, 1, 1], {"image_size": [10_000, 10_000]})
