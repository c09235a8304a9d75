"""Sequence packing: trajectories -> micro-batches without padding.

Shapes: T tokens of a micro-batch (all sequences end to end), S sequences in it, R response tokens in it.

A sequence is never cut or truncated; one longer than the budget gets a micro-batch of its own. Within a micro-batch the
sequences stand in order of decreasing length, so that sequences of equal length are neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from rollout.world import World


class TokenSequence(Protocol):
    """Anything with a prompt and a response in token ids (a `Trajectory`, a demonstration)."""

    prompt_ids: list[int]
    response_ids: list[int]


@dataclass(slots=True)
class TokenIds:
    """No more than that: what a model reads, and the part of it that it is asked about."""

    prompt_ids: list[int]
    response_ids: list[int]


@dataclass(slots=True)
class PackedBatch:
    """One micro-batch.

    sequence_index: which of the input sequences it holds, in packed order (length S).
    ids_T, position_T: int64; positions restart at 0 at each sequence. cu_seqlens: int32 [S + 1], borders of the
    sequences.
    predict_R: flat positions whose logits score a response token (the token before it). target_R: those response
    tokens.
    segment_R: 0..S-1, the sequence of each response token.
    """

    sequence_index: list[int]
    ids_T: Tensor
    position_T: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    predict_R: Tensor
    target_R: Tensor
    segment_R: Tensor

    def flatten(self, per_sequence: Sequence[Tensor]) -> Tensor:
        """Response-token values [R] in packed order, from one tensor [T_i] for each *input* sequence."""
        if not self.sequence_index:
            return torch.zeros(0, device=self.ids_T.device)
        return torch.cat([per_sequence[i] for i in self.sequence_index]).to(self.ids_T.device)

    def split(self, values_R: Tensor) -> dict[int, Tensor]:
        """The inverse of `flatten`: {input sequence: its values [T_i]}."""
        lengths = torch.bincount(self.segment_R, minlength=len(self.sequence_index)).tolist()
        return dict(zip(self.sequence_index, values_R.split(lengths), strict=True))


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indices, each of total length <= capacity unless it holds a single longer item. Deterministic: ties by
    index.

    Source: Johnson 1973; at most 11/9 of the optimal number of bins plus 6/9.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for b, free in enumerate(room):
            if lengths[i] <= free:
                bins[b].append(i)
                room[b] -= lengths[i]
                break
        else:
            bins.append([i])
            room.append(capacity - lengths[i])
    return bins


def balance(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Spread items over `parts` ranks by longest-processing-time-first: every index once, at most 4/3 of the optimal
    load (Graham 1969). Ties go to the rank with fewer items, then the lower rank."""
    loads = [(0, 0, rank) for rank in range(parts)]
    out: list[list[int]] = [[] for _ in range(parts)]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        load, count, rank = min(loads)
        out[rank].append(i)
        loads[loads.index((load, count, rank))] = (load + lengths[i], count + 1, rank)
    return out


def pack(sequences: Sequence[TokenSequence], max_tokens: int, device: torch.device | str = "cpu") -> list[PackedBatch]:
    """Micro-batches of at most `max_tokens` tokens that hold every sequence exactly once."""
    lengths = [len(s.prompt_ids) + len(s.response_ids) for s in sequences]
    return [_pack_one(sequences, bin_, device) for bin_ in first_fit_decreasing(lengths, max_tokens)]


def empty_batch(device: torch.device | str = "cpu") -> PackedBatch:
    """One token of no sequence, for a rank that has less to do: FSDP gathers weights for all ranks at once, so each
    must run as many micro-batches as the others."""
    none = torch.zeros(0, dtype=torch.long, device=device)
    token = torch.zeros(1, dtype=torch.long, device=device)
    borders = torch.tensor([0, 1], dtype=torch.int32, device=device)
    return PackedBatch([], token, token, borders, 1, none, none, none)


def per_sequence(
    batches: Sequence[PackedBatch], values: Callable[[PackedBatch], Tensor], world: World | None = None
) -> list[Tensor]:
    """`values` of each micro-batch [R], given back by input sequence: one CPU tensor [T_i] each, float32 (float64 if
    they are). world: the ranks among which the sequences were divided."""
    out: dict[int, Tensor] = {}
    for batch in batches:
        value_R = values(batch)
        wide = torch.promote_types(value_R.dtype, torch.float32)
        out |= {i: v.to("cpu", wide) for i, v in batch.split(value_R).items()}
    out = out if world is None else world.union(out)
    return [out[i] for i in range(len(out))]


class Packer:
    """`pack` that remembers its last calls, so that the policy and the models beside it share one packing of a step.

    world: the sequences are divided among its ranks by tokens; the micro-batches are this rank's, as many as every
    other rank has, and their `sequence_index` counts in all sequences."""

    def __init__(self, world: World | None = None, remembered: int = 4):
        self.world = world or World()
        self._remembered = remembered
        # the sequences are held, so that an id cannot pass to another object
        self._packed: dict[tuple, tuple[list[TokenSequence], list[PackedBatch]]] = {}

    def pack(
        self, sequences: Sequence[TokenSequence], max_tokens: int, device: torch.device | str
    ) -> list[PackedBatch]:
        key = (tuple(id(s) for s in sequences), max_tokens, str(device))
        if key not in self._packed:
            while len(self._packed) >= self._remembered:
                del self._packed[next(iter(self._packed))]
            self._packed[key] = (list(sequences), self._pack_share(sequences, max_tokens, device))
        return self._packed[key][1]

    def _pack_share(
        self, sequences: Sequence[TokenSequence], max_tokens: int, device: torch.device | str
    ) -> list[PackedBatch]:
        if self.world.size == 1:
            return pack(sequences, max_tokens, device)
        lengths = [len(s.prompt_ids) + len(s.response_ids) for s in sequences]
        shares = balance(lengths, self.world.size)
        bins = [[[share[i] for i in bin_] for bin_ in first_fit_decreasing([lengths[i] for i in share], max_tokens)]
                for share in shares]  # fmt: skip
        batches = [_pack_one(sequences, bin_, device) for bin_ in bins[self.world.rank]]
        return batches + [empty_batch(device)] * (max(map(len, bins)) - len(batches))


def _pack_one(sequences: Sequence[TokenSequence], index: list[int], device: torch.device | str) -> PackedBatch:
    ids: list[int] = []
    position: list[int] = []
    borders = [0]
    predict: list[int] = []
    target: list[int] = []
    segment: list[int] = []
    for slot, i in enumerate(index):
        prompt, response = sequences[i].prompt_ids, sequences[i].response_ids
        if not prompt:
            raise ValueError(
                f"sequence {i} has an empty prompt: its first response token would have nothing to predict it"
            )
        # the logits at position t score token t + 1: the first response token is scored by the last prompt token
        first = borders[-1] + len(prompt) - 1
        ids += prompt + response
        position += range(len(prompt) + len(response))
        borders.append(len(ids))
        predict += range(first, first + len(response))
        target += response
        segment += [slot] * len(response)
    return PackedBatch(
        sequence_index=list(index),
        ids_T=torch.tensor(ids, device=device),
        position_T=torch.tensor(position, device=device),
        cu_seqlens=torch.tensor(borders, dtype=torch.int32, device=device),
        max_seqlen=max(b - a for a, b in pairwise(borders)),
        predict_R=torch.tensor(predict, dtype=torch.long, device=device),
        target_R=torch.tensor(target, dtype=torch.long, device=device),
        segment_R=torch.tensor(segment, dtype=torch.long, device=device),
    )
