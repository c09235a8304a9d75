"""`conciseness`: a score of how concise a response is, paid for right answers only.

    reward_i = R_i * (1 + alpha * c_i * (s + d_q))           form: multiplicative, the conciseness reward function
    reward_i = R_i + alpha * c_i                             form: additive, the baseline that collapses

R_i: the outcome, 0 .. 1. c_i: in [0.1, 1], from the conciseness reward model, a small language model that reads
question and response (no gold answer) and writes a level. s: the same for all samples of a step, annealed. d_q: the
difficulty coefficient of the question.

A wrong answer earns exactly R_i, however short; the additive form pays wrong but short answers, and above a weight the
policy ends in answering nothing. One trap is left: in a group whose answers are all right, conciseness is the only
difference, and an estimator that divides by the group's standard deviation turns any alpha into full pressure on
length. `all_correct: skip` leaves such groups without it.

Paper: arXiv:2511.09158; the formula was seen in two independent readings of it. alpha, the schedule of s and the
definition of d_q were not available: s = s_max (1 - step / steps) and d_q = difficulty * pass rate of the group (easy
questions reward brevity more) are ours, as are their values. There is no reference implementation.

Shapes: N trajectories.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from data.example import Example, Message
from data.labelled import LabelledResponse
from data.sources import DATA_SOURCES
from data.template import encode_demonstration
from prm.bench.ranking import rank_correlation
from prm.cotrained import BatchLoss, CoTrained
from prm.reward_model import (
    REWARD_MODELS,
    Evaluation,
    FitContext,
    RewardModel,
    TokenIds,
    TooLong,
    flat,
    open_reward_model,
    read_card,
    response_of,
)
from prm.signal import SOURCES, Kept, Signal, Source, SourceContext
from prm.writer import Writer
from rollout.models import DTYPES
from rollout.options import WriterConfig
from rollout.packing import PackedBatch
from verifiers.errors import ConfigError, DataError, RunError
from verifiers.options import Options as BaseOptions

LEVELS = tuple(f"{k / 10:.1f}" for k in range(1, 11))
LOWEST = 0.1  # of what cannot be read
PROMPT = (
    "Rate how concise the reasoning below is, from 0.1 (long-winded, repetitive) to 1.0 (no step that could be left "
    "out). Judge the reasoning only, not whether its answer is right. Write the number and nothing else.\n\n"
    "Question:\n{question}\n\nReasoning:\n{response}\n\nConciseness:"
)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def parse_level(text: str) -> float | None:
    """The one number in [0.1, 1] that `text` holds; None without one, with several, or with one outside."""
    numbers = _NUMBER.findall(text)
    value = float(numbers[0]) if len(numbers) == 1 else 0.0
    return value if LOWEST <= value <= 1.0 else None


# ---- the model that writes the level ------------------------------


@REWARD_MODELS.register("conciseness")
class ConcisenessModel(RewardModel):
    """A language model that writes one of `LEVELS`, fine-tuned on responses that a larger one has scored."""

    head = "lm"
    takes = LabelledResponse
    scale = "probability"

    class Options(BaseOptions):
        """prompt: with {question} and {response}, filled into the recipe's template as the question."""

        prompt: str = PROMPT

        @field_validator("prompt")
        @classmethod
        def _holds_both(cls, prompt: str) -> str:
            if "{question}" not in prompt or "{response}" not in prompt:
                raise ValueError("must hold {question} and {response}")
            return prompt

    options: ConcisenessModel.Options

    def __init__(self, options: ConcisenessModel.Options, context: FitContext):
        super().__init__(options, context)
        self.writer = Writer(
            context.tokenizer,
            dtype=DTYPES[context.writer.dtype],
            max_prompt_tokens=context.max_tokens,
            max_tokens=max(len(context.tokenizer(level)["input_ids"]) for level in LEVELS) + 2,
            max_rows=context.writer.max_rows,
            engine=context.writer.engine,
        )

    def encode(self, example: LabelledResponse) -> list[TokenIds]:
        """Raises `TooLong`, and `DataError` for a label that is no level."""
        level = f"{example.label:.1f}"
        if level not in LEVELS or abs(float(level) - example.label) > 1e-6:
            raise DataError(f"The label {example.label:g} is no level.", where=f"example '{example.id}'",
                            fix=f"levels are {', '.join(LEVELS)}")  # fmt: skip
        return [self.sequence(example.id, example.question, example.response, level)]

    def sequence(self, id_: str, question: str, response: str, level: str) -> TokenIds:
        """The prompt that asks for the level, and the level. Raises `TooLong`."""
        parts = re.split(r"(\{question\}|\{response\})", self.options.prompt)
        text = "".join({"{question}": question, "{response}": response}.get(part, part) for part in parts)
        asked = Example(id_, (Message("user", text),), None, solution=level)
        ids = TokenIds(*encode_demonstration(asked, self.context.template, self.context.tokenizer))
        tokens = len(ids.prompt_ids) + len(ids.response_ids)
        if tokens > self.context.max_tokens:
            raise TooLong(tokens, self.context.max_tokens, id_)
        return ids

    def batch_loss(
        self, model: CoTrained, examples: Sequence[LabelledResponse], sequences: Sequence[Sequence[TokenIds]]
    ) -> BatchLoss:
        """Token-mean negative log-likelihood of the levels."""
        total = sum(len(one.response_ids) for one in flat(sequences))

        def batch_loss(_batch: PackedBatch, logp_R: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return -logp_R.sum() / total, {}

        return batch_loss

    def evaluate(
        self, model: CoTrained, examples: Sequence[LabelledResponse], sequences: Sequence[Sequence[TokenIds]]
    ) -> Evaluation:
        written = self.writer.write(model, [one.prompt_ids for one in flat(sequences)])
        levels = [parse_level(text) for text in written]
        labels = [example.label for example in examples]
        rows = [
            {"id": example.id, "written": text, "level": level, "label": example.label}
            for example, text, level in zip(examples, written, levels, strict=True)
        ]
        return Evaluation(level_metrics(levels, labels, [len(e.response) for e in examples]), rows)

    def score(self, model: CoTrained, asked: Sequence[LabelledResponse]) -> list[float | None]:
        return [None if text is None else parse_level(text) for text in self.write(model, asked)]

    def write(self, model: CoTrained, asked: Sequence[LabelledResponse]) -> list[str | None]:
        """What the model writes about each response; None for one that is too long."""
        prompts: dict[int, list[int]] = {}
        for i, one in enumerate(asked):
            try:
                prompts[i] = self.sequence(one.id, one.question, one.response, LEVELS[0]).prompt_ids
            except TooLong:
                continue
        written = dict(zip(prompts, self.writer.write(model, list(prompts.values())), strict=True))
        return [written.get(i) for i in range(len(asked))]

    def close(self) -> None:
        self.writer.close()


def level_metrics(levels: Sequence[float | None], labels: Sequence[float], lengths: Sequence[int]) -> dict[str, float]:
    """accuracy: the very level; majority_accuracy: of always writing the commonest. near_accuracy: at most one level
    off. What could not be read counts as the lowest. Correlations are of ranks: with the label, and with the length
    beside what the labels themselves have."""
    read = [LOWEST if level is None else level for level in levels]
    gaps = [abs(level - label) for level, label in zip(read, labels, strict=True)]
    n = len(labels)
    found = {
        "accuracy": sum(gap < 0.05 for gap in gaps) / n,
        "majority_accuracy": max(labels.count(label) for label in set(labels)) / n,
        "near_accuracy": sum(gap < 0.15 for gap in gaps) / n,
        "mean_gap": sum(gaps) / n,
        "unparsable_share": sum(level is None for level in levels) / n,
        "correlation": rank_correlation(read, labels),
        "length_correlation": rank_correlation(read, lengths),
        "label_length_correlation": rank_correlation(labels, lengths),
    }
    return {name: value for name, value in found.items() if value is not None}


# ---- the reward function ------------------------------------------


def conciseness_reward(reward_N: Tensor, level_N: Tensor, s: float, difficulty_N: Tensor, alpha: float) -> Tensor:
    """R (1 + alpha c (s + d)) [N]."""
    return reward_N * (1 + alpha * level_N * (s + difficulty_N))


def pass_rate(correct_N: Tensor, group_N: Tensor) -> Tensor:
    """Share of right responses in the group of each trajectory, float64 [N]."""
    _, group_N = torch.unique(group_N, return_inverse=True)
    right_G = torch.zeros(int(group_N.max()) + 1, dtype=torch.float64).index_add(0, group_N, correct_N.double())
    return (right_G / torch.bincount(group_N))[group_N]


def annealed(s_max: float, step: int, steps: int) -> float:
    """s of round `step` (from 0) of `steps`: linearly from s_max down to 0."""
    return s_max * max(0.0, 1 - step / steps)


@SOURCES.register("conciseness")
class ConcisenessSource(Source):
    """Phase credit: what the formula adds to the outcome. Labels: ``level``, null where nobody asked.

    A level that cannot be read, or a response too long to be scored, counts as the lowest and is counted.
    """

    phase = "credit"

    class Options(BaseOptions):
        """path: a reward model of kind conciseness that `assay train` left; null: the level that the data source
        computes by program (`chain`), for controlled experiments. anneal_steps: null, the run's. all_correct: what
        becomes of groups whose kept responses are all right. max_rows: responses scored at once."""

        path: str | None = None
        form: Literal["multiplicative", "additive"] = "multiplicative"
        alpha: float = Field(default=1.0, ge=0)
        s_max: float = Field(default=0.5, ge=0)
        difficulty: float = Field(default=0.5, ge=0)
        anneal_steps: int | None = Field(default=None, ge=1)
        all_correct: Literal["skip", "pay"] = "skip"
        max_rows: int = Field(default=64, ge=1)

    options: ConcisenessSource.Options

    def __init__(self, options: ConcisenessSource.Options, context: SourceContext):
        super().__init__(options, context)
        self.model: CoTrained | None = None
        if options.path is None:
            _check_program(context.train_examples)
            return
        writer = WriterConfig(dtype=context.models.model.compute_dtype, max_rows=options.max_rows)
        self.model, kind = open_reward_model(options.path, "conciseness", context.models,
                                             key="sources, kind conciseness, path", writer=writer)  # fmt: skip
        assert isinstance(kind, ConcisenessModel)
        self.kind = kind

    @classmethod
    def check(cls, options: ConcisenessSource.Options, key: str) -> None:
        if options.path is not None:
            read_card(options.path, key=f"{key}.path")

    def credit(self, kept: Kept) -> Signal:
        options, reward_N, correct_N = self.options, kept.outcome_N, kept.correct_N
        _check_outcome(kept)
        rate_N = pass_rate(correct_N, kept.group_N)
        asked_N = torch.ones_like(correct_N) if options.form == "additive" else reward_N > 0
        if options.all_correct == "skip":
            asked_N = asked_N & (rate_N < 1)
        index = torch.nonzero(asked_N).flatten().tolist()
        levels, failed = self.levels(kept, index)
        level_N = torch.zeros(len(reward_N), dtype=torch.float64)
        level_N[index] = torch.tensor(levels, dtype=torch.float64)
        s = annealed(options.s_max, kept.step, options.anneal_steps or max(1, self.context.models.total_steps))
        difficulty_N = options.difficulty * rate_N
        if options.form == "additive":
            added_N = options.alpha * level_N
        else:
            shaped_N = conciseness_reward(reward_N.double(), level_N, s, difficulty_N, options.alpha)
            added_N = shaped_N - reward_N
        metrics = {"s": s, "added_mean": float(added_N.mean()), "scored_share": len(index) / len(reward_N)}
        metrics |= {f"{cause}_share": count / max(1, len(index)) for cause, count in failed.items()}
        metrics |= {"all_correct_share": float((rate_N == 1).double().mean())}
        for name, side_N in (("correct", correct_N), ("wrong", ~correct_N)):
            if bool((side_N & asked_N).any()):
                metrics[f"level_{name}"] = float(level_N[side_N & asked_N].mean())
        known = dict(zip(index, levels, strict=True))
        labels = {"level": [known.get(i) for i in range(len(reward_N))]}
        return Signal(added_N.float(), labels=labels, metrics=metrics)

    def levels(self, kept: Kept, index: Sequence[int]) -> tuple[list[float], dict[str, int]]:
        """(the level of each of these trajectories, how many could not be had, by cause)."""
        asked = [(kept.trajectories[i], kept.examples[i]) for i in index]
        if self.model is None:
            return [_program_level(example, t.text) for t, example in asked], {}
        written = self.kind.write(self.model, [response_of(t, example) for t, example in asked])
        read = [None if text is None else parse_level(text) for text in written]
        too_long = sum(text is None for text in written)
        failed = {"too_long": too_long, "unparsable": sum(level is None for level in read) - too_long}
        return [LOWEST if level is None else level for level in read], failed

    def close(self) -> None:
        if self.model is not None:
            self.kind.close()


def _program_level(example: Example, response: str) -> float:
    return DATA_SOURCES.get(str(example.meta["task"])).conciseness_level(response)  # type: ignore[attr-defined]


def _check_program(examples: Sequence[Example]) -> None:
    for example in examples:
        task = str(example.meta.get("task"))
        if task not in DATA_SOURCES.names() or not hasattr(DATA_SOURCES.get(task), "conciseness_level"):
            raise ConfigError(
                "The source conciseness has no reward model, and its examples have no level by program.",
                where=f"example '{example.id}'",
                fix="set sources, kind conciseness, path to a trained one (recipe conciseness_rm)",
            )


def _check_outcome(kept: Kept) -> None:
    outside = (kept.outcome_N < 0) | (kept.outcome_N > 1)
    if bool(outside.any()):
        first = int(outside.nonzero()[0])
        raise RunError(
            f"The outcome of example '{kept.examples[first].id}' is {float(kept.outcome_N[first]):g}; the conciseness "
            "reward multiplies outcomes between 0 and 1.",
            where="sources, kind conciseness",
            why="a negative outcome would be made worse by being concise",
            fix="give the other sources weights so that the sum of their outcomes lies in [0, 1]",
        )
