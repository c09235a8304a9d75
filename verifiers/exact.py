r"""Kind ``exact``: numbers by exact rational value, strings character by character.

Where the answer stands is one rule, chosen by the options and never by what the response happens to contain:

1. ``answer_pattern``: the group of its last match.
2. ``marker``: the text after its last occurrence, up to the end of the line.
3. neither: the last ``\boxed{...}`` (boxes joined by 'and', 'or' or a comma are one answer); in a response without a
   box, the last number in its last 10,000 characters if the gold is a number, else the whole response.

If the place does not exist or is empty the status is `no_answer`. Text inside <think>...</think> never counts, and a
response that ends while thinking has no answer.

A number is: optional sign, optional ``$``, digits (thousands separators in groups of three), optional decimals,
optional exponent, optional ``%``; or a fraction a/b. An enclosing ``$...$`` and one final full stop are dropped.
Nothing else may stand beside it, so '3 or 4', '42 apples' and '3+5=8' are not the number they contain. Values are
compared exactly: 0.50 is 1/2, 0.33 is not 1/3, 5% is 5.0% but neither 5 nor 0.05. Numbers of more than 1,000 characters
or with an exponent beyond 1,000 are not read.

A string answer must equal the gold after folding white space (and case, with ``case_sensitive: false``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from pydantic import field_validator, model_validator

from verifiers.errors import BadGold
from verifiers.options import Options as BaseOptions
from verifiers.text import after_last, answer_text, final_boxes
from verifiers.verdict import VERIFIERS, Status, Verdict, VerifyRequest

MAX_NUMBER_CHARS = 1_000
MAX_EXPONENT = 1_000
LAST_NUMBER_WINDOW_CHARS = 10_000
_SHOWN_CHARS = 200

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\\?\$?(?P<sign_after>[+-]?)"
    rf"(?:(?P<top>{_DIGITS})/(?P<bottom>{_DIGITS})"
    rf"|(?P<whole>{_DIGITS}?)(?:\.(?P<decimals>[0-9]*))?(?:[eE](?P<exponent>[+-]?[0-9]{{1,6}}))?)"
    r"(?P<percent>\s?\\?%)?"
)
# A maximal run of number characters, so that '1.2.3' or '1,23' is one unreadable token and not its readable tail. A
# minus sign directly after a word, digit or closing bracket is an operator.
_NUMBER_RUN = re.compile(
    r"(?:(?<![\w)\]}])[+-])?(?:\\?\$[+-]?)?(?:(?<![0-9])\.)?[0-9](?:[0-9]|[.,/](?=[0-9]))*"
    r"(?:[eE][+-]?[0-9]+(?![A-Za-z0-9]))?(?:\s?\\?%)?"
)


class Number(NamedTuple):
    """An exact value; with `percent`, so many hundredths written as such."""

    value: Fraction
    percent: bool

    def __str__(self) -> str:
        return f"{self.value}%" if self.percent else str(self.value)


def parse_number(text: str) -> Number | None:
    """The number that `text` is, or None if it is anything else (or too long to be worth reading)."""
    text = text.strip()
    if len(text) > MAX_NUMBER_CHARS:
        return None
    text = text.removesuffix(".")
    if len(text) > 2 and text[0] == text[-1] == "$":
        text = text[1:-1].strip().removesuffix(".")
    match = _NUMBER.fullmatch(text)
    if match is None or (match["sign"] and match["sign_after"]):
        return None
    value = _value_of(match)
    if value is None:
        return None
    negative = "-" in (match["sign"], match["sign_after"])
    return Number(-value if negative else value, match["percent"] is not None)


def _value_of(match: re.Match[str]) -> Fraction | None:
    if match["top"]:
        bottom = int(match["bottom"].replace(",", ""))
        return Fraction(int(match["top"].replace(",", "")), bottom) if bottom else None
    whole, decimals = (match["whole"] or "").replace(",", ""), match["decimals"] or ""
    exponent = int(match["exponent"] or 0)
    if not whole + decimals or abs(exponent) > MAX_EXPONENT:
        return None
    return Fraction(int(whole + decimals)) * Fraction(10) ** (exponent - len(decimals))


def last_number(text: str) -> str | None:
    """The last run of number characters near the end of `text`, readable or not; None if there is none."""
    last = None
    for match in _NUMBER_RUN.finditer(text[-LAST_NUMBER_WINDOW_CHARS:]):
        last = match[0]
    return last


@VERIFIERS.register("exact")
class ExactVerifier:
    """Gold: a string, an int or a finite float (read as the decimal it is written as)."""

    isolated = False

    class Options(BaseOptions):
        """answer_pattern: a regular expression with one group; it runs in process and without a time limit, so write it
        without nested repeats. answer_template: required with it, how a right answer looks, '{}' standing for the gold.
        marker: literal text, matched as written. numeric: compare as numbers always, never, or if the gold is one."""

        answer_pattern: str | None = None
        answer_template: str | None = None
        marker: str | None = None
        numeric: bool | Literal["auto"] = "auto"
        case_sensitive: bool = True

        @field_validator("answer_pattern")
        @classmethod
        def _one_group(cls, pattern: str | None) -> str | None:
            if pattern is None:
                return None
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
            if groups != 1:
                raise ValueError(f"it must have exactly one group, the answer, and has {groups}")
            return pattern

        @field_validator("marker")
        @classmethod
        def _not_blank(cls, marker: str | None) -> str | None:
            if marker is not None and not marker.strip():
                raise ValueError("a marker must have visible text")
            return marker

        @model_validator(mode="after")
        def _one_place(self) -> ExactVerifier.Options:
            if self.answer_pattern is not None and self.marker is not None:
                raise ValueError("answer_pattern and marker both say where the answer stands: keep one")
            if (self.answer_pattern is None) != (self.answer_template is None):
                raise ValueError("answer_pattern and answer_template go together, e.g. 'Answer: (.+)' and 'Answer: {}'")
            if self.answer_template is not None and self.answer_template.count("{}") != 1:
                raise ValueError("answer_template must contain '{}' once, where the answer stands")
            return self

    def __init__(self, options: Options):
        self.options = options

    def verify(self, request: VerifyRequest) -> Verdict:
        gold, gold_number = self._read_gold(request.gold)
        answer = self._find_answer(request.response, numeric=gold_number is not None)
        if not answer:
            return Verdict(0.0, Status.NO_ANSWER, "no answer found")
        number = parse_number(answer) if gold_number is not None else None
        folded = self._fold(answer)
        equal = number == gold_number if gold_number is not None else folded == self._fold(gold)
        evidence = f"answer {answer[:_SHOWN_CHARS]!r}, gold {gold[:_SHOWN_CHARS]!r}"
        canonical = str(number) if number is not None else folded
        return Verdict(float(equal), Status.CORRECT if equal else Status.WRONG, evidence, answer=canonical)

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        text, _ = self._read_gold(gold)
        if self.options.answer_template is not None:
            return self.options.answer_template.replace("{}", text)
        return f"{self.options.marker} {text}" if self.options.marker is not None else f"\\boxed{{{text}}}"

    def _read_gold(self, gold: Any) -> tuple[str, Number | None]:
        """The gold as text, and as a number if it is to be compared as one."""
        if isinstance(gold, bool) or not isinstance(gold, str | int | float):
            raise BadGold(f"The gold must be a string or a number, not {type(gold).__name__}.")
        if isinstance(gold, int) and abs(gold) >= 10**MAX_NUMBER_CHARS:
            raise BadGold(f"The gold has more than {MAX_NUMBER_CHARS} digits.")
        text = str(gold).strip()
        if not text or text in ("nan", "inf", "-inf"):
            raise BadGold(f"The gold {text!r} is not an answer.")
        number = parse_number(text) if self.options.numeric is not False else None
        if number is None and self.options.numeric is True:
            raise BadGold(f"The gold {text[:_SHOWN_CHARS]!r} is not a number, and the option numeric is true.")
        return text, number

    def _find_answer(self, response: str, *, numeric: bool) -> str | None:
        text = answer_text(response)
        if text is None:
            return None
        if self.options.answer_pattern is not None:
            last = None
            for match in re.finditer(self.options.answer_pattern, text):
                last = match[1]
            return last.strip() if last else None
        if self.options.marker is not None:
            return after_last(self.options.marker, text)
        boxes = final_boxes(text)
        if boxes is not None:
            return ", ".join(boxes)
        return last_number(text) if numeric else text.strip()

    def _fold(self, text: str) -> str:
        folded = " ".join(text.split())
        return folded if self.options.case_sensitive else folded.casefold()
