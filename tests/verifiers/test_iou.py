"""Kind `iou`: the reference's rewards, the places where we differ on purpose, and what must never raise a reward."""

import itertools
import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers import BadGold, ConfigError, Runner, Status, VerifyRequest
from verifiers.iou import IouVerifier
from verifiers.visual.boxes import Box, absolute, iou
from verifiers.visual.coco import STATISTICS, ImageDetections, coco_form, mean_average_precision
from verifiers.visual.hostile import GOLD, REWARDED, hostile_responses
from verifiers.visual.photographs import PERTURBATIONS, perfect, photographs
from verifiers.visual.rewards import confidence_reward, guarded_confidence_reward, iou_reward

RECORDS = json.loads((Path(__file__).parents[1] / "golden" / "visual_rft_detection.json").read_text(encoding="utf-8"))
REFERENCE = {"confidence_reward": "reference"}
HIT, MISS = [100, 100, 200, 200], [500, 500, 600, 600]


def judge(response, gold, meta=None, **options):
    return IouVerifier(IouVerifier.Options(**options)).verify(VerifyRequest(response, gold, meta or {}))


def answer(*rows):
    """A response with objects given as (position, confidence) or (position, confidence, label)."""
    keys = ("Position", "Confidence", "Label")
    objects = [dict(zip(keys, row, strict=False)) for row in rows]
    return f"<think>x</think> <answer>{json.dumps(objects)}</answer>"


# The reference -------------------------------------------------------------------------------------------------------

# The reference's defects: note -> the parts that assay gives instead. Every other record must be equal.
DEVIATIONS = {
    "confidence > 1": (0.0, 0.0, 1.0),
    "confidence negative unmatched": (0.0, 0.0, 1.0),
    "nan confidence": (0.0, 0.0, 1.0),
    "answer with newlines (regex has no DOTALL)": (1.0, 0.9, 1.0),
    "No Objects vs No Objects gt": (1.0, 1.0, 1.0),
    "prediction where gt is No Objects": (0.0, 0.1, 1.0),
    "two answer blocks first wins": (0.0, 0.0, 0.0),
}
DETECTION = [r for r in RECORDS if r["method"] == "visual_rft.detection_reward"]


@pytest.mark.golden
@pytest.mark.parametrize("record", [pytest.param(r, id=r["notes"]) for r in DETECTION])
def test_parts_equal_the_reference_without_its_math_shortcut(record):
    verdict = judge(record["inputs"]["completion"], record["inputs"]["solution"], **REFERENCE)
    parts = [verdict.parts[name] for name in ("iou", "confidence", "format")]
    outputs = record["outputs"]
    reference = [*outputs["math_verify_disabled"].values(), outputs["format"]]
    if record["notes"] in DEVIATIONS:
        assert parts == pytest.approx(DEVIATIONS[record["notes"]], abs=1e-6)
        assert "NaN" in reference or parts != pytest.approx(reference, abs=1e-6)
    else:
        assert parts == pytest.approx(reference, abs=1e-6)
    assert verdict.score == pytest.approx(sum(parts) / 3)


@pytest.mark.golden
def test_the_shortcut_through_mathematics_is_not_there():
    outputs = [r["outputs"] for r in DETECTION]
    leaks = [o["with_math_verify_0.9.0"]["iou"] > o["math_verify_disabled"]["iou"] for o in outputs]
    leaking = [record for record, leaks_here in zip(DETECTION, leaks, strict=True) if leaks_here]
    assert len(leaking) >= 10
    for record in leaking:
        verdict = judge(record["inputs"]["completion"], record["inputs"]["solution"])
        assert verdict.parts["iou"] < 1


@pytest.mark.golden
@pytest.mark.parametrize("record", [r for r in RECORDS if r["method"] == "visual_rft.aggregate"])
def test_aggregation_equals_the_version_used_in_training(record):
    results, num_golds = record["inputs"]["iou_results"], record["inputs"]["len_gt"]
    hits = [c for value, c in results if value]
    misses = [c for value, c in results if not value]
    assert iou_reward([v for v, _ in results if v], len(results), num_golds) == pytest.approx(record["outputs"]["v2"])
    if all(0 <= c <= 1 for _, c in results):
        assert confidence_reward(hits, misses, num_golds) == pytest.approx(record["outputs"]["confidence"])


