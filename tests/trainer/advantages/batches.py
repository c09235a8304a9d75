"""A batch with everything in it, and how to run an estimator on it."""

from dataclasses import fields, replace

import torch

from trainer.advantages.base import ADVANTAGES, AdvantageInputs
from verifiers.options import parse_options

OPTIONS = {"multi_stream": {"gammas": [1.0, 0.9]}}


def run(kind, inputs, **options):
    estimator = ADVANTAGES.get(kind)
    return estimator.compute(inputs, parse_options(estimator.options, OPTIONS.get(kind, {}) | options))


def random_inputs(seed=0, mask=True):
    """Three groups of 4, 2 and 1, interleaved, with every optional input."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([3, 5, 1, 4, 2, 6, 3])
    tokens = int(lengths.sum())
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    own = torch.rand(tokens, generator=g) > 0.3 if mask else None
    inputs = AdvantageInputs(normal(7), torch.tensor([5, 1, 5, 5, 1, 9, 5]), lengths, normal(tokens), own,
                             normal(tokens), normal(7), normal(tokens, 2))  # fmt: skip
    return replace(
        inputs,
        token_label_R=torch.randint(0, 2, (tokens,), generator=g),
        correct_N=inputs.reward_N > 0,
        included_N=torch.tensor([True, True, False, True, True, True, True]),
    )


def select(inputs, index):
    """The trajectories `index` of a batch, in that order."""
    lengths = inputs.length_N.tolist()

    def of(name, value):
        if value is None or not name.endswith(("_R", "_RK")):
            return None if value is None else value[index]
        return torch.cat([value.split(lengths)[i] for i in index])

    return AdvantageInputs(**{field.name: of(field.name, getattr(inputs, field.name)) for field in fields(inputs)})


def own_only(inputs):
    """The batch as if what the policy did not write were not there."""
    own, rows = inputs.mask_R, torch.arange(len(inputs.length_N)).repeat_interleave(inputs.length_N)
    tokens = {f.name: getattr(inputs, f.name)[own] for f in fields(inputs)
              if f.name.endswith(("_R", "_RK")) and getattr(inputs, f.name) is not None}  # fmt: skip
    lengths = torch.bincount(rows[own], minlength=len(inputs.length_N))
    return replace(inputs, **{**tokens, "mask_R": None, "length_N": lengths})
