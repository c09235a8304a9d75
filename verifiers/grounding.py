"""Kind ``grounding``: one described object, one box (Visual-RFT's reward for reasoning grounding).

The answer is exactly one box: ``(x1,y1),(x2,y2)``, with or without box tags, or JSON (an object or a list of one, with
the box under `Position`, `bbox_2d` or `bbox`, or [x1, y1, x2, y2]). The score is the weighted mean of two parts: the
measure mapped to [0, 1], by default (GIoU + 1) / 2, and `format`. The status is correct if the IoU is above
`iou_threshold`. Several boxes, an empty box and 'No Objects' are wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from verifiers.errors import BadGold
from verifiers.iou import canonical_answer, written_box
from verifiers.verdict import VERIFIERS, Status, Verdict, VerifyRequest
from verifiers.visual import rewards
from verifiers.visual.boxes import Box, Frame, diou, giou, iou, overlap
from verifiers.visual.gold import FrameOptions, GoldReader
from verifiers.visual.parse import Form, Reading, parse_detections
from verifiers.visual.tags import TagOptions, find_answer, format_part

MAX_BOXES_READ = 100  # for the message: more than one is wrong in any case

# Each part is a measure moved to [0, 1]; both names of the second column are evidence.
_MEASURES: dict[str, tuple[Callable[[Box, Box], float], Callable[[float], float]]] = {
    "giou": (giou, lambda value: (value + 1) / 2),
    "diou": (diou, lambda value: (value + 1) / 2),
    "iou": (iou, lambda value: value),
}


@VERIFIERS.register("grounding")
class GroundingVerifier:
    """Gold: one box, in the forms of `read_gold`; a list must have one element."""

    isolated = False

    class Options(FrameOptions, TagOptions):
        """measure: giou and diou map to (value + 1) / 2, iou is itself; the part has the name of the measure.
        iou_threshold: of the status `correct`; it does not change the score.
        whole_numbers: coordinates must be integers; null: in all conventions but relative_1.
        form: json, tuple, or any. weights: of the parts `measure` and `format`."""

        class Weights(rewards.Weights):
            measure: float = rewards.weight()
            format: float = rewards.weight()

        measure: Literal["giou", "diou", "iou"] = "giou"
        iou_threshold: float = Field(default=0.5, ge=0, lt=1)
        whole_numbers: bool | None = None
        form: Form = "any"
        weights: Weights = Weights()

    def __init__(self, options: Options):
        self.options = options
        self._golds = GoldReader(options)
        self._threshold = Fraction(repr(options.iou_threshold))
        whole = options.whole_numbers
        self._whole_numbers = options.coordinates != "relative_1" if whole is None else whole

    def verify(self, request: VerifyRequest) -> Verdict:
        gold, frame = self._read_gold(request.gold, request.meta)
        answer = find_answer(request.response, self.options)
        formatted = format_part(request.response, answer, self.options)
        reading = Reading(None, answer.problem) if answer.text is None else self._read(answer.text, frame)
        if reading.detections is None:
            return self._verdict(0.0, formatted, Status.NO_ANSWER, reading.problem, None)
        canonical = canonical_answer(reading.detections, with_labels=False)
        if len(reading.detections) != 1 or reading.detections[0].box.is_empty:
            problem = f"{len(reading.detections)} boxes" if len(reading.detections) != 1 else "the box is empty"
            return self._verdict(0.0, formatted, Status.WRONG, f"{problem}, one box was asked for", canonical)
        box = reading.detections[0].box
        measure, to_part = _MEASURES[self.options.measure]
        value = measure(box, gold)
        common, union = overlap(box, gold)
        correct = common * self._threshold.denominator > union * self._threshold.numerator
        evidence = f"{self.options.measure} {value:.6f}, IoU {iou(box, gold):.6f}, box {canonical}"
        status = Status.CORRECT if correct else Status.WRONG
        return self._verdict(to_part(value), formatted, status, evidence, canonical)

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        box, frame = self._read_gold(gold, meta)
        written = written_box(box) if self._whole_numbers or frame.width == 1 else box
        common, union = overlap(written, box)
        if common * self._threshold.denominator <= union * self._threshold.numerator:
            raise BadGold(
                f"The gold box is too small to be written as '{frame.coordinates}' numbers.",
                fix="use finer coordinates, or leave the row out",
            )
        x1, y1, x2, y2 = (value if isinstance(value, int) else float(value) for value in written[:4])
        text = (
            json.dumps([{"Position": [x1, y1, x2, y2]}]) if self.options.form == "json" else f"({x1},{y1}),({x2},{y2})"
        )
        return f"<think> </think> <answer>{text}</answer>" if self.options.answer_tags else text

    def _read_gold(self, gold: Any, meta: Mapping[str, Any]) -> tuple[Box, Frame]:
        detections, frame = self._golds.read(gold, meta)
        if len(detections) != 1:
            raise BadGold(f"The gold has {len(detections)} boxes; grounding has exactly one.")
        return detections[0].box, frame

    def _read(self, text: str, frame: Frame) -> Reading:
        reading = parse_detections(text, frame, form=self.options.form, max_boxes=MAX_BOXES_READ, single=True)
        written = [value for d in reading.detections or () for value in d.box[:4]]
        if self._whole_numbers and any(not isinstance(value, int) for value in written):
            return Reading(None, f"coordinates must be whole '{frame.coordinates}' numbers")
        return reading

    def _verdict(self, part: float, formatted: float, status: Status, evidence: str, answer: str | None) -> Verdict:
        score = rewards.weighted({"measure": part, "format": formatted}, self.options.weights)
        parts = {self.options.measure: part, "format": formatted}
        return Verdict(score, status, evidence, answer=answer, parts=parts)
