"""Reward models that are trained on labelled data by a recipe, and how what was trained is opened for scoring.

A kind of reward model is one class here (`RewardModel`), registered in `REWARD_MODELS`. The recipe names it under
``reward_model``; `trainer/fit.py` trains it; a source opens the exported folder with `open_reward_model`, which
encodes responses by the very function that training used.

Shapes: N sequences of token ids, of all examples of a step end to end; S sequences of a micro-batch.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.example import Example
from data.labelled import Labelled, LabelledResponse
from data.template import TemplateOptions
from prm.bench.calibration import brier, expected_calibration_error
from prm.bench.ranking import auc
from prm.cotrained import BatchLoss, CoTrained, ModelSetup
from rollout.models import load_tokenizer
from rollout.options import ModelConfig, OptimConfig, WriterConfig
from rollout.packing import PackedBatch, TokenIds, TokenSequence
from rollout.trajectory import Trajectory
from verifiers.errors import DataError, ModelError
from verifiers.options import Options as BaseOptions
from verifiers.options import parse_options
from verifiers.registry import Registry

CARD = "reward_model.json"  # beside the weights: what scoring must know


def whole(ids: Sequence[int]) -> TokenIds:
    """A sequence that a scalar head gives one number to, read after its last token."""
    return TokenIds(list(ids[:-1]), list(ids[-1:]))


class TooLong(DataError):
    """An example that does not fit into the model's input."""

    def __init__(self, tokens: int, limit: int, id_: str):
        super().__init__(
            f"The example has {tokens} tokens, the limit is data.max_tokens={limit}.",
            where=f"example '{id_}'",
            why="a response that is cut off loses its answer",
            fix="raise data.max_tokens, or leave such examples out with data.on_too_long=skip",
        )


@dataclass(frozen=True, slots=True)
class FitContext:
    """tokenizer and template: how prompts become token ids. max_tokens: of an encoded example. writer: of models that
    write their score."""

    tokenizer: PreTrainedTokenizerBase
    template: TemplateOptions
    max_tokens: int
    seed: int
    writer: WriterConfig


@dataclass(frozen=True, slots=True)
class Evaluation:
    """metrics by name; rows: one JSON object an example, for the run folder."""

    metrics: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)


class RewardModel:
    """A kind of reward model: how an example becomes token ids, what is minimised, how it is judged.

    head: ``scalar``, one number (or `numbers`) from a linear head without a bias, read after the last token; ``lm``, a
    language model that writes its score. takes: what its examples are. scale: of `score`. Built as
    ``Class(options, context)``.
    """

    head: ClassVar[Literal["scalar", "lm"]] = "scalar"
    numbers: int = 1
    takes: type[Labelled]
    scale: ClassVar[Literal["probability", "real"]] = "real"

    class Options(BaseOptions):
        pass

    def __init__(self, options: Any, context: FitContext):
        self.options, self.context = options, context

    def encode(self, example: Any) -> list[TokenIds]:
        """The sequences of one example: of a pair the chosen one, then the rejected. Raises `TooLong`."""
        raise NotImplementedError

    def encode_response(self, asked: LabelledResponse) -> TokenIds:
        """What a scalar model reads to score a response, whose label is not looked at. Raises `TooLong`."""
        raise NotImplementedError

    def readable(self, asked: Sequence[LabelledResponse]) -> dict[int, TokenIds]:
        """`encode_response` of all that fit, by index."""
        out: dict[int, TokenIds] = {}
        for i, one in enumerate(asked):
            with suppress(TooLong):
                out[i] = self.encode_response(one)
        return out

    def batch_loss(
        self, model: CoTrained, examples: Sequence[Any], sequences: Sequence[Sequence[TokenIds]]
    ) -> BatchLoss:
        """The loss of a step's examples, as `CoTrained.step` takes it over all their sequences end to end. It must not
        depend on the micro-batches: means are over the step."""
        raise NotImplementedError

    def evaluate(
        self, model: CoTrained, examples: Sequence[Any], sequences: Sequence[Sequence[TokenIds]]
    ) -> Evaluation:
        """How good the model is on held-out examples."""
        raise NotImplementedError

    def score(self, model: CoTrained, asked: Sequence[LabelledResponse]) -> list[float | None]:
        """One score a response, whose label is not looked at; None for one that cannot be scored (it is too long). The
        use of the model: in a reward source and in `assay bench rm`."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what it holds beside the model."""


