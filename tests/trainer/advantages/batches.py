"""A batch with everything in it, and how to run an estimator on it."""

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
    return AdvantageInputs(normal(7), torch.tensor([5, 1, 5, 5, 1, 9, 5]), lengths, normal(tokens), own,
                           normal(tokens), normal(7), normal(tokens, 2))  # fmt: skip