# Deviations, one by one ----------------------------------------------------------------------------------------------


def test_newlines_in_the_answer_do_not_hide_it():
    assert judge("<think>a\nb</think>\n<answer>\n[{'Position': [100,\n100, 200, 200], 'Confidence': 1}]\n</answer>",
                 GOLD).status is Status.CORRECT  # fmt: skip


def test_several_answers_are_none_or_the_last_by_option():
    hedged = answer((MISS, 1.0)) + answer((HIT, 1.0)).removeprefix("<think>x</think> ")
    assert judge(hedged, GOLD).status is Status.NO_ANSWER
    assert judge(hedged, GOLD).score == 0
    assert judge(hedged, GOLD, multiple_answers="last").status is Status.CORRECT


@pytest.mark.parametrize("confidence", ["NaN", "Infinity", "-Infinity", "1.01", "-0.01", "'1'", "true", "null", "[1]"])
def test_a_confidence_that_is_none_earns_nothing_but_the_format(confidence):
    text = f"<think>x</think> <answer>[{{'Position': {HIT}, 'Confidence': {confidence}}}]</answer>"
    verdict = judge(text, GOLD)
    assert verdict.status is Status.NO_ANSWER
    assert dict(verdict.parts) == {"iou": 0.0, "confidence": 0.0, "format": 1.0}


@pytest.mark.parametrize(
    ("gold", "rows", "iou_part", "confidence"),
    [
        ([], [], 1.0, 1.0),
        ([], [(HIT, 0.9)], 0.0, 0.1),
        ([], [(HIT, 0.9), (MISS, 0.5)], 0.0, 0.3),
        (GOLD, [], 0.0, 0.0),
    ],
)
def test_nothing_to_find_and_nothing_found(gold, rows, iou_part, confidence):
    verdict = judge(answer(*rows) if rows else "<think>x</think> <answer>No Objects</answer>", gold, **REFERENCE)
    assert (verdict.parts["iou"], verdict.parts["confidence"]) == pytest.approx((iou_part, confidence))
    assert (verdict.status is Status.CORRECT) == (iou_part == 1.0)


def test_the_iou_of_exactly_a_half_is_a_miss():
    assert judge(answer(([100, 100, 200, 150], 0.8)), GOLD).parts["iou"] == 0
    assert judge(answer(([100, 100, 200, 151], 0.8)), GOLD).parts["iou"] == pytest.approx(0.51)
    tenths = [{"Position": [0.1, 0.1, 0.4, 0.7]}]
    assert judge(answer(([0.1, 0.1, 0.4, 0.4], 1.0)), tenths, coordinates="relative_1").parts["iou"] == 0


def test_the_confidence_part_of_one_box():
    for c in (0.0, 0.3, 1.0):
        assert judge(answer((HIT, c)), GOLD).parts["confidence"] == c
        assert judge(answer((HIT, c)), GOLD, **REFERENCE).parts["confidence"] == c
        assert judge(answer((MISS, c)), GOLD, **REFERENCE).parts["confidence"] == 1 - c
        # Better than saying nothing, for a box that is wrong: the guarded part does not pay it.
        assert judge(answer((MISS, c)), GOLD).parts["confidence"] == 0


def test_the_plain_confidence_part_is_raised_by_spurious_boxes_and_the_guarded_one_is_not():
    gold = [[100 * i, 0, 100 * i + 50, 50] for i in range(10)]
    honest = [(gold[0], 0.5)]
    spam = [*honest, *(([i, 900, i + 5, 905], 0.0) for i in range(0, 45, 5))]
    assert judge(answer(*spam), gold, **REFERENCE).score > judge(answer(*honest), gold, **REFERENCE).score
    assert judge(answer(*spam), gold).score == judge(answer(*honest), gold).score


def test_optimal_matching_is_an_option():
    gold = [[0, 0, 100, 95], [0, 0, 100, 160]]
    response = answer(([0, 0, 100, 100], 0.9), ([0, 0, 100, 94], 0.5))
    assert judge(response, gold, matching="optimal").parts["iou"] > judge(response, gold).parts["iou"]


