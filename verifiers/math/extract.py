r"""Which words of a response are its answer. Linear in the text; one rule decides, and says which.

1. Thinking does not count, and a response that ends while thinking has no answer.
2. The last ``\boxed{...}``, with those joined to it by 'and', 'or' or a comma. A box that is empty or never closed is
   no answer, whatever stands elsewhere.
3. Without a box, unless the profile demands one: the last statement of the form '#### 5', 'Final answer: 5', 'the
   answer is 5'; else the last sentence if it concludes ('Therefore ...', 'so ...') and names one value; else a response
   so short that it is itself the answer. More than two different final answers, a denied one ('the answer is not 5')
   or an unfinished last formula are no answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from verifiers.text import Box, answer_text, contents_of, last_boxes

TAIL_CHARS = 6_000
SHORT_CHARS = 200
MAX_FINAL_ANSWERS = 2

_PERCENT_AFTER_BOX = re.compile(r"\s*(?:(?:\$|\\\)|\\\])\s*)?(?:\\?%|(?:percent|pct|percentage)\b)", re.IGNORECASE)
_MARKER = re.compile(r"####[ \t]*([^\n]+)")
_ANCHOR = re.compile(
    r"""\banswers?\W{0,4}\s{0,3}(?:is|are|would\ be|will\ be|must\ be|should\ be|=|:)(?:\W{0,3}\s*[:=])?
       |\bFinal\s+Answer\b(?:\s+is\b)?[\s*_]{0,6}[:=]?
       |\bAnswer\b(?=[ ]*\$)
       |\A(?:Final|Result|Solution):
       |^\s{0,3}\**A:\**""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_NEXT_SENTENCE = re.compile(r"\n|[.!?](?=\s+[A-Z*<\[]|\s*\Z)|[.!?]\s*\n")
