r"""Kind ``math``: mathematical equality, judged by math-verify in a killable worker process.

Thin on purpose: it finds the answer, calls math-verify as its authors recommend, and repairs none of its judgements.

- The answer is the content of the last ``\boxed{...}`` outside <think> blocks; different boxes joined by 'and', 'or' or
  a comma are one list. Without a box there is no answer, unless the option `unboxed` lets math-verify look for one.
- The gold is LaTeX (with or without ``\boxed{}`` or ``$...$``), parsed once. One that math-verify cannot read at all is
  a bad gold.
- The gold is the first argument of ``verify``, which is not symmetric. math-verify's own time limits are signal alarms
  (main thread only, none inside C code), so they are off: the worker is killed instead.

Accuracy with math-verify 0.9.0, measured on 645 labelled boxed responses, many of them adversarial: 88% agree with the
label; 2.4% of the wrong answers pass and 19% of the right ones are refused. Of 98 more responses without a box 'reject'
passes no wrong one, 'anchored' 2 and 'anywhere' 4 of 37. Stricter and more complete verification is a later kind.

Known limits: numbers are compared to `float_rounding` absolute decimals, so tiny different numbers are equal; base
subscripts, units and what follows the first value are dropped; a false chain such as '7 = 8' counts as its right side;
percents, Unicode mathematics, inequalities for interval golds and rounded decimals are often refused. When math-verify
runs out of memory while parsing, it takes the text for unparsable.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from verifiers.errors import BadGold
from verifiers.options import Options as BaseOptions
from verifiers.text import answer_text, final_boxes
from verifiers.verdict import VERIFIERS, Status, Verdict, VerifyRequest

if TYPE_CHECKING:
    from math_verify.parser import ExtractionTarget

_GOLD_CACHE_SIZE = 4_096
_SHOWN_CHARS = 300


@VERIFIERS.register("math")
class MathVerifier:
    """Gold: LaTeX as a string, or a number. Building one imports sympy."""

    isolated = True

    class Options(BaseOptions):
        """unboxed: what counts in a response without a box: nothing ('reject'), mathematics after words like 'the
        answer is' ('anchored'), or the last mathematics in it ('anywhere': any number near the end may do).
        max_answer_chars: a longer box is not read; of an unboxed response only that many last characters are.
        float_rounding (decimals), numeric_precision (digits), strict (variable names matter, sets are not tuples),
        allow_set_relation_comp (an inequality may equal an interval gold): arguments of math-verify's ``verify``."""

        unboxed: Literal["reject", "anchored", "anywhere"] = "reject"
        max_answer_chars: int = Field(default=2_000, ge=1)
        float_rounding: int = Field(default=6, ge=0)
        numeric_precision: int = Field(default=15, ge=1)
        strict: bool = True
        allow_set_relation_comp: bool = False

    def __init__(self, options: Options):
        self.options = options
        self._parsed_gold = lru_cache(maxsize=_GOLD_CACHE_SIZE)(_parse_gold)
        _parse(r"\boxed{1}", options.unboxed)  # imports and compiles, so that the first answer is not charged for it

    def verify(self, request: VerifyRequest) -> Verdict:
        from math_verify import verify

        gold_text = _gold_text(request.gold)
        gold = self._parsed_gold(gold_text)
        answer = self._parsed_answer(request.response)
        if not answer:
            return Verdict(0.0, Status.NO_ANSWER, f"no answer could be read, gold {_text(gold)[:_SHOWN_CHARS]!r}")
        equal = verify(
            gold,
            answer,
            float_rounding=self.options.float_rounding,
            numeric_precision=self.options.numeric_precision,
            strict=self.options.strict,
            allow_set_relation_comp=self.options.allow_set_relation_comp,
            timeout_seconds=None,
            raise_on_error=True,  # otherwise an exception would be a "no"
        )
        canonical = _text(answer)
        evidence = f"answer {canonical[:_SHOWN_CHARS]!r}, gold {_text(gold)[:_SHOWN_CHARS]!r}"
        return Verdict(float(equal), Status.CORRECT if equal else Status.WRONG, evidence, answer=canonical)

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        return f"\\boxed{{{_gold_text(gold)}}}"

    def _parsed_answer(self, response: str) -> list[Any]:
        text = answer_text(response)
        if text is None:
            return []
        boxes = final_boxes(text)
        if boxes is None:
            if self.options.unboxed == "reject":
                return []
            return _parse(text[-self.options.max_answer_chars :], self.options.unboxed)
        content = ", ".join(boxes)
        if not content or len(content) > self.options.max_answer_chars:
            return []
        return _parse(f"\\boxed{{{content}}}", "reject")


def _parse(text: str, unboxed: Literal["reject", "anchored", "anywhere"]) -> list[Any]:
    """What math-verify reads in `text`: [] or [sympy object, its text] or [text]."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    free = unboxed == "anywhere"
    targets: list[ExtractionTarget] = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=free)]
    if unboxed != "reject":
        targets.append(ExprExtractionConfig(try_extract_without_anchor=free))
    return parse(text, targets, parsing_timeout=0, raise_on_error=True)  # 0: no alarm


def _gold_text(gold: Any) -> str:
    """The gold's LaTeX without ``\\boxed{}`` or ``$``."""
    if isinstance(gold, bool) or not isinstance(gold, str | int | float):
        raise BadGold(f"The gold must be LaTeX text or a number, not {type(gold).__name__}.")
    text = str(gold).strip()
    boxes = final_boxes(text)
    if boxes is not None:
        text = ", ".join(boxes)
    text = text.strip("$").strip()
    if not text:
        raise BadGold(f"The gold {gold!r} is empty.")
    return text


def _parse_gold(text: str) -> list[Any]:
    parsed = _parse(f"\\boxed{{{text}}}", "reject")
    if not parsed:
        raise BadGold(f"math-verify reads nothing in the gold '{text}'.", fix="write the gold as LaTeX")
    return parsed


def _text(parsed: list[Any]) -> str:
    """The parsed form, or the text it was parsed from if it cannot be printed."""
    try:
        return str(parsed[0])
    except (ValueError, RecursionError):  # an integer too long to print, an expression too deep
        return str(parsed[-1])