REWARD_MODELS: Registry[type[RewardModel]] = Registry("reward model", "prm")


def response_of(trajectory: Trajectory, example: Example) -> LabelledResponse:
    """A rollout as `RewardModel.score` takes it, without a label."""
    gold = example.gold
    reference = gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False)
    return LabelledResponse(example.id, example.prompt, trajectory.text, math.nan, reference, example.meta)


def flat(sequences: Sequence[Sequence[TokenIds]]) -> list[TokenIds]:
    return [one for several in sequences for one in several]


def scores_of(model: CoTrained, sequences: Sequence[TokenSequence]) -> list[float]:
    """The scalar head's number for each sequence."""
    return [float(score[-1]) for score in model.outputs(sequences)]


# ---- losses ------------------------------------------------------


def per_response_loss(loss_of: Callable[[Tensor, list[int]], Tensor], count: int) -> BatchLoss:
    """The mean over `count` sequences of ``loss_of(score_S, their indices)`` [S]."""

    def batch_loss(batch: PackedBatch, score_S: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return loss_of(score_S, batch.sequence_index).sum() / count, {}

    return batch_loss


def loss_of_scores(
    model: CoTrained, sequences: Sequence[TokenSequence], loss: Callable[[Tensor], tuple[Tensor, dict[str, float]]]
) -> BatchLoss:
    """Any loss of all scores [N] of a step, though the responses it joins may lie in different micro-batches.

    The scores are taken once without gradient, the loss is differentiated by them, and the micro-batches minimise
    sum of (d loss / d score) * score, which has the same gradient by the weights. One more forward pass buys that the
    packing need not know of pairs; where one micro-batch of a single process holds all, it is not needed.
    """
    if model.world.size == 1 and len(model.pack(sequences)) == 1:
        return _direct_loss(loss)
    score_N = torch.stack([score[-1] for score in model.outputs(sequences)]).requires_grad_()
    value, facts = loss(score_N)
    (gradient_N,) = torch.autograd.grad(value, score_N)
    value = value.detach()

    def batch_loss(batch: PackedBatch, score_S: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        surrogate = (gradient_N[batch.sequence_index].to(score_S) * score_S).sum()
        share = len(batch.sequence_index) / len(score_N)
        reported = {name: torch.tensor(share * fact) for name, fact in facts.items()}
        return surrogate - surrogate.detach() + share * float(value), reported

    return batch_loss


def _direct_loss(loss: Callable[[Tensor], tuple[Tensor, dict[str, float]]]) -> BatchLoss:
    def batch_loss(batch: PackedBatch, score_S: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        value, facts = loss(score_S[torch.tensor(batch.sequence_index, device=score_S.device).argsort()])
        return value, {name: torch.tensor(fact) for name, fact in facts.items()}

    return batch_loss


# ---- evaluation --------------------------------------------------


def binary_metrics(probability: Sequence[float], label: Sequence[bool]) -> dict[str, float]:
    """accuracy (probability above 1/2), AUC, Brier score and calibration error; majority_accuracy: of the constant."""
    right = sum((p > 0.5) == bool(y) for p, y in zip(probability, label, strict=True))
    share = sum(map(bool, label)) / len(label)
    found = {
        "accuracy": right / len(label),
        "majority_accuracy": max(share, 1 - share),
        "auc": auc(probability, label),
        "brier": brier(probability, label),
        "calibration_error": expected_calibration_error(probability, label),
    }
    return {name: value for name, value in found.items() if value is not None}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


# ---- trained models ----------------------------------------------


class Card(BaseOptions):
    """``reward_model.json``."""

    kind: str
    options: dict[str, Any] = Field(default_factory=dict)
    template: TemplateOptions
    max_tokens: int = Field(ge=1)


def write_card(folder: Path, kind: str, reward_model: RewardModel) -> None:
    context = reward_model.context
    card = Card(kind=kind, options=reward_model.options.model_dump(), template=context.template,
                max_tokens=context.max_tokens)  # fmt: skip
    (folder / CARD).write_text(json.dumps(card.model_dump(), indent=1) + "\n", encoding="utf-8")


def open_reward_model(
    path: str,
    kind: str,
    setup: ModelSetup,
    *,
    key: str,
    optim: OptimConfig | None = None,
    writer: WriterConfig | None = None,
) -> tuple[CoTrained, RewardModel]:
    """(the model with its weights, frozen without `optim`; its kind, which encodes as in training) of a folder that
    `assay train` left: a checkpoint, or the ``hf`` folder in it. `setup` says how it is run; tokenizer and architecture
    are the folder's own. Raises `ModelError`, naming the recipe's `key`, for a folder that is not such a model."""
    folder, card = folder_of(path), read_card(path, key=key)
    if card.kind != kind:
        raise ModelError(f"{path} holds a reward model of kind '{card.kind}', not '{kind}'.", where=key,
                         fix=f"use it with the kind {card.kind}")  # fmt: skip
    options = setup.model
    own = ModelConfig(path=str(folder), compute_dtype=options.compute_dtype, master_dtype=options.master_dtype,
                      gradient_checkpointing=options.gradient_checkpointing)  # fmt: skip
    setup = dataclasses.replace(setup, model=own)
    kind_of = REWARD_MODELS.get(card.kind, key=key)
    context = FitContext(load_tokenizer(own), card.template, card.max_tokens, setup.seed, writer or WriterConfig())
    reward_model = kind_of(parse_options(kind_of.Options, card.options, f"{folder / CARD}, options"), context)
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"{path} holds no weights.", where=key, fix="name a checkpoint that was written to its end")
    model = build(reward_model, setup, optim)
    try:
        model.load(folder, model.state_dict())
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path} does not hold the weights of a reward model: {str(error).splitlines()[0]}",
                         where=key, fix=f"name what `assay train` wrote for kind {kind}") from error  # fmt: skip
    return model, reward_model


