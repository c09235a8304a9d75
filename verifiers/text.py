"""Where in a response the answer stands: outside thinking, in the last box, after a marker. All linear in the text."""

from __future__ import annotations

import re
from typing import NamedTuple

_THINK_TAG = re.compile(r"<(/?)think>")
_BOX_TOKEN = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)  # an escaped brace is not a brace
_JOINER = re.compile(r"(?:and|or|\\text\{\s*(?:and|or)\s*\}|\\q?quad|[A-Za-z](?:_\{?\w{1,3}\}?)?\s*=|[\s$,;()\[\]\\])*")
_JOINER_CHARS = 40


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


class Box(NamedTuple):
    """Where a box stands: from its backslash to behind its brace, and its content. A box that is never closed has no
    content and ends with the text."""

    start: int
    content: slice | None
    end: int


def final_boxes(text: str) -> list[str] | None:
    r"""Contents of the last ``\boxed{...}`` and of the others joined to it by no more than 'and', 'or' or a comma.

    Each content once. None if there is no box at all; [] if the last one is empty, or never closed because the
    response was cut off.
    """
    return contents_of(text, last_boxes(text))


def contents_of(text: str, found: list[Box]) -> list[str] | None:
    """What `final_boxes` returns for the `last_boxes` of `text`."""
    if not found:
        return None
    contents = (text[box.content].strip() for box in found if box.content is not None)
    return list(dict.fromkeys(content for content in contents if content))


def last_boxes(text: str) -> list[Box]:
    """The last box, and before it those joined to it; the last alone if it is never closed."""
    found = boxes(text)
    if not found:
        return []
    last = [found[-1]]
    if found[-1].content is None:
        return last
    for box in reversed(found[:-1]):
        near = 0 <= last[-1].start - box.end <= _JOINER_CHARS
        if box.content is None or not near or not _JOINER.fullmatch(text, box.end, last[-1].start):
            break
        last.append(box)
    return last[::-1]


def boxes(text: str) -> list[Box]:
    r"""Every ``\boxed{...}``, ordered by start; nested ones too. As positions, because nested contents overlap."""
    opened: list[tuple[int, int]] = []  # where each box and its content start
    closed: dict[int, tuple[int, int]] = {}  # where the content and the box end, by index in `opened`
    open_braces: list[int | None] = []  # for each open brace the index of the box it opens
    first = text.find("\\boxed")
    for token in _BOX_TOKEN.finditer(text, first) if first >= 0 else ():
        brace = token[0]
        if brace == "{":
            open_braces.append(None)
        elif brace == "}":
            if open_braces and (box := open_braces.pop()) is not None:
                closed[box] = token.span()
        elif brace.startswith("\\boxed"):
            open_braces.append(len(opened))
            opened.append(token.span())
    return [
        Box(start, slice(content, closed[box][0]), closed[box][1]) if box in closed else Box(start, None, len(text))
        for box, (start, content) in enumerate(opened)
    ]


def after_last(marker: str, text: str) -> str | None:
    """What follows the last `marker` up to the end of its line, stripped; None if the marker is not there."""
    _, found, tail = text.rpartition(marker)
    return tail.split("\n", 1)[0].strip() if found else None
