r"""Kind ``format``: a contract on the form of a response. What it answers is not judged, and the gold is ignored.

Each rule is a part of the verdict (1.0 kept, 0.0 broken):

- ``tag:NAME``: the tag stands exactly once, closed (the last tag exactly `answers` times);
- ``order``: the tags follow each other as listed, none inside another;
- ``non_empty``: each has visible content;
- ``outside``: nothing visible stands outside them;
- ``boxed``: each answer holds exactly one ``\boxed{...}``, not empty; without tags the response does, outside <think>,
  exactly `answers` times;
- ``script``: of the letters outside mathematics, code and tags at least the given share belong to the given scripts;
- ``length``: no more characters than allowed.

The rules on tags can only be kept together with every ``tag:NAME``, and a blank response keeps none, so that no credit
is given for what is missing. `script` tells writing systems apart by Unicode ranges; it does not identify languages:
English and French are both ``latin``. Letters in LaTeX mathematics (``$...$``, ``\(...\)``, ``\[...\]``, commands) and
in code do not count, neither do single Latin or Greek letters (variables); a response without other letters passes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from verifiers.options import Options as BaseOptions
from verifiers.text import answer_text, boxes
from verifiers.verdict import VERIFIERS, Status, Verdict, VerifyRequest

Script = Literal["latin", "greek", "cyrillic", "arabic", "hebrew", "devanagari", "thai", "han", "kana", "hangul"]

_RANGES: Mapping[str, str] = {
    "latin": r"A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a",
    "greek": r"\u0370-\u03ff\u1f00-\u1fff",
    "cyrillic": r"\u0400-\u052f\u1c80-\u1c8a\u2de0-\u2dff\ua640-\ua69f",
    "arabic": r"\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufefc",
    "hebrew": r"\u0590-\u05ff\ufb1d-\ufb4f",
    "devanagari": r"\u0900-\u097f\ua8e0-\ua8ff",
    "thai": r"\u0e00-\u0e7f",
    "han": r"\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "kana": r"\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "hangul": r"\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff\uffa0-\uffdc",
}
_SAMPLES: Mapping[str, str] = {
    "latin": "so", "greek": "άρα", "cyrillic": "итак", "arabic": "إذن", "hebrew": "לכן", "devanagari": "अतः",
    "thai": "ดังนั้น", "han": "因此", "kana": "だから", "hangul": "따라서",
}  # fmt: skip
_TAG_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_MATH_TOKEN = re.compile(r"\\[()\[\]]|\$\$?|```|\n\s*\n")
_CLOSERS = {"\\(": "\\)", "\\[": "\\]", "$": "$", "$$": "$$", "```": "```"}
_MARKUP = re.compile(r"\\[A-Za-z]+|</?[A-Za-z][A-Za-z0-9_-]{0,63}>")
_VARIABLE = re.compile(rf"(?<![^\W\d_])[{_RANGES['latin']}{_RANGES['greek']}](?![^\W\d_])")
_LETTER = re.compile(r"[^\W\d_]")


@VERIFIERS.register("format")
class FormatVerifier:
    """Gold: anything."""

    isolated = False

    class Options(BaseOptions):
        r"""tags: names in order, the last one is the answer's. nothing_outside: see ``outside``. prompt_opens: the
        prompt ends with the first tag's opening, so the response continues inside it. answers: number of final answers.
        boxed: answers must be boxed. scripts: the letters' writing systems (empty: any), min_script_share of them.
        max_chars: characters of the whole response. score: 'all' gives 1 only if every rule is kept, 'share' the share
        of the rules kept."""

        tags: list[str] = Field(default=["think", "answer"])
        nothing_outside: bool = True
        prompt_opens: bool = False
        answers: int = Field(default=1, ge=1, le=100)
        boxed: bool = False
        scripts: list[Script] = Field(default=[])
        min_script_share: float = Field(default=0.9, gt=0, le=1)
        max_chars: int | None = Field(default=None, ge=1)
        score: Literal["all", "share"] = "all"

        @field_validator("tags")
        @classmethod
        def _tag_names(cls, tags: list[str]) -> list[str]:
            wrong = [tag for tag in tags if not _TAG_NAME.fullmatch(tag)]
            if wrong:
                raise ValueError(f"a tag is named by letters, digits, '_' and '-', without brackets; not {wrong[0]!r}")
            if len(set(tags)) != len(tags):
                raise ValueError("each tag can be listed once")
            return tags

        @model_validator(mode="after")
        def _can_be_kept(self) -> FormatVerifier.Options:
            if not self.tags and not (self.boxed or self.scripts or self.max_chars):
                raise ValueError("no rule is left: set tags, boxed, scripts or max_chars")
            if not self.tags and self.prompt_opens:
                raise ValueError("prompt_opens needs tags")
            if not self.tags and not self.boxed and self.answers > 1:
                raise ValueError("without tags and without boxed nothing marks the answers, so they cannot be counted")
            if self.max_chars is not None and len(_perfect(self)) > self.max_chars:
                raise ValueError(f"max_chars leaves no room for the tags and boxes ({len(_perfect(self))} characters)")
            return self

    def __init__(self, options: Options):
        self.options = options
        ranges = "".join(_RANGES[script] for script in options.scripts)
        self._script_letter = re.compile(rf"[{ranges}]") if ranges else None

    def verify(self, request: VerifyRequest) -> Verdict:
        parts = self._parts(request.response)
        broken = [name for name, kept in parts.items() if not kept]
        evidence = f"broken: {', '.join(broken)}" if broken else "every rule is kept"
        scores = {name: float(kept) for name, kept in parts.items()}
        if not broken:
            return Verdict(1.0, Status.CORRECT, evidence, parts=scores)
        score = sum(scores.values()) / len(scores) if self.options.score == "share" else 0.0
        status = Status.WRONG if request.response.strip() else Status.NO_ANSWER
        return Verdict(score, status, evidence, parts=scores)

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        return _perfect(self.options)

    def wrap_gold_response(self, text: str) -> str:
        """`text`, a right answer of another kind, in the form this contract asks for."""
        return _perfect(self.options, text)

    def _parts(self, response: str) -> dict[str, bool]:
        options = self.options
        blank = not response.strip()
        text = f"<{options.tags[0]}>{response}" if options.prompt_opens else response
        parts, answers = self._tag_parts(text) if options.tags else ({}, [])
        if options.boxed and options.tags:
            parts["boxed"] = bool(answers) and all(_filled_boxes(answer) == 1 for answer in answers)
        elif options.boxed:
            parts["boxed"] = _filled_boxes(answer_text(response) or "") == options.answers
        if self._script_letter is not None:
            parts["script"] = not blank and self._script_share(text) >= options.min_script_share
        if options.max_chars is not None:
            parts["length"] = not blank and len(response) <= options.max_chars
        return parts

    def _tag_parts(self, text: str) -> tuple[dict[str, bool], list[str]]:
        """The rules on tags, and the contents of the answer tags (none unless the tags stand as they must)."""
        options = self.options
        counts = dict.fromkeys(options.tags[:-1], 1) | {options.tags[-1]: options.answers}
        parts = {f"tag:{tag}": text.count(f"<{tag}>") == count == text.count(f"</{tag}>")
                 for tag, count in counts.items()}  # fmt: skip
        sequence = [tag for tag, count in counts.items() for _ in range(count)]
        spans = _spans(text, sequence) if all(parts.values()) else None
        parts["order"] = spans is not None
        contents = [text[start:end] for start, end in spans or []]
        parts["non_empty"] = bool(contents) and all(content.strip() for content in contents)
        if options.nothing_outside:
            parts["outside"] = spans is not None and not _outside(text, sequence, spans).strip()
        return parts, contents[len(options.tags) - 1 :]

    def _script_share(self, text: str) -> float:
        assert self._script_letter is not None
        prose = _VARIABLE.sub(" ", _MARKUP.sub(" ", _without_math(text)))
        letters = _LETTER.findall(prose)
        return sum(1 for letter in letters if self._script_letter.match(letter)) / len(letters) if letters else 1.0


def _perfect(options: FormatVerifier.Options, answer: str | None = None) -> str:
    filler = _SAMPLES[options.scripts[0]] if options.scripts else "1"
    if answer is None:
        answer = "1" if options.boxed or options.tags else filler
    if options.boxed and not boxes(answer):
        answer = f"\\boxed{{{answer}}}"
    if not options.tags:
        return " ".join([answer] * options.answers)
    opening = [f"<{tag}>{filler}</{tag}>" for tag in options.tags[:-1]]
    text = "".join(opening + [f"<{options.tags[-1]}>{answer}</{options.tags[-1]}>"] * options.answers)
    return text.removeprefix(f"<{options.tags[0]}>") if options.prompt_opens else text


def _spans(text: str, sequence: list[str]) -> list[tuple[int, int]] | None:
    """Where the content of each tag of `sequence` stands, one after the other; None if they are not in that order."""
    spans, position = [], 0
    for tag in sequence:
        start = text.find(f"<{tag}>", position)
        end = text.find(f"</{tag}>", start + len(tag) + 2) if start >= 0 else -1
        if end < 0:
            return None
        spans.append((start + len(tag) + 2, end))
        position = end + len(tag) + 3
    return spans


def _outside(text: str, sequence: list[str], spans: list[tuple[int, int]]) -> str:
    pieces, position = [], 0
    for tag, (start, end) in zip(sequence, spans, strict=True):
        pieces.append(text[position : start - len(tag) - 2])
        position = end + len(tag) + 3
    return "".join([*pieces, text[position:]])


def _filled_boxes(text: str) -> int:
    """Number of boxes in `text`; -1 if one is empty or never closed."""
    found = boxes(text)
    filled = all(box.content is not None and not text[box.content].isspace() and text[box.content] for box in found)
    return len(found) if filled else -1


def _without_math(text: str) -> str:
    """`text` without mathematics and code. One pass; an opening delimiter without its closing one is plain text, and a
    blank line ends ``$``, which is then money."""
    kept: list[str] = []
    position, opened = 0, None
    for token in _MATH_TOKEN.finditer(text):
        if opened is None:
            if token[0] in _CLOSERS:
                opened = token
        elif token[0] == _CLOSERS[opened[0]]:
            kept.append(text[position : opened.start()])
            position, opened = token.end(), None
        elif opened[0] == "$" and token[0].isspace():
            opened = None
    return " ".join([*kept, text[position:]])
