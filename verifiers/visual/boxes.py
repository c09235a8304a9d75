"""Boxes and the frames their coordinates are measured in. Everything here is exact for ints and Fractions.

A coordinate means nothing without its frame: the same object is at other numbers in pixels of the photograph, in pixels
of the image that the processor resized, and in 0..1000. A `Box` carries its `Frame`, and no function takes two boxes of
different frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import NamedTuple

# Coordinates from answers and golds are ints or Fractions. Floats work too, and are as exact as floats are.
Number = int | float | Fraction
Size = tuple[int, int]


class Coordinates(StrEnum):
    """A convention of writing coordinates."""

    ABSOLUTE = "absolute"  # pixels of the original image
    RESIZED = "resized"  # pixels of the image the processor made of it (Qwen2.5-VL)
    RELATIVE_1000 = "relative_1000"  # 0..1000 of width and height (Visual-RFT, Qwen2-VL, Qwen3-VL)
    RELATIVE_1 = "relative_1"  # 0..1 of width and height


@dataclass(frozen=True, slots=True)
class Frame:
    """A convention together with the numbers that stand for the right and the lower edge of the image: width and
    height, both None if the size in pixels is not known. Boxes of such a frame cannot be converted."""

    coordinates: Coordinates
    width: int | None
    height: int | None

    def __post_init__(self) -> None:
        if any(side is not None and side < 1 for side in (self.width, self.height)):
            raise ValueError(f"a frame of {self.width} x {self.height} has no inside")


RELATIVE_1000 = Frame(Coordinates.RELATIVE_1000, 1000, 1000)
RELATIVE_1 = Frame(Coordinates.RELATIVE_1, 1, 1)


def absolute(width: int, height: int) -> Frame:
    return Frame(Coordinates.ABSOLUTE, width, height)


def resized(width: int, height: int) -> Frame:
    return Frame(Coordinates.RESIZED, width, height)


class Box(NamedTuple):
    """Corners (x1, y1) left above and (x2, y2) right below, as continuous coordinates: the width is x2 - x1."""

    x1: Number
    y1: Number
    x2: Number
    y2: Number
    frame: Frame = RELATIVE_1000

    @property
    def is_empty(self) -> bool:
        """True for a box without area, such as one whose corners are in the wrong order."""
        return self.x2 <= self.x1 or self.y2 <= self.y1

    @property
    def area(self) -> Number:
        return 0 if self.is_empty else (self.x2 - self.x1) * (self.y2 - self.y1)


def convert(box: Box, frame: Frame) -> Box:
    """`box` in the coordinates of another `frame` of the same image. Exact, nothing is rounded.

    Raises ValueError if a size is not known."""
    if box.frame == frame:
        return box
    if box.frame.width is None or box.frame.height is None or frame.width is None or frame.height is None:
        raise ValueError(f"{box.frame} to {frame}: without the size in pixels there is no conversion")
    x, y = Fraction(frame.width, box.frame.width), Fraction(frame.height, box.frame.height)
    return Box(_plain(box.x1 * x), _plain(box.y1 * y), _plain(box.x2 * x), _plain(box.y2 * y), frame)


def _plain(value: Number) -> Number:
    return value.numerator if isinstance(value, Fraction) and value.denominator == 1 else value


def resized_size(
    size: Size, *, factor: int = 28, min_pixels: int = 56 * 56, max_pixels: int = 14 * 14 * 4 * 1280
) -> Size:
    """(width, height) of the image that Qwen2-VL's and Qwen2.5-VL's processor makes of one of `size` (width, height).

    Sides are multiples of `factor`, the area lies within the limits where it can. Source: `smart_resize` in
    transformers (Apache-2.0); use the `min_pixels` and `max_pixels` that your processor has. Raises ValueError for
    images more than 200 times as long as wide, as it does.
    """
    width, height = size
    if max(size) > 200 * min(size):
        raise ValueError(f"an image of {width} x {height} is too narrow to be resized")
    new_width, new_height = round(width / factor) * factor, round(height / factor) * factor
    if new_width * new_height > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
    elif new_width * new_height < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        new_width = math.ceil(width * grow / factor) * factor
        new_height = math.ceil(height * grow / factor) * factor
    return new_width, new_height


def on_integer_grid(groups: Sequence[Iterable[Box]]) -> list[list[Box]]:
    """The same boxes with both axes stretched until all corners are whole numbers.

    Ratios of areas do not change, and whole numbers are compared exactly and fast. Boxes without Fractions come back as
    they are."""
    lists = [list(group) for group in groups]
    if Fraction not in {kind for boxes in lists for box in boxes for kind in map(type, box)}:
        return lists
    x = math.lcm(*{v.denominator for boxes in lists for b in boxes for v in (b[0], b[2]) if isinstance(v, Fraction)})
    y = math.lcm(*{v.denominator for boxes in lists for b in boxes for v in (b[1], b[3]) if isinstance(v, Fraction)})
    return [
        [Box(_plain(b.x1 * x), _plain(b.y1 * y), _plain(b.x2 * x), _plain(b.y2 * y), b.frame) for b in boxes]
        for boxes in lists
    ]


# Measures ------------------------------------------------------------------------------------------------------------


def overlap(a: Box, b: Box) -> tuple[Number, Number]:
    """(area of the intersection, area of the union). Raises ValueError if the boxes are of different frames."""
    if a.frame != b.frame:
        raise ValueError(f"boxes of different frames: {a.frame} and {b.frame}; convert one of them first")
    width, height = min(a.x2, b.x2) - max(a.x1, b.x1), min(a.y2, b.y2) - max(a.y1, b.y1)
    common = width * height if width > 0 and height > 0 and not a.is_empty and not b.is_empty else 0
    return common, a.area + b.area - common


def iou(a: Box, b: Box) -> float:
    """Intersection over union, in [0, 1]; 0 if either box is empty."""
    common, union = overlap(a, b)
    return float(common / union) if common else 0.0


def giou(a: Box, b: Box) -> float:
    """Generalised IoU (arXiv:1902.09630), in (-1, 1]: IoU minus the share of the enclosing box outside the union."""
    common, union = overlap(a, b)
    enclosing = (max(a.x2, b.x2) - min(a.x1, b.x1)) * (max(a.y2, b.y2) - min(a.y1, b.y1))
    if not union or not enclosing:
        return 0.0
    return float(common / union - (enclosing - union) / enclosing)


def diou(a: Box, b: Box) -> float:
    """Distance IoU (arXiv:1911.08287), in (-1, 1]: IoU minus (distance of centres / diagonal of the enclosing box)²."""
    common, union = overlap(a, b)
    width, height = max(a.x2, b.x2) - min(a.x1, b.x1), max(a.y2, b.y2) - min(a.y1, b.y1)
    if not union or not width * height:
        return 0.0
    # Four times both squares, because the centres are halves of these sums.
    distance = (a.x1 + a.x2 - b.x1 - b.x2) ** 2 + (a.y1 + a.y2 - b.y1 - b.y2) ** 2
    return float(common / union - distance / (4 * (width**2 + height**2)))
