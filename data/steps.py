"""`StepLabel`: the truth about one line of a worked answer, decided by program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data.example import Example


@dataclass(frozen=True, slots=True)
class StepLabel:
    """One line of a response, ``response[start:end] == text`` (characters, its line break included).

    follows: given the lines before it, the line is a legal and rightly computed step.
    on_track: given the question, the right answer has not been lost (`chain`: the line still has the true value;
    `countdown`: the target can still be reached).
    correct: both. first_error: True on the first line that is not correct, and only there.
    """

    start: int
    end: int
    correct: bool
    text: str
    first_error: bool
    follows: bool
    on_track: bool


# (example, response) -> the truth about every line
CheckSteps = Callable[[Example, str], list[StepLabel]]


def label_lines(response: str, judge: Callable[[str], tuple[bool, bool]]) -> list[StepLabel]:
    """Split `response` after each line break and label the lines in order; the spans partition the response.

    judge: called on each line without its line break, in order; returns (follows, on_track).
    """
    labels: list[StepLabel] = []
    start, clean = 0, True
    while start < len(response):
        newline = response.find("\n", start)
        end = len(response) if newline < 0 else newline + 1
        text = response[start:end]
        follows, on_track = judge(text.removesuffix("\n"))
        correct = follows and on_track
        labels.append(StepLabel(start, end, correct, text, clean and not correct, follows, on_track))
        start, clean = end, clean and correct
    return labels
