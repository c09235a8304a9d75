r"""Kind ``choice``: a multiple-choice answer, compared as a label.

Where the answer stands, outside <think>...</think>; the first place that exists decides:

1. the last ``<answer>...</answer>`` and the last ``\boxed{...}`` (boxes joined by 'and', 'or' or a comma are one
   answer). If both exist they must say the same.
2. lenient profile only: the last statement 'the answer is (C)', 'Answer: C', 'the correct option is C'. Another label
   or a retraction ('wait', 'actually') after it, or another such statement in its paragraph, makes it no answer.
3. lenient profile only: the last line, if it is nothing but a label ('(B)', 'B.', '**B**'), a label with its own
   option text, or one option's text.

Labels are A, B, C, ... or those of `meta["choices"]`: a list of option texts (labelled A, B, C, ...), a mapping from
label to text, or the two lists ``{"label": [...], "text": [...]}``. An option's text stands for its label if it is the
text of exactly one option; a label with the text of a different option contradicts itself; a lone label is a label even
if it is also a text. 'A or B' and 'A, B' are wrong, unless option `multiple` is set and the answer lists the set (an
'or' never does). No letter is picked out of prose: 'A bird' is not A.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from verifiers.errors import BadGold
from verifiers.options import Options as BaseOptions
from verifiers.text import answer_text, final_boxes
from verifiers.verdict import VERIFIERS, Status, Verdict, VerifyRequest

MAX_ANSWER_CHARS = 2_000
STATEMENT_WINDOW_CHARS = 10_000
_SHOWN_CHARS = 200

_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathsf|mathit|boldsymbol|emph|underline|left|right)"
    r"(?![A-Za-z])"
)
_SPACES = re.compile(r"\\(?:[ ,;:!]|q?quad(?![A-Za-z]))|~")
_DECORATION = re.compile(r"\\[()\[\]]|[${}*`\"]")
_TAG_END, _TAG_START = "</answer>", "<answer>"
_LABEL = r"[A-Za-z0-9]"
_LEAD = r"(?:(?:option|choice|answer)\s*:?\s*)?"
_ALONE = re.compile(rf"{_LEAD}(?:\(\s*({_LABEL})\s*\)|\[\s*({_LABEL})\s*\]|({_LABEL})\s?\)?)\s?[.:,;]?", re.IGNORECASE)
_WITH_TEXT = re.compile(rf"{_LEAD}(?:\(\s*({_LABEL})\s*\)[.:]?|\[\s*({_LABEL})\s*\][.:]?|({_LABEL})[).:])\s*(\S.*)",
                        re.IGNORECASE)  # fmt: skip
_SEPARATOR = re.compile(r"\s*(?:,\s*(?:and|or)\b|[,;&/]|\b(?:and|or)\b)\s*|\s+", re.IGNORECASE)
_ALTERNATIVE = re.compile(r"\bor\b|/", re.IGNORECASE)
_BRACKETED = re.compile(rf"[(\[]?\s*{_LABEL}\s*[)\]]")
_FULL_STOP = re.compile(rf"\W*{_LABEL}\W*\.(?=\s)")
_OTHER_LABEL = re.compile(r"[(\[]\s*([A-Z0-9])\s*[)\]]")  # upper case: f(x) names no option
_HEDGE = re.compile(
    r"\b(?:or|and|if|unless|not|either|neither|both|maybe|perhaps|possibly|between)\b|n't\b", re.IGNORECASE
)
_RETRACTION = re.compile(
    r"\b(?:wait|actually|alternatively|hmm|on second thought|not sure|correction)\b|\bno,", re.IGNORECASE
)
_STATEMENT = re.compile(
    r"\b(?:answer|(?:correct|right|best)\s(?:option|choice))[*_\s]{0,5}(?:is\b|:|=)[:*_\s]{0,5}"
    r"(?:(?:option|choice)\b\s?)?(?=(?P<claim>[^\n]{0,300}))",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_REASON = re.compile(r",?\s(?:because|since|as)\s", re.IGNORECASE)


class Reading(NamedTuple):
    """labels: the options an answer names, canonical. hedged: it does not commit to them."""

    labels: frozenset[str]
    hedged: bool = False

    def __str__(self) -> str:
        return ", ".join(sorted(self.labels)) + (" (not committed)" if self.hedged else "")


class Choices(NamedTuple):
    """The options of one question. texts: label -> folded text, empty if they are not known."""

    labels: tuple[str, ...]
    texts: Mapping[str, str]

    def label(self, written: str) -> str:
        """The label as the options write it; an unknown one in upper case."""
        upper = written.upper()
        return next((label for label in self.labels if label.upper() == upper), upper)

    def with_text(self, folded: str) -> list[str]:
        return [label for label, text in self.texts.items() if text == folded] if folded else []


@VERIFIERS.register("choice")
class ChoiceVerifier:
    """Gold: a label ('B', '(B)'), an index into the options, or with `multiple` several labels ('AC', 'A, C', a
    list)."""

    isolated = False

    class Options(BaseOptions):
        """profile: 'strict' reads a box or an <answer> tag only. multiple: the answer is a set of labels. first_index:
        the index of the first option, where a gold is an integer."""

        profile: Literal["lenient", "strict"] = "lenient"
        multiple: bool = False
        first_index: Literal[0, 1] = 0

    def __init__(self, options: Options):
        self.options = options

    def verify(self, request: VerifyRequest) -> Verdict:
        choices = _read_choices(request.meta)
        gold = self._read_gold(request.gold, choices)
        reading, written = self._find(request.response, choices)
        shown = f"answer {written[:_SHOWN_CHARS]!r}, gold {', '.join(sorted(gold))}"
        if reading is None:
            return Verdict(0.0, Status.NO_ANSWER, f"no option could be read; {shown}")
        if reading.hedged or (len(reading.labels) > 1 and not self.options.multiple):
            return Verdict(0.0, Status.WRONG, f"it does not commit to an answer: {reading}; {shown}")
        equal = reading.labels == gold
        return Verdict(float(equal), Status.CORRECT if equal else Status.WRONG, shown, answer=str(reading))

    def explain(self, request: VerifyRequest) -> dict[str, str]:
        """The parsed forms, for a person. Raises `BadGold`."""
        choices = _read_choices(request.meta)
        reading, written = self._find(request.response, choices)
        return {
            "options": ", ".join(choices.labels) if choices.texts else "not given",
            "gold": ", ".join(sorted(self._read_gold(request.gold, choices))),
            "place": written[:_SHOWN_CHARS] or "(none)",
            "answer": str(reading) if reading is not None else "(not an option)",
        }

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        labels = self._read_gold(gold, _read_choices(meta))
        return f"\\boxed{{{', '.join(sorted(labels))}}}"

    def _read_gold(self, gold: Any, choices: Choices) -> frozenset[str]:
        if type(gold) is int:
            index = gold - self.options.first_index
            if not 0 <= index < len(choices.labels):
                raise BadGold(f"The gold {gold} is not the index of one of {len(choices.labels)} options.")
            return frozenset({choices.labels[index]})
        if isinstance(gold, list | tuple) and all(isinstance(label, str) for label in gold):
            gold = ", ".join(gold)
        if not isinstance(gold, str):
            raise BadGold(f"The gold must be a label, an index or a list of labels, not {type(gold).__name__}.")
        reading = read_answer(gold, choices) if len(gold) <= MAX_ANSWER_CHARS else None
        if reading is None or reading.hedged:
            raise BadGold(f"The gold {gold[:_SHOWN_CHARS]!r} names no option.")
        if len(reading.labels) > 1 and not self.options.multiple:
            raise BadGold(f"The gold {gold[:_SHOWN_CHARS]!r} names several options.", fix="set the option multiple")
        if not reading.labels <= set(choices.labels):
            raise BadGold(f"The gold {gold[:_SHOWN_CHARS]!r} is not among the options {', '.join(choices.labels)}.")
        return reading.labels

    def _find(self, response: str, choices: Choices) -> tuple[Reading | None, str]:
        """What the response answers, and the text it was read from."""
        text = answer_text(response)
        if text is None:
            return None, ""
        marked = _marked(text)
        if marked:
            readings = {read_answer(written, choices) for written in marked}
            if len(readings) == 1:
                return readings.pop(), marked[0]
            labels = frozenset().union(*(reading.labels for reading in readings if reading is not None))
            return Reading(labels, hedged=True), " / ".join(marked)
        return (None, "") if self.options.profile == "strict" else _unmarked(text, choices)


def read_answer(written: str, choices: Choices, *, prose: bool = False) -> Reading | None:
    """The options that `written` names as a whole, or None. In `prose` a label followed by text it does not belong to
    is no label, and a bare lower-case letter is a word."""
    if len(written) > MAX_ANSWER_CHARS:
        return None
    plain = _plain(written)
    alone = _ALONE.fullmatch(plain)
    if alone and not (prose and alone[3] and alone[3].islower()):
        label = choices.label(_group(alone))
        if label in choices.labels or not choices.with_text(_fold(plain)):
            return Reading(frozenset({label})) if label.isalpha() or label in choices.labels else None
    named = choices.with_text(_fold(plain))
    if len(named) == 1:
        return Reading(frozenset(named))
    return _read_list(plain, choices) or _read_with_text(plain, choices, prose=prose)


def _read_list(plain: str, choices: Choices) -> Reading | None:
    """'A, C', '(A) and (C)', 'A or B', 'AC'."""
    parts = [part for part in _SEPARATOR.split(plain.rstrip(".")) if part]
    matches = [_ALONE.fullmatch(part) for part in parts]
    if len(parts) > 1 and all(matches):
        letters = [_group(match) for match in matches if match]
    elif (
        len(parts) == 1 and 1 < len(plain) <= len(choices.labels) and plain.isupper() and len(set(plain)) == len(plain)
    ):
        letters = list(plain)
    else:
        return None
    labels = frozenset(choices.label(letter) for letter in letters)
    if not labels <= set(choices.labels):
        return None
    return Reading(labels, hedged=_ALTERNATIVE.search(plain) is not None)


def _read_with_text(plain: str, choices: Choices, *, prose: bool) -> Reading | None:
    """'(B) 12': a label and, after it, the option's text."""
    match = _WITH_TEXT.fullmatch(plain)
    if match is None:
        return None
    label, rest = choices.label(_group(match)), match[4]
    if label not in choices.labels:
        return None
    named = choices.with_text(_fold(rest))
    others = {choices.label(other[1]) for other in _OTHER_LABEL.finditer(rest)} & set(choices.labels) - {label}
    if label in named:
        return Reading(frozenset({label}))
    if named or others:
        return Reading(frozenset({label, *named, *others}), hedged=True)
    if _HEDGE.search(rest):
        return Reading(frozenset({label}), hedged=True)
    return None if prose else Reading(frozenset({label}))


