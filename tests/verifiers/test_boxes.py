"""Boxes: measures, frames, matching and parsing, apart from any reward."""

import ast
import importlib.util
import itertools
import json
import math
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.visual.boxes import (
    RELATIVE_1,
    RELATIVE_1000,
    Box,
    Coordinates,
    Frame,
    absolute,
    convert,
    diou,
    giou,
    iou,
    on_integer_grid,
    overlap,
    resized,
    resized_size,
)
from verifiers.visual.matching import greedy, optimal, pair_ious
from verifiers.visual.parse import NO_OBJECTS, parse_detections, says_no_objects
from verifiers.visual.tags import keeps_format

GOLDEN = Path(__file__).parents[1] / "golden"
HALF = Fraction(1, 2)


def golden(file, method):
    return [r for r in json.loads((GOLDEN / file).read_text(encoding="utf-8")) if r["method"] == method]


@st.composite
def boxes(draw, low=-50, high=50):
    x1, y1 = draw(st.integers(low, high - 1)), draw(st.integers(low, high - 1))
    return Box(x1, y1, draw(st.integers(x1 + 1, high)), draw(st.integers(y1 + 1, high)))


# Measures ------------------------------------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("record", golden("visual_rft_detection.json", "visual_rft.iou"))
def test_iou_equals_the_reference(record):
    a, b = Box(*record["inputs"]["bbox1"]), Box(*record["inputs"]["bbox2"])
    assert iou(a, b) == pytest.approx(record["outputs"], abs=1e-12)


@pytest.mark.golden
@pytest.mark.parametrize("record", golden("visual_rft_lisa_cls.json", "visual_rft.lisa_giou"))
def test_giou_equals_the_reference(record):
    gold, predicted = (Box(*itertools.chain(*record["inputs"][name])) for name in ("gt", "pred"))
    assert giou(gold, predicted) + 1 == pytest.approx(record["outputs"], abs=1e-6)


@given(boxes(), boxes())
def test_measures_are_symmetric_and_in_their_ranges(a, b):
    for measure, low in ((iou, 0), (giou, -1), (diou, -1)):
        value = measure(a, b)
        assert value == measure(b, a)
        assert low <= value <= 1
    assert giou(a, b) <= iou(a, b)
    assert diou(a, b) <= iou(a, b)
    assert (iou(a, b) == 1) == (a == b)


