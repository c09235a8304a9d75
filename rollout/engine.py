"""The engine protocol: token ids in, trajectories out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rollout.packing import TokenSequence
from rollout.sharding import WholeWeights
from rollout.trajectory import Trajectory
from rollout.world import World
from verifiers.errors import ModelError, RunError
from verifiers.registry import Registry


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """temperature > 0; top_p in (0, 1]; a response ends at an end-of-sequence token, after one of the `stop` strings
    (kept in the response) or at `max_response_tokens`. greedy takes the most likely token and ignores the first two."""

    max_response_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    greedy: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, already tokenised. group: its index within the step."""

    example_id: str
    group: int
    ids: list[int]


OnGroup = Callable[[list[Trajectory]], None]


@runtime_checkable
class Engine(Protocol):
    """Samples from the weights it was last given."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: int,
        on_group: OnGroup | None = None,
    ) -> list[Trajectory]:
        """`samples_per_prompt` trajectories for each prompt, ordered by prompt, then sample. The same seed, example
        ids and weights give the same trajectories; each row has its own random stream, so the batch around it does not
        matter (beyond the rounding of the backend's matrix products).

        on_group: called with the trajectories of a prompt, ordered by sample, as soon as the last of them has ended,
        while others are being generated. Groups come in the order they end; generation waits for the call."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Take new weights by their Hugging Face names (LoRA already merged), reading each once, in their order: with
        several ranks reading one gathers it, and what is kept of it is the engine's. `version` is stamped on
        trajectories.

        An engine that rounds every matrix to one dtype, and does nothing else to it, may have an attribute
        `weights_dtype`: it is then given matrices of that dtype, and half as much is gathered."""
        ...

    def sleep(self) -> None:
        """Give memory back; `load_weights` must be called before the next `generate`."""
        ...

    def close(self) -> None: ...


def hand_over(engine: Engine, weights: Mapping[str, Tensor], version: int) -> None:
    """`engine.load_weights`, also of weights that lie on several ranks: where the engine raises, or does not read all,
    this rank still takes part in gathering the rest, so that no other waits for it."""
    if not isinstance(weights, WholeWeights):
        engine.load_weights(weights, version)
        return
    weights = _as_wanted(engine, weights)
    try:
        engine.load_weights(weights, version)
    finally:
        weights.finish()


def _as_wanted(engine: Engine, weights: WholeWeights) -> WholeWeights:
    dtype: torch.dtype | None = getattr(engine, "weights_dtype", None)
    return weights if dtype is None else weights.rounded_to(dtype)


class SharedEngine:
    """An engine on every rank: each generates for a share of the prompts, and all get all trajectories. `on_group` is
    called for the rank's own groups only."""

    def __init__(self, engine: Engine, world: World):
        self.own, self.world = engine, world

    def generate(
        self,
        prompts: Sequence[Prompt],
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: int,
        on_group: OnGroup | None = None,
    ) -> list[Trajectory]:
        """As of one engine: who generates a prompt does not matter."""
        # all copies of an example are one rank's, since their random streams are told apart by counting (row_names)
        owner = {name: i % self.world.size for i, name in enumerate(dict.fromkeys(p.example_id for p in prompts))}
        places = [i for i, prompt in enumerate(prompts) if owner[prompt.example_id] == self.world.rank]
        own: list[Trajectory] = []
        if places:
            own = self.own.generate([prompts[i] for i in places], samples_per_prompt, sampling, seed, on_group)
        k = samples_per_prompt
        found = self.world.union({place: own[k * n : k * (n + 1)] for n, place in enumerate(places)})
        return [trajectory for place in range(len(prompts)) for trajectory in found[place]]

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Every rank's engine takes them. Where it says `serves_all_ranks` (a server), rank 0's takes them for all, and
        the others are told so (`took`)."""
        is_one = getattr(self.own, "serves_all_ranks", False) and self.world.size > 1
        if not is_one or self.world.is_main:
            hand_over(self.own, weights, version)
        elif isinstance(weights, WholeWeights):
            _as_wanted(self.own, weights).finish()
        if is_one:
            self.world.barrier()
            self.own.took(version)  # type: ignore[attr-defined]

    def sleep(self) -> None:
        self.own.sleep()

    def close(self) -> None:
        self.own.close()

    def score(self, sequences: Sequence[TokenSequence]) -> list[list[float]]:
        """Of the rank's own engine, where that is a `ScoringEngine`."""
        return self.own.score(sequences)  # type: ignore[attr-defined]


@runtime_checkable
class ScoringEngine(Engine, Protocol):
    """An engine that can also say what it thinks of given tokens. The trainer checks such an engine against the learner
    before training and after the first weight updates (`trainer.engine_check`): it is for engines that run code which
    is not ours."""

    def score(self, sequences: Sequence[TokenSequence]) -> list[list[float]]:
        """Log-prob of every response token under the untransformed model, by the weights loaded last."""
        ...


ENGINES: Registry[type] = Registry("rollout engine", "rollout")


def check_lengths(
    prompts: Sequence[Prompt], sampling: SamplingParams, max_prompt_tokens: int, max_response_tokens: int
) -> None:
    """Raise `RunError` or `ModelError` for what an engine of this size was not built for."""
    if sampling.max_response_tokens > max_response_tokens:
        raise RunError(f"Asked for responses of {sampling.max_response_tokens} tokens; this engine was built for "
                       f"{max_response_tokens}.")  # fmt: skip
    for prompt in prompts:
        if not 0 < len(prompt.ids) <= max_prompt_tokens:
            raise ModelError(
                f"Prompt of {len(prompt.ids)} tokens; allowed are 1 to {max_prompt_tokens}.",
                where=f"example '{prompt.example_id}'",
                fix="raise data.max_prompt_tokens or set data.on_too_long=skip",
            )


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def response_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], eos_ids: Collection[int]) -> str:
    """`Trajectory.text`: a stop string stays in it, the end-of-sequence token does not."""
    ended_by_eos = bool(ids) and ids[-1] in eos_ids
    return decode(tokenizer, ids[:-1] if ended_by_eos else ids)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any mix of numbers and names: the same parts give the same seed, everywhere."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def row_seed(seed: int, example_id: str, sample: int) -> int:
    """A 63-bit seed for one row's random stream, from the step's seed, the example and the sample index."""
    return derive_seed(seed, example_id, sample)


def row_names(prompts: Sequence[Prompt]) -> list[str]:
    """What names each prompt's random streams: its example's id, and for an example that is there several times (a
    dataset may repeat it) which of them it is, so that copies do not give the same samples."""
    seen: dict[str, int] = {}
    names = []
    for prompt in prompts:
        copies = seen[prompt.example_id] = seen.get(prompt.example_id, 0) + 1
        names.append(prompt.example_id if copies == 1 else f"{prompt.example_id}#{copies}")
    return names
