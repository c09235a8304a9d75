r"""Kind ``math``: is the final answer of a response mathematically the gold?

Stages, each a module: `extract` finds the answer, `lexer` and `parser` read it into a typed form (`syntax`), `compare`
decides by the rule for that type, with exact rationals or 60-digit evaluation (`evaluate`, `scalars`, `realsets`,
`units`); `slow` asks sympy where the grammar does not reach. Every stage is bounded: text, digits, nesting, exponents,
pairs tried.

Conventions. The value counts, not the spelling: 1/2, 0.5, \frac12 and 50% are one number; x = 5 answers a gold 5; units
are optional, contradicting ones are wrong; lists and sets have no order, tuples do; degrees and radians convert. A
gold with k decimals accepts a more exact number that rounds to it; an exact gold accepts a decimal only with
`scalars.FINE_DIGITS` significant digits. What is hedged, enumerated, contradictory or unfinished is never right.

Accuracy beside other graders: docs/math-accuracy.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from pydantic import Field

from verifiers.errors import BadGold
from verifiers.math import slow
from verifiers.math.canonical import canonical
from verifiers.math.choices import choice_decision
from verifiers.math.compare import Decision, Profile, compare
from verifiers.math.extract import Found, candidates, find_answer
from verifiers.math.parser import parse
from verifiers.math.syntax import Node, NotCovered, Text, Unreadable, show, walk
from verifiers.options import Options as BaseOptions
from verifiers.text import final_boxes
from verifiers.verdict import VERIFIERS, Status, Verdict, VerifyRequest

_GOLD_CACHE_SIZE = 8_192
_ANSWER_CACHE_SIZE = 16_384
_CACHED_CHARS = 2_000  # longer texts are not kept
_SHOWN_CHARS = 300
_AMBIGUOUS_COMMA = re.compile(r"\d,\d{3}(?!\d)")
_PROSE = re.compile(r"[^\w']*(?:[A-Za-z']+[\s,]+){3}")
_SPACES = re.compile(r"(?<!\d)\s+|\s+(?!\d)")  # 1 1/2 is not 11/2


class Reading(NamedTuple):
    """A text and its form; `error` says why there is none, `covered` whether that is the text's fault."""

    text: str
    form: Node | None
    error: str = ""
    covered: bool = True


class Judgement(NamedTuple):
    """text: what was read as the answer. answer: its canonical form. No tree, because thousands are kept."""

    decision: Decision
    text: str
    answer: str


