"""verl's reward manager for recipes: the recipe's verifier, in worker processes, through `Runner`.

verl has no reward that means "not judged". A training response that could not be judged has the reward 0 in verl's own
metrics and ``fault`` in its extra information, by which the trainer `assay` leaves it out of its group and of the loss.
In an evaluation nothing could leave it out, so there the error goes to verl, which logs it and drops the sample.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
import json
from typing import Any

from omegaconf import OmegaConf
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from prm.rule import RuleSource, start_judging
from trainer.config import Config
from trainer.preflight import make_runner
from trainer.verl.step import example_of, trajectory_of, verdict_fields
from verifiers.errors import VerifierError
from verifiers.options import parse_options


class RuleReward(RewardManagerBase):
    """One response at a time, as verl asks; the runner's workers judge several of them side by side."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **_: Any):
        super().__init__(config, tokenizer, compute_score)
        own: Any = OmegaConf.to_container(config.assay, resolve=True)
        self.recipe, self.eos_ids = parse_options(Config, own["recipe"]), own["eos_ids"]
        self.runner = make_runner(self.recipe.verifier)
        rule = next(part for part in self.recipe.sources if part.kind == "rule")
        self.truncated = parse_options(RuleSource.Options, rule.options).truncated

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    async def run_single(self, data: Any) -> dict[str, Any]:
        """verl's contract: a batch of one response -> its reward and what is to be remembered of it."""
        item = data[-1:][0]
        responses = item.batch["responses"]
        length = int(item.batch["attention_mask"][-responses.shape[-1] :].sum())
        info = item.non_tensor_batch["extra_info"]
        fields = json.loads(info["example"])
        trajectory = trajectory_of(fields, responses[:length].tolist(), self.recipe, self.eos_ids, self.decode)
        example = example_of(fields)
        wait = start_judging(self.runner, [trajectory], [example], truncated=self.truncated)
        (verdict,) = await asyncio.to_thread(wait)
        if verdict.is_fault and info["evaluation"]:
            raise VerifierError(
                f"The response could not be judged ({verdict.status}): {verdict.evidence}",
                where=f"example '{example.id}'",
                why="any number would be counted as the model's doing",
            )
        return {"reward_score": verdict.score or 0.0, "reward_extra_info": verdict_fields(verdict)}