# Categories ----------------------------------------------------------------------------------------------------------

TWO = [{"bbox": [0, 0, 100, 100], "label": "cat"}, {"bbox": [0, 0, 100, 110], "label": "dog"}]


def test_boxes_match_within_their_category_only():
    right = answer(([0, 0, 100, 110], 1.0, "Dog"), ([0, 0, 100, 100], 1.0, "cat"))
    swapped = answer(([0, 0, 100, 110], 1.0, "bird"), ([0, 0, 100, 100], 1.0, "dog"))
    assert judge(right, TWO).status is Status.CORRECT
    assert judge(right, TWO).parts["iou"] == 1.0
    assert judge(swapped, TWO).parts["iou"] == pytest.approx(0.5 * 100 / 110)


def test_with_several_categories_every_box_needs_its_label():
    unlabelled = answer(([0, 0, 100, 110], 1.0), ([0, 0, 100, 100], 1.0))
    assert judge(unlabelled, TWO).status is Status.NO_ANSWER
    assert judge(unlabelled, TWO, labels="ignored").status is Status.CORRECT
    assert judge(unlabelled, TWO[:1], labels="required").status is Status.NO_ANSWER


def test_with_one_category_a_label_may_be_left_out_but_not_be_wrong():
    assert judge(answer(([0, 0, 100, 100], 1.0)), TWO[:1]).status is Status.CORRECT
    assert judge(answer(([0, 0, 100, 100], 1.0, "CAT")), TWO[:1]).status is Status.CORRECT
    assert judge(answer(([0, 0, 100, 100], 1.0, "dog")), TWO[:1]).status is Status.WRONG


# Coordinates ---------------------------------------------------------------------------------------------------------

SIZES = {"image_size": [640, 480], "resized_size": [644, 476]}


@pytest.mark.parametrize("written", ["absolute", "resized", "relative_1000", "relative_1"])
@pytest.mark.parametrize("annotated", ["absolute", "resized", "relative_1000", "relative_1"])
def test_a_perfect_response_is_found_correct_in_every_convention(written, annotated):
    gold = {
        "absolute": [[64, 48, 320, 240], [321, 241, 640, 480]],
        "resized": [[64, 48, 320, 240], [321, 241, 644, 476]],
        "relative_1000": [[10, 20, 300, 400], [500, 600, 1000, 1000]],
        "relative_1": [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 1.0, 1.0]],
    }[annotated]
    verifier = IouVerifier(IouVerifier.Options(coordinates=written, gold_coordinates=annotated))
    response = verifier.gold_response(gold, SIZES)
    verdict = verifier.verify(VerifyRequest(response, gold, SIZES))
    assert verdict.status is Status.CORRECT
    assert verdict.score > 0.98
    if written == annotated:
        assert verdict.score == 1.0


def test_boxes_in_the_wrong_convention_find_nothing():
    options = {"coordinates": "relative_1000", "gold_coordinates": "absolute"}
    gold = [[320, 240, 640, 480]]
    assert judge(answer(([500, 500, 1000, 1000], 1.0)), gold, SIZES, **options).parts["iou"] == 1.0
    assert judge(answer(([320, 240, 640, 480], 1.0)), gold, SIZES, **options).parts["iou"] == 0.0


def test_sizes_may_stand_in_the_gold():
    gold = {"boxes": [[320, 240, 640, 480]], "image_size": [640, 480]}
    options = {"coordinates": "relative_1000", "gold_coordinates": "absolute"}
    assert judge(answer(([500, 500, 1000, 1000], 1.0)), gold, **options).status is Status.CORRECT


# What must not matter ------------------------------------------------------------------------------------------------


@st.composite
def scenes(draw):
    """(gold boxes, answer rows of different positions and different confidences), near each other."""
    corner, side = st.integers(0, 30), st.integers(1, 15)
    position = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], corner, corner, side, side)
    golds = draw(st.lists(position, max_size=4, unique_by=tuple))
    near = st.sampled_from(golds) if golds else position
    positions = draw(st.lists(position | near, max_size=5, unique_by=tuple))
    confidences = draw(st.permutations(range(0, 101, 10)))
    return golds, [(p, c / 100) for p, c in zip(positions, confidences, strict=False)]