_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|so|consequently|finally|in conclusion|in summary|in total|we (?:find|get|have)|"
    r"conclude|it follows|overall|altogether|is our answer|is the (?:answer|solution))\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:(?:\bnot|n't|\bcannot|\bnever|\bneither|\beither|\bunless|\bmaybe|\bperhaps|\bpossibly)\s+(?:be\s+|is\s+)?|"
    r"\b(?:at\s+(?:least|most)|(?:greater|less|more|fewer|larger|smaller|bigger)\s+than|negative|minus|between|over|under|"
    r"above|below|exceeds?|half|twice|double|up\s+to)\s+)\Z",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"""\$\$(?P<display>[^$]{1,600})\$\$
       |\$[ ](?P<spaced>[^$]{1,600})[ ]\$
       |\$(?!\s)(?P<inline>[^$]{0,600}?[^\s$\\])\$(?!\d)
       |\\\((?P<paren>.{1,600}?)\\\)
       |\\\[(?P<bracket>.{1,600}?)\\\]
       |(?<![\w.])(?P<number>-?\\?\$?\d(?:[\d,]*\d)?(?:\.\d+)?(?:/\d+)?(?:\s?\\?%|\b|°)?)(?![\w$]*[A-Za-z_]\d)""",
    re.VERBOSE | re.DOTALL,
)
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\w|\([a-z]\))?")
_WORDS_BEFORE_FORMULA = re.compile(r"[A-Za-z]{2}[^$\\]*(?:\$|\\[(\[])")
_STATES = re.compile(r"(?:The|Our)\s.*\b(?:is|are)\b", re.DOTALL)
_JOINERS_ONLY = re.compile(r"(?:and|or|[\s,;.])*")
_HEDGED = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|might|may\s+be|could\s+be|not\s+sure|seems?|guess|"
    r"I\s+(?:think|believe|suspect)|(?:can(?:no|')t|not)\s+be)\W+(?:[a-z']+\W+){0,2}\Z",
    re.IGNORECASE,
)
_ENDED = re.compile(r"[.!*)\]$]\s*\Z")
_LEADING_WORD = re.compile(r"\A(?:therefore|thus|hence|so|then|finally|and|but|now)\b,?\s+(?=\S)", re.IGNORECASE)
_RETRACTED = re.compile(r"\b(?:but|however|fails?|wrong|incorrect|invalid|too\s+(?:large|small|big))\b", re.IGNORECASE)
_SUPPOSED = re.compile(
    r"(?:\A|[.!?\n]\s*)(?:if|suppose|assume|whether|unless|when|is|check)\b[^.!?\n]*\Z", re.IGNORECASE
)
_NO_STATEMENT = re.compile(
    r"(?:let|let's|suppose|assume|if|first|next|we\s+need|consider|step|given|note|since|because|when|for|try|compute|"
    r"calculate|find|is|are|what|how)\b",
    re.IGNORECASE,
)
_BOX_DENIED = re.compile(
    r"(?:\bnot|n't|\bcannot\s+be|\bcan't\s+be|\bI\s+guess)\s+(?:\$|\\\(|\\\[)*\s*\Z", re.IGNORECASE
)
_BOX_RETRACTED = re.compile(
    r"[$\s]*+(?:(?:(?:\\\)|\\\])\s*+)?(?:is|was|seems)\s+(?:wrong|incorrect|not\b|false)|\?)", re.IGNORECASE
)
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_VERB = re.compile(
    r"(?:'s\b|\b(?:is|are|was|were|be|equals|equal\s+to|totals?|total\s+of|becomes|has|have|to)\b|=|:)", re.IGNORECASE
)
_TOTAL = re.compile(r"\btotal\s+of\s*\Z", re.IGNORECASE)
_OPEN_FORMULA = re.compile(r"[=+\-*/^_{(\[\\,]\s*\Z")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*+(?!\\\[|\$\$)")  # a displayed formula belongs to the sentence before it
_SENTENCE = re.compile(r"(?<=[.!?])\**\s+(?=[A-Z0-9$\\*\"'(])|(?<=\\\])\s+(?=(?:Therefore|Thus|Hence|So|Finally)\b)")
_COURTESY = re.compile(r"\s*I hope (?:it|this) is correct\.?\s*", re.IGNORECASE)
_SPECIAL = re.compile(r"<\|[^|\n]{1,40}\|>.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Found:
    """text: the words to read as mathematics, None if there is no answer. rule: why these. boxed: they stood in a box;
    if not, they may be a sentence that names one value."""

    text: str | None
    rule: str
    boxed: bool = False


def find_answer(response: str, *, unboxed: bool) -> Found:
    visible = answer_text(response)
    if visible is None:
        return Found(None, "the response ends while thinking")
    boxes = last_boxes(visible)
    if boxes:
        return _boxed(visible, boxes)
    if not unboxed:
        return Found(None, "no box")
    return _unboxed(visible)


def candidates(text: str) -> list[str]:
    """A statement as it stands and the one value in it, in the order to be tried: words before a formula are prose."""
    stripped = _LEADING_WORD.sub("", _tidy(text))
    value = one_value(stripped)
    if value is None or value == stripped:
        return [stripped]
    return [value, stripped] if _WORDS_BEFORE_FORMULA.match(stripped) else [stripped, value]


def one_value(sentence: str) -> str | None:
    """The value a sentence names: the only bold one, the only one after its last verb (or all of them, if nothing but
    'and', 'or' and commas stands between), or the only one at all."""
    bold = list(
        dict.fromkeys(m[1].strip(" .:") for m in _BOLD.finditer(sentence) if any(c.isdigit() or c == "$" for c in m[1]))
    )
    if len(bold) == 1:
        inside = one_value(bold[0]) if not bold[0].replace(",", "").replace(".", "").isdigit() else bold[0]
        return inside or bold[0]
    found = list(_VALUE.finditer(sentence))
    found = [m for m in found if not _NAME.fullmatch(_content(m))] or found  # '2 + 1 = 3 possible values of $n$'
    if not found:
        return None
    verbs = [m.end() for m in _VERB.finditer(sentence) if not any(v.start() <= m.start() < v.end() for v in found)]
    for start in (verbs[-1:] or [0]) + [0]:
        after = [m for m in found if m.start() >= start]
        if after and _TOTAL.search(sentence[: after[0].start()]):  # 'a total of 34 hours in 4 weeks'
            after = after[:1]
        if after and (_DENIED.search(sentence, 0, after[0].start()) or _RETRACTED.search(sentence, after[-1].end())):
            return None
        if len(after) == 1:
            return _content(after[0])
        if len(after) > 1 and start:
            enumerated = sentence[start:]
            return enumerated.strip(" .:") if _JOINERS_ONLY.fullmatch(_VALUE.sub("", enumerated)) else None
    return None


def _content(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).strip()


def _boxed(visible: str, boxes: list[Box]) -> Found:
    contents = contents_of(visible, boxes)
    if not contents:
        return Found(None, "the last box is empty or never closed")
    if len(contents) > 1:
        return Found(", ".join(contents), "the last boxes, joined", boxed=True)
    if _BOX_DENIED.search(visible, max(0, boxes[0].start - 40), boxes[0].start) or _BOX_RETRACTED.match(
        visible, boxes[-1].end
    ):
        return Found(None, "the last box is denied or taken back")
    percent = _PERCENT_AFTER_BOX.match(visible, boxes[-1].end) and not contents[0].rstrip().endswith("%")
    return Found(contents[0] + (r"\%" if percent else ""), "the last box", boxed=True)


def _unboxed(visible: str) -> Found:
    tail = _COURTESY.sub(" ", _SPECIAL.sub("", visible[-TAIL_CHARS:])).strip()
    if not tail:
        return Found(None, "an empty response")
    markers = _MARKER.findall(tail)
    if markers:
        return Found(markers[-1].strip(), "after ####")
    anchors = list(_ANCHOR.finditer(tail))
    if anchors:
        return _anchored(tail, anchors)
    if _OPEN_FORMULA.search(tail.rstrip("*")) or not _formulas_closed(tail):
        return Found(None, "the response ends in an unfinished formula")
    if len(visible) <= SHORT_CHARS and "\n" not in visible.strip():
        if _is_hedged(tail):
            return Found(None, "a hedged or denied answer")
        if _NO_STATEMENT.match(tail) or tail.endswith("?"):
            return Found(None, "a short response that states nothing")
        if len(_SENTENCE.split(tail)) == 1:
            return Found(tail, "a response that is short enough to be the answer")
    value = _conclusion(tail)
    if value is not None:
        return Found(value, "the one value of the concluding sentence")
    return Found(None, "no box and no final statement")


def _is_hedged(statement: str) -> bool:
    """Whether a hedge or a denial stands right before a value ('might be 42')."""
    starts = (value.start() for value in _VALUE.finditer(statement))
    return any(_HEDGED.search(statement, max(0, start - 60), start) for start in starts)


def _anchored(tail: str, anchors: list[re.Match[str]]) -> Found:
    statements = [
        _statement(tail, a.end()) for a in anchors if not _SUPPOSED.search(tail, max(0, a.start() - 80), a.start())
    ]
    distinct = {s for s in statements if s and len(s) <= 60}
    if len(distinct) > MAX_FINAL_ANSWERS:
        return Found(None, f"{len(distinct)} different final answers")
    last = next((s for s in reversed(statements) if s), "")
    if not last:
        return Found(None, "nothing after 'the answer is'")
    if re.match(r"(?:not|either|neither|cannot|n't)\b", last, re.IGNORECASE) or _is_hedged(last):
        return Found(None, "a hedged or denied answer")
    if _OPEN_FORMULA.search(last):
        return Found(None, "the response ends in an unfinished formula")
    return Found(last, "after 'the answer is'")


def _statement(tail: str, start: int) -> str:
    """What follows an anchor: the rest of its sentence, or of the next line that has text (a displayed formula)."""
    rest = tail[start:].lstrip(" \t*_:")
    rest = rest.lstrip()
    if rest.startswith(("\\[", "$$")):
        close = "\\]" if rest.startswith("\\[") else "$$"
        end = rest.find(close, 2)
        return rest[2:end].strip() if end > 0 else rest
    end = _NEXT_SENTENCE.search(rest)
    return _tidy(rest[: end.start()] if end else rest)


def _conclusion(tail: str) -> str | None:
    """The value of the last sentence that has one, if the last paragraph concludes: by a word such as 'therefore', by
    setting the value in bold, by 'The range of f is VALUE.', or by being that one sentence."""
    paragraph = _PARAGRAPH.split(tail)[-1].rstrip(" .\n!")
    sentences = _SENTENCE.split(paragraph)
    for index in range(len(sentences) - 1, -1, -1):
        sentence = sentences[index]
        values = list(_VALUE.finditer(sentence))
        if all(_NAME.fullmatch(_content(m)) for m in values):
            continue
        concludes = any(_CONCLUDES.search(s) for s in sentences[: index + 1]) or _BOLD.search(sentence)
        if not _ENDED.search(tail) and sentence[values[-1].end() :].strip(" .$"):
            return None  # it breaks off
        states = _STATES.match(sentence) and not sentence[values[-1].end() :].strip(" .")
        alone = len(sentences) == 1 and len(sentence) <= SHORT_CHARS
        return one_value(sentence) if concludes or (tail.endswith(".") and (states or alone)) else None
    return None


def _formulas_closed(text: str) -> bool:
    return text.rfind("\\[") <= text.rfind("\\]") and text.rfind("\\(") <= text.rfind("\\)")


def _tidy(text: str) -> str:
    text = text.strip()
    while True:
        before = text
        text = text.strip(" \t\n*_").rstrip(".;,!")
        for opening, closing in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$"), ("`", "`")):
            inside = text[len(opening) : -len(closing)]
            if (
                text.startswith(opening)
                and text.endswith(closing)
                and len(text) > len(opening) + len(closing)
                and closing not in inside
            ):
                text = inside
        if text == before:
            return text
