"""The `vllm` engine: vLLM in this process (`rollout.vllm_colocated`) or as a server (`rollout.vllm_server`).

vLLM is imported when an engine is built, never before. See docs/engine.md for what is the same as with the `torch`
engine and what is not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rollout.engine import ENGINES, OnGroup, Prompt, SamplingParams, check_lengths, row_names, row_seed
from rollout.packing import TokenSequence
from rollout.trajectory import Trajectory
from rollout.vllm_requests import Backend, SampleRequest, needs_scoring, score_request, trajectory
from verifiers.errors import MissingExtraError, RunError
from verifiers.options import Options as BaseOptions

OURS = {"model", "tokenizer", "dtype", "load_format", "logprobs_mode", "max_model_len", "max_num_seqs", "seed",
        "generation_config", "enable_sleep_mode", "distributed_executor_backend", "tensor_parallel_size",
        "pipeline_parallel_size", "data_parallel_size"}  # fmt: skip


@ENGINES.register("vllm")
class VllmEngine:
    """Built like `rollout.torch_engine.TorchEngine`, with `options`. max_rows bounds the samples in flight.

    Raises `MissingExtraError` without vLLM, `ModelError` for a model that has too few positions and for a server that
    serves something else.
    """

    class Options(BaseOptions):
        """server_url: of a vLLM server (``http://HOST:PORT``); null: vLLM in this process, on the learner's device.

        In this process: memory_share of the device's memory that vLLM may take; arguments: further ones of vLLM's
        `LLM` (``enforce_eager``, ``max_num_batched_tokens``, ``kv_cache_memory_bytes``). sleep: on a GPU, weights and
        cache are given back while the learner works.

        Server: transfer says how it gets weights. folder: they are written to `weights_folder`, which both sides see,
        and it reads them from there. nccl: broadcast over vLLM's own weight transfer, from `master_address` and
        `master_port` of the learner's machine. timeout_s: for one response or one transfer.
        """

        server_url: str | None = None
        memory_share: float = Field(default=0.4, gt=0, le=1)
        sleep: bool = True
        arguments: dict[str, Any] = {}  # noqa: RUF012  # pydantic copies it
        transfer: Literal["folder", "nccl"] = "folder"
        weights_folder: str | None = None
        master_address: str = "127.0.0.1"
        master_port: int = Field(default=29600, ge=1, le=65535)
        timeout_s: float = Field(default=900.0, gt=0)

        @model_validator(mode="after")
        def _one_place(self) -> Self:
            if self.server_url is None:
                if self.weights_folder is not None:
                    raise ValueError("weights_folder is for a server: set server_url, or leave it out")
                if taken := sorted(OURS & self.arguments.keys()):
                    raise ValueError(f"arguments must not set {', '.join(taken)}: assay does, or needs it as it is")
                return self
            parts = urlsplit(self.server_url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
                raise ValueError(f"server_url={self.server_url!r} must be of the form http://HOST:PORT")
            if (self.transfer == "folder") != (self.weights_folder is not None):
                raise ValueError("weights_folder is for transfer=folder, and needed there")
            if self.arguments:
                raise ValueError("arguments are for vLLM in this process: give them to the server's command")
            return self

    @classmethod
    def check(cls, config: PretrainedConfig, options: Options) -> None:
        """What can be said before anything is loaded."""
        needs_library = options.server_url is None or options.transfer == "nccl"
        if needs_library and importlib.util.find_spec("vllm") is None:
            raise MissingExtraError("vllm", "vllm", "rollout.engine=vllm")

    def __init__(
        self,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_prompt_tokens: int,
        max_response_tokens: int,
        max_rows: int,
        options: Options | None = None,
    ):
        self.options = options or self.Options()
        self.check(config, self.options)
        self.tokenizer, self.eos_ids = tokenizer, tuple(eos_ids)
        self.max_prompt_tokens, self.max_response_tokens = max_prompt_tokens, max_response_tokens
        self.version = -1
        self.weights_dtype = dtype
        self._ready = False
        max_model_len = context_tokens(config, max_prompt_tokens + max_response_tokens)
        self.backend: Backend
        if self.options.server_url is None:
            from rollout.vllm_colocated import Colocated

            self.backend = Colocated(config, tokenizer, dtype, device, max_model_len, max_rows,
                                     memory_share=self.options.memory_share, sleep=self.options.sleep,
                                     arguments=self.options.arguments)  # fmt: skip
        else:
            from rollout.vllm_server import Server

            self.backend = Server(
                self.options.server_url, self._pusher(dtype), max_model_len, max_rows, self.options.timeout_s
            )

    def _pusher(self, dtype: torch.dtype) -> Any:
        from rollout.vllm_server import FolderPush, NcclPush

        if self.options.weights_folder is not None:
            return FolderPush(self.options.weights_folder, dtype)
        return NcclPush(self.options.master_address, self.options.master_port, dtype)

    # ---- weights -----------------------------------------------------

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        self.backend.load(weights, version)
        self.took(version)

    @property
    def serves_all_ranks(self) -> bool:
        return self.options.server_url is not None

    def took(self, version: int) -> None:
        """What samples has the weights of `version`."""
        self.version, self._ready = version, True

    def sleep(self) -> None:
        if self._ready:
            self.backend.sleep()
        self._ready = False

    def close(self) -> None:
        self._ready = False
        self.backend.close()

    # ---- sampling ----------------------------------------------------

    @torch.inference_mode(False)
    def generate(
        self,
        prompts: Sequence[Prompt],
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: int,
        on_group: OnGroup | None = None,
    ) -> list[Trajectory]:
        """See `rollout.engine.Engine`."""
        self._check_ready()
        check_lengths(prompts, sampling, self.max_prompt_tokens, self.max_response_tokens)
        rows = [(p, s) for p in range(len(prompts)) for s in range(samples_per_prompt)]
        names = row_names(prompts)
        groups: list[list[Trajectory]] = [[] for _ in prompts]
        unscored: dict[int, Trajectory] = {}

        def complete(trajectory: Trajectory, p: int) -> None:
            groups[p].append(trajectory)
            if len(groups[p]) == samples_per_prompt:
                groups[p].sort(key=lambda t: t.sample)
                if on_group is not None:
                    on_group(list(groups[p]))

        try:
            for key, (p, s) in enumerate(rows):
                stream = row_seed(seed, names[p], s)
                self.backend.start(key, SampleRequest(prompts[p].ids, sampling, self.eos_ids, stream))
            left = len(rows) * (2 if needs_scoring(sampling) else 1)
            while left:
                for key, answer in self.backend.wait():
                    left -= 1
                    p, s = rows[key % len(rows)]
                    if key >= len(rows):
                        unscored[key].logp_model = answer.logprobs
                        complete(unscored.pop(key), p)
                        continue
                    found = trajectory(prompts[p], s, answer, sampling, self.tokenizer, self.eos_ids, self.version)
                    if needs_scoring(sampling):
                        unscored[key + len(rows)] = found
                        self.backend.start(key + len(rows), score_request(found.prompt_ids, found.response_ids))
                    else:
                        complete(found, p)
        except BaseException:
            self.backend.abort()
            raise
        return [trajectory for group in groups for trajectory in group]

    def score(self, sequences: Sequence[TokenSequence]) -> list[list[float]]:
        """See `rollout.engine.ScoringEngine`."""
        self._check_ready()
        found: dict[int, list[float]] = {}
        try:
            for key, sequence in enumerate(sequences):
                self.backend.start(key, score_request(sequence.prompt_ids, sequence.response_ids))
            while len(found) < len(sequences):
                found |= {key: answer.logprobs for key, answer in self.backend.wait()}
        except BaseException:
            self.backend.abort()
            raise
        return [found[key] for key in range(len(sequences))]

    def _check_ready(self) -> None:
        if not self._ready:
            raise RunError("The engine has no weights: call load_weights before generate.")


def context_tokens(config: PretrainedConfig, longest: int) -> int:
    """The context that vLLM is asked for: one token more than the longest prompt with its response, as scoring that
    takes a token that is thrown away. It never asks for more positions than the model has."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or longest < positions:
        return longest + 1
    return positions
