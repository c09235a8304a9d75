"""Thoughts of a response: an exact partition into steps, what a judge says about them, and the label of every token.

Pure functions; the source that asks a judge is `prm.tp_grpo`. Steps of the thinking are numbered from 1, as in the
prompts; the step after them is the answer, which nobody judges.

Shapes: K steps of the thinking; T response tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple, TypeGuard

import torch
from torch import Tensor

from prm.steps import Steps, StepSplitter
from verifiers.text import answer_text

Answer = Literal["after_think", "last_step"]

_CLOSE = "</think>"
_FENCED = re.compile(r"```(?:json)?[^\S\n]*\n(.*?)```", re.DOTALL)


# ---- steps -------------------------------------------------------


def think_end(text: str, answer: Answer, pattern: re.Pattern[str]) -> int | None:
    """The character where the answer begins, which ends the thinking; None if there is no answer.

    after_think: the last ``</think>``, which belongs to the answer. last_step: the last match of `pattern` that text
    follows ends the thinking; without one all of the text is the answer.
    """
    if not text.strip():
        return None
    if answer == "after_think":
        start = text.rfind(_CLOSE)
        return start if start >= 0 and text[start + len(_CLOSE) :].strip() else None
    visible = len(text.rstrip())
    return max((m.end() for m in pattern.finditer(text) if m.end() < visible), default=0)


def cuts_at_separators(thinking: str, pattern: re.Pattern[str]) -> list[int]:
    """Characters at which a step of the thinking begins, the first left out, rising."""
    return sorted({m.end() for m in pattern.finditer(thinking)} - {0, len(thinking)})


def cuts_at_markers(thinking: str, markers: Sequence[str]) -> list[int] | None:
    """The same, where a splitter said with which words each step begins. None unless the markers are found in this
    order, the first of them at the beginning: then the steps would not be a partition of what was written."""
    cuts, position = [], 0
    for i, marker in enumerate(m.strip() for m in markers):
        start = thinking.find(marker, position) if marker else -1
        if start < 0 or (i == 0 and thinking[:start].strip()):
            return None
        cuts.append(start)
        position = start + len(marker)
    return cuts[1:] if cuts else None


def steps_of(splitter: StepSplitter, text: str, ids: Sequence[int], cuts: Sequence[int], end: int) -> Steps:
    """The steps of the thinking ``text[:end]``, cut at `cuts`, and the answer as the last one. Every character and
    every token belongs to exactly one."""
    return splitter.cut(text, ids, sorted({*cuts, end} - {0, len(text)}))


# ---- replies -----------------------------------------------------


def parse_wrong_steps(reply: str, steps: int) -> set[int] | None:
    """What a judge of a right solution calls wrong, of the steps 1 to `steps`; None if the reply is not what it was
    asked for: a list of ``{"reflection_step": r, "error_interval": [a, b], "wrong_steps": [...]}`` with
    1 <= a <= b <= steps, a < r <= steps + 1 (the answer may be what corrects), and wrong steps from a to b."""
    found = _json_list(reply)
    if found is None:
        return None
    wrong: set[int] = set()
    for entry in found:
        if not isinstance(entry, dict):
            return None
        reflection, interval, inside = (entry.get(k) for k in ("reflection_step", "error_interval", "wrong_steps"))
        if not (_is_index(reflection, 1, steps + 1) and isinstance(interval, list) and len(interval) == 2):
            return None
        first, last = interval
        if not (_is_index(last, 1, steps) and _is_index(first, 1, min(last, reflection - 1))):
            return None
        named = _indices(inside, first, last)
        if named is None:
            return None
        wrong |= named
    return wrong


def parse_matched_steps(reply: str, steps: int) -> set[int] | None:
    """What a judge of a wrong solution finds again in its answer, of the steps 1 to `steps`; None if the reply is not a
    list of their numbers. The answer has a number too, and may be in the list: it says nothing new."""
    named = _indices(_json_list(reply), 1, steps + 1)
    return None if named is None else named - {steps + 1}


def parse_markers(reply: str) -> list[str] | None:
    """The texts of a splitter; None if its reply is not a list of texts."""
    found = _json_list(reply)
    return found if found and all(isinstance(marker, str) for marker in found) else None


def wrong_steps_reply(wrong: Collection[int]) -> str:
    """A reply that calls these steps wrong: each run of them is found out by the step after it."""
    runs = [list(run) for _, run in groupby(enumerate(sorted(wrong)), lambda pair: pair[1] - pair[0])]
    entries = [
        {
            "reflection_step": run[-1][1] + 1,
            "error_interval": [run[0][1], run[-1][1]],
            "wrong_steps": [k for _, k in run],
        }
        for run in runs
    ]
    return json.dumps(entries)


def matched_steps_reply(matched: Collection[int]) -> str:
    return json.dumps(sorted(matched))


def _is_index(value: Any, low: int, high: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _indices(values: Any, low: int, high: int) -> set[int] | None:
    if not isinstance(values, list) or not all(_is_index(v, low, high) for v in values):
        return None
    return set(values)


def _json_list(reply: str) -> list[Any] | None:
    """The list that a reply is, or has in its last code fence, or between its first and its last bracket."""
    text = answer_text(reply)  # a judge may think aloud
    if text is None:
        return None
    fenced = _FENCED.findall(text)
    for candidate in (text, *fenced[-1:], text[text.find("[") : text.rfind("]") + 1]):
        try:
            found = json.loads(candidate)
        except (ValueError, RecursionError):  # deep brackets end the parser's stack
            continue
        if isinstance(found, list):
            return found
    return None


# ---- labels ------------------------------------------------------


class Thought(NamedTuple):
    """A maximal run of steps with the same label; first and last count from 0, last is in it."""

    is_key: bool
    first: int
    last: int


def merge(is_key: Sequence[bool]) -> list[Thought]:
    """The thoughts of steps with these labels, in order."""
    out, start = [], 0
    for key, run in groupby(is_key):
        count = len(list(run))
        out.append(Thought(key, start, start + count - 1))
        start += count
    return out


def label_tokens(steps: Steps, is_key: Sequence[bool], tokens: int) -> Tensor:
    """int64 [T]: the label of the step of each token. Raises ValueError unless every token has one."""
    step_T = steps.of_token
    if len(is_key) != len(steps) or len(step_T) != tokens:
        raise ValueError(f"{len(is_key)} labels for {len(steps)} steps of {len(step_T)} tokens, {tokens} expected")
    return torch.tensor([int(is_key[step]) for step in step_T], dtype=torch.long)
