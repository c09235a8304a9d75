r"""Multiple choice: when the gold is a letter, an answer such as '(B) 5' or '\textbf{(B)}' is that letter."""

from __future__ import annotations

import re

from verifiers.math.compare import Decision

_WRAPPERS = re.compile(
    r"\\(?:textbf|textit|text|mathrm|mathbf|boldsymbol|displaystyle|textstyle|left|right|qquad|quad|bf|rm|;|,|!| )\s*"
    r"|[{}$*~\s]+"
)
_GOLD = re.compile(r"\(?([A-J])\)?\.?|((?:\(?[A-J]\)?,?)+)")
_LABELLED = re.compile(r"\(([A-J])\)[.:]?(.*)|([A-J])[).:](.*)", re.DOTALL)
_ANOTHER = re.compile(r"\([A-J]\)|(?<![A-Za-z])[A-J](?:[).:]|\b(?![\w=^+*/-]))")
_PREFIX = re.compile(r"[A-Za-z,:]{0,40}?(?:answer|option|choice)(?:is)?:?(?=\(?[A-J](?![a-z]))", re.IGNORECASE)
_LETTERS = re.compile(r"\(?[A-J]\)?(?:(?:,|and|;|&)?\(?[A-J]\)?)*")


def choice_decision(gold: str, answer: str) -> Decision | None:
    """None if the gold is no choice, or the answer does not look like one."""
    if len(gold) > 60 or len(answer) > 300:
        return None
    plain_gold = _WRAPPERS.sub("", gold)
    if not _GOLD.fullmatch(plain_gold):
        return None
    gold_letters = re.findall("[A-J]", plain_gold)
    if len(gold_letters) > 1 and (gold_letters != sorted(set(gold_letters))):
        return None
    plain = _PREFIX.sub("", _WRAPPERS.sub("", answer)).rstrip(".,;")
    if _LETTERS.fullmatch(plain):
        return _decision(sorted(re.findall("[A-J]", plain)) == gold_letters)
    labelled = _LABELLED.fullmatch(plain)
    if labelled is None:
        return None
    letter, rest = (labelled[1], labelled[2]) if labelled[1] else (labelled[3], labelled[4])
    if _ANOTHER.search(rest):
        return _decision(False)
    return _decision([letter] == gold_letters)


def _decision(equal: bool) -> Decision:
    return Decision(equal, "the same choice" if equal else "another choice")