@given(boxes(), boxes(), st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_measures_do_not_change_with_the_origin(a, b, dx, dy):
    def moved(box):
        return Box(box.x1 + dx, box.y1 + dy, box.x2 + dx, box.y2 + dy)

    for measure in (iou, giou, diou):
        assert measure(moved(a), moved(b)) == measure(a, b)


@given(boxes(), boxes(), st.fractions(min_value=Fraction(1, 50), max_value=50))
def test_measures_do_not_change_with_the_scale(a, b, scale):
    def scaled(box):
        return Box(*(v * scale for v in box[:4]))

    for measure in (iou, giou, diou):
        assert measure(scaled(a), scaled(b)) == pytest.approx(measure(a, b), abs=1e-12)


@given(boxes(), boxes())
def test_iou_is_the_share_of_common_pixels(a, b):
    def pixels(box):
        return {(x, y) for x in range(box.x1, box.x2) for y in range(box.y1, box.y2)}

    left, right = pixels(a), pixels(b)
    assert overlap(a, b) == (len(left & right), len(left | right))
    assert iou(a, b) == len(left & right) / len(left | right)


def test_an_empty_or_reversed_box_has_no_area_and_no_iou():
    for empty in (Box(5, 5, 5, 9), Box(9, 9, 5, 5), Box(5, 9, 9, 5)):
        assert empty.is_empty
        assert empty.area == 0
        assert iou(empty, Box(0, 0, 10, 10)) == 0
        assert iou(empty, empty) == 0


# Frames --------------------------------------------------------------------------------------------------------------


def test_boxes_of_different_frames_are_not_compared():
    with pytest.raises(ValueError, match="different frames"):
        iou(Box(0, 0, 1, 1, RELATIVE_1000), Box(0, 0, 1, 1, absolute(640, 480)))
    with pytest.raises(ValueError, match="different frames"):
        iou(Box(0, 0, 1, 1, absolute(640, 480)), Box(0, 0, 1, 1, resized(644, 476)))


FRAMES = [RELATIVE_1000, RELATIVE_1, absolute(640, 480), absolute(333, 777), resized(644, 476)]


@given(boxes(0, 300), st.sampled_from(FRAMES), st.sampled_from(FRAMES))
def test_conversion_is_exact_there_and_back(box, source, target):
    placed = Box(*box[:4], source)
    there = convert(placed, target)
    assert there.frame == target
    assert all(isinstance(v, int | Fraction) for v in there[:4])
    assert convert(there, source) == placed


@given(boxes(0, 300), boxes(0, 300), st.sampled_from(FRAMES))
def test_conversion_does_not_change_iou(a, b, target):
    a, b = a._replace(frame=absolute(640, 480)), b._replace(frame=absolute(640, 480))
    assert iou(convert(a, target), convert(b, target)) == pytest.approx(iou(a, b), abs=1e-15)


def test_conversion_of_a_known_box():
    box = Box(320, 120, 640, 480, absolute(640, 480))
    assert convert(box, RELATIVE_1000)[:4] == (500, 250, 1000, 1000)
    assert convert(box, resized(644, 476))[:4] == (322, 119, 644, 476)
    assert convert(box, RELATIVE_1)[:4] == (HALF, Fraction(1, 4), 1, 1)


def test_without_a_size_there_is_no_conversion():
    unknown = Frame(Coordinates.ABSOLUTE, None, None)
    with pytest.raises(ValueError, match="without the size"):
        convert(Box(0, 0, 1, 1, unknown), RELATIVE_1000)
    with pytest.raises(ValueError, match="no inside"):
        absolute(0, 480)


@given(st.lists(boxes(), max_size=4), st.lists(boxes(), max_size=4), st.sampled_from(FRAMES))
def test_the_integer_grid_keeps_every_iou(left, right, target):
    groups = [[convert(b._replace(frame=absolute(640, 480)), target) for b in group] for group in (left, right)]
    on_grid = on_integer_grid(groups)
    assert all(isinstance(v, int) for group in on_grid for b in group for v in b[:4])
    for before, after in zip(itertools.product(*groups), itertools.product(*on_grid), strict=True):
        assert iou(*after) == pytest.approx(iou(*before), abs=1e-15)


def smart_resize(*arguments, **limits):
    """transformers' own function, out of its source: importing its module would need torchvision."""
    spec = importlib.util.find_spec("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "smart_resize"]
    namespace = {"math": math}
    exec(compile(tree, spec.origin, "exec"), namespace)
    return namespace["smart_resize"](*arguments, **limits)


@pytest.mark.parametrize("size", [(640, 480), (1920, 1080), (100, 100), (20, 30), (3000, 40), (333, 777)])
@pytest.mark.parametrize("limits", [{}, {"max_pixels": 401408}, {"min_pixels": 256 * 28 * 28}])
def test_the_resized_size_is_that_of_the_processor(size, limits):
    height, width = smart_resize(size[1], size[0], **limits)
    assert resized_size(size, **limits) == (width, height)


def test_a_strip_cannot_be_resized():
    with pytest.raises(ValueError, match="too narrow"):
        resized_size((4020, 20))


# Matching ------------------------------------------------------------------------------------------------------------


def rows_of(predictions, golds, threshold=HALF):
    return pair_ious(predictions, golds, [None] * len(predictions), [None] * len(golds), threshold)


@given(st.lists(boxes(0, 12), max_size=6), st.lists(boxes(0, 12), max_size=6))
def test_pairs_are_all_those_above_the_threshold(predictions, golds):
    expected = [[(g, iou(p, gold)) for g, gold in enumerate(golds) if iou(p, gold) > 0.5] for p in predictions]
    assert rows_of(predictions, golds) == expected


def test_labels_keep_pairs_apart():
    box = Box(0, 0, 9, 9)
    assert pair_ious([box, box], [box, box], ["cat", "dog"], ["dog", "cat"], HALF) == [[(1, 1.0)], [(0, 1.0)]]


def test_an_iou_of_exactly_the_threshold_is_no_match_however_it_is_written():
    gold, half = Box(100, 100, 200, 200), Box(100, 100, 200, 150)
    assert rows_of([half], [gold]) == [[]]
    for scale in (Fraction(1, 3), Fraction(7, 1000), Fraction(1, 10)):
        scaled = [[Box(*(v * scale for v in b[:4])) for b in group] for group in ([half], [gold])]
        assert rows_of(*on_integer_grid(scaled)) == [[]]
    tenth = Box(0, 0, 10, 1), Box(0, 0, 10, 10)
    assert rows_of([tenth[0]], [tenth[1]], Fraction(1, 10)) == [[]]
    assert rows_of([tenth[0]], [tenth[1]], Fraction(99, 1000)) == [[(0, 0.1)]]


def best_sum(rows, num_golds):
    """By trying every assignment."""
    gains = [dict(row) for row in rows]
    slots = [*range(num_golds), *([None] * len(rows))]
    return max(
        sum(gains[p].get(g, 0.0) for p, g in enumerate(chosen)) for chosen in itertools.permutations(slots, len(rows))
    )


@given(st.lists(boxes(0, 6), max_size=4), st.lists(boxes(0, 6), max_size=4))
def test_optimal_matching_is_the_best_of_all(predictions, golds):
    rows = rows_of(predictions, golds, Fraction(1, 10))
    matches = optimal(rows)
    assert len({m.prediction for m in matches}) == len({m.gold for m in matches}) == len(matches)
    assert all((m.gold, m.iou) in rows[m.prediction] for m in matches)
    assert sum(m.iou for m in matches) == pytest.approx(best_sum(rows, len(golds)), abs=1e-9)
    assert sum(m.iou for m in greedy(rows, [1.0] * len(rows))) <= sum(m.iou for m in matches) + 1e-9


def test_greedy_can_be_worse_than_optimal():
    golds = [Box(0, 0, 100, 95), Box(0, 0, 100, 160)]
    rows = rows_of([Box(0, 0, 100, 100), Box(0, 0, 100, 94)], golds)
    # The surer box is nearer to gold 0, the only one that the other could have had.
    assert [m[:2] for m in greedy(rows, [0.9, 0.5])] == [(0, 0), (1, 1)]
    assert [m[:2] for m in optimal(rows)] == [(0, 1), (1, 0)]
    assert sum(m.iou for m in optimal(rows)) > sum(m.iou for m in greedy(rows, [0.9, 0.5]))


def test_optimal_matching_of_a_crowd_ends_soon():
    golds = [Box(0, 0, 1000, 1000 + i) for i in range(40)]
    matches = optimal(rows_of([Box(0, 0, 1000, 1000 + i) for i in range(300)], golds))
    assert len(matches) == 40


# Parsing -------------------------------------------------------------------------------------------------------------

BOX = (1, 2, 30, 40)


def read(text, **options):
    return parse_detections(text, RELATIVE_1000, **options)


@pytest.mark.parametrize(
    ("text", "label", "confidence"),
    [
        ('[{"Position": [1, 2, 30, 40], "Confidence": 0.5}]', None, 0.5),
        ("[{'Position': [1, 2, 30, 40], 'Confidence': 1}]", None, 1.0),
        ('[{"bbox_2d": [1, 2, 30, 40], "label": "cat"}]', "cat", None),
        ('[{"bbox": [1, 2, 30, 40], "Label": "cat", "sub": {"x": []}}]', "cat", None),
        ('```json\n[\n{"bbox_2d": [1, 2, 30, 40]}\n]\n```', None, None),
        ("[{'bbox': [1, 2, 30, 40], 'label': \"dog's\"}]", "dog's", None),
        ("[{'bbox': [1, 2, 30, 40], 'label': 'dog\\'s'}]", "dog's", None),
        ('[{"bbox": [1.0, 2, 30.00, 40]}]', None, None),
        ("(1,2),(30,40)", None, None),
        (" ( 1 , 2 ) , ( 30 , 40 ) ", None, None),
        ("<box>(1,2),(30,40)</box>", None, None),
        ("<|box_start|>(1,2),(30,40)<|box_end|>", None, None),
        ("<ref>cat</ref><box>(1,2),(30,40)</box>", "cat", None),
        ("<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|>", "cat", None),
    ],
)
def test_every_form_of_one_box(text, label, confidence):
    (detection,) = read(text).detections
    assert detection.box[:4] == BOX
    assert (detection.label, detection.confidence) == (label, confidence)


def test_several_tuples_and_their_separators():
    assert [d.box[:4] for d in read("(1,2),(3,4),(5,6),(7,8)").detections] == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert len(read("<box>(1,2),(3,4)</box>;\n<box>(5,6),(7,8)</box>").detections) == 2


@pytest.mark.parametrize("text", ["No Objects", "no objects.", " No   Objects ", "[]"])
def test_saying_that_there_is_nothing_is_an_answer(text):
    assert read(text).detections == []


@pytest.mark.parametrize("text", ["", " ", "``````", "No Objects here", "There are No Objects", "none", "{}", "null"])
def test_saying_nothing_is_none(text):
    assert read(text).detections is None


def test_the_form_can_be_demanded():
    assert read("(1,2),(30,40)", form="json").detections is None
    assert read('[{"bbox": [1, 2, 30, 40]}]', form="tuple").detections is None
    assert read("(1,2),(30,40)", form="tuple").detections is not None


def test_repairs_are_made_only_on_demand():
    doubled, cut = "[[{'bbox': [1, 2, 30, 40]}]]", "[{'bbox': [1, 2, 30, 40]}, {'bbox': [3,"
    for text in (doubled, cut):
        assert read(text).detections is None
        assert [d.box[:4] for d in read(text, repair=True).detections] == [BOX]


def test_single_boxes_without_a_list_only_where_one_is_expected():
    for text in ("[1, 2, 30, 40]", '{"bbox": [1, 2, 30, 40]}'):
        assert read(text).detections is None
        assert [d.box[:4] for d in read(text, single=True).detections] == [BOX]


def test_decimals_are_exact():
    (detection,) = read('[{"bbox": [0.1, 0.2, 0.3, 0.4]}]').detections
    assert detection.box[:4] == (Fraction(1, 10), Fraction(1, 5), Fraction(3, 10), Fraction(2, 5))


@given(st.text(max_size=300) | st.text("[]{}(),:'\"\\0123456789.-+eE \nPositionNaN<>", max_size=300), st.booleans())
def test_no_text_raises(text, repair):
    for response in (text, f"[{text}]", f"[{{'Position': {text}}}]", f"<box>{text}</box>"):
        reading = read(response, repair=repair, single=repair)
        assert (reading.detections is None) == bool(reading.problem)
    says_no_objects(text)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
                    lambda v: st.lists(v, max_size=4) | st.dictionaries(
                        st.sampled_from(["Position", "bbox", "Confidence", "Label", "x"]), v, max_size=4)))  # fmt: skip
def test_no_json_raises(value):
    reading = read(json.dumps(value), single=True, repair=True)
    for d in reading.detections or ():
        assert all(type(v) in (int, Fraction) for v in d.box[:4])
        assert d.confidence is None or 0 <= d.confidence <= 1


@given(st.lists(boxes(0, 1000), max_size=5))
def test_what_is_written_as_json_is_read_back(written):
    text = json.dumps([{"Position": list(b[:4])} for b in written])
    assert [d.box for d in read(text).detections] == written
    assert [d.box for d in read(text.replace('"', "'")).detections] == written
    tuples = ",".join(f"({b.x1},{b.y1}),({b.x2},{b.y2})" for b in written) or NO_OBJECTS
    assert [d.box for d in read(tuples).detections] == written


# The tag contract ----------------------------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("record", golden("visual_rft_detection.json", "visual_rft.format"))
def test_the_format_check_equals_the_reference(record):
    assert float(keeps_format(record["inputs"]["completion"])) == record["outputs"]


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "x"]), max_size=12))
def test_the_format_check_is_the_regular_expression_of_the_reference(pieces):
    text = "".join(pieces)
    expected = re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL)
    assert keeps_format(text) == (expected is not None)
