"""Which predicted box stands for which gold box: greedily by confidence (the reference), or the best assignment."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from verifiers.visual.boxes import Box, Number


class Match(NamedTuple):
    """Prediction and gold by index, and their IoU."""

    prediction: int
    gold: int
    iou: float


def pair_ious(
    predictions: Sequence[Box],
    golds: Sequence[Box],
    prediction_labels: Sequence[str | None],
    gold_labels: Sequence[str | None],
    threshold: Fraction,
) -> list[list[tuple[int, float]]]:
    """For each prediction the (gold index, IoU) of all golds of its label with IoU strictly above `threshold`.

    The comparison is exact for boxes of ints or Fractions. All boxes must be of one frame, golds not empty."""
    candidates: dict[str | None, list[tuple[Number, Number, Number, Number, Number, int]]] = {}
    for index, ((u1, v1, u2, v2, _), label) in enumerate(zip(golds, gold_labels, strict=True)):
        candidates.setdefault(label, []).append((u1, v1, u2, v2, (u2 - u1) * (v2 - v1), index))
    for of_label in candidates.values():
        of_label.sort()
    top, bottom = threshold.numerator, threshold.denominator
    rows: list[list[tuple[int, float]]] = []
    # The one hot loop of a verdict, hence `overlap` written out, and golds in order of their left side.
    for (x1, y1, x2, y2, _), label in zip(predictions, prediction_labels, strict=True):
        row: list[tuple[int, float]] = []
        rows.append(row)
        if x2 <= x1 or y2 <= y1:
            continue
        area = (x2 - x1) * (y2 - y1)
        for u1, v1, u2, v2, gold_area, index in candidates.get(label, ()):
            if u1 >= x2:
                break
            if x1 >= u2 or v1 >= y2 or y1 >= v2:
                continue
            common = ((x2 if x2 < u2 else u2) - (x1 if x1 > u1 else u1)) * (
                (y2 if y2 < v2 else v2) - (y1 if y1 > v1 else v1)
            )
            union = area + gold_area - common
            if common * bottom > top * union:
                row.append((index, float(common / union)))
        row.sort()
    return rows


def greedy(rows: Sequence[Sequence[tuple[int, float]]], confidences: Sequence[float]) -> list[Match]:
    """Predictions in order of confidence (ties: as given), each takes the free gold of highest IoU.

    Can be worse than `optimal`: a confident box may take the gold that another box needs."""
    taken: set[int] = set()
    matches = []
    for prediction in sorted(range(len(rows)), key=lambda i: -confidences[i]):
        free = [pair for pair in rows[prediction] if pair[0] not in taken]
        if free:
            gold, best = max(free, key=lambda pair: pair[1])
            taken.add(gold)
            matches.append(Match(prediction, gold, best))
    return matches


def optimal(rows: Sequence[Sequence[tuple[int, float]]]) -> list[Match]:
    """The one-to-one assignment with the largest sum of IoU over the given pairs (Hungarian method)."""
    matches = []
    for predictions, golds in _components(rows):
        column = {gold: j for j, gold in enumerate(golds)}
        gains = [[0.0] * len(golds) for _ in predictions]
        for i, prediction in enumerate(predictions):
            for gold, value in rows[prediction]:
                gains[i][column[gold]] = value
        if len(predictions) <= len(golds):
            pairs = enumerate(_assign(gains))
        else:
            pairs = ((i, j) for j, i in enumerate(_assign([list(row) for row in zip(*gains, strict=True)])))
        matches += [Match(predictions[i], golds[j], gains[i][j]) for i, j in pairs if gains[i][j] > 0]
    return sorted(matches)


def _components(rows: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[list[int], list[int]]]:
    """(predictions, golds) of each connected part of the graph of pairs; they can be assigned one by one."""
    by_gold: dict[int, list[int]] = {}
    for prediction, row in enumerate(rows):
        for gold, _ in row:
            by_gold.setdefault(gold, []).append(prediction)
    seen: set[int] = set()
    components = []
    for start, row in enumerate(rows):
        if start in seen or not row:
            continue
        predictions, golds, waiting = [start], {}, [start]
        seen.add(start)
        while waiting:
            for gold, _ in rows[waiting.pop()]:
                if gold not in golds:
                    golds[gold] = None
                    new = [p for p in by_gold[gold] if p not in seen]
                    seen.update(new)
                    predictions += new
                    waiting += new
        components.append((predictions, list(golds)))
    return components


def _assign(gains: list[list[float]]) -> list[int]:
    """The column of each row so that the sum of gains is largest; not more rows than columns.

    Shortest augmenting paths with potentials, O(rows² · columns). Row and column 0 are helpers of the method."""
    num_rows, num_columns = len(gains), len(gains[0])
    row_potential, column_potential = [0.0] * (num_rows + 1), [0.0] * (num_columns + 1)
    row_of = [0] * (num_columns + 1)
    for row in range(1, num_rows + 1):
        row_of[0], column = row, 0
        shortest, previous = [float("inf")] * (num_columns + 1), [0] * (num_columns + 1)
        visited = [False] * (num_columns + 1)
        while row_of[column]:
            visited[column] = True
            i, step, next_column = row_of[column], float("inf"), 0
            for j in range(1, num_columns + 1):
                if visited[j]:
                    continue
                cost = -gains[i - 1][j - 1] - row_potential[i] - column_potential[j]
                if cost < shortest[j]:
                    shortest[j], previous[j] = cost, column
                if shortest[j] < step:
                    step, next_column = shortest[j], j
            for j in range(num_columns + 1):
                if visited[j]:
                    row_potential[row_of[j]] += step
                    column_potential[j] -= step
                else:
                    shortest[j] -= step
            column = next_column
        while column:
            row_of[column] = row_of[previous[column]]
            column = previous[column]
    columns = [0] * num_rows
    for j in range(1, num_columns + 1):
        if row_of[j]:
            columns[row_of[j] - 1] = j - 1
    return columns
