"""The contract ``<think>...</think> <answer>...</answer>``: the answer block, and whether the whole text keeps it."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from verifiers.options import Options as BaseOptions
from verifiers.text import answer_text

_ANSWER_TAG = re.compile(r"<(/?)answer>")
_THINK_TAG = re.compile(r"</?think>")
_THINK_TO_ANSWER = re.compile(r"</think>\s*<answer>")


class TagOptions(BaseOptions):
    """answer_tags: the answer stands between <answer> and </answer>; false: it is all the text outside <think>.
    multiple_answers: with several answer blocks, `reject` reads none, `last` reads the last one."""

    answer_tags: bool = True
    multiple_answers: Literal["reject", "last"] = "reject"


class Answer(NamedTuple):
    """The text of the answer, or None and why there is none."""

    text: str | None
    problem: str = ""


def find_answer(response: str, options: TagOptions) -> Answer:
    """The answer outside thinking. Answers may hold newlines; a block that is not closed is none.

    A response without any tag is read as a whole, as the reference does: it loses the format part only."""
    text = answer_text(response)
    if text is None:
        return Answer(None, "the response ends while thinking")
    if not options.answer_tags:
        return Answer(text.strip()) if text.strip() else Answer(None, "the answer is empty")
    tags = list(_ANSWER_TAG.finditer(text))
    if not tags and _THINK_TAG.search(response):
        return Answer(None, "no <answer> block")
    if not tags:
        return Answer(text.strip()) if text.strip() else Answer(None, "the answer is empty")
    if any(bool(tag[1]) is not bool(number % 2) for number, tag in enumerate(tags)) or len(tags) % 2:
        return Answer(None, "the <answer> tags do not pair up")
    if len(tags) > 2 and options.multiple_answers == "reject":
        return Answer(None, f"{len(tags) // 2} <answer> blocks, one was asked for")
    content = text[tags[-2].end() : tags[-1].start()].strip()
    return Answer(content) if content else Answer(None, "the <answer> block is empty")


def keeps_format(response: str) -> bool:
    """Whether all of `response` is ``<think>...</think>``, white space, ``<answer>...</answer>``.

    Equal to the reference's regular expression, which also allows further tags inside the dots, and linear."""
    if not response.startswith("<think>") or not response.endswith("</answer>"):
        return False
    return _THINK_TO_ANSWER.search(response, len("<think>"), len(response) - len("</answer>")) is not None


def format_part(response: str, answer: Answer, options: TagOptions) -> float:
    """The format reward: 1.0 for a response that keeps the contract with one readable block, else 0.0."""
    if not options.answer_tags:
        return float(answer.text is not None)
    single = options.multiple_answers == "last" or response.count("<answer>") == 1
    return float(keeps_format(response) and single)
