"""vLLM in this process: its V1 engine without worker processes, given weights in place.

vLLM is started with random weights from a folder that holds only configuration and tokenizer, so that everything the
policy can be made from (hub, folder, GGUF, from scratch) works alike.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rollout.vllm_requests import Answer, Request, SampleRequest, answer_of_output
from verifiers.errors import ModelError

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Colocated:
    """One engine a process; with torchrun, one for each rank."""

    def __init__(
        self,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int,
        max_rows: int,
        *,
        memory_share: float,
        sleep: bool,
        arguments: Mapping[str, Any],
    ):
        # read by vLLM when it is imported and built
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        self.device = device
        self.can_sleep = sleep and device.type == "cuda"  # the CPU build has no memory pool to give back
        self.asleep = False
        self.open: dict[str, tuple[int, Request]] = {}
        self._count = 0
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and "RANK" not in os.environ:
            raise ModelError("This process has one vLLM engine already.", where="rollout.engine",
                             why="vLLM's process groups are global: closing one engine would break the other",
                             fix="close the other first, or give this one a process or server of its own")  # fmt: skip
        self._owns_process_group = not distributed
        self._folder = tempfile.TemporaryDirectory(prefix="assay-vllm-")
        write_model_folder(self._folder.name, config, tokenizer)
        set_num_threads = torch.set_num_threads
        with self._random_state():
            from vllm import LLM  # pyright: ignore[reportMissingImports]

            try:
                self.llm: Any = LLM(
                    model=self._folder.name,
                    dtype=DTYPE_NAMES[dtype],
                    load_format="dummy",
                    logprobs_mode="processed_logprobs",
                    generation_config="vllm",
                    max_model_len=max_model_len,
                    max_num_seqs=max_rows,
                    seed=0,
                    gpu_memory_utilization=memory_share,
                    enable_sleep_mode=self.can_sleep,
                    distributed_executor_backend="external_launcher" if distributed else None,
                    **({"disable_log_stats": True} | cpu_limits(device, max_model_len) | dict(arguments)),
                )
            except (ValueError, RuntimeError) as error:
                raise ModelError(f"vLLM cannot be started: {str(error).splitlines()[0]}", where="rollout.engine",
                                 fix="its own log says more (VLLM_LOGGING_LEVEL=INFO); memory is "
                                 "rollout.engine_options.memory_share") from error  # fmt: skip
        torch.set_num_threads = set_num_threads  # the CPU worker replaces it by one that does nothing

    def _random_state(self) -> AbstractContextManager:
        """vLLM seeds and draws from torch's global generators; the trainer's must not notice."""
        devices = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices=devices)

    # ---- weights -----------------------------------------------------

    def load(self, weights: Mapping[str, Tensor], version: int) -> None:
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        stream = ((name, tensor.detach()) for name, tensor in weights.items())
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": stream})
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        self.llm.reset_prefix_cache()  # its keys are those of the old weights

    def sleep(self) -> None:
        if self.can_sleep:
            self.llm.sleep(level=2)  # the weights need no copy: new ones come before the next request
            self.asleep = True

    def close(self) -> None:
        if self.llm is None:
            return
        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        if self._owns_process_group:
            from vllm.distributed import cleanup_dist_env_and_memory  # pyright: ignore[reportMissingImports]

            cleanup_dist_env_and_memory()
        self._folder.cleanup()

    # ---- requests ----------------------------------------------------

    def start(self, key: int, request: Request) -> None:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        stops = isinstance(request, SampleRequest) and bool(request.sampling.stop)
        params = SamplingParams(**request.fields(), detokenize=stops, output_kind=RequestOutputKind.FINAL_ONLY)
        self._count += 1  # a name is never used twice: vLLM may still hold one that was aborted
        name = f"assay-{self._count}"
        self.open[name] = (key, request)
        self.llm.llm_engine.add_request(name, {"prompt_token_ids": request.prompt_ids}, params)

    def wait(self) -> list[tuple[int, Answer]]:
        answers: list[tuple[int, Answer]] = []
        with self._random_state():
            while not answers and self.open:
                for output in self.llm.llm_engine.step():
                    if output.finished:
                        key, request = self.open.pop(output.request_id)
                        answers.append((key, answer_of_output(request, output)))
        return answers

    def abort(self) -> None:
        self.llm.llm_engine.abort_request(list(self.open))
        self.open.clear()


def cpu_limits(device: torch.device, max_model_len: int) -> dict[str, Any]:
    """On a CPU a prompt must not be prefilled in parts: vLLM then sets the request's generator back by an offset, which
    torch's CPU generator does not have ("CPU Generator does not use offset")."""
    if device.type != "cpu":
        return {}
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_model_len, 4096)}


def write_model_folder(folder: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Configuration and tokenizer as vLLM reads them; a model from scratch has not written down its class yet."""
    config = deepcopy(config)
    if not config.architectures:
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
        if name is None:
            raise ModelError(
                f"Model type '{config.model_type}' names no causal language model.", where="rollout.engine"
            )
        config.architectures = [name]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
