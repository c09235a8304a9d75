"""Where in a response the answer stands: outside thinking, in the last box, after a marker. All linear in the text."""

from __future__ import annotations

import re

_THINK_TAG = re.compile(r"<(/?)think>")
_BOX_START = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is not a brace


def answer_text(response: str) -> str | None:
    """`response` without its <think> blocks; None if one is never closed (the response ended while thinking).

    A </think> that was not opened closes a block that the prompt opened: everything before it is thinking.
    """
    kept: list[str] = []
    position, thinking = 0, False
    for tag in _THINK_TAG.finditer(response):
        closes = bool(tag[1])
        if not thinking and not closes:
            kept.append(response[position : tag.start()])
        elif not thinking and closes:
            kept.clear()
        thinking = not closes
        position = tag.end()
    if thinking:
        return None
    return "".join([*kept, response[position:]])


def has_box(text: str) -> bool:
    return _BOX_START.search(text) is not None


def last_box(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}``; None if there is no box or the last one is never closed."""
    start = None
    for box in _BOX_START.finditer(text):
        start = box.end()
    if start is None:
        return None
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()]
    return None


def after_last(marker: str, text: str) -> str | None:
    """What follows the last `marker` up to the end of its line, stripped; None if the marker is not there."""
    _, found, tail = text.rpartition(marker)
    return tail.split("\n", 1)[0].strip() if found else None
