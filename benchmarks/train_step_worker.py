"""Worker of `train_step`: one side, one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.worker import peak_mb, resident_mb
from benchmarks.workload import recipe
from rollout.models import load_policy
from rollout.packing import PackedBatch, TokenIds
from trainer.learner import Learner
from trainer.objective import sequence_weights

# () -> loss; gradients are in the model's parameters
Step = Callable[[], float]


def measure(options: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(options["threads"])
    torch.use_deterministic_algorithms(True, warn_only=True)  # as `assay train` does on a CPU
    model, step = {"packed": _packed, "padded": _padded}[options["side"]](options)
    for parameter in model.parameters():
        parameter.detach().sum()  # weights are mapped from the file, and not in memory before they are touched
    loaded = resident_mb()
    seconds, loss = [], 0.0
    for _ in range(1 + options["repeats"]):
        model.zero_grad(set_to_none=True)
        started = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - started)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return {"loaded_mb": loaded, "peak_mb": peak_mb(), "first_seconds": seconds[0], "seconds": seconds[1:],
            "loss": loss, "grad_norm": float(torch.nn.utils.get_total_norm(gradients))}  # fmt: skip


def _packed(options: dict[str, Any]) -> tuple[nn.Module, Step]:
    config = recipe(f"train.max_tokens_per_microbatch={options['max_tokens_per_microbatch']}")
    device = torch.device("cpu")
    learner = Learner(config, load_policy(config.model, config.seed, device), device)
    sequences = [TokenIds(s["prompt_ids"], s["response_ids"]) for s in options["sequences"]]
    advantage_N = torch.tensor([s["advantage"] for s in options["sequences"]])
    length_N = torch.tensor([len(s.response_ids) for s in sequences])
    weight_N = sequence_weights(length_N, torch.ones(len(sequences), dtype=torch.bool), "token", None)

    def token_loss(mb: PackedBatch, logp_R: Tensor, entropy_R: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return -logp_R * advantage_N[mb.sequence_index][mb.segment_R], {}

    return learner.model, lambda: learner.accumulate_gradient(sequences, weight_N, token_loss)["loss"]


def _padded(options: dict[str, Any]) -> tuple[nn.Module, Step]:
    model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.float32).train()
    sequences, size = options["sequences"], options["sequences_per_microbatch"]
    tokens = sum(len(s["response_ids"]) for s in sequences)

    def step() -> float:
        total = 0.0
        for at in range(0, len(sequences), size):
            ids_BT, mask_BT, weight_BT = _pad(sequences[at : at + size])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
            logp_BTV = logits[:, :-1].float().log_softmax(-1)
            logp_BT = logp_BTV.gather(-1, ids_BT[:, 1:, None])[..., 0]
            loss = -(logp_BT * weight_BT[:, 1:]).sum() / tokens
            loss.backward()
            total += float(loss.detach())
        return total

    return model, step


def _pad(sequences: list[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask, and the advantage at every response token (0 elsewhere), padded on the right."""
    width = max(len(s["prompt_ids"]) + len(s["response_ids"]) for s in sequences)
    ids_BT = torch.zeros(len(sequences), width, dtype=torch.long)
    mask_BT, weight_BT = torch.zeros_like(ids_BT), torch.zeros(ids_BT.shape)
    for row, s in enumerate(sequences):
        start, end = len(s["prompt_ids"]), len(s["prompt_ids"]) + len(s["response_ids"])
        ids_BT[row, :end] = torch.tensor(s["prompt_ids"] + s["response_ids"])
        mask_BT[row, :end] = 1
        weight_BT[row, start:end] = s["advantage"]
    return ids_BT, mask_BT, weight_BT
