"""A rollout replica of verl's that samples with assay's torch engine.

One Ray actor a replica holds the engine and answers verl's requests, those that wait at the same time together. The
training workers send it the new weights after every step.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

import ray
import torch
from torch import Tensor
from verl.workers.rollout import base
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

from rollout.engine import Prompt, SamplingParams, derive_seed
from rollout.models import DTYPES, end_ids, load_config, load_tokenizer
from rollout.options import ModelConfig
from rollout.torch_engine import TorchEngine

NAME = "assay_cpu"
GATHER_S = 0.05  # how long the first request waits for others to be sampled with it


class Server:
    """Token ids in, token ids out. The same seed, weights and requests give the same responses, in whatever order the
    requests come: each has a random stream named after its prompt and how often that was asked for."""

    def __init__(self, model_path: str, settings: dict[str, Any]):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        options = ModelConfig(path=model_path)
        tokenizer = load_tokenizer(options)
        self.engine = TorchEngine(
            load_config(options, tokenizer),
            tokenizer,
            _end_ids(model_path, tokenizer),
            dtype=DTYPES[settings["dtype"]],
            device=torch.device("cpu"),
            max_prompt_tokens=settings["prompt_length"],
            max_response_tokens=settings["response_length"],
            max_rows=settings["max_num_seqs"],
        )
        self.limit, self.seed, self.version = settings["response_length"], settings["seed"], 0
        self.waiting: list[tuple[list[int], dict[str, Any], asyncio.Future[TokenOutput]]] = []
        self.asked: Counter[str] = Counter()
        self.task: asyncio.Task[None] | None = None

    async def ready(self) -> bool:
        return True

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        answer: asyncio.Future[TokenOutput] = asyncio.get_running_loop().create_future()
        self.waiting.append((list(prompt_ids), dict(sampling_params), answer))
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._serve())
        return await answer

    async def _serve(self) -> None:
        await asyncio.sleep(GATHER_S)
        while self.waiting:
            sampling = self._sampling(self.waiting[0][1])
            batch = [w for w in self.waiting if self._sampling(w[1]) == sampling]
            self.waiting = [w for w in self.waiting if self._sampling(w[1]) != sampling]
            work = asyncio.to_thread(self._generate, [ids for ids, _, _ in batch], sampling)
            (result,) = await asyncio.gather(work, return_exceptions=True)
            for i, (_, _, answer) in enumerate(batch):
                if isinstance(result, BaseException):
                    answer.set_exception(result)
                else:
                    answer.set_result(result[i])

    def _sampling(self, params: dict[str, Any]) -> SamplingParams:
        limit = min(params.get("max_tokens") or params.get("max_new_tokens") or self.limit, self.limit)
        temperature = params.get("temperature", 1.0)
        greedy = temperature == 0
        return SamplingParams(limit, 1.0 if greedy else temperature, params.get("top_p", 1.0), greedy=greedy)

    def _generate(self, prompts: list[list[int]], sampling: SamplingParams) -> list[TokenOutput]:
        asked = [Prompt(self._name(ids), i, ids) for i, ids in enumerate(prompts)]
        seed = derive_seed(self.seed, "verl", self.version)
        sampled = self.engine.generate(asked, 1, sampling, seed)
        return [
            TokenOutput(
                token_ids=t.response_ids,
                log_probs=t.logp_sampled,
                stop_reason="completed",
                extra_fields={"global_steps": self.version},
            )
            for t in sampled
        ]

    def _name(self, ids: list[int]) -> str:
        prompt = hashlib.sha256(str(ids).encode()).hexdigest()[:16]
        self.asked[prompt] += 1
        return f"{prompt}/{self.asked[prompt]}"

    async def load_weights(self, weights: dict[str, Any], version: int | None) -> None:
        self.version = self.version if version is None else version
        self.asked.clear()
        # Ray's arrays are read-only
        tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
        self.engine.load_weights(tensors, self.version)

    async def set_global_steps(self, version: int) -> None:
        self.version = version

    async def nothing(self, *_: Any, **__: Any) -> None:
        """Weights and caches stay where they are: memory is not shared with the training processes."""

    sleep = wake_up = clear_kv_cache = release_kv_cache = resume_kv_cache = nothing
    start_profile = stop_profile = abort_all_requests = resume_generation = nothing


def _end_ids(model_path: str, tokenizer: Any) -> tuple[int, ...]:
    from transformers import AutoModelForCausalLM

    return end_ids(tokenizer, AutoModelForCausalLM.from_pretrained(model_path))


def _server_name(replica_rank: int) -> str:
    return f"{NAME}_server_{replica_rank}"


class TorchReplica(RolloutReplica):
    async def launch_servers(self) -> None:
        config = self.config
        settings = {name: getattr(config, name) for name in
                    ("dtype", "prompt_length", "response_length", "max_num_seqs", "seed")}  # fmt: skip
        actor = ray.remote(Server).options(
            name=_server_name(self.replica_rank), num_cpus=0, max_concurrency=self.max_concurrency
        )
        server = actor.remote(str(self.model_config.path), settings)
        await server.ready.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = _server_name(self.replica_rank)


class WeightSender(BaseRollout):
    """In every training worker: sends the weights to the replica of its rank."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, *_: Any, **__: Any):
        super().__init__(config, model_config, device_mesh)
        ranks = self.config.tensor_model_parallel_size * self.config.data_parallel_size
        self.replica_rank = int(os.environ.get("RANK", "0")) // ranks

    async def resume(self, tags: Any) -> None:
        pass

    async def release(self) -> None:
        pass

    async def update_weights(
        self, weights: Iterable[tuple[str, Tensor]], wire_format: str = "named_tensors", **more: Any
    ) -> None:
        assert wire_format == "named_tensors"
        arrays = {name: tensor.detach().float().cpu().numpy() for name, tensor in weights}
        server = ray.get_actor(_server_name(self.replica_rank))
        await server.load_weights.remote(arrays, more.get("global_steps"))


def register() -> None:
    RolloutReplicaRegistry.register(NAME, lambda: TorchReplica)
    # verl has no function for this one
    base._ROLLOUT_REGISTRY[(NAME, "async")] = f"{__name__}.WeightSender"
