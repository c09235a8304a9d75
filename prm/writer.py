"""Greedy text of a language model beside the policy, by an engine that is made when it is first needed. Of several
ranks each writes a share, and all must ask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from prm.cotrained import CoTrained
from rollout.engine import ENGINES, Engine, Prompt, SamplingParams, SharedEngine
from rollout.models import end_ids


class Writer:
    """max_prompt_tokens, max_tokens: of what it reads and writes; max_rows: texts in flight."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: torch.dtype,
        max_prompt_tokens: int,
        max_tokens: int,
        max_rows: int = 64,
        engine: str = "torch",
    ):
        self._tokenizer, self._dtype, self._kind = tokenizer, dtype, engine
        self._max_prompt_tokens, self._max_tokens, self._max_rows = max_prompt_tokens, max_tokens, max_rows
        self._engine: Engine | None = None

    def write(self, model: CoTrained, prompts: Sequence[Sequence[int]]) -> list[str]:
        """What `model` writes after each prompt, most likely token first, until it ends or `max_tokens` are there."""
        if self._engine is None:
            engine = ENGINES.get(self._kind, key="rollout.engine")(
                model.hf_config,
                self._tokenizer,
                end_ids(self._tokenizer, model.causal_lm),
                dtype=self._dtype,
                device=model.setup.device,
                max_prompt_tokens=self._max_prompt_tokens,
                max_response_tokens=self._max_tokens,
                max_rows=self._max_rows,
            )
            self._engine = engine if model.world.size == 1 else SharedEngine(engine, model.world)
        assert self._engine is not None
        self._engine.load_weights(model.weights(), 0)
        asked = [Prompt(str(i), i, list(ids)) for i, ids in enumerate(prompts)]
        try:
            written = self._engine.generate(asked, 1, SamplingParams(self._max_tokens, greedy=True), 0)
        finally:
            self._engine.sleep()
        return [t.text for t in written]

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
