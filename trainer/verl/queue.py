"""Reading and writing verl's queue of responses.

Shapes: N responses of a step; T_i tokens of response i.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor

from trainer.config import Config
from trainer.verl.step import Row, example_of, trajectory_of, verdict_of


def is_padding(batch: Any) -> list[bool]:
    """Which rows verl put in only to have enough of them."""
    return [bool(tag.get("is_padding", False)) for tag in batch.tags]


def read_rows(batch: Any, config: Config, eos_ids: Sequence[int], decode: Any) -> tuple[list[Row], list[int]]:
    """(the responses of a step by prompt and sample, where each stands in the batch)."""
    fields = ["responses", "response_mask", "rollout_log_probs", "old_log_probs", "ref_log_prob", "values",
              "extra_info", "extra_fields"]  # fmt: skip
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    infos, extras = list(data["extra_info"]), list(data["extra_fields"])
    tensors = {name: [t.detach() for t in data[name].unbind()] for name in fields[:6] if name in data}
    groups: dict[str, int] = {}
    found: list[tuple[int, Row]] = []
    for i, (key, padding) in enumerate(zip(batch.keys, is_padding(batch), strict=True)):
        if padding:
            continue
        uid, sample, _ = key.rsplit("_", 2)
        example = json.loads(infos[i]["example"])
        trajectory = trajectory_of(
            example,
            tensors["responses"][i].tolist(),
            config,
            eos_ids,
            decode,
            group=groups.setdefault(uid, len(groups)),
            sample=int(sample),
            logp_sampled=tensors["rollout_log_probs"][i].tolist(),
        )
        assert bool(tensors["response_mask"][i].all()), "the recipe's agent loop has no tool output"
        optional = {name: tensors[field][i].float() if field in tensors else None
                    for name, field in (("reference", "ref_log_prob"), ("values", "values"))}  # fmt: skip
        verdict = verdict_of(extras[i]["reward_extra_info"])
        row = Row(trajectory, example_of(example), verdict, tensors["old_log_probs"][i].float(), **optional)
        found.append((i, row))
    found.sort(key=lambda at: (at[1].trajectory.group, at[1].trajectory.sample))
    return [row for _, row in found], [i for i, _ in found]


def write_tokens(batch: Any, fields: Mapping[str, Sequence[Tensor]]) -> Any:
    """Put one tensor [T_i] a row of the batch into the queue under each name; returns the batch that knows of them."""
    nested = {name: torch.nested.as_nested_tensor(list(t), layout=torch.jagged) for name, t in fields.items()}
    extra_info = batch.extra_info
    batch = tq.kv_batch_put(
        keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(nested, batch_size=len(batch.keys))
    )
    batch.extra_info.update(extra_info)
    return batch


def read_tokens(batch: Any, name: str) -> Any:
    """The field as verl stored it, nested [N, *]."""
    return tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[name])[name]


def of_batch(at: Sequence[int], values: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
    """One tensor [T_i] for every row of the batch: values[k] at row at[k], zeros in the others."""
    out = [torch.zeros(length) for length in lengths]
    for i, value in zip(at, values, strict=True):
        out[i] = value.float()
    return out
