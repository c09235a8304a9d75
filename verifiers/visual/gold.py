"""The gold boxes of one image, and the frames that gold and answer are measured in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from verifiers.errors import BadGold
from verifiers.options import Options as BaseOptions
from verifiers.visual.boxes import RELATIVE_1, RELATIVE_1000, Box, Coordinates, Frame, Number, Size, convert
from verifiers.visual.parse import BOX_KEYS, LABEL_KEYS, Detection, parse_detections

MAX_GOLD_BOXES = 10_000
MAX_REMEMBERED_GOLDS = 1_024
# Annotators draw, and tools round, past the edge of a photograph; beyond this it is another convention.
EDGE_TOLERANCE_PIXELS = 1

Convention = Literal["absolute", "resized", "relative_1000", "relative_1"]


class FrameOptions(BaseOptions):
    """coordinates: how the response writes coordinates: relative_1000, absolute, resized, relative_1.
    gold_coordinates: how the gold does; null: the same way.

    The sizes that a conversion needs are ``image_size: [width, height]`` (of the original) and ``resized_size: [width,
    height]`` (of what the processor made of it), in the gold or in meta."""

    coordinates: Convention = "relative_1000"
    gold_coordinates: Convention | None = None


class Gold(NamedTuple):
    """The gold boxes (not empty, none twice) in the frame of the response, with labels as written."""

    detections: list[Detection]
    frame: Frame


def read_gold(gold: Any, meta: Mapping[str, Any], options: FrameOptions) -> Gold:
    """Read a gold: a list of boxes, one box, an object with the list under `boxes` (and the sizes), or the text of a
    perfect answer as Visual-RFT's data sets have it. A box is [x1, y1, x2, y2] or an object with it under Position,
    bbox_2d or bbox and perhaps a label.

    Raises `BadGold` with the box and the reason."""
    sizes: Mapping[str, Any] = meta
    if isinstance(gold, Mapping) and "boxes" in gold:
        sizes = {**meta, **{key: value for key, value in gold.items() if key != "boxes"}}
        gold = gold["boxes"]
    written = options.gold_coordinates or options.coordinates
    differ = written != options.coordinates
    frame = _frame(options.coordinates, sizes, needed=differ)
    source = _frame(written, sizes, needed=differ)
    detections = [_checked(d, source, index) for index, d in enumerate(_detections(gold, source))]
    # The same box twice is one object: an answer, whose duplicates do not count, could never find both.
    unique = {(d.box, d.label): d for d in detections}
    return Gold([d._replace(box=convert(d.box, frame)) for d in unique.values()], frame)


class GoldReader:
    """`read_gold`, which remembers: a group of responses has one gold. Thread safe."""

    def __init__(self, options: FrameOptions):
        self._options = options
        self._read: dict[str, Gold] = {}

    def read(self, gold: Any, meta: Mapping[str, Any]) -> Gold:
        """Raises `BadGold`."""
        key = repr((gold, meta.get("image_size"), meta.get("resized_size")))
        found = self._read.get(key)
        if found is None:
            found = read_gold(gold, meta, self._options)
            if len(self._read) >= MAX_REMEMBERED_GOLDS:
                self._read.clear()
            self._read[key] = found
        return found


def _frame(convention: Convention, sizes: Mapping[str, Any], *, needed: bool) -> Frame:
    if convention == "relative_1000":
        return RELATIVE_1000
    if convention == "relative_1":
        return RELATIVE_1
    key = "image_size" if convention == "absolute" else "resized_size"
    size = sizes.get(key)
    if size is not None:
        return Frame(Coordinates(convention), *_size(size, key))
    if needed:
        raise BadGold(
            f"To convert '{convention}' coordinates '{key}': [width, height] is needed, and there is none.",
            fix=f"put {key} into the gold or the example's meta data",
        )
    return Frame(Coordinates(convention), None, None)


def _size(size: Any, key: str) -> Size:
    if not isinstance(size, list | tuple) or len(size) != 2 or any(type(v) is not int or v < 1 for v in size):
        raise BadGold(f"'{key}' must be [width, height] in whole pixels, not {str(size)[:100]}.")
    return size[0], size[1]


def _detections(gold: Any, frame: Frame) -> list[Detection]:
    if isinstance(gold, str):
        text = gold.strip().removeprefix("<answer>").removesuffix("</answer>")
        reading = parse_detections(text, frame, max_boxes=MAX_GOLD_BOXES)
        if reading.detections is None:
            raise BadGold(f"The gold text cannot be read: {reading.problem}.")
        return reading.detections
    if isinstance(gold, Mapping) or _is_numbers(gold):
        gold = [gold]
    if not isinstance(gold, list | tuple):
        raise BadGold(f"The gold must be a list of boxes, an object or a text, not {type(gold).__name__}.")
    if len(gold) > MAX_GOLD_BOXES:
        raise BadGold(f"The gold has {len(gold)} boxes; at most {MAX_GOLD_BOXES} are read.")
    return [_detection(item, frame, index) for index, item in enumerate(gold)]


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(v, int | float) for v in value)


def _detection(item: Any, frame: Frame, index: int) -> Detection:
    label = None
    if isinstance(item, Mapping):
        label = next((item[key] for key in LABEL_KEYS if key in item), None)
        item = next((item[key] for key in BOX_KEYS if key in item), None)
    if label is not None and (not isinstance(label, str) or not label.strip()):
        raise BadGold(f"The label of gold box {index} must be a non-empty string, not {label!r}.")
    if not isinstance(item, list | tuple | Box) or len(item) != 4:
        raise BadGold(f"Gold box {index} must be [x1, y1, x2, y2], on its own or under {', '.join(BOX_KEYS)}.")
    return Detection(Box(*(_coordinate(value, index) for value in item), frame=frame), label)


def _coordinate(value: Any, index: int) -> Number:
    if type(value) is int:
        return value
    if type(value) is not float or not math.isfinite(value):
        raise BadGold(f"Gold box {index} has the coordinate {value!r}, which is not a finite number.")
    exact = Fraction(Decimal(repr(value)))  # the decimal it is written as
    return exact.numerator if exact.denominator == 1 else exact


def _checked(detection: Detection, frame: Frame, index: int) -> Detection:
    box = detection.box
    shown = f"Gold box {index} [{', '.join(str(float(v)) for v in box[:4])}]"
    if box.is_empty:
        raise BadGold(f"{shown} has no area: corners are [left, top, right, bottom].")
    tolerance = EDGE_TOLERANCE_PIXELS if frame.coordinates in (Coordinates.ABSOLUTE, Coordinates.RESIZED) else 0
    width, height = (math.inf if side is None else side for side in (frame.width, frame.height))
    if min(box.x1, box.y1) < -tolerance or box.x2 > width + tolerance or box.y2 > height + tolerance:
        raise BadGold(
            f"{shown} lies outside 0..{width} x 0..{height}, where '{frame.coordinates}' coordinates are.",
            fix="check gold_coordinates and the sizes",
        )
    return detection
