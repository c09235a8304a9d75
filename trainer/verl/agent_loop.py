"""verl's agent loop for recipes: the prompt's token ids as the recipe's template made them, one response.

Source: verl 0.9.1, ``experimental/agent_loop/single_turn_agent_loop.py``, which applies the tokenizer's chat template
instead.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.utils.profiler import simple_timer


class RecipeAgentLoop(AgentLoopBase):
    """Token in, token out: nothing is tokenised here."""

    def __init__(self, trainer_config: Any, server_manager: Any, **_: Any):
        # not the base's: it builds chat prompts, and so asks for a chat template
        self.rollout_config = trainer_config.config.actor_rollout_ref.rollout
        self.server_manager = server_manager

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        prompt_ids = json.loads(kwargs["extra_info"]["example"])["prompt_ids"]
        metrics: dict[str, Any] = {}
        with simple_timer("generate_sequences", metrics):
            output = await self.server_manager.generate(
                request_id=uuid4().hex, prompt_ids=prompt_ids, sampling_params=sampling_params
            )
        metrics.setdefault("num_preempted", -1 if output.num_preempted is None else output.num_preempted)
        limit = self.rollout_config.response_length
        ids = list(output.token_ids)[:limit]
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=ids,
            response_mask=[1] * len(ids),
            response_logprobs=list(output.log_probs)[:limit] if output.log_probs else None,
            num_turns=2,
            metrics=metrics,  # type: ignore[arg-type]  # pydantic makes it of the dict
            extra_fields={**output.extra_fields, "turn_scores": [], "tool_rewards": []},
        )
