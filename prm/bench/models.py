"""Step scorers that run a model: a trained step classifier, the likelihood control, the implicit (log-ratio) reward.

A solution is read as prompt, then each step with the separator behind it. A token belongs to the step in which its
first character stands, so a step ends with the token that holds its last character, its separator included. This is the
partition of `data.steps`, where a line ends with its line break. A step without a token, or behind `max_tokens`, has no
score.

Shapes: T tokens of prompt and solution, S steps, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from data.example import Example, Message
from data.hub import use_cache_if_unreachable
from data.template import TemplateOptions, encode, render
from prm.bench.scorers import Scale
from verifiers.errors import DataError, ModelError

_CHUNK_TOKENS = 128  # of a head product: no [T, V] tensor exists


@dataclass(frozen=True, slots=True)
class Reading:
    """How a solution becomes text. separator: stands behind every step but the last. max_tokens: longer solutions are
    cut; None: at the model's last position."""

    template: TemplateOptions
    separator: str
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TokenisedSteps:
    """ids: prompt and solution [T]. first: index of the first solution token. step_of: step of each solution token."""

    ids: list[int]
    first: int
    step_of: list[int]


def tokenise(
    problem: str, steps: Sequence[str], tokenizer: PreTrainedTokenizerBase, reading: Reading
) -> TokenisedSteps:
    """The prompt is encoded as in training, and the solution behind it as `data.encode_demonstration` does. Raises
    `ModelError` for a tokenizer that does not say where its tokens stand, `DataError` for an empty prompt."""
    if not tokenizer.is_fast:
        raise ModelError(f"The tokenizer {tokenizer.name_or_path} gives no character positions.",
                         fix="use a model with a tokenizer.json")  # fmt: skip
    example = Example("step", (Message("user", problem),), None)
    prompt_ids = encode(example, reading.template, tokenizer)
    if not prompt_ids:
        raise DataError("The problem is empty: nothing would predict the first token of its solution.")
    pieces = [step + reading.separator for step in steps[:-1]] + list(steps[-1:])
    prompt, solution = render(example, reading.template, tokenizer), "".join(pieces)
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    joined = tokenizer(prompt + solution, add_special_tokens=False, return_offsets_mapping=True)
    skipped, offset = len(cast("list[int]", alone)), len(prompt)
    if cast("list[int]", joined["input_ids"])[:skipped] != alone:
        joined = tokenizer(solution, add_special_tokens=False, return_offsets_mapping=True)
        skipped = offset = 0
    ids = cast("list[int]", joined["input_ids"])[skipped:]
    starts = [start - offset for start, _ in cast("list[tuple[int, int]]", joined["offset_mapping"])[skipped:]]
    return TokenisedSteps([*prompt_ids, *ids], len(prompt_ids), _steps_of(starts, [len(piece) for piece in pieces]))


