"""`step_oracle`: a generator's truth about every step, blurred: a step reward model whose errors are known.

For controlled experiments. A true step scores about `true_score`, a false one about `false_score`; the noise belongs to
the prefix, as that of a model does: the same prefix always gets the same score.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from data.sources import oracle_of
from prm.signal import SOURCES, Kept, SourceContext
from prm.step_source import StepSource, step_truth
from prm.steps import Steps
from rollout.engine import derive_seed
from verifiers.errors import ConfigError


@SOURCES.register("step_oracle")
class StepOracle(StepSource):
    """Needs examples of a data source with a step oracle. Raises `ConfigError` otherwise."""

    class Options(StepSource.Options):
        """noise_std: of the normal noise; scores stay within 0..1."""

        true_score: float = Field(default=0.9, ge=0, le=1)
        false_score: float = Field(default=0.2, ge=0, le=1)
        noise_std: float = Field(default=0.1, ge=0)

    def __init__(self, options: Any, context: SourceContext):
        super().__init__(options, context)
        without = next((e for e in context.train_examples if oracle_of(e) is None), None)
        if without is not None:
            raise ConfigError(
                "The source step_oracle needs examples whose steps can be checked by program.",
                where=f"example '{without.id}'",
                fix="train on the data source chain or countdown, or use the source step_prm",
            )

    def scores(self, kept: Kept, steps: Sequence[Steps]) -> list[Tensor]:
        out = []
        for t, example, s in zip(kept.trajectories, kept.examples, steps, strict=True):
            truth = step_truth(example, t.text, s, self.options.truth)
            prefixes = [t.text[:end] for _, end in s.spans]
            scores = [self._score(example.id, p, true > 0.5) for p, true in zip(prefixes, truth, strict=True)]
            out.append(torch.tensor(scores, dtype=torch.float32))
        return out

    def _score(self, example_id: str, prefix: str, true: bool) -> float:
        noise = random.Random(derive_seed(self.context.seed, "step oracle", example_id, prefix)).gauss(0, 1)
        mean = self.options.true_score if true else self.options.false_score
        return min(1.0, max(0.0, mean + self.options.noise_std * noise))