ALL_OPTIONS = [dict(zip(("matching", "confidence_reward"), pair, strict=True))
               for pair in itertools.product(("greedy", "optimal"), ("guarded", "reference"))]  # fmt: skip


@given(scenes(), st.sampled_from(ALL_OPTIONS), st.randoms())
def test_the_order_of_the_boxes_does_not_matter(scene, options, rng):
    golds, rows = scene
    shuffled, golds_shuffled = rng.sample(rows, len(rows)), rng.sample(golds, len(golds))
    before = judge(answer(*rows), golds, **options)
    assert judge(answer(*shuffled), golds, **options).parts == pytest.approx(before.parts)
    assert judge(answer(*shuffled), golds, **options).answer == before.answer
    if options["matching"] == "optimal":
        found = judge(answer(*rows), golds_shuffled, **options).parts["iou"]
        assert found == pytest.approx(before.parts["iou"])


@given(scenes(), st.sampled_from(ALL_OPTIONS), st.data())
def test_duplicates_do_not_matter(scene, options, data):
    golds, rows = scene
    copies = data.draw(st.lists(st.sampled_from(rows), max_size=5)) if rows else []
    before = judge(answer(*rows), golds, **options)
    after = judge(answer(*rows, *copies), [*golds, *golds], **options)
    assert (after.score, after.parts, after.answer) == (before.score, before.parts, before.answer)


@given(scenes(), st.sampled_from(["greedy", "optimal"]), st.data())
def test_a_spurious_box_never_raises_the_reward(scene, matching, data):
    golds, rows = scene
    # Beyond every gold box, or reversed: it can match none.
    position = data.draw(st.sampled_from([[60, 60, 70, 70], [80, 0, 90, 5], [20, 20, 10, 10], [-9, -9, -1, -1]]))
    confidence = data.draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    before = judge(answer(*rows), golds, matching=matching)
    after = judge(answer(*rows, (position, confidence)), golds, matching=matching)
    assert after.score <= before.score
    assert all(after.parts[name] <= before.parts[name] for name in ("iou", "confidence", "format"))
    plain = {**REFERENCE, "matching": matching}
    with_spurious = judge(answer(*rows, (position, confidence)), golds, **plain)
    assert with_spurious.parts["iou"] <= judge(answer(*rows), golds, **plain).parts["iou"]


@given(scenes(), st.integers(0, 900), st.integers(0, 900), st.integers(1, 20))
def test_moving_and_scaling_everything_does_not_matter(scene, dx, dy, scale):
    golds, rows = scene

    def moved(position):
        return [v * scale + d for v, d in zip(position, (dx, dy, dx, dy), strict=True)]

    options = {"coordinates": "absolute"}
    before = judge(answer(*rows), golds, **options)
    after = judge(answer(*((moved(p), c) for p, c in rows)), [moved(g) for g in golds], **options)
    assert after.parts == pytest.approx(before.parts)
    assert after.status is before.status


@given(st.lists(st.floats(0, 1), max_size=5), st.lists(st.floats(0, 1), max_size=5), st.integers(0, 3))
def test_the_guarded_confidence_is_the_worst_over_all_ways_to_drop_misses(hits, misses, num_golds):
    num_golds = max(num_golds, len(hits))
    subsets = [c for n in range(len(misses) + 1) for c in itertools.combinations(misses, n)]
    worst = min(confidence_reward(hits, subset, num_golds) for subset in subsets)
    assert guarded_confidence_reward(hits, misses, num_golds) == pytest.approx(worst, abs=1e-12)


