"""A vLLM server on other GPUs: tokens over its completions API, weights by one of two roads.

The server is started by the user, in vLLM's development mode, which has the routes for new weights:

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs

and, for weights over NCCL, ``--weight-transfer-config '{"backend": "nccl"}'``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

import httpx
import torch
from torch import Tensor

from rollout.models import save_weights
from rollout.sharding import whole_shapes
from rollout.vllm_requests import Answer, Request, SampleRequest, answer_of_json
from verifiers.errors import ModelError, RunError

KEY = "rollout.engine_options.server_url"
CONNECT_TIMEOUT_S = 10.0
DEFAULTS = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "stream": False}  # fmt: skip


class Push(Protocol):
    """A way of giving a server weights."""

    def push(self, server: Server, weights: Mapping[str, Tensor], version: int) -> None: ...

    def close(self) -> None: ...


class Server:
    """max_rows requests are open at a time. Raises `RunError` where the server cannot be reached or refuses,
    `ModelError` where it was started in a way that would train on wrong numbers."""

    def __init__(
        self,
        url: str,
        pusher: Push,
        max_model_len: int,
        max_rows: int,
        timeout_s: float,
        transport: httpx.BaseTransport | None = None,
    ):
        self.url, self.pusher = url.rstrip("/"), pusher
        self.client = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(max_connections=max_rows),
            transport=transport,
        )
        self.threads = ThreadPoolExecutor(max_rows, thread_name_prefix="vllm-request")
        self.open: dict[Future[Answer], int] = {}
        try:
            self.model = self._check(max_model_len)
        except BaseException:
            self.close()
            raise

    def _check(self, max_model_len: int) -> str:
        """The name of what is served."""
        served = self.get("/v1/models")["data"][0]
        limit = served.get("max_model_len")
        if limit is not None and limit < max_model_len:
            raise ModelError(f"The vLLM server takes {limit} tokens, the recipe needs {max_model_len}.", where=KEY,
                             fix=f"start it with --max-model-len {max_model_len}")  # fmt: skip
        info = self.get("/server_info", params={"config_format": "json"})
        mode = info["vllm_config"]["model_config"]["logprobs_mode"]
        if mode != "processed_logprobs":
            raise ModelError(f"The vLLM server reports log-probs of mode '{mode}'.", where=KEY,
                             why="they are not those of the distribution that it samples from",
                             fix="start it with --logprobs-mode processed_logprobs")  # fmt: skip
        return str(served["id"])

    # ---- requests ----------------------------------------------------

    def start(self, key: int, request: Request) -> None:
        self.open[self.threads.submit(self._complete, request)] = key

    def _complete(self, request: Request) -> Answer:
        return answer_of_json(request, self.post("/v1/completions", completion_body(self.model, request)))

    def wait(self) -> list[tuple[int, Answer]]:
        done, _ = wait(self.open, return_when=FIRST_COMPLETED)
        return [(self.open.pop(future), future.result()) for future in done]

    def abort(self) -> None:
        for future in self.open:
            future.cancel()
        wait(self.open)
        self.open.clear()

    # ---- weights -----------------------------------------------------

    def load(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Stop the server between requests, give it the weights, forget the keys of the old ones, go on."""
        self.post("/pause", params={"mode": "wait"})
        self.pusher.push(self, weights, version)
        if not self.post("/reset_prefix_cache").get("success", True):
            raise RunError("The vLLM server could not forget its prefix cache.", where=KEY,
                           why="responses would go on from keys of the old weights",
                           fix="let nobody else use this server")  # fmt: skip
        self.post("/update_weight_version", {"new_version": str(version)})
        self.post("/resume")

    def sleep(self) -> None:
        """Its memory is not the learner's."""

    def close(self) -> None:
        self.abort()
        self.threads.shutdown()
        self.pusher.close()
        self.client.close()

    # ---- HTTP --------------------------------------------------------

    def get(self, path: str, **options: Any) -> dict[str, Any]:
        return self._ask("GET", path, **options)

    def post(self, path: str, body: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        return self._ask("POST", path, json=body, **options)

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self.client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise RunError(f"The vLLM server did not answer {method} {path}: {type(error).__name__} {error}".rstrip(),
                           where=f"{KEY}={self.url}",
                           fix="is it up, and reachable from here? rollout.engine_options.timeout_s is how long it "
                           "may take") from error  # fmt: skip
        if response.status_code == 404 and not path.startswith("/v1/"):
            raise RunError(f"The vLLM server has no {path}.", where=f"{KEY}={self.url}",
                           fix="start it with VLLM_SERVER_DEV_MODE=1, vLLM 0.32 or newer")  # fmt: skip
        if response.status_code != 200:
            raise RunError(f"The vLLM server answered {method} {path} with {response.status_code}.",
                           where=f"{KEY}={self.url}", why=response.text[:500],
                           fix="its own log says more")  # fmt: skip
        return response.json() if response.content else {}


def completion_body(model: str, request: Request) -> dict[str, Any]:
    """A completions request. The defaults are spelled out: a server takes those that are left open from the model's
    generation config, and would sample from another distribution."""
    body = {"model": model, "prompt": request.prompt_ids} | DEFAULTS | request.fields()
    return body | {"return_token_ids": True} if isinstance(request, SampleRequest) else body


class FolderPush:
    """safetensors files in a folder that both sides see under the same path; the one before is deleted."""

    def __init__(self, folder: str, dtype: torch.dtype):
        self.folder, self.dtype = Path(folder).absolute(), dtype
        self._last: Path | None = None

    def push(self, server: Server, weights: Mapping[str, Tensor], version: int) -> None:
        target = self.folder / f"weights-{version}"
        shutil.rmtree(target, ignore_errors=True)
        try:
            target.mkdir(parents=True)
            save_weights({name: tensor.to("cpu", self.dtype) for name, tensor in weights.items()}, target)
        except OSError as error:
            raise RunError(f"The weights for the vLLM server cannot be written: {error}", where=str(target),
                           fix="free space, or another rollout.engine_options.weights_folder") from error  # fmt: skip
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(target)}}
        server.post("/collective_rpc", body)
        if self._last is not None and self._last != target:
            shutil.rmtree(self._last, ignore_errors=True)
        self._last = target

    def close(self) -> None:
        if self._last is not None:
            shutil.rmtree(self._last, ignore_errors=True)


