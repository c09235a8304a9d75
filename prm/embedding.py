"""`embedding`: how near a response is to the reference, as a frozen text encoder sees it (HARMO's surrogate of a
reward model for open-ended answers).

    r = (cos(e(response), e(reference)) + 1) / 2      e: the mean of the last hidden states over the text's tokens

The encoder is a bidirectional or a causal model of `transformers`, in float32, read in its own way: padded batches
with a mask, since the packed attention of the models that learn is causal, and families count positions differently.

Paper: arXiv:2510.05283 (cosine of embeddings as the signal of the open-ended part). Pooling, scale and what is not
judged are ours.

Shapes: B texts of a batch; T tokens of the longest; E hidden size; N trajectories.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from data.example import Example
from prm.reward_model import response_of
from prm.signal import SOURCES, Signal, Source, SourceContext
from rollout.models import load_encoder
from rollout.packing import balance
from rollout.trajectory import Trajectory
from rollout.world import World
from verifiers.errors import ConfigError
from verifiers.options import Options as BaseOptions


class Encoder:
    """Texts to mean-pooled vectors. path, max_tokens: as in `Embedding.Options`. Raises `ModelError`, `ConfigError`."""

    def __init__(self, path: str, max_tokens: int | None, device: torch.device):
        self.tokenizer, self.model = load_encoder(path, device, key="sources, kind embedding, path")
        positions = getattr(self.model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        limit = min(positions, self.tokenizer.model_max_length)
        if max_tokens is not None and max_tokens > limit:
            raise ConfigError(f"The encoder reads at most {limit} tokens, not {max_tokens}.", fix=f"{limit} or less",
                              where="sources, kind embedding, max_tokens")  # fmt: skip
        self.max_tokens = max_tokens or limit

    def ids(self, text: str) -> list[int] | None:
        """With the special tokens that this model puts around a text; None if that is too long."""
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])
        return ids if len(ids) <= self.max_tokens else None

    @torch.no_grad()
    def vectors(self, sequences: Sequence[list[int]], max_tokens_per_batch: int, world: World) -> list[Tensor]:
        """float32 [E] on the CPU for each; divided among the ranks."""
        lengths = [len(ids) for ids in sequences]
        mine = sorted(balance(lengths, world.size)[world.rank], key=lambda i: (-lengths[i], i))
        found: dict[int, Tensor] = {}
        while mine:
            count = max(1, max_tokens_per_batch // lengths[mine[0]])
            some, mine = mine[:count], mine[count:]
            found |= zip(some, self._batch([sequences[i] for i in some]), strict=True)
        found = world.union(found)
        return [found[i] for i in range(len(sequences))]

    def _batch(self, sequences: Sequence[list[int]]) -> Tensor:
        longest, pad, device = len(sequences[0]), self.tokenizer.pad_token_id or 0, self.model.device
        ids_BT = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in sequences], device=device)
        mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences], device=device)
        hidden_BTE = self.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        kept_BT1 = mask_BT[..., None].to(hidden_BTE)
        return ((hidden_BTE * kept_BT1).sum(1) / kept_BT1.sum(1)).cpu()


@SOURCES.register("embedding")
class Embedding(Source):
    """outcome = r in [0, 1]. Not judged (NaN): a response without text, one that is too long for the encoder, which
    would otherwise be compared by a part of it, and every response to a question whose reference is either.

    Metrics: ``empty_share``, ``too_long_share`` (of response or reference), ``similarity_mean``, ``similarity_std``.
    """

    class Options(BaseOptions):
        """path: folder or hub id of the encoder with its tokenizer. max_tokens: of a text with the model's special
        tokens (default: what the model can read)."""

        path: str
        max_tokens: int | None = Field(default=None, ge=1)

    options: Embedding.Options

    def __init__(self, options: Embedding.Options, context: SourceContext):
        super().__init__(options, context)
        self.encoder = Encoder(options.path, options.max_tokens, context.device)

    def score(self, trajectories: Sequence[Trajectory], examples: Sequence[Example]) -> Signal:
        asked = [response_of(t, e) for t, e in zip(trajectories, examples, strict=True)]
        pairs = [(one.response, one.reference or "") for one in asked]
        ids = {text: self.encoder.ids(text) for text in dict.fromkeys(text for pair in pairs for text in pair)}
        empty = [i for i, pair in enumerate(pairs) if not all(text.strip() and ids[text] != [] for text in pair)]
        too_long = [i for i, pair in enumerate(pairs) if any(ids[text] is None for text in pair)]
        judged = [i for i in range(len(pairs)) if i not in {*empty, *too_long}]
        reward_N = torch.full((len(pairs),), math.nan)
        metrics = {"empty_share": len(empty) / max(1, len(pairs)), "too_long_share": len(too_long) / max(1, len(pairs))}
        if judged:
            vector = self._vectors({text: known for i in judged for text in pairs[i] if (known := ids[text])})
            sides_2NE = torch.stack([torch.stack([vector[text] for text in side])
                                     for side in zip(*(pairs[i] for i in judged), strict=True)])  # fmt: skip
            known_N = similarity(*sides_2NE)
            reward_N[judged] = known_N
            metrics |= {"similarity_mean": float(known_N.mean()), "similarity_std": float(known_N.std(correction=0))}
        return Signal(reward_N, metrics=metrics)

    def _vectors(self, ids: Mapping[str, list[int]]) -> dict[str, Tensor]:
        setup = self.context.models
        found = self.encoder.vectors(list(ids.values()), setup.max_tokens_per_microbatch, self.context.world)
        return dict(zip(ids, found, strict=True))


def similarity(a_NE: Tensor, b_NE: Tensor) -> Tensor:
    """(cos + 1) / 2, within [0, 1] also where rounding carries the cosine beyond 1."""
    return ((cosine_similarity(a_NE, b_NE, dim=1) + 1) / 2).clamp(0, 1)