# Golds and options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        (None, "must be a list"),
        (7, "must be a list"),
        ("a cat", "cannot be read"),
        ("<answer>[{'Position': [1, 2, 3]}]</answer>", "cannot be read"),
        ([[1, 2, 3]], "box 0 must be"),
        ([[1, 2, 3, 4], [5, 6, 5, 9]], "box 1 .* no area"),
        ([[9, 9, 1, 1]], "no area"),
        ([[0, 0, 1, float("nan")]], "finite"),
        ([[0, 0, 1, float("inf")]], "finite"),
        ([[False, 0, 1, 1]], "finite"),
        ([["0", "0", "1", "1"]], "finite"),
        ([[0, 0, 640, 1480]], "outside"),
        ([[-1, 0, 10, 10]], "outside"),
        ([{"bbox": [0, 0, 1, 1], "label": 3}], "label"),
        ([{"bbox": [0, 0, 1, 1], "label": "a"}, {"bbox": [0, 0, 2, 2]}], "1 of the 2"),
        ({"boxes": [[0, 0, 1, 1]] * 10_001}, "10001 boxes"),
    ],
)
def test_a_bad_gold_says_what_is_wrong_and_judges_nobody(gold, reason):
    verifier = IouVerifier(IouVerifier.Options())
    with pytest.raises(BadGold, match=reason):
        verifier.verify(VerifyRequest(answer((HIT, 1.0)), gold))
    with pytest.raises(BadGold, match=reason):
        verifier.gold_response(gold, {})
    with Runner("iou", {}) as runner:
        (verdict,) = runner.verify([VerifyRequest(answer((HIT, 1.0)), gold)])
    assert verdict.status is Status.BAD_GOLD
    assert verdict.score is None


def test_a_conversion_without_its_size_is_a_bad_gold():
    with pytest.raises(BadGold, match="image_size"):
        judge(answer((HIT, 1.0)), GOLD, gold_coordinates="absolute")
    with pytest.raises(BadGold, match="whole pixels"):
        judge(answer((HIT, 1.0)), GOLD, {"image_size": [640.0, 480]}, gold_coordinates="absolute")
    assert judge(answer((HIT, 1.0)), GOLD, coordinates="absolute").status is Status.CORRECT


def test_golds_that_cannot_be_told_apart_once_written_are_bad():
    gold = {"boxes": [[0, 0, 1, 1]], "image_size": [10_000, 10_000]}
    verifier = IouVerifier(IouVerifier.Options(gold_coordinates="absolute"))
    with pytest.raises(BadGold, match="0 of the 1"):
        verifier.gold_response(gold, {})


def test_a_changed_gold_is_read_again():
    verifier = IouVerifier(IouVerifier.Options())
    gold = [list(HIT)]
    assert verifier.verify(VerifyRequest(answer((HIT, 1.0)), gold)).status is Status.CORRECT
    gold[0][:] = MISS
    assert verifier.verify(VerifyRequest(answer((HIT, 1.0)), gold)).status is Status.WRONG


@pytest.mark.parametrize("gold", [[], GOLD, [HIT, MISS], TWO, "No Objects", [[0.5, 1.5, 20.25, 30]]])
@pytest.mark.parametrize("options", [{}, {"confidence": False}, {"confidence": False, "form": "tuple"},
                                     {"answer_tags": False}, {"matching": "optimal"}])  # fmt: skip
def test_the_gold_response_is_found_correct(gold, options):
    verifier = IouVerifier(IouVerifier.Options(**options))
    verdict = verifier.verify(VerifyRequest(verifier.gold_response(gold, {}), gold))
    assert verdict.status is Status.CORRECT
    assert verdict.score > 0.9


@pytest.mark.parametrize("options", [{"weights": {"iou": 0.0, "confidence": 0.0, "format": 0.0}},
                                     {"weights": {"iou": -1.0}}, {"weights": {"giou": 1.0}}, {"iou_threshold": 1.0},
                                     {"coordinates": "pixels"}, {"max_boxes": 0}])  # fmt: skip
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ConfigError, match="verifier"):
        Runner("iou", options)


def test_weights_make_a_weighted_mean():
    response, options = answer(([100, 100, 200, 170], 0.8)), {"weights": {"iou": 3.0, "confidence": 1.0, "format": 0.0}}
    with Runner("iou", options) as runner:
        (verdict,) = runner.verify([VerifyRequest(response, GOLD)])
    assert verdict.score == pytest.approx((3 * 0.7 + 0.8) / 4)
    assert judge(response, GOLD, confidence=False).score == pytest.approx((0.7 + 1) / 2)