def _marked(text: str) -> list[str]:
    """Contents of the last <answer> tag and of the last boxes, [] if there is neither. An unclosed tag is empty."""
    found: list[str] = []
    _, opened, tail = text.rpartition(_TAG_START)
    outside = text
    if opened:
        content, closed, after = tail.partition(_TAG_END)
        inner = final_boxes(content)
        found.append("" if not closed else content if inner is None else ", ".join(inner))
        outside = after
    boxes = final_boxes(outside)
    if boxes is not None:
        found.append(_joined(outside, boxes))
    return found


def _joined(text: str, boxes: list[str]) -> str:
    """The boxes as one answer. An 'or' between boxes hedges, as it does within one."""
    if len(boxes) < 2:
        return "".join(boxes)
    tail = text[text.rfind("\\boxed") - 40 :] if text.rfind("\\boxed") > 40 else text
    return (" or " if re.search(r"\bor\b", tail) else ", ").join(boxes)


def _unmarked(text: str, choices: Choices) -> tuple[Reading | None, str]:
    window = text[-STATEMENT_WINDOW_CHARS:]
    statements = list(_STATEMENT.finditer(window))
    if statements:
        return _from_statements(window, statements, choices)
    last_line = text.strip().rpartition("\n")[2].strip()
    return read_answer(last_line, choices, prose=True), last_line


