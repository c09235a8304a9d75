"""The program in a response: the last fenced block, or the whole text."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Literal

from verifiers.text import answer_text

Source = Literal["fenced", "fenced_or_text", "text"]
PYTHON_TAGS = frozenset({"python", "python3", "py", "py3"})
# An opening fence may stand anywhere, a closing one at the start of a line: programs hold fences in their strings.
_BLOCK = re.compile(r"```[ \t]*([\w+#.-]*)[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Extracted:
    """program: None if there is none. how: where it was found, for the evidence."""

    program: str | None
    how: str


def extract_program(response: str, source: Source = "fenced_or_text") -> Extracted:
    """Find the program outside thinking.

    The last block tagged as Python is taken, else the last block without a tag; a block in another language never is.
    Without any block it is the whole text ("fenced_or_text") or nothing ("fenced"). "text": always the whole text.
    """
    text = answer_text(response)
    if text is None:
        return Extracted(None, "no program: the response ended while thinking")
    if source == "text":
        return _whole(text)
    blocks = list(_BLOCK.finditer(text))
    for tags, words in ((PYTHON_TAGS, "python block"), (frozenset({""}), "untagged block")):
        for number, block in reversed(list(enumerate(blocks, start=1))):
            if block[1].lower() in tags:
                closed = "" if block[0].endswith("```") else ", never closed"
                return Extracted(textwrap.dedent(block[2]), f"{words} {number} of {len(blocks)}{closed}")
    if blocks:
        return Extracted(None, f"no program: no block is Python ({', '.join(sorted({b[1] for b in blocks}))})")
    if source == "fenced":
        return Extracted(None, "no program: no fenced block")
    return _whole(text)


def _whole(text: str) -> Extracted:
    return Extracted(text, "the whole text") if text.strip() else Extracted(None, "no program: the response is empty")
