"""Worker of `decode`: all cases of one round with vLLM."""

from __future__ import annotations

import time
from typing import Any

import torch


def measure(options: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(options["threads"])
    tokens = options["response_tokens"]
    longest = len(options["blocks"][0]) + tokens
    engine = LLM(model=options["model"], dtype="bfloat16", max_model_len=longest, enable_prefix_caching=True)

    def generate(blocks: list[list[int]], samples: int, response_tokens: int) -> int:
        sampling = SamplingParams(
            n=samples, temperature=1.0, min_tokens=response_tokens, max_tokens=response_tokens, ignore_eos=True
        )
        outputs = engine.generate([{"prompt_token_ids": b} for b in blocks], sampling, use_tqdm=False)
        return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)

    generate(options["blocks"][:1], 2, min(options["warm_up_tokens"], tokens))
    rows = []
    for prompts, samples in options["cases"]:
        engine.reset_prefix_cache()
        started = time.perf_counter()
        count = generate(options["blocks"][:prompts], samples, tokens)
        seconds = time.perf_counter() - started
        rows.append({"prompts": prompts, "samples": samples, "tokens": count, "seconds": seconds,
                     "tokens_per_second": count / seconds})  # fmt: skip
    return {"rows": rows}
