"""Boxes out of the text of an answer: JSON lists of objects, and tuples ``(x1,y1),(x2,y2)`` with or without tags.

Either the whole answer is read or none of it. Linear in the text, no evaluation, and nothing a model can write raises.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, NamedTuple, NoReturn

from verifiers.visual.boxes import Box, Frame, Number

Form = Literal["any", "json", "tuple"]
BOX_KEYS = ("Position", "bbox_2d", "bbox")
CONFIDENCE_KEYS = ("Confidence", "confidence")
LABEL_KEYS = ("Label", "label")
_ROLES = {
    **dict.fromkeys(BOX_KEYS, "box"),
    **dict.fromkeys(CONFIDENCE_KEYS, "confidence"),
    **dict.fromkeys(LABEL_KEYS, "label"),
}
NO_OBJECTS = "No Objects"
MAX_ANSWER_CHARS = 100_000
MAX_LABEL_CHARS = 200

# At most nine digits before the point and twenty after it: beyond any image, and cheap to compute with.
_NUMBER_TEXT = r"-?[0-9]{1,9}(?:\.[0-9]{1,20})?"
_NUMBER = re.compile(_NUMBER_TEXT)
_TOO_LARGE = 10**9
_FENCE = "```"
_STRING_OR_ESCAPE = re.compile(r"""\\.|"(?:[^"\\]|\\.)*"|'((?:[^'\\]|\\.)*)'""", re.DOTALL)
_POINT = rf"\(\s*({_NUMBER_TEXT})\s*,\s*({_NUMBER_TEXT})\s*\)"
_LABEL_TAGS = r"(?:<\|object_ref_start\|>([^<>|]*)<\|object_ref_end\|>|<ref>([^<>|]*)</ref>)"
_POINTS = rf"{_POINT}\s*,\s*{_POINT}"
_TAGGED = re.compile(
    rf"\s*(?:{_LABEL_TAGS}\s*)?(?:<\|box_start\|>\s*{_POINTS}\s*<\|box_end\|>|<box>\s*{_POINTS}\s*</box>|{_POINTS})\s*[,;]?"
)


class Detection(NamedTuple):
    """One box as written; label and confidence are None where the answer states none."""

    box: Box
    label: str | None = None
    confidence: float | None = None


class Reading(NamedTuple):
    """All detections of an answer (empty: it says that there are none), or None and why it cannot be read."""

    detections: list[Detection] | None
    problem: str = ""


class Contract(NamedTuple):
    """What an answer may look like, see `parse_detections`."""

    frame: Frame
    form: Form
    max_boxes: int
    repair: bool
    single: bool


class _UnreadableError(ValueError):
    """Inside this module only; the message becomes `Reading.problem`."""


def parse_detections(
    text: str, frame: Frame, *, form: Form = "any", max_boxes: int = 300, repair: bool = False, single: bool = False
) -> Reading:
    """Read the answer `text`, whose coordinates are meant in `frame`.

    repair: as the reference, read ``[[...]]`` as ``[...]`` and drop an object that was cut off at the end of the list.
    single: also read one object, or [x1, y1, x2, y2], without a list around it.
    Raises nothing on any text."""
    try:
        return Reading(_parse(text.strip(), Contract(frame, form, max_boxes, repair, single)))
    except _UnreadableError as error:
        return Reading(None, str(error))


def says_no_objects(text: str) -> bool:
    return len(text) < 40 and " ".join(text.split()).removesuffix(".").casefold() == NO_OBJECTS.casefold()


def _parse(text: str, contract: Contract) -> list[Detection]:
    if len(text) > MAX_ANSWER_CHARS:
        raise _UnreadableError(f"the answer is longer than {MAX_ANSWER_CHARS} characters")
    if says_no_objects(text):
        return []
    if text.startswith(_FENCE) and text.endswith(_FENCE):
        text = text[len(_FENCE) : -len(_FENCE)].removeprefix("json").strip()
    if not text:
        raise _UnreadableError("the answer is empty")
    if text[:1] in ("[", "{"):
        if contract.form == "tuple":
            raise _UnreadableError("JSON, where tuples (x1,y1),(x2,y2) were asked for")
        return _detections_of(_load(text, contract.max_boxes, contract.repair), contract)
    if contract.form == "json":
        raise _UnreadableError("the answer is not a JSON list")
    return _parse_tuples(text, contract.frame, contract.max_boxes)


# JSON ----------------------------------------------------------------------------------------------------------------