def build(reward_model: RewardModel, setup: ModelSetup, optim: OptimConfig | None) -> CoTrained:
    """The model of a kind: the recipe's, with the head it needs."""
    if reward_model.head == "lm":
        return CoTrained(setup, "lm", optim)
    return CoTrained(setup, "scalar", optim, read="after", head_bias=False, exported_as="sequence",
                     numbers=reward_model.numbers)  # fmt: skip


def folder_of(path: str) -> Path:
    """The weights' folder of a checkpoint, or that folder itself."""
    folder = Path(path).expanduser()
    return folder / "hf" if (folder / "hf").is_dir() else folder


def read_card(path: str, *, key: str) -> Card:
    """What the folder of a reward model says of it. Raises `ModelError` naming `key`."""
    folder = folder_of(path)
    if not folder.is_dir():
        raise ModelError(
            f"There is no reward model at {folder}.",
            where=key,
            fix="train one with `assay train RECIPE` and name its run's checkpoints/step-NNNNNN",
        )
    file = folder / CARD
    try:
        values: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} has no readable {CARD} ({type(error).__name__}).",
            where=key,
            why="without it nobody knows how a response was written out for this model",
            fix='for a model of another tool write one: {"kind": "bt_rm", "template": {"kind": "chat"}, '
            '"max_tokens": 4096}',
        ) from error
    return parse_options(Card, values, str(file))
