"""`local`: a model of this machine as the judge, through our own rollout engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from data.example import Example, Message
from data.template import TemplateOptions, encode
from prm.judge.base import JUDGES, Judge, JudgeReply, JudgeRequest, ReplyStatus
from rollout.engine import Engine, Prompt, SamplingParams, derive_seed
from rollout.models import DTYPES, load_policy
from rollout.options import ModelConfig
from rollout.torch_engine import TorchEngine
from rollout.trajectory import Finish, Trajectory
from verifiers.options import Options as BaseOptions

if TYPE_CHECKING:
    from prm.signal import SourceContext


@JUDGES.register("local")
class LocalJudge(Judge):
    """Generates with `engine`, which has its weights. A tokenizer with a chat template renders the messages; for one
    without they are written one after the other. At temperature 0 the reply is the most likely one; else it depends
    on the seed, the request's id and its sample alone.
    """

    class Options(BaseOptions):
        """model: as a recipe's `model`. max_prompt_tokens: a longer prompt is not asked (``prompt_too_long``).
        max_reply_tokens: the most a request may ask for. max_rows: replies generated at a time."""

        model: ModelConfig
        max_prompt_tokens: int = Field(default=4096, ge=1)
        max_reply_tokens: int = Field(default=1024, ge=1)
        max_rows: int = Field(default=16, ge=1)

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, *, max_prompt_tokens: int, seed: int = 0):
        self.engine, self.tokenizer = engine, tokenizer
        self.max_prompt_tokens, self.seed = max_prompt_tokens, seed
        self._template = TemplateOptions(kind="chat" if tokenizer.chat_template else "plain")

    @classmethod
    def from_context(cls, options: LocalJudge.Options, context: SourceContext) -> Self:
        """A model of its own beside the policy, frozen. Raises `ModelError` if it cannot be loaded."""
        with torch.random.fork_rng():  # loading seeds the global generator
            policy = load_policy(options.model, context.seed, context.device)
        engine = TorchEngine(
            policy.config,
            policy.tokenizer,
            policy.eos_ids,
            dtype=DTYPES[options.model.compute_dtype],
            device=context.device,
            max_prompt_tokens=options.max_prompt_tokens,
            max_response_tokens=options.max_reply_tokens,
            max_rows=options.max_rows,
        )
        engine.load_weights(policy.model.state_dict(), 0)
        return cls(engine, policy.tokenizer, max_prompt_tokens=options.max_prompt_tokens, seed=context.seed)

    def ask(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """As `Judge.ask`. Raises `ModelError` if the chat template refuses the messages, `RunError` if a request asks
        for more tokens than the engine was built for."""
        replies: dict[int, JudgeReply] = {}
        batches: dict[tuple[int, float], list[tuple[int, Prompt]]] = {}
        for index, request in enumerate(requests):
            ids = self._encode(request)
            if len(ids) > self.max_prompt_tokens:
                detail = f"{len(ids)} tokens; allowed are {self.max_prompt_tokens}"
                replies[index] = JudgeReply(None, ReplyStatus.PROMPT_TOO_LONG, detail)
                continue
            name = f"{request.id}/{request.sample}"
            batch = batches.setdefault((request.max_tokens, request.temperature), [])
            batch.append((index, Prompt(name, len(batch), ids)))
        for (max_tokens, temperature), batch in batches.items():
            replies |= self._generate(batch, max_tokens, temperature)
        return [replies[index] for index in range(len(requests))]

    def close(self) -> None:
        self.engine.close()

    def _generate(self, batch: list[tuple[int, Prompt]], max_tokens: int, temperature: float) -> dict[int, JudgeReply]:
        greedy = temperature == 0
        sampling = SamplingParams(max_tokens, 1.0 if greedy else temperature, greedy=greedy)
        started = time.perf_counter()
        seed = derive_seed(self.seed, "judge")
        trajectories = self.engine.generate([prompt for _, prompt in batch], 1, sampling, seed)
        milliseconds = (time.perf_counter() - started) * 1000
        return {index: _reply(t, milliseconds) for (index, _), t in zip(batch, trajectories, strict=True)}

    def _encode(self, request: JudgeRequest) -> list[int]:
        turns = tuple(Message(m["role"], m["content"]) for m in request.messages)
        if self._template.kind == "plain":
            turns = (Message("user", "\n\n".join(turn.content for turn in turns) + "\n\n"),)
        return encode(Example(request.id, turns, gold=None), self._template, self.tokenizer)


def _reply(trajectory: Trajectory, milliseconds: float) -> JudgeReply:
    """milliseconds: of the whole batch, which is when the reply was there."""
    counts: dict[str, Any] = {
        "attempts": 1,
        "milliseconds": milliseconds,
        "tokens_in": len(trajectory.prompt_ids),
        "tokens_out": len(trajectory.response_ids),
    }
    if trajectory.finish is Finish.LENGTH:
        return JudgeReply(None, ReplyStatus.TRUNCATED, f"cut off: ...{trajectory.text[-80:]}", **counts)
    if not trajectory.text.strip():
        return JudgeReply(None, ReplyStatus.REFUSED, "an empty reply", **counts)
    return JudgeReply(trajectory.text, ReplyStatus.OK, **counts)