def _from_statements(window: str, statements: list[re.Match[str]], choices: Choices) -> tuple[Reading | None, str]:
    last = statements[-1]
    reading, claim, rest = _read_claim(last["claim"], choices)
    if reading is None:
        return None, claim
    after = rest + window[last.end("claim") :]
    others = {choices.label(other[1]) for other in _OTHER_LABEL.finditer(after)} & set(choices.labels)
    paragraph = window.rfind("\n\n", 0, last.start())
    earlier = [_read_claim(s["claim"], choices)[0] for s in statements[:-1] if s.start() > paragraph]
    contradicted = any(e is not None and e.labels != reading.labels for e in earlier)
    if others - reading.labels or contradicted or _RETRACTION.search(after):
        return Reading(reading.labels | others, hedged=True), claim
    return reading, claim


def _read_claim(line: str, choices: Choices) -> tuple[Reading | None, str, str]:
    """What the first sentence of a statement claims, that sentence, and what follows it on the line."""
    sentence, rest = _sentence(line)
    reading = read_answer(sentence, choices, prose=True)
    if reading is None and _BRACKETED.match(_plain(sentence)):
        # 'answer' stands before it, so text may follow a label in brackets without the options being known.
        reading = read_answer(sentence, choices)
    if reading is None and (stop := _FULL_STOP.match(line)):
        sentence, rest = stop[0], line[stop.end() :]
        reading = read_answer(sentence, choices, prose=True)
    return reading, sentence, rest


