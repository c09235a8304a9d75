"""Boxes on real photographs (BCCD), and answers made from them by one named change each."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple

Row = dict[str, Any]  # an answer's object: Position, Confidence, Label


class Photograph(NamedTuple):
    """`gold` is a gold of the kinds `iou` and `grounding` with ``coordinates: absolute``."""

    name: str
    width: int
    height: int
    gold: dict[str, Any]

    @property
    def labels(self) -> list[str]:
        return sorted({box["label"] for box in self.gold["boxes"]})


def photographs() -> list[Photograph]:
    """The 75 annotated photographs that come with assay (see data/assets/bccd/SOURCE.md)."""
    text = resources.files("data").joinpath("assets/bccd/annotations.jsonl").read_text(encoding="utf-8")
    found = []
    for line in text.splitlines():
        row = json.loads(line)
        boxes = [{"bbox": o["bbox_xyxy"], "label": o["label"]} for o in row["objects"]]
        gold = {"boxes": boxes, "image_size": [row["width"], row["height"]]}
        found.append(Photograph(row["image"], row["width"], row["height"], gold))
    return found


def response(rows: list[Row]) -> str:
    """A response in the contract of kind `iou`."""
    return f"<think> </think> <answer>{json.dumps(rows) if rows else 'No Objects'}</answer>"


def perfect(photograph: Photograph) -> list[Row]:
    boxes = photograph.gold["boxes"]
    return [{"Position": box["bbox"], "Confidence": 1.0, "Label": box["label"]} for box in boxes]


def _exact(rows: list[Row], rng: random.Random) -> list[Row]:
    return rows


def _shuffled(rows: list[Row], rng: random.Random) -> list[Row]:
    return rng.sample(rows, len(rows))


def _twice(rows: list[Row], rng: random.Random) -> list[Row]:
    return [*rows, *rows]


def _jittered(share: float) -> Callable[[list[Row], random.Random], list[Row]]:
    """Every corner moved by up to `share` of the box's side, rounded to pixels."""

    def change(rows: list[Row], rng: random.Random) -> list[Row]:
        moved = []
        for row in rows:
            x1, y1, x2, y2 = row["Position"]
            sides = (x2 - x1, y2 - y1) * 2
            position = [
                round(v + rng.uniform(-share, share) * side) for v, side in zip((x1, y1, x2, y2), sides, strict=True)
            ]
            moved.append({**row, "Position": position})
        return moved

    return change


def _half(rows: list[Row], rng: random.Random) -> list[Row]:
    return rows[::2]


def spurious(confidence: float) -> Callable[[list[Row], random.Random], list[Row]]:
    """Half the objects, and five boxes of 3 x 3 pixels that cannot match anything."""

    def change(rows: list[Row], rng: random.Random) -> list[Row]:
        corners = [(rng.randrange(630), rng.randrange(470)) for _ in range(5)]
        added = [{"Position": [x, y, x + 3, y + 3], "Confidence": confidence, "Label": "RBC"} for x, y in corners]
        return [*_half(rows, rng), *added]

    return change


def _other_label(rows: list[Row], rng: random.Random) -> list[Row]:
    following = {"RBC": "WBC", "WBC": "Platelets", "Platelets": "RBC"}
    return [{**row, "Label": following[row["Label"]]} for row in rows]


def _reversed_corners(rows: list[Row], rng: random.Random) -> list[Row]:
    return [{**row, "Position": [*row["Position"][2:], *row["Position"][:2]]} for row in rows]


def _whole_image(rows: list[Row], rng: random.Random) -> list[Row]:
    return [{**row, "Position": [0, 0, 640, 480]} for row in rows[:1]]


def _nothing(rows: list[Row], rng: random.Random) -> list[Row]:
    return []


PERTURBATIONS: dict[str, Callable[[list[Row], random.Random], list[Row]]] = {
    "exact": _exact,
    "shuffled": _shuffled,
    "every box twice": _twice,
    "moved by up to 2%": _jittered(0.02),
    "moved by up to 5%": _jittered(0.05),
    "moved by up to 10%": _jittered(0.10),
    "moved by up to 20%": _jittered(0.20),
    "moved by up to 40%": _jittered(0.40),
    "half of the boxes": _half,
    "half, and 5 spurious boxes, confidence 0": spurious(0.0),
    "half, and 5 spurious boxes, confidence 0.9": spurious(0.9),
    "another label": _other_label,
    "corners reversed": _reversed_corners,
    "one box around everything": _whole_image,
    "No Objects": _nothing,
}
