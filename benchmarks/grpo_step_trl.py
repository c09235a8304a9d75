"""Worker of `grpo_step`: TRL's steps. Imports nothing of assay, so that it runs in an environment made for TRL."""

from __future__ import annotations

import random
import tempfile
import time
from itertools import pairwise
from typing import Any

import torch

from benchmarks.worker import peak_mb


def measure(options: dict[str, Any]) -> dict[str, Any]:
    import trl  # pyright: ignore[reportMissingImports]
    from datasets import Dataset
    from transformers import TrainerCallback

    torch.set_num_threads(options["threads"])
    ends: list[float] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    rewards = random.Random(0)

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        if any(len(ids) != options["response_tokens"] for ids in completion_ids):
            raise RuntimeError("a completion ended early: the sides did not do the same work")
        return [rewards.random() for _ in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        trl.GRPOTrainer(
            model=options["model"],
            reward_funcs=reward,
            args=_arguments(trl.GRPOConfig, options, folder),
            train_dataset=Dataset.from_dict({"prompt": options["prompts"]}),
            callbacks=[Watch()],
        ).train()
    seconds = [end - start for start, end in pairwise(ends)]
    return {"trl": trl.__version__, "peak_mb": peak_mb(), "first_seconds": seconds[0],
            "seconds": seconds[1:]}  # fmt: skip


def _arguments(config_class: Any, options: dict[str, Any], folder: str) -> Any:
    completions = options["prompts_per_step"] * options["samples"]
    microbatch = min(options["microbatch"], completions)
    return config_class(
        output_dir=folder,
        use_cpu=True,
        bf16=True,
        model_init_kwargs={"dtype": options["dtype"]},
        learning_rate=1e-6,
        beta=0.0,
        max_steps=options["steps"],
        num_generations=options["samples"],
        per_device_train_batch_size=microbatch,
        gradient_accumulation_steps=completions // microbatch,
        max_completion_length=options["response_tokens"],
        generation_kwargs={"min_new_tokens": options["response_tokens"]},
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