def _sentence(line: str) -> tuple[str, str]:
    """The first sentence of `line` without its reason, and the remainder. The full stop of 'B. 15' ends none."""
    label = _FULL_STOP.match(line)
    end = _SENTENCE_END.search(line, label.end() if label else 0)
    sentence, rest = (line[: end.start()], line[end.end() :]) if end else (line, "")
    reason = _REASON.search(sentence)
    return (sentence[: reason.start()], sentence[reason.end() :] + rest) if reason else (sentence, rest)


def _group(match: re.Match[str]) -> str:
    return match[1] or match[2] or match[3]


def _plain(written: str) -> str:
    r"""Without LaTeX wrappers, dollar signs, Markdown emphasis; Unicode look-alikes (Ⓑ, Ｂ) as plain letters."""
    text = unicodedata.normalize("NFKC", written)
    text = _DECORATION.sub("", _SPACES.sub(" ", _WRAPPERS.sub("", text)))
    return " ".join(text.split())


def _fold(plain: str) -> str:
    return plain.casefold().rstrip(".").strip()


def _read_choices(meta: Mapping[str, Any]) -> Choices:
    """The options that `meta` gives. Raises `BadGold` if they are malformed."""
    given = meta.get("choices")
    if given is None:
        return Choices(tuple(string.ascii_uppercase), {})
    pairs = _pairs(given)
    if pairs is None or len({label.upper() for label, _ in pairs}) != len(pairs):
        raise BadGold(
            "meta['choices'] is not a set of labelled options.",
            fix='give a list of at most 26 texts, {"A": text, ...}, or {"label": [...], "text": [...]}, labels being '
            "one letter or digit each",
        )
    return Choices(tuple(label for label, _ in pairs), {label: _fold(_plain(text)) for label, text in pairs})


def _pairs(given: Any) -> list[tuple[str, str]] | None:
    if isinstance(given, Mapping) and set(given) == {"label", "text"} and isinstance(given["label"], list | tuple):
        labels, texts = given["label"], given["text"]
    elif isinstance(given, Mapping):
        labels, texts = list(given), list(given.values())
    elif isinstance(given, list | tuple):
        labels, texts = string.ascii_uppercase[: len(given)], given
    else:
        return None
    if not isinstance(texts, list | tuple) or not texts or len(labels) != len(texts):
        return None
    ok = all(isinstance(text, str | int | float) and isinstance(label, str) and re.fullmatch(_LABEL, label)
             for label, text in zip(labels, texts, strict=True))  # fmt: skip
    return [(label, str(text)) for label, text in zip(labels, texts, strict=True)] if ok else None