def test_answers_are_the_same_when_the_boxes_are():
    one, other = answer((HIT, 0.9), (MISS, 0.1)), answer((MISS, 0.7), ([100.0, 100, 200, 200], 0.2))
    assert judge(one, GOLD).answer == judge(other, GOLD).answer
    assert judge(one, GOLD).answer != judge(answer((HIT, 0.9)), GOLD).answer
    assert judge("<think>x</think><answer>No Objects</answer>", GOLD).answer == "[]"
    assert judge("", GOLD).answer is None


# Hostile text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in hostile_responses()])
def test_a_hostile_response_earns_nothing_but_its_format(case):
    with Runner("iou", {}) as runner:
        (verdict,) = runner.verify([VerifyRequest(case.response, GOLD)])
    assert verdict.status in (Status.NO_ANSWER, Status.WRONG)
    assert verdict.parts["iou"] == verdict.parts["confidence"] == 0


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in REWARDED])
def test_an_unusual_right_response_is_paid(case):
    assert judge(case.response, GOLD).status is Status.CORRECT


@given(st.text(max_size=200) | st.text("<>/thinkaswer[]{}()'\":,.0123456789eE- \nPoistonCfdc", max_size=400))
def test_any_text_gets_a_scored_verdict(text):
    for response in (text, f"<think></think><answer>{text}</answer>", f"<think></think><answer>[{{{text}}}]</answer>"):
        verdict = judge(response, GOLD)
        assert verdict.score is not None
        assert 0 <= verdict.score <= 1


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "[", "]", "{", "}", "'", '"', "\\", "(", ")", ",", " ", "\n",
          "(1,2),(3,4)", "{'Position': [1,2,3,4], 'Confidence': 0.5},", "No Objects", "```", "<box>", "<ref>",
          "9", "."]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4), st.lists(st.sampled_from(PIECES), max_size=3))
