"""What a judge meant: the last Yes or No, or the last score. None if it cannot be told; all linear in the text."""

from __future__ import annotations

import re

_JUDGMENT = re.compile(r"final\s+judge?ment", re.IGNORECASE)
_FINAL_SCORE = re.compile(r"final\s+score", re.IGNORECASE)
_REACH_CHARS = 200  # how far behind its marker a judgement is looked for
_DECORATION = r"(?:[\s:=*_`\"'“”‘’(\[{$]|is\b|\\(?:boxed|text|textbf|mathrm)\b)*"
_WORD = re.compile(r"(?<![\w-])(yes|no)(?![\w-])", re.IGNORECASE)
_BOTH = re.compile(r"(?<!\w)(?:yes\s*(?:/|\||or)\s*no|no\s*(?:/|\||or)\s*yes)(?!\w)", re.IGNORECASE)
_AFTER_MARKER = re.compile(_DECORATION + r"(yes|no)(?![\w-])", re.IGNORECASE)
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
_DASH = "[-−–]"
# a range, or a number with what it is out of; not part of a word, of a version or of a percentage
_SCORE_PATTERN = (
    rf"(?<![\w.,/−–-])(?:{_NUMBER}\s*{_DASH}\s*{_NUMBER}(?!\w)"
    rf"|(?P<sign>[-+−–]?)(?P<value>{_NUMBER})(?:\s*(?:/|out\s+of)\s*(?P<of>{_NUMBER}))?"
    rf"(?![\w%/]|[.,][0-9]|\s*{_DASH}\s*[0-9]|\s*(?:%|percent)))"
)
_SCORE = re.compile(_SCORE_PATTERN, re.IGNORECASE)
_SCORE_AFTER_MARKER = re.compile(_DECORATION + _SCORE_PATTERN, re.IGNORECASE)


def parse_yes_no(text: str, *, marker_required: bool = False) -> bool | None:
    """The word right after the last "Final Judgment" (case, bold face, boxes and quotes do not matter). Without one,
    the last "yes" or "no" that stands as a word, unless `marker_required`. "Yes/No" is neither: it repeats the
    question."""
    judged = _after_last_marker(_JUDGMENT, text)
    if judged is None:
        return None if marker_required else _last_word(text)
    found = _AFTER_MARKER.match(judged)
    if found is None or _BOTH.match(judged, found.start(1)):
        return None
    return found[1].lower() == "yes"


def _last_word(text: str) -> bool | None:
    words = list(_WORD.finditer(text))
    if not words or any(both.end() == words[-1].end() for both in _BOTH.finditer(text)):
        return None
    return words[-1][1].lower() == "yes"


def parse_score(text: str, max_score: int, *, marker_required: bool = False) -> float | None:
    """The score after the last "Final Score", None if it is outside 0 to `max_score`. Without one, the last number
    from 0 to `max_score`, unless `marker_required`. "7/10" and "7 out of 10" are 7 if `max_score` is 10, and no score
    otherwise; percentages, ranges and negative numbers are none."""
    judged = _after_last_marker(_FINAL_SCORE, text)
    if judged is not None:
        found = _SCORE_AFTER_MARKER.match(judged)
        return None if found is None else _value(found, max_score)
    if marker_required:
        return None
    values = (_value(found, max_score) for found in _SCORE.finditer(text))
    return next((value for value in reversed(list(values)) if value is not None), None)


def _value(found: re.Match[str], max_score: int) -> float | None:
    if found["value"] is None:
        return None
    value, of = float(found["value"]), found["of"]
    if found["sign"] not in ("", "+") or value > max_score or (of is not None and float(of) != max_score):
        return None
    return value


def _after_last_marker(marker: re.Pattern[str], text: str) -> str | None:
    found = list(marker.finditer(text))
    return text[found[-1].end() :][:_REACH_CHARS] if found else None
