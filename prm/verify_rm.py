"""VerifyRM: a classifier that reads a question, its reference answer and a completion, and says whether they agree.

    score = sigmoid(w . h),  h: the model's state at the last token of

        <question>
        ...
        </question>
        <reference_answer>
        ...
        </reference_answer>
        <completion>
        ...
        </completion>

One plain string, no chat template, no special tokens, made by one function for training and for scoring. The reference
code cuts what is too long at its end, and with it the answer; here the completion loses its beginning, then the
question its own, never the reference or a tag. The last box of a completion stays even if much was written after it.
A text cannot close its own field: a tag inside one is written with square brackets.

Paper: Cooper, arXiv:2508.05613 (architecture, data, BCE). Reference: ZJU-REAL/cooper a7e0c385.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedTokenizerBase

from data.labelled import LabelledResponse
from prm.cotrained import BatchLoss, CoTrained
from prm.reward_model import (
    REWARD_MODELS,
    Evaluation,
    FitContext,
    RewardModel,
    TokenIds,
    TooLong,
    binary_metrics,
    flat,
    per_response_loss,
    scores_of,
    sigmoid,
    whole,
)
from verifiers.errors import DataError
from verifiers.options import Options as BaseOptions
from verifiers.text import last_boxes

FIELDS = ("question", "reference_answer", "completion")
_TAG = re.compile(rf"<(/?(?:{'|'.join(FIELDS)}))>")


def verify_text(question: str, reference: Any, completion: str) -> str:
    """What the model reads. reference: any JSON data."""
    gold = reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False)
    texts = (_TAG.sub(r"[\1]", text) for text in (question, gold, completion))
    return "\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in zip(FIELDS, texts, strict=True))


def last_part(completion: str, chars: int) -> str:
    r"""About the last `chars` characters, with the last ``\boxed{...}`` (those joined to it) in front if that stands
    before them. Never less than the box."""
    if chars >= len(completion):
        return completion
    start = len(completion) - chars
    boxes = last_boxes(completion)
    if not boxes or boxes[0].start >= start:
        return completion[start:]
    box = completion[boxes[0].start : boxes[-1].end]
    rest = chars - len(box) - 1
    return f"{box}\n{completion[len(completion) - rest :]}" if rest > 0 else box


@dataclass(frozen=True, slots=True)
class VerifyInput:
    """(question, reference, completion) -> token ids, at most max_tokens of them. answer_chars: of a completion's end
    that are kept before the question is cut."""

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    answer_chars: int = 200

    def ids(self, question: str, reference: Any, completion: str) -> list[int] | None:
        """None if not even the reference and an answer's worth of the completion fit."""
        least = min(self.answer_chars, len(completion))
        ids = self._longest(
            lambda n: verify_text(question, reference, last_part(completion, n)), least, len(completion)
        )
        if ids is not None:
            return ids
        answer = last_part(completion, least)
        return self._longest(lambda n: verify_text(question[len(question) - n :], reference, answer), 0, len(question))

    def _longest(self, text_of: Callable[[int], str], least: int, most: int) -> list[int] | None:
        """Ids of text_of(n) for n as near to `most` as a few tries bring it; None if not even `least` fits."""
        n = most
        while True:
            text = text_of(n)
            ids = self.encode(text)
            excess = len(ids) - self.max_tokens
            if excess <= 0:
                return ids
            if n <= least:
                return None
            n = max(least, n - math.ceil(excess * len(text) / len(ids)))

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


# ---- training ------------------------------------------------------


def bce(label_N: Tensor) -> BatchLoss:
    """The mean binary cross-entropy of N sequences' logits against their labels in [0, 1]."""

    def loss_of(logit_S: Tensor, index: list[int]) -> Tensor:
        return binary_cross_entropy_with_logits(logit_S, label_N[index].to(logit_S), reduction="none")

    return per_response_loss(loss_of, len(label_N))


@REWARD_MODELS.register("verify_rm")
class VerifyRM(RewardModel):
    """Trained on labelled responses with a reference; label 1: the final answers agree."""

    takes = LabelledResponse
    scale = "probability"

    class Options(BaseOptions):
        """answer_chars: as in `VerifyInput`."""

        answer_chars: int = Field(default=200, ge=1)

    def __init__(self, options: VerifyRM.Options, context: FitContext):
        super().__init__(options, context)
        self.input = VerifyInput(context.tokenizer, context.max_tokens, options.answer_chars)

    def encode(self, example: LabelledResponse) -> list[TokenIds]:
        return [self.encode_response(example)]

    def encode_response(self, asked: LabelledResponse) -> TokenIds:
        if asked.reference is None:
            raise DataError("A VerifyRM needs the reference answer.", where=f"example '{asked.id}'",
                            fix="set data.train.reference_field")  # fmt: skip
        ids = self.input.ids(asked.question, asked.reference, asked.response)
        if ids is None:
            raise TooLong(len(self.input.encode(verify_text("", asked.reference, ""))), self.input.max_tokens,
                          asked.id)  # fmt: skip
        return whole(ids)

    def batch_loss(
        self, model: CoTrained, examples: Sequence[LabelledResponse], sequences: Sequence[Sequence[TokenIds]]
    ) -> BatchLoss:
        return bce(torch.tensor([example.label for example in examples]))

    def evaluate(
        self, model: CoTrained, examples: Sequence[LabelledResponse], sequences: Sequence[Sequence[TokenIds]]
    ) -> Evaluation:
        """As `binary_metrics`, with the two ways to be wrong: the share of right responses that are rejected, and of
        wrong ones that are accepted."""
        logits = scores_of(model, flat(sequences))
        labels = [example.label > 0.5 for example in examples]
        metrics = binary_metrics([sigmoid(logit) for logit in logits], labels) | error_rates(
            [logit > 0 for logit in logits], labels)  # fmt: skip
        rows = [{"id": e.id, "logit": logit, "label": e.label} for e, logit in zip(examples, logits, strict=True)]
        return Evaluation(metrics, rows)

    def score(self, model: CoTrained, asked: Sequence[LabelledResponse]) -> list[float | None]:
        """The probability that the response is right. Raises `DataError` for one without a reference."""
        sequences = self.readable(asked)
        logits = scores_of(model, list(sequences.values()))
        known = {i: sigmoid(logit) for i, logit in zip(sequences, logits, strict=True)}
        return [known.get(i) for i in range(len(asked))]


def error_rates(accepted: Sequence[bool], labels: Sequence[bool]) -> dict[str, float]:
    """false_reject: of the right ones; false_accept: of the wrong ones; each only where there are some."""
    of_right = [yes for yes, label in zip(accepted, labels, strict=True) if label]
    of_wrong = [yes for yes, label in zip(accepted, labels, strict=True) if not label]
    rates = {"false_reject": (len(of_right) - sum(of_right), len(of_right)), "false_accept": (sum(of_wrong),
             len(of_wrong))}  # fmt: skip
    return {name: count / total for name, (count, total) in rates.items() if total}