def test_a_hundred_kilobytes_are_judged_in_linear_time(repeated, around):
    unit = "".join(repeated)
    body = unit * (100_000 // len(unit))
    for response in (
        body,
        f"<think></think><answer>{body}</answer>",
        f"<think></think><answer>[{{'{body}{''.join(around)}",
    ):
        started = time.perf_counter()
        assert judge(response, GOLD).score is not None
        # Generous: linear reading takes some ten milliseconds, quadratic reading minutes.
        assert time.perf_counter() - started < 5


# Photographs ---------------------------------------------------------------------------------------------------------


def test_every_photograph_scores_its_own_boxes_fully():
    with Runner("iou", {"coordinates": "absolute"}) as runner:
        golds = [image.gold for image in photographs()]
        verdicts = runner.verify([VerifyRequest(runner.gold_response(gold, {}), gold) for gold in golds])
    assert len(verdicts) == 75
    assert all(v.status is Status.CORRECT and v.score == 1.0 for v in verdicts)


def test_every_pairwise_iou_on_the_photographs_is_that_of_pycocotools():
    masks = pytest.importorskip("pycocotools.mask")
    rng = random.Random(1)
    for image in photographs()[:20]:
        golds = [box["bbox"] for box in image.gold["boxes"]]
        moved = [row["Position"] for row in PERTURBATIONS["moved by up to 20%"](perfect(image), rng)]
        theirs = masks.iou(*([[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes] for boxes in (moved, golds)),
                           [0] * len(golds))  # fmt: skip
        ours = [[iou(Box(*m), Box(*g)) for g in golds] for m in moved]
        assert list(itertools.chain(*ours)) == pytest.approx(theirs.ravel().tolist(), abs=1e-12)


def detections_on_photographs():
    """Moved boxes with confidences, and on images without platelets a sure box of platelets."""
    rng = random.Random(0)
    verifier = IouVerifier(IouVerifier.Options(coordinates="relative_1000", gold_coordinates="absolute"))
    images = []
    for image in photographs():
        rows = PERTURBATIONS["moved by up to 10%"](perfect(image), rng)
        scaled = []
        for row in rows:  # the response speaks 0..1000, mAP is in pixels
            position = [round(v / side) for v, side in zip(row["Position"], (0.64, 0.48) * 2, strict=True)]
            scaled.append((position, round(rng.random(), 2), row["Label"]))
        if "Platelets" not in image.labels:
            scaled.append(([10, 10, 60, 60], 0.99, "Platelets"))
        reading, golds = verifier.read(answer(*scaled), image.gold, {})
        images.append((image, scaled, ImageDetections(golds, reading.detections, absolute(640, 480))))
    return images


def test_map_on_the_photographs_is_pycocotools_own(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    images = detections_on_photographs()
    ids = {"RBC": 1, "WBC": 2, "Platelets": 3}
    truth, results = {"info": {}, "images": [], "categories": [{"id": i, "name": n} for n, i in ids.items()],
                      "annotations": []}, []  # fmt: skip
    # Written from the annotations and the answers, past everything of ours.
    for number, (image, rows, _) in enumerate(images):
        truth["images"].append({"id": number, "width": 640, "height": 480})
        for box in image.gold["boxes"]:
            x1, y1, x2, y2 = box["bbox"]
            truth["annotations"].append({"id": len(truth["annotations"]) + 1, "image_id": number, "iscrowd": 0,
                                         "category_id": ids[box["label"]], "bbox": [x1, y1, x2 - x1, y2 - y1],
                                         "area": (x2 - x1) * (y2 - y1)})  # fmt: skip
        for (x1, y1, x2, y2), confidence, label in rows:
            box = [x1 * 0.64, y1 * 0.48, (x2 - x1) * 0.64, (y2 - y1) * 0.48]
            results.append({"image_id": number, "category_id": ids[label], "bbox": box, "score": confidence})
    (tmp_path / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    theirs = coco.COCO(str(tmp_path / "truth.json"))
    run = evaluation.COCOeval(theirs, theirs.loadRes(str(tmp_path / "results.json")), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    ours = mean_average_precision([detections for _, _, detections in images])
    assert [ours[name] for name in STATISTICS] == pytest.approx(list(run.stats), abs=1e-9)
    assert 0 < ours["mAP"] < 1


def test_false_positives_on_absent_categories_count_unless_only_present_ones_are_asked_for():
    pytest.importorskip("pycocotools")
    images = [detections for _, _, detections in detections_on_photographs()]
    everything, present = (mean_average_precision(images, queries=queries) for queries in ("all", "present"))
    assert everything["classes"]["platelets"] < present["classes"]["platelets"] - 0.05
    assert everything["classes"]["wbc"] == present["classes"]["wbc"]
    assert everything["queries"] == "all"


def test_map_of_the_gold_itself_of_nothing_and_of_no_gold():
    pytest.importorskip("pycocotools")
    verifier = IouVerifier(IouVerifier.Options(coordinates="absolute"))
    frame = absolute(640, 480)
    golds = [verifier.read("", image.gold, {})[1] for image in photographs()]
    assert mean_average_precision([ImageDetections(g, g, frame) for g in golds])["mAP"] == pytest.approx(1.0)
    assert mean_average_precision([ImageDetections(g, [], frame) for g in golds])["mAP"] == 0.0
    assert mean_average_precision([ImageDetections([], golds[0], frame)])["mAP"] == -1.0


def test_coco_boxes_are_pixels_of_the_original():
    verifier = IouVerifier(IouVerifier.Options())
    reading, _ = verifier.read(answer(([100, 250, 200, 500], 0.5)), GOLD, {})
    _, results, _ = coco_form([ImageDetections([], reading.detections, absolute(640, 480))], "all")
    assert results[0]["bbox"] == [64.0, 120.0, 64.0, 120.0]
    assert results[0]["score"] == 0.5


def test_a_response_without_any_tag_loses_the_format_part_only():
    text = json.dumps([{"Position": HIT, "Confidence": 1.0}])
    assert dict(judge(text, GOLD).parts) == {"iou": 1.0, "confidence": 1.0, "format": 0.0}
    assert judge(f"<think>x</think>{text}", GOLD).status is Status.NO_ANSWER
    assert judge(f"<think>x</think>{text}", GOLD, answer_tags=False).score == 1.0