def _load(text: str, max_boxes: int, repair: bool) -> Any:
    # Counting bounds the nesting too, far below the recursion limit of the JSON parser.
    if text.count("{") > max_boxes or text.count("[") > max_boxes + 2:
        raise _UnreadableError(f"more than {max_boxes} boxes")
    if "'" in text:
        text = _STRING_OR_ESCAPE.sub(_with_double_quotes, text)
    if repair and not text.endswith("]"):
        text = text.rpartition("},")[0] + "}]" if "}," in text else text + "}]"
    try:
        return json.loads(text, parse_float=_decimal, parse_constant=_no_constant, object_pairs_hook=_object)
    except _UnreadableError:
        raise
    except (ValueError, RecursionError) as error:
        raise _UnreadableError(f"not JSON: {error}"[:200]) from error


def _with_double_quotes(match: re.Match[str]) -> str:
    return match[0] if match[1] is None else json.dumps(match[1].replace("\\'", "'"))


def _decimal(text: str) -> Decimal:
    return Decimal(text) if _NUMBER.fullmatch(text) else _bad_number(text)


def _bad_number(text: str) -> NoReturn:
    raise _UnreadableError(f"{text[:40]} is not a plain decimal number of at most nine digits before the point")


def _no_constant(name: str) -> NoReturn:
    raise _UnreadableError(f"{name} is not a number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise _UnreadableError("an object states a key twice")
    return entries


def _detections_of(value: Any, contract: Contract) -> list[Detection]:
    if contract.single and (isinstance(value, dict) or (isinstance(value, list) and len(value) == 4)):
        value = [value if isinstance(value, dict) else {BOX_KEYS[0]: value}]
    if contract.repair and isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        (value,) = value
    if not isinstance(value, list):
        raise _UnreadableError("the answer is not a list")
    return [_detection(item, contract.frame) for item in value]


def _detection(item: Any, frame: Frame) -> Detection:
    if type(item) is not dict:
        raise _UnreadableError("the list holds something else than objects")
    position, label, confidence, seen = None, None, None, set()
    for key, value in item.items():
        role = _ROLES.get(key)
        if role is None:
            continue
        if role in seen:
            raise _UnreadableError(f"an object states its {role} under two keys")
        seen.add(role)
        if role == "box":
            position = value
        elif role == "label":
            label = _label(value)
        else:
            confidence = _confidence(value)
    if type(position) is not list or len(position) != 4:
        raise _UnreadableError(f"a box is not a list of four numbers under one of the keys {', '.join(BOX_KEYS)}")
    x1, y1, x2, y2 = position
    if not (type(x1) is type(y1) is type(x2) is type(y2) is int):
        x1, y1, x2, y2 = (_coordinate(value) for value in position)
    if min(x1, y1, x2, y2) <= -_TOO_LARGE or max(x1, y1, x2, y2) >= _TOO_LARGE:
        raise _UnreadableError("a coordinate has more than nine digits before the point")
    return Detection(Box(x1, y1, x2, y2, frame), label, confidence)


def _coordinate(value: Any) -> Number:
    if type(value) is int:
        return value
    if type(value) is not Decimal:
        raise _UnreadableError(f"a coordinate is of type {type(value).__name__}, not a number")
    exact = Fraction(*value.as_integer_ratio())
    return exact.numerator if exact.denominator == 1 else exact


def _label(value: Any) -> str:
    if type(value) is not str or len(value) > MAX_LABEL_CHARS or not value.strip():
        raise _UnreadableError(f"a label is not a string of 1 to {MAX_LABEL_CHARS} characters")
    return value


def _confidence(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise _UnreadableError(f"a confidence is of type {type(value).__name__}, not a number")
    if not 0 <= value <= 1:
        raise _UnreadableError("a confidence is not from 0 to 1")
    return float(value)


# Tuples --------------------------------------------------------------------------------------------------------------


def _parse_tuples(text: str, frame: Frame, max_boxes: int) -> list[Detection]:
    detections: list[Detection] = []
    position = 0
    while position < len(text):
        match = _TAGGED.match(text, position)
        if match is None:
            raise _UnreadableError("neither a JSON list of objects nor boxes of the form (x1,y1),(x2,y2)")
        if len(detections) == max_boxes:
            raise _UnreadableError(f"more than {max_boxes} boxes")
        label, other_label, *numbers = match.groups()
        label = label if label is not None else other_label
        x1, y1, x2, y2 = (_coordinate(_number(number)) for number in numbers if number is not None)
        detections.append(Detection(Box(x1, y1, x2, y2, frame), None if label is None else _label(label)))
        position = match.end()
    return detections


def _number(text: str) -> int | Decimal:
    return Decimal(text) if "." in text else int(text)
