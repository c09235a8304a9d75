"""Kind ``classify``: the name of the one class (Visual-RFT's classification reward, without its substring test).

The answer must be the gold's name (or one of its aliases) after folding case, white space and underscores. With a list
of classes an answer that is none of them is `no_answer`; with `mention`, an answer in a sentence counts as the one
class that it names, and an answer that names two classes is wrong. An empty answer is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from verifiers.errors import BadGold
from verifiers.verdict import VERIFIERS, Status, Verdict, VerifyRequest
from verifiers.visual import rewards
from verifiers.visual.labels import fold_label
from verifiers.visual.tags import TagOptions, find_answer, format_part

MAX_ANSWER_CHARS = 2_000
_WORD = re.compile(r"[^\s_]+")
_EDGES = ".,;:!?()[]{}\"'`*"
_SHOWN_CHARS = 200


class Gold(NamedTuple):
    """name: as written. accepted: folded names that are right. classes: {folded: as written}, empty if not given."""

    name: str
    accepted: frozenset[str]
    classes: dict[str, str]


@VERIFIERS.register("classify")
class ClassifyVerifier:
    """Gold: the class name, or ``{"label": name, "aliases": [...], "classes": [...]}`` (the last two may be absent)."""

    isolated = False

    class Options(TagOptions):
        """classes: all valid names; a gold outside is bad, an answer outside is `no_answer`. A gold's own list goes
        first. mention: look for the names inside the answer; needs a list of classes.
        weights: of the parts `accuracy` and `format`; the score is their weighted mean."""

        class Weights(rewards.Weights):
            accuracy: float = rewards.weight()
            format: float = rewards.weight()

        classes: list[str] = Field(default_factory=list)
        mention: bool = False
        weights: Weights = Weights()

        @model_validator(mode="after")
        def _distinct_classes(self) -> ClassifyVerifier.Options:
            problem = _problem_of_classes(self.classes)
            if problem:
                raise ValueError(problem)
            return self

    def __init__(self, options: Options):
        self.options = options
        self._classes = {fold_label(name): name for name in options.classes}

    def verify(self, request: VerifyRequest) -> Verdict:
        gold = self._read_gold(request.gold)
        answer = find_answer(request.response, self.options)
        formatted = format_part(request.response, answer, self.options)
        named, problem = self._named(answer.text, gold) if answer.text is not None else ([], answer.problem)
        accuracy = float(len(named) == 1 and named[0] in gold.accepted)
        status = (Status.CORRECT if accuracy else Status.WRONG) if named else Status.NO_ANSWER
        parts = {"accuracy": accuracy, "format": formatted}
        score = rewards.weighted(parts, self.options.weights)
        shown = ", ".join(named)[:_SHOWN_CHARS]
        evidence = problem or f"answer {shown!r}, gold {gold.name[:_SHOWN_CHARS]!r}"
        # An alias is the same answer as the name.
        canonical = (fold_label(gold.name) if accuracy else "; ".join(sorted(named))) if named else None
        return Verdict(score, status, evidence, answer=canonical, parts=parts)

    def gold_response(self, gold: Any, meta: Mapping[str, Any]) -> str:
        name = self._read_gold(gold).name
        return f"<think> </think> <answer>{name}</answer>" if self.options.answer_tags else name

    def _read_gold(self, gold: Any) -> Gold:
        entry = gold if isinstance(gold, Mapping) else {"label": gold}
        unknown = set(entry) - {"label", "aliases", "classes"}
        if unknown or "label" not in entry:
            raise BadGold(
                f"The gold must have 'label' and may have 'aliases' and 'classes', not {sorted(map(str, entry))}."
            )
        name = entry["label"]
        if not isinstance(name, str):
            raise BadGold(f"The gold class must be a string, not {type(name).__name__}.")
        name = name.strip().removeprefix("<answer>").removesuffix("</answer>").strip()
        folded = fold_label(name)
        if not folded or len(name) > MAX_ANSWER_CHARS or "<" in name:
            raise BadGold(f"The gold class {name[:_SHOWN_CHARS]!r} is not a name.")
        classes = self._classes
        if "classes" in entry:
            listed = _names(entry["classes"], "classes")
            if problem := _problem_of_classes(listed):
                raise BadGold(f"The gold's classes cannot be used: {problem}.")
            classes = {fold_label(name): name for name in listed}
        if classes and folded not in classes:
            raise BadGold(f"The gold class {name[:_SHOWN_CHARS]!r} is not in the list of classes.")
        if self.options.mention and not classes:
            raise BadGold("The option mention needs a list of classes, in the options or in the gold.")
        aliases = {fold_label(alias) for alias in _names(entry.get("aliases", []), "aliases")}
        if clash := aliases & (set(classes) - {folded}):
            raise BadGold(f"The gold's aliases {sorted(clash)} are names of other classes.")
        return Gold(name, frozenset({folded, *aliases}), classes)

    def _named(self, text: str, gold: Gold) -> tuple[list[str], str]:
        """(the folded names in the answer, why there is none)."""
        if len(text) > MAX_ANSWER_CHARS:
            return [], f"the answer is longer than {MAX_ANSWER_CHARS} characters"
        folded = fold_label(text)
        if not folded:
            return [], "the answer is empty"
        if not gold.classes or folded in gold.classes or folded in gold.accepted:
            return [folded], ""
        named = mentioned(text, {*gold.classes, *gold.accepted}) if self.options.mention else []
        distinct = list(dict.fromkeys(fold_label(gold.name) if name in gold.accepted else name for name in named))
        return distinct, "" if distinct else f"{text[:_SHOWN_CHARS]!r} is none of the {len(gold.classes)} classes"


def mentioned(text: str, names: Iterable[str]) -> list[str]:
    """The folded `names` that stand in `text` as whole words, the longest one at each place.

    'pink primrose' is not also a mention of 'primrose'."""
    words = [fold_label(word[0].strip(_EDGES)) for word in _WORD.finditer(text)]
    known = set(names)
    longest = max((len(name) for name in known), default=0)
    found, start = [], 0
    while start < len(words):
        end, best, joined = start + 1, None, ""
        for position in range(start, len(words)):
            joined += words[position]
            if len(joined) > longest:
                break
            if joined in known:
                best, end = joined, position + 1
        found += [best] if best else []
        start = end
    return found


def _names(value: Any, key: str) -> list[str]:
    if not isinstance(value, list | tuple) or any(not isinstance(name, str) for name in value):
        raise BadGold(f"The gold's '{key}' must be a list of strings.")
    return list(value)


def _problem_of_classes(names: Iterable[str]) -> str:
    seen: dict[str, str] = {}
    for name in names:
        folded = fold_label(name)
        if not folded:
            return f"the class name {name!r} is empty"
        if folded in seen:
            return f"the class names {seen[folded]!r} and {name!r} are the same but for case, spaces and underscores"
        seen[folded] = name
    return ""