class NcclPush:
    """vLLM's own weight transfer: this process is rank 0 of an NCCL group with the server's workers, and broadcasts
    packed tensors. Needs vLLM here too, and GPUs on both sides."""

    def __init__(self, address: str, port: int, dtype: torch.dtype):
        self.address, self.port, self.dtype = address, port, dtype
        self._sender: Any = None
        self._weights: Mapping[str, Tensor] = {}

    def push(self, server: Server, weights: Mapping[str, Tensor], version: int) -> None:
        self._weights = weights
        if self._sender is None:
            self._sender = self._join(server)
        self._sender.send_weights()
        self._weights = {}

    def _join(self, server: Server) -> Any:
        from vllm.distributed.weight_transfer.clients import (  # pyright: ignore[reportMissingImports]
            HTTPVLLMWeightSyncClient,
        )
        from vllm.distributed.weight_transfer.factory import (  # pyright: ignore[reportMissingImports]
            WeightTransferTrainerFactory,
        )
        from vllm.distributed.weight_transfer.nccl_engine import (  # pyright: ignore[reportMissingImports]
            NCCLTrainerInitInfo,
        )

        world_size = 1 + server.get("/get_world_size")["world_size"]
        info = NCCLTrainerInitInfo(self.address, self.port, world_size, rank=0)
        return WeightTransferTrainerFactory.trainer_init(
            info, client=HTTPVLLMWeightSyncClient(server.url), source=self.source()
        )

    def source(self) -> Any:
        """vLLM's view of the weights that are to be sent: names, dtypes and shapes, then the tensors, in one order."""
        from vllm.distributed.weight_transfer.base import (  # pyright: ignore[reportMissingImports]
            ParamMeta,
            WeightSource,
        )

        pusher = self

        class Weights(WeightSource):
            def metadata(self) -> list[Any]:
                shapes = whole_shapes(pusher._weights)
                return [ParamMeta(name, pusher.dtype, tuple(shape)) for name, shape in shapes.items()]

            def __iter__(self) -> Iterator[tuple[str, Tensor]]:
                for name, tensor in pusher._weights.items():
                    yield name, tensor.detach().to(pusher.dtype)

        return Weights()

    def close(self) -> None:
        self._sender = None
