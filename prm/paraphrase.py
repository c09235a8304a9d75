"""Paraphrases by a language model, for Co-Reward: written once, checked on a share of the questions, kept in a file.

A question is asked in other words and another setting, with the same mathematics and the same answer. What does not
come back in the agreed form is left out. Whether the answer is still the same is measured: a model answers both, and
its answers are compared with each other, and with the gold where there is one.

Source of what is asked: tmlr-group/Co-rewarding 6c60ea45, ``rewrite_questions.py`` (no licence file: the words here are
ours, and so is the check of the answers, which the published pipeline does not have).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import Field

from data.example import Example
from data.pairs import ID_SUFFIX
from prm.judge.base import RETRY_TEMPERATURE, Judge, JudgeRequest
from verifiers.options import Options as BaseOptions
from verifiers.runner import Runner
from verifiers.verdict import Status, Verdict, VerifyRequest

REWRITE = """\
Write the mathematics problem at the end in other words.

- The mathematics and the final answer must stay exactly the same.
- Choose different words, and another situation from real life, so that it looks like another problem.
- Copy no phrases and no sentence structure.
- The new problem must read naturally, be clear, and be solvable as it stands.
- Reply with the following block and nothing else:

### RESULT_START
ORIGINAL:
<the problem as it was>
REWRITE:
<the new problem>
### RESULT_END

The problem:

"""
SOLVE = "Solve the following problem. End with the final answer in \\boxed{}.\n\n"
_BLOCK = re.compile(r"### RESULT_START(.*?)### RESULT_END", re.DOTALL)


class ParaphraseOptions(BaseOptions):
    """temperature, max_tokens: of a rewrite, as published (there with top-p 0.8 and without thinking: ``extra_body`` of
    the judge). tries: for one rewrite. check_share: share of the questions whose answers are checked, every so many-th.
    """

    temperature: float = Field(default=RETRY_TEMPERATURE, gt=0)
    max_tokens: int = Field(default=20480, ge=1)
    tries: int = Field(default=2, ge=1)
    check_share: float = Field(default=0.05, ge=0, le=1)


class Preserved(StrEnum):
    """What the check found about one pair."""

    YES = "yes"
    NO = "no"  # the original was answered rightly, or as sure as we can be, and the paraphrase otherwise
    UNKNOWN = "unknown"  # the original itself was not answered, or not rightly


@dataclass(slots=True)
class Paraphrased:
    """rows: what is written, {id, prompt, gold, paraphrase}. failed: by id, why a question has none. checked: by id, of
    the held-out share."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    checked: dict[str, Preserved] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        """Counts, and the share of preserved answers among those of which it is known."""
        counts = {status: sum(v is status for v in self.checked.values()) for status in Preserved}
        known = counts[Preserved.YES] + counts[Preserved.NO]
        return {
            "paraphrases": len(self.rows),
            "without": len(self.failed),
            "checked": len(self.checked),
            **{f"answer_preserved_{status}": count for status, count in counts.items()},
            "answer_preserved_share": counts[Preserved.YES] / known if known else None,
        }


def parse_rewrite(reply: str) -> str | None:
    """The new question in a reply; None unless there is a block with both parts, and the new one is not empty."""
    block = _BLOCK.search(reply)
    if block is None or "ORIGINAL:" not in block[1]:
        return None
    _, marker, rewrite = block[1].partition("REWRITE:")
    return rewrite.strip() or None if marker else None


def paraphrase_all(
    judge: Judge, runner: Runner, examples: Sequence[Example], options: ParaphraseOptions
) -> Paraphrased:
    """Ask for a paraphrase of every example, then check the answers of a share. What was checked and found to have
    another answer is left out. A judge that cannot be asked costs questions, and raises nothing."""
    found = Paraphrased()
    texts = _rewrites(judge, examples, options, found.failed)
    kept = [e for e in examples if e.id in texts]
    every = max(1, round(1 / options.check_share)) if options.check_share > 0 else len(kept) + 1
    held_out = kept[every - 1 :: every]
    found.checked = check_answers(judge, runner, held_out, texts, options.max_tokens)
    for example in kept:
        if found.checked.get(example.id) is Preserved.NO:
            found.failed[example.id] = "the paraphrase has another answer"
        else:
            found.rows.append(_row(example, texts[example.id]))
    return found


def _row(example: Example, paraphrase: str) -> dict[str, Any]:
    """The columns that the data source jsonl reads by default, the chat turns before the question included."""
    turns = [{"role": m.role, "content": m.content} for m in example.prompt]
    prompt = turns[0]["content"] if len(turns) == 1 else turns
    return {"id": example.id, "prompt": prompt, "gold": example.gold, "paraphrase": paraphrase}


def _rewrites(
    judge: Judge, examples: Sequence[Example], options: ParaphraseOptions, failed: dict[str, str]
) -> dict[str, str]:
    """The rewrites that could be read, by id; why there is none goes to `failed`."""
    texts: dict[str, str] = {}
    waiting = list(examples)
    for attempt in range(options.tries):
        requests = [
            JudgeRequest(f"{e.id}{ID_SUFFIX}", [{"role": "user", "content": REWRITE + e.question}],
                         options.max_tokens, options.temperature, sample=attempt)
            for e in waiting
        ]  # fmt: skip
        for example, reply in zip(waiting, judge.ask(requests), strict=True):
            text = None if reply.text is None else parse_rewrite(reply.text)
            if text is not None and _folded(text) == _folded(example.question):
                failed[example.id] = "the rewrite is the question to the letter"
            elif text is not None:
                texts[example.id] = text
                failed.pop(example.id, None)
            else:
                failed[example.id] = "no rewrite in the reply" if reply.text else f"{reply.status}: {reply.detail}"
        waiting = [e for e in waiting if e.id not in texts]
    return texts


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


# ---- the check -----------------------------------------------------------


def check_answers(
    judge: Judge, runner: Runner, examples: Sequence[Example], paraphrases: dict[str, str], max_tokens: int
) -> dict[str, Preserved]:
    """Whether the paraphrase of each example has the answer of its original, as far as `judge` can answer them."""
    if not examples:
        return {}
    questions = [(e.id, e.question) for e in examples] + [(e.id + ID_SUFFIX, paraphrases[e.id]) for e in examples]
    requests = [
        JudgeRequest(f"{name}/answer", [{"role": "user", "content": SOLVE + question}], max_tokens)
        for name, question in questions
    ]
    texts = [reply.text for reply in judge.ask(requests)]
    originals, rewrites = texts[: len(examples)], texts[len(examples) :]
    golds = [
        e.gold if e.gold is not None else _answer(runner, text) for e, text in zip(examples, originals, strict=True)
    ]
    asked = [
        VerifyRequest(text or "", gold, example.meta, example.id)
        for side in (originals, rewrites)
        for text, gold, example in zip(side, golds, examples, strict=True)
    ]
    verdicts = runner.verify(asked)
    return {
        example.id: _preserved(verdicts[i], verdicts[i + len(examples)], texts[i + len(examples)])
        for i, example in enumerate(examples)
    }


def _answer(runner: Runner, text: str | None) -> str | None:
    """What the original's reply answers, to stand for a gold."""
    (verdict,) = runner.verify([VerifyRequest(text or "", "0", {}, "")])
    return verdict.answer


def _preserved(original: Verdict, rewrite: Verdict, text: str | None) -> Preserved:
    if original.status is not Status.CORRECT or text is None or rewrite.is_fault:
        return Preserved.UNKNOWN
    return Preserved.YES if rewrite.status is Status.CORRECT else Preserved.NO