@VERIFIERS.register("math")
class MathVerifier:
    """Gold: LaTeX or plain text as a string, or a number."""

    isolated = True

    class Options(BaseOptions):
        r"""profile: `lenient` or `strict`, which sets what the other options leave open. unboxed: whether a final
        statement counts where there is no ``\boxed{}`` (lenient yes, strict no). units: whether a gold's unit must be
        in the answer (strict yes). order: whether a list must keep the gold's order (strict yes).
        max_answer_chars: a longer answer is not read."""

        profile: Literal["lenient", "strict"] = "lenient"
        unboxed: Literal["accept", "reject"] | None = None
        units: Literal["optional", "required"] | None = None
        order: Literal["any", "given"] | None = None
        max_answer_chars: int = Field(default=20_000, ge=1)

    def __init__(self, options: Options):
        self.options = options
        strict = options.profile == "strict"
        self._unboxed = options.unboxed == "accept" if options.unboxed else not strict
        self._profile = Profile(
            units=options.units == "required" if options.units else strict,
            ordered=options.order == "given" if options.order else strict,
        )
        slow.warm()
        self._read_gold = lru_cache(_GOLD_CACHE_SIZE)(read)
        self._judge_cached = lru_cache(_ANSWER_CACHE_SIZE)(self._judge)

    def verify(self, request: VerifyRequest) -> Verdict:
        gold_text = _gold_text(request.gold)
        found = find_answer(request.response, unboxed=self._unboxed)
        if found.text is None:
            return Verdict(0.0, Status.NO_ANSWER, found.rule)
        if len(found.text) > self.options.max_answer_chars:
            return Verdict(
                0.0, Status.NO_ANSWER, f"the answer is longer than {self.options.max_answer_chars} characters"
            )
        short = len(found.text) + len(gold_text) <= _CACHED_CHARS
        decision, text, answer = (self._judge_cached if short else self._judge)(gold_text, found)
        status = Status.CORRECT if decision.equal else Status.WRONG
        evidence = f"{decision.rule}: answer {_clip(text)!r} ({found.rule}), gold {_clip(gold_text)!r}"
        return Verdict(float(decision.equal), status, evidence, answer=answer)

    def explain(self, request: VerifyRequest) -> dict[str, str]:
        """How `verify` comes to its verdict, in rows for a person."""
        gold_text = _gold_text(request.gold)
        gold = self._read_gold(gold_text)
        found = find_answer(request.response, unboxed=self._unboxed)
        rows = {"gold": gold_text, "gold read as": _shown(gold), "answer found": found.rule}
        if found.text is not None:
            decision, answer = self._decided(gold, found)
            rows |= {"answer": answer.text, "answer read as": _shown(answer), "decided by": decision.rule}
        return rows

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        text = _gold_text(gold)
        _require_readable(self._read_gold(text))
        return f"\\boxed{{{text}}}"

    def _judge(self, gold_text: str, found: Found) -> Judgement:
        decision, answer = self._decided(self._read_gold(gold_text), found)
        return Judgement(decision, answer.text, canonical(answer.form, answer.text))

    def _decided(self, gold: Reading, found: Found) -> tuple[Decision, Reading]:
        assert found.text is not None
        if found.boxed:
            answer = read(found.text)
        else:
            texts = candidates(found.text)
            for text in texts:  # 'the correct option is (B) 42'
                if (by_letter := choice_decision(gold.text, text)) is not None:
                    return by_letter, Reading(text, None, "a choice")
            answer = _first_readable(texts)
        return self._decide(gold, answer), answer

    def _decide(self, gold: Reading, answer: Reading) -> Decision:
        if _squeezed(gold.text) == _squeezed(answer.text) and (gold.form is None or answer.form is not None):
            return Decision(True, "the same text")
        by_letter = choice_decision(gold.text, answer.text)
        if by_letter is not None:
            return by_letter
        if gold.form is not None and answer.form is not None:
            return self._compare(gold, answer)
        if not (gold.covered and answer.covered) and slow.worth_asking(gold.text, answer.text):
            equal = slow.equal(gold.text, answer.text)
            if equal is not None:
                return Decision(equal, "sympy: equal" if equal else "sympy: not equal")
        _require_readable(gold)
        side = "gold" if gold.form is None else "answer"
        return Decision(False, f"the {side} cannot be read ({gold.error or answer.error})")

    def _compare(self, gold: Reading, answer: Reading) -> Decision:
        """100,200 may be one number or two: both readings of one side are tried."""
        assert gold.form is not None
        assert answer.form is not None
        decision = compare(gold.form, answer.form, self._profile)
        for side in (gold, answer):
            if decision.equal or not _AMBIGUOUS_COMMA.search(side.text):
                continue
            other = read(side.text, thousands=False).form
            if other is not None and other != side.form:
                pair = (other, answer.form) if side is gold else (gold.form, other)
                second = compare(*pair, self._profile)
                decision = second if second.equal else decision
        return decision


def read(text: str, *, thousands: bool = True) -> Reading:
    try:
        return Reading(text, parse(text, thousands=thousands))
    except NotCovered as error:
        return Reading(text, None, str(error), covered=False)
    except Unreadable as error:
        return Reading(text, Text(text) if _PROSE.match(text) else None, str(error))


def _first_readable(texts: Sequence[str]) -> Reading:
    """A statement as it stands, or, if that is no mathematics or prose, the value in it."""
    answer = read(texts[0])
    if answer.form is None or any(isinstance(node, Text) and " " in node.words for node in walk(answer.form)):
        answer = next((r for t in texts[1:] if (r := read(t)).form is not None), answer)
    return answer


def _require_readable(gold: Reading) -> None:
    """A gold that is malformed must not cost the model anything: an answer in other words may well be right."""
    if gold.form is None and gold.covered:
        raise BadGold(f"The gold {_clip(repr(gold.text))} cannot be read ({gold.error}).", fix="write it as LaTeX")


def _gold_text(gold: Any) -> str:
    """The gold's LaTeX without ``\\boxed{}`` or ``$``."""
    if isinstance(gold, bool) or not isinstance(gold, str | int | float):
        raise BadGold(f"The gold must be LaTeX text or a number, not {type(gold).__name__}.")
    try:
        text = str(gold).strip()
    except ValueError as error:  # an integer of thousands of digits
        raise BadGold(f"The gold cannot be written out: {error}.") from error
    boxes = final_boxes(text)
    if boxes is not None:
        text = ", ".join(boxes)
    text = text.strip("$").strip()
    if not text or text in ("nan", "inf", "-inf"):
        raise BadGold(f"The gold {_clip(repr(gold))} is no answer.")
    return text


def _squeezed(text: str) -> str:
    return _SPACES.sub("", text).strip("$.").casefold()


def _shown(reading: Reading) -> str:
    return _clip(show(reading.form)) if reading.form is not None else f"not readable: {reading.error}"


def _clip(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 4] + " ..."
