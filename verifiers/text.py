"""Where in a response the answer stands: outside thinking, in the last box, after a marker. All linear in the text."""

from __future__ import annotations

import re

_THINK_TAG = re.compile(r"<(/?)think>")
_BOX_TOKEN = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)  # an escaped brace is not a brace
_JOINER = re.compile(r"(?:and|or|\\text\{\s*(?:and|or)\s*\}|\\q?quad|[\s$,;()\[\]\\])*")
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


def final_boxes(text: str) -> list[str] | None:
    r"""Contents of the last ``\boxed{...}`` and of the others joined to it by no more than 'and', 'or' or a comma.

    Each content once. None if there is no box at all; [] if the last one is empty, or never closed because the
    response was cut off.
    """
    found = _boxes(text)
    if not found:
        return None
    last_start, content, _ = found[-1]
    if content is None:
        return []
    contents = [content]
    for start, content, end in reversed(found[:-1]):
        near = 0 <= last_start - end <= _JOINER_CHARS
        if content is None or not near or not _JOINER.fullmatch(text, end, last_start):
            break
        contents.append(content)
        last_start = start
    return list(dict.fromkeys(stripped for content in reversed(contents) if (stripped := content.strip())))


def _boxes(text: str) -> list[tuple[int, str | None, int]]:
    """Every box as (start, content or None if never closed, end), ordered by start."""
    found: list[tuple[int, str | None, int]] = []
    open_braces: list[int | None] = []  # for each open brace the index in `found` of the box it opens
    content_starts: list[int] = []
    for token in _BOX_TOKEN.finditer(text):
        if token[0] == "{":
            open_braces.append(None)
        elif token[0].startswith("\\boxed"):
            open_braces.append(len(found))
            found.append((token.start(), None, len(text)))
            content_starts.append(token.end())
        elif token[0] == "}" and open_braces and (box := open_braces.pop()) is not None:
            found[box] = (found[box][0], text[content_starts[box] : token.start()], token.end())
    return found


def after_last(marker: str, text: str) -> str | None:
    """What follows the last `marker` up to the end of its line, stripped; None if the marker is not there."""
    _, found, tail = text.rpartition(marker)
    return tail.split("\n", 1)[0].strip() if found else None
