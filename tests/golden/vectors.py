"""Recorded vectors come padded [B, T] with masks; assay's functions are packed [R]. This is the bridge."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.advantages.base import AdvantageInputs
from trainer.losses.base import LossInputs
from trainer.objective import sequence_weights

HERE = Path(__file__).parent
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
CLOSE_WHITENED = {"rtol": 1e-5, "atol": 1e-5}


def records(file):
    found = json.loads((HERE / f"{file}.json").read_text(encoding="utf-8"))
    return found if isinstance(found, list) else [found]


def each(*files, keep=lambda r: True):
    """One test parameter a record."""
    return [pytest.param(r, id=f"{f}-{r.get('case', i)}") for f in files for i, r in enumerate(records(f)) if keep(r)]


def record(file, case):
    return next(r for r in records(file) if r["case"] == case)


def flat(values, mask):
    """A padded [B, T] list -> the tokens under the mask, end to end [R]."""
    return torch.tensor(values)[mask]


def layout(mask_rows):
    """(mask [B, T], lengths [B], segment of each token [R])."""
    mask = torch.tensor(mask_rows).bool()
    return mask, mask.sum(1), torch.arange(len(mask)).repeat_interleave(mask.sum(1))


def whole(mask):
    """Every position [B * T] as a response token, with the mask as tool-token mask: (lengths, positions' mask [R])."""
    return torch.full((len(mask),), mask.shape[1]), mask.flatten()


def length_mask(lengths, width):
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def group_inputs(i) -> tuple[AdvantageInputs, Tensor]:
    """(inputs, mask) of a record with one reward a sequence."""
    mask = length_mask(i["lengths"], i["T"])
    group = torch.tensor(i.get("group_index", [0] * len(mask)))
    return AdvantageInputs(torch.tensor(i["scores"]), group, mask.sum(1)), mask


def loss_inputs(i, mask) -> LossInputs:
    """The tokens under the mask; logp_R carries the gradient."""
    _, _, segment = layout(mask.tolist())
    logp = flat(i["log_prob"], mask).requires_grad_()
    return LossInputs(logp, flat(i["old_log_prob"], mask), flat(i["advantages"], mask), segment)


def reduced(loss_R, mask, reduce, constant=None):
    lengths = mask.sum(1)
    weight_N = sequence_weights(lengths, torch.ones(len(lengths), dtype=torch.bool), reduce, constant)
    return (loss_R.double() * weight_N.repeat_interleave(lengths)).sum()
