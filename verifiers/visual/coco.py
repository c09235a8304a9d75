"""mAP of detections, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from verifiers.errors import MissingExtraError
from verifiers.visual.boxes import Frame, convert
from verifiers.visual.labels import fold_label
from verifiers.visual.parse import Detection

Queries = Literal["all", "present"]
STATISTICS = ("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large",
              "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")  # fmt: skip


class ImageDetections(NamedTuple):
    """One image: what is there and what was said to be there. `frame`: of the original in pixels, known size."""

    golds: Sequence[Detection]
    predictions: Sequence[Detection]
    frame: Frame


def mean_average_precision(images: Sequence[ImageDetections], *, queries: Queries = "all") -> dict[str, Any]:
    """The twelve COCO statistics for boxes (-1: no gold of that size), `classes` ({label: AP}) and `queries`.

    Boxes are converted to pixels of the image's frame. A detection without a label belongs to the label ''; one without
    a confidence has confidence 1.

    queries: `all` counts every (image, category) pair, so a box of a category that the image does not show is a false
    positive. `present` leaves such boxes out, as Visual-RFT's released scripts do, which ask only for what is there:
    false positives on absent categories are then not measured. A category without any gold at all has no AP in COCO and
    does not enter the mean.

    Raises `MissingExtraError` without pycocotools."""
    try:
        from pycocotools.coco import COCO  # pyright: ignore[reportMissingImports]
        from pycocotools.cocoeval import COCOeval  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("pycocotools", "vision", "mAP") from error
    ground_truth, results, names = coco_form(images, queries)
    empty = {"queries": queries, "classes": {}, **dict.fromkeys(STATISTICS, -1.0)}
    if not ground_truth["annotations"]:
        return empty
    # pycocotools prints its progress and its table.
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        found: Any = COCO()  # loadRes refuses an empty list
        found.dataset = {**ground_truth, "annotations": []}
        found.createIndex()
        found = truth.loadRes(results) if results else found
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # thresholds x recalls x categories, all sizes, 100 boxes
    classes = {}
    for column, name in enumerate(names):
        values = precision[:, :, column]
        values = values[values > -1]
        if values.size:
            classes[name] = float(values.mean())
    return {"queries": queries, "classes": classes, **dict(zip(STATISTICS, map(float, evaluation.stats), strict=True))}


def coco_form(
    images: Sequence[ImageDetections], queries: Queries
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """(ground truth, results, category names) as COCO has them: xywh in pixels, ids from 1."""
    labels = sorted({_label(d) for image in images for d in (*image.golds, *image.predictions)})
    ids = {label: number for number, label in enumerate(labels, start=1)}
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, start=1):
        for d in image.golds:
            box = _xywh(d, image.frame)
            entry = {"image_id": image_id, "category_id": ids[_label(d)], "bbox": box, "area": box[2] * box[3]}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **entry})
        present = {_label(d) for d in image.golds}
        for d in image.predictions:
            if queries == "all" or _label(d) in present:
                score = 1.0 if d.confidence is None else d.confidence
                entry = {"image_id": image_id, "category_id": ids[_label(d)], "bbox": _xywh(d, image.frame)}
                results.append({**entry, "score": score})
    described = [{"id": i, "width": im.frame.width, "height": im.frame.height} for i, im in enumerate(images, start=1)]
    categories = [{"id": ids[label], "name": label} for label in labels]
    return {"info": {}, "images": described, "categories": categories, "annotations": annotations}, results, labels


def _label(detection: Detection) -> str:
    return "" if detection.label is None else fold_label(detection.label)


def _xywh(detection: Detection, frame: Frame) -> list[float]:
    x1, y1, x2, y2, _ = convert(detection.box, frame)
    return [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
