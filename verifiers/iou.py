"""Kind ``iou``: find all objects and box them (Visual-RFT's detection reward, without the holes of its code).

The answer is a JSON list of objects with a box (`Position`, `bbox_2d` or `bbox`: [x1, y1, x2, y2]), a confidence from 0
to 1 and, where the gold has several categories, a label; or 'No Objects'. Three parts make the score, as a weighted
mean in [0, 1]: `iou`, `confidence` and `format`.

Boxes are matched within their category, one to one, if their IoU is strictly above `iou_threshold`. `iou` is the sum
of the matched IoU over the larger of the two counts. `confidence` is the mean of c over hits and of 1 - c over misses;
guarded, so that no spurious box raises it. Exact duplicates count once. The status is correct if every gold box was
found and nothing else stated. An answer that cannot be read whole has the parts `iou` and `confidence` at 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from pydantic import Field

from verifiers.errors import BadGold
from verifiers.verdict import VERIFIERS, Status, Verdict, VerifyRequest
from verifiers.visual import rewards
from verifiers.visual.boxes import Box, Frame, Number, on_integer_grid
from verifiers.visual.gold import FrameOptions, GoldReader
from verifiers.visual.labels import fold_label
from verifiers.visual.matching import Match, greedy, optimal, pair_ious
from verifiers.visual.parse import NO_OBJECTS, Detection, Form, Reading, parse_detections
from verifiers.visual.tags import TagOptions, find_answer, format_part


class Outcome(NamedTuple):
    """What matching found. Indices are into the detections without duplicates."""

    detections: list[Detection]
    matches: list[Match]


@VERIFIERS.register("iou")
class IouVerifier:
    """Gold: a list of boxes, see `read_gold`."""

    isolated = False

    class Options(FrameOptions, TagOptions):
        """iou_threshold: a pair matches above it, not at it.
        matching: `greedy` by confidence, as the reference; `optimal` maximises the sum of IoU.
        confidence: every box must state its confidence; false: none needs to, there is no such part, and greedy
        matching takes boxes in their order.
        confidence_reward: `reference` is the plain mean, which a wrong box of low confidence raises.
        labels: `auto` compares labels if the gold has some, and asks for them if it has several; `required`; `ignored`.
        form: json, tuple (only without confidence), or any.
        max_boxes: an answer with more boxes is not read.
        repair: read a doubled list bracket, and a list cut off inside its tags, as the reference does.
        weights: of the parts; the score is their weighted mean."""

        class Weights(rewards.Weights):
            iou: float = rewards.weight()
            confidence: float = rewards.weight()
            format: float = rewards.weight()

        iou_threshold: float = Field(default=0.5, ge=0, lt=1)
        matching: Literal["greedy", "optimal"] = "greedy"
        confidence: bool = True
        confidence_reward: Literal["guarded", "reference"] = "guarded"
        labels: Literal["auto", "required", "ignored"] = "auto"
        form: Form = "any"
        max_boxes: int = Field(default=300, ge=1, le=2000)
        repair: bool = True
        weights: Weights = Weights()

    def __init__(self, options: Options):
        self.options = options
        self._golds = GoldReader(options)
        self._threshold = Fraction(repr(options.iou_threshold))
        guarded = options.confidence_reward == "guarded"
        self._confidence_reward = rewards.guarded_confidence_reward if guarded else rewards.confidence_reward

    def verify(self, request: VerifyRequest) -> Verdict:
        golds, frame = self._golds.read(request.gold, request.meta)
        use_labels = self._use_labels(golds)
        answer = find_answer(request.response, self.options)
        formatted = format_part(request.response, answer, self.options)
        reading = Reading(None, answer.problem) if answer.text is None else self._read(answer.text, frame, golds)
        if reading.detections is None:
            parts = {"iou": 0.0, "confidence": 0.0} if self.options.confidence else {"iou": 0.0}
            parts["format"] = formatted
            score = rewards.weighted(parts, self.options.weights)
            return Verdict(score, Status.NO_ANSWER, reading.problem, parts=parts)
        outcome = self._match(reading.detections, golds, use_labels)
        parts = self._parts(outcome, len(golds)) | {"format": formatted}
        found, stated = len(outcome.matches), len(outcome.detections)
        status = Status.CORRECT if found == stated == len(golds) else Status.WRONG
        evidence = f"{found} of {len(golds)} gold boxes found, {stated - found} of {stated} boxes match none; "
        evidence += ", ".join(f"{name} {value:.4f}" for name, value in parts.items())
        canonical = canonical_answer(outcome.detections, with_labels=use_labels)
        return Verdict(rewards.weighted(parts, self.options.weights), status, evidence, answer=canonical, parts=parts)

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        golds, frame = self._golds.read(gold, meta)
        written = [d._replace(box=written_box(d.box)) for d in golds]
        outcome = self._match([d._replace(confidence=1.0) for d in written], golds, self._use_labels(golds))
        if len(outcome.matches) != len(golds):
            raise BadGold(
                f"Only {len(outcome.matches)} of the {len(golds)} gold boxes can be told apart once their coordinates "
                f"are written as '{frame.coordinates}' numbers.",
                fix="use finer coordinates, or leave the row out",
            )
        if not self.options.confidence and self.options.form == "tuple":
            text = ",".join(_tuple_text(d) for d in written) or NO_OBJECTS
        else:
            objects = [_json_object(d, confidence=self.options.confidence) for d in written]
            text = json.dumps(objects, ensure_ascii=False) if objects else NO_OBJECTS
        return f"<think> </think> <answer>{text}</answer>" if self.options.answer_tags else text

    def read(self, response: str, gold: Any, meta: Mapping[str, Any]) -> tuple[Reading, list[Detection]]:
        """(detections of the response, gold detections), both in the frame of the response: what mAP is made of."""
        golds, frame = self._golds.read(gold, meta)
        answer = find_answer(response, self.options)
        reading = Reading(None, answer.problem) if answer.text is None else self._read(answer.text, frame, golds)
        return reading, golds

    def _use_labels(self, golds: Sequence[Detection]) -> bool:
        labelled = sum(d.label is not None for d in golds)
        if self.options.labels == "ignored":
            return False
        if labelled not in (0, len(golds)):
            raise BadGold(f"{labelled} of the {len(golds)} gold boxes have a label: all or none must have one.")
        if self.options.labels == "required" and labelled < len(golds):
            raise BadGold("The option labels is 'required', and the gold boxes have no labels.")
        return self.options.labels == "required" or labelled > 0

    def _read(self, text: str, frame: Frame, golds: Sequence[Detection]) -> Reading:
        options = self.options
        reading = parse_detections(text, frame, form=options.form, max_boxes=options.max_boxes, repair=options.repair)
        for d in reading.detections or ():
            if options.confidence and d.confidence is None:
                return Reading(None, "a box states no confidence")
            if d.label is None and self._label_needed(golds):
                return Reading(None, "a box states no label")
        return reading

    def _label_needed(self, golds: Sequence[Detection]) -> bool:
        if self.options.labels != "auto":
            return self.options.labels == "required"
        return len({d.label for d in golds}) > 1

    def _match(self, detections: Sequence[Detection], golds: Sequence[Detection], use_labels: bool) -> Outcome:
        gold_labels = [fold_label(d.label) if use_labels and d.label is not None else None for d in golds]
        # With one category the prompt names it, and a box need not.
        unstated = gold_labels[0] if gold_labels and use_labels else None
        unique: dict[Any, tuple[Detection, str | None]] = {}
        for d in detections:
            label = (fold_label(d.label) if d.label is not None else unstated) if use_labels else None
            earlier = unique.get((label, d.box[:4]))
            # Of exact duplicates the surest one stays, so that their order does not matter.
            if earlier is None or (d.confidence or 0.0) > (earlier[0].confidence or 0.0):
                unique[label, d.box[:4]] = (d, label)
        kept = [d for d, _ in unique.values()]
        predicted, wanted = on_integer_grid([[d.box for d in kept], [d.box for d in golds]])
        rows = pair_ious(predicted, wanted, [label for _, label in unique.values()], gold_labels, self._threshold)
        if self.options.matching == "optimal":
            return Outcome(kept, optimal(rows))
        sure = [d.confidence if self.options.confidence and d.confidence is not None else 1.0 for d in kept]
        return Outcome(kept, greedy(rows, sure))

    def _parts(self, outcome: Outcome, num_golds: int) -> dict[str, float]:
        detections, matches = outcome
        parts = {"iou": rewards.iou_reward([m.iou for m in matches], len(detections), num_golds)}
        if self.options.confidence:
            matched = {m.prediction for m in matches}
            stated = [d.confidence or 0.0 for d in detections]
            hits = [c for i, c in enumerate(stated) if i in matched]
            misses = [c for i, c in enumerate(stated) if i not in matched]
            parts["confidence"] = self._confidence_reward(hits, misses, num_golds)
        return parts


def canonical_answer(detections: Sequence[Detection], *, with_labels: bool) -> str:
    """The boxes (and labels) of an answer as a sorted set; confidences are no part of what is claimed to be there."""
    rows = {f"{x1}, {y1}, {x2}, {y2}{_shown(d.label) if with_labels else ''}" for d in detections
            for x1, y1, x2, y2, _ in (d.box,)}  # fmt: skip
    return f"[{'; '.join(sorted(rows))}]"


def _shown(label: str | None) -> str:
    return "" if label is None else f", {json.dumps(fold_label(label))}"


def written_box(box: Box) -> Box:
    """The box as a perfect answer writes it: whole numbers, or six decimals of 0..1."""
    digits = 6 if box.frame.width == 1 else 0
    return Box(*(_rounded(value, digits) for value in box[:4]), frame=box.frame)


def _rounded(value: Number, digits: int) -> Number:
    exact = round(Fraction(value), digits)
    return exact.numerator if exact.denominator == 1 else exact


def _numbers(box: Box) -> list[int | float]:
    return [value if isinstance(value, int) else float(value) for value in box[:4]]


def _json_object(detection: Detection, *, confidence: bool) -> dict[str, Any]:
    stated: dict[str, Any] = {"Position": _numbers(detection.box)}
    if confidence:
        stated["Confidence"] = 1.0
    return stated if detection.label is None else {**stated, "Label": detection.label}


def _tuple_text(detection: Detection) -> str:
    x1, y1, x2, y2 = _numbers(detection.box)
    label = "" if detection.label is None else f"<ref>{detection.label}</ref>"
    return f"{label}<box>({x1},{y1}),({x2},{y2})</box>"