def _steps_of(starts: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """The step of each token, by the character it starts with."""
    ends = torch.tensor(lengths).cumsum(0)
    return torch.searchsorted(ends, torch.tensor(starts, dtype=torch.long), right=True).tolist()


class StepClassifier:
    """sigmoid of the one label that a token classifier gives each step's last token."""

    scale: Scale = "probability"

    def __init__(self, folder: str, reading: Reading, *, tokenizer: str | None = None, name: str = "model"):
        self.name, self.reading = name, reading
        self.tokenizer = _tokenizer(tokenizer or folder)
        self.model = _load(AutoModelForTokenClassification, folder)
        if self.model.config.num_labels != 1:
            raise ModelError(f"The classifier has {self.model.config.num_labels} labels.", where=folder,
                             fix="one label is needed, the logit of a step being right")  # fmt: skip
        self.max_tokens = _max_tokens(self.model, reading)

    @torch.no_grad()
    def score(self, problem: str, steps: Sequence[str]) -> list[float | None]:
        text = tokenise(problem, steps, self.tokenizer, self.reading)
        ids_T = torch.tensor(text.ids[: self.max_tokens], device=self.model.device)
        logit_T = self.model(input_ids=ids_T[None]).logits[0, :, 0].float()
        last = {step: text.first + i for i, step in enumerate(text.step_of)}
        cut = _first_cut_step(text, len(ids_T))
        score_T = logit_T.sigmoid().tolist()
        return [score_T[last[step]] if step in last and step < cut else None for step in range(len(steps))]


class Likelihood:
    """Mean log-prob of each step's tokens under a causal language model: the control that says how much of a scorer's
    ranking is that wrong steps are unlikely text."""

    scale: Scale = "real"

    def __init__(self, folder: str, reading: Reading, *, tokenizer: str | None = None, name: str = "likelihood"):
        self.name, self.reading = name, reading
        self.tokenizer = _tokenizer(tokenizer or folder)
        self.model = _load(AutoModelForCausalLM, folder)
        self.max_tokens = _max_tokens(self.model, reading)

    def score(self, problem: str, steps: Sequence[str]) -> list[float | None]:
        text = tokenise(problem, steps, self.tokenizer, self.reading)
        by_step = _by_step(text, self.token_logp(text), len(steps))
        return [None if logp is None else float(logp.mean()) for logp in by_step]

    @torch.no_grad()
    def token_logp(self, text: TokenisedSteps) -> Tensor:
        """Log-prob of each solution token given what stands before it, float32 on the CPU; cut at `max_tokens`."""
        ids_T = torch.tensor(text.ids[: self.max_tokens], device=self.model.device)
        hidden_TE = self.model.base_model(input_ids=ids_T[None]).last_hidden_state[0]
        head = self.model.get_output_embeddings()
        logp = []
        for hidden, target in zip(
            hidden_TE[text.first - 1 : -1].split(_CHUNK_TOKENS), ids_T[text.first :].split(_CHUNK_TOKENS), strict=True
        ):
            logp.append(head(hidden).float().log_softmax(-1).gather(1, target[:, None])[:, 0])
        return torch.cat(logp).cpu()


class LogRatio:
    """The implicit reward of PRIME (arXiv 2502.01456): beta times the sum over a step's tokens of
    log p(token) - log p_reference(token)."""

    scale: Scale = "real"

    def __init__(self, model: Likelihood, reference: Likelihood, *, beta: float, name: str = "implicit"):
        self.name, self.model, self.reference, self.beta = name, model, reference, beta

    def score(self, problem: str, steps: Sequence[str]) -> list[float | None]:
        text = tokenise(problem, steps, self.model.tokenizer, self.model.reading)
        ours, theirs = self.model.token_logp(text), self.reference.token_logp(text)
        if len(ours) != len(theirs):
            raise ModelError("Model and reference read a different number of tokens.", fix="set --max-tokens")
        by_step = _by_step(text, ours - theirs, len(steps))
        return [None if ratio is None else self.beta * float(ratio.sum()) for ratio in by_step]


def _by_step(text: TokenisedSteps, values: Tensor, steps: int) -> list[Tensor | None]:
    """The values of each step's tokens; None for a step without a token or that is not read to its end."""
    cut = _first_cut_step(text, text.first + len(values))
    step_of = torch.tensor(text.step_of[: len(values)], dtype=torch.long)
    found = [values[step_of == step] for step in range(steps)]
    return [one if len(one) and step < cut else None for step, one in enumerate(found)]


def _first_cut_step(text: TokenisedSteps, tokens_read: int) -> float:
    """The first step that is not read to its end."""
    unread = text.step_of[max(0, tokens_read - text.first) :]
    return unread[0] if unread else float("inf")


# ---- loading -----------------------------------------------------


def _tokenizer(folder: str) -> PreTrainedTokenizerBase:
    if not Path(folder).is_dir():
        use_cache_if_unreachable()
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"Cannot load a tokenizer: {str(error).splitlines()[0]}", where=folder,
                         fix="name the folder of one with --tokenizer") from error  # fmt: skip


def _load(kind: Any, folder: str) -> Any:
    """Raises `ModelError` too if the folder's weights leave a part of the model untrained."""
    try:
        model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"Cannot load the model: {str(error).splitlines()[0]}", where=folder,
                         fix="name a folder with config.json and safetensors") from error  # fmt: skip
    missing = sorted([*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])])
    if missing:
        raise ModelError(
            f"This folder holds no trained model of the kind {kind.__name__.removeprefix('AutoModelFor')}: "
            f"{missing[0]} is missing.",
            where=folder,
            why="the missing weights would be random, and the scores with them",
            fix="--model takes a token classifier with one label; --likelihood and --implicit take causal models",
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _max_tokens(model: Any, reading: Reading) -> int | None:
    limits = [limit for limit in (getattr(model.config, "max_position_embeddings", None), reading.max_tokens) if limit]
    return min(limits, default=None)
