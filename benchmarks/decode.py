"""Sampling speed: the torch engine against Hugging Face `generate` (and vLLM where it is installed).

Same model in bfloat16, same prompts, every response forced to the same number of tokens (no end-of-sequence token on
any side), temperature 1. A case is (prompts, samples a prompt). The sides alternate within every round, and the ratio
is taken within the round. Time includes the prefill; both sides are warmed up with a few tokens first.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.report import Report, progress, show, spread, table
from benchmarks.worker import run_worker
from benchmarks.workload import recipe, token_blocks, tokenizer_and_path
from rollout.engine import Prompt, SamplingParams
from rollout.torch_engine import TorchEngine

CASES = ((8, 8), (2, 8), (64, 1))
WARM_UP_TOKENS = 8

# (prompts, samples a prompt, response tokens) -> tokens sampled
Side = Callable[[list[list[int]], int, int], int]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=140)
    parser.add_argument("--response-tokens", type=int, default=128)
    parser.add_argument("--cases", type=_case, nargs="+", default=CASES, metavar="PROMPTSxSAMPLES")


def _case(text: str) -> tuple[int, int]:
    prompts, samples = text.split("x")
    return int(prompts), int(samples)


def run(options: argparse.Namespace, report: Report) -> None:
    config = recipe()
    tokenizer, path = tokenizer_and_path(config)
    blocks = token_blocks(config, tokenizer, [options.prompt_tokens] * max(p for p, _ in options.cases))
    hf_model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    sides = {"assay": _assay_side(hf_model, tokenizer, options), "hf": _hf_side(hf_model)}
    for side in sides.values():
        side(blocks[:1], 2, min(WARM_UP_TOKENS, options.response_tokens))
    measured = []
    for number in range(1, options.rounds + 1):
        for prompts, samples in options.cases:
            for name, side in sides.items():
                row = _measure(side, blocks[:prompts], samples, options.response_tokens)
                measured.append({"round": number, "side": name, "prompts": prompts, "samples": samples, **row})
                progress(f"decode round {number} {name} {prompts}x{samples}: {row['tokens_per_second']:.0f} tok/s")
        measured += [{"round": number, "side": "vllm", **row} for row in _vllm_round(options, path, blocks)]
    body = {
        "settings": {"model": config.model.path, "dtype": "bfloat16", "temperature": 1.0,
                     "prompt_tokens": options.prompt_tokens, "response_tokens": options.response_tokens},
        "measurements": measured,
        "summary": summarise(measured),
    }  # fmt: skip
    report.write(body, tables(body["summary"]))


def _measure(side: Side, prompts: list[list[int]], samples: int, response_tokens: int) -> dict[str, float]:
    started = time.perf_counter()
    tokens = side(prompts, samples, response_tokens)
    seconds = time.perf_counter() - started
    if tokens != len(prompts) * samples * response_tokens:
        raise RuntimeError(f"sampled {tokens} tokens: the sides did not do the same work")
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}


def _assay_side(hf_model: Any, tokenizer: Any, options: argparse.Namespace) -> Side:
    engine = TorchEngine(
        hf_model.config, tokenizer, (), dtype=torch.bfloat16, device=torch.device("cpu"),
        max_prompt_tokens=options.prompt_tokens, max_response_tokens=options.response_tokens,
        max_rows=max(p * s for p, s in options.cases),
    )  # fmt: skip
    engine.load_weights(hf_model.state_dict(), version=0)

    def generate(prompts: list[list[int]], samples: int, response_tokens: int) -> int:
        asked = [Prompt(f"block-{i}", i, ids) for i, ids in enumerate(prompts)]
        trajectories = engine.generate(asked, samples, SamplingParams(response_tokens), seed=0)
        return sum(t.num_response_tokens for t in trajectories)

    return generate


def _hf_side(model: Any) -> Side:
    # generate() fills arguments that are None from here, so the kwarg alone would not switch the end token off
    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def generate(prompts: list[list[int]], samples: int, response_tokens: int) -> int:
        input_ids = torch.tensor(prompts).repeat_interleave(samples, 0)
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=None,
            min_new_tokens=response_tokens,
            max_new_tokens=response_tokens,
        )
        return output[:, input_ids.shape[1] :].numel()

    return generate


def _vllm_round(options: argparse.Namespace, path: Any, blocks: list[list[int]]) -> list[dict[str, Any]]:
    """One process a round, so that vLLM's idle threads cannot slow the other sides."""
    if importlib.util.find_spec("vllm") is None:
        return []
    asked = {"model": str(path), "blocks": blocks, "cases": options.cases, "threads": options.threads,
             "response_tokens": options.response_tokens, "warm_up_tokens": WARM_UP_TOKENS}  # fmt: skip
    return run_worker("benchmarks.decode_vllm", asked)["rows"]


def summarise(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per case and side: tokens a second, and the ratio to `hf` of the same round."""
    cases = dict.fromkeys((m["prompts"], m["samples"]) for m in measured)
    sides = dict.fromkeys(m["side"] for m in measured)
    out = []
    for prompts, samples in cases:
        speed = {
            side: {m["round"]: m["tokens_per_second"] for m in measured
                   if (m["prompts"], m["samples"], m["side"]) == (prompts, samples, side)}
            for side in sides
        }  # fmt: skip
        out += [
            {"prompts": prompts, "samples": samples, "side": side,
             "tokens_per_second": spread(list(speed[side].values())),
             "ratio_to_hf": spread([v / speed["hf"][number] for number, v in speed[side].items()])}
            for side in sides
        ]  # fmt: skip
    return out


def tables(summary: list[dict[str, Any]]) -> str:
    rows = [
        [f"{s['prompts'] * s['samples']} ({s['prompts']} x {s['samples']})", s["side"], show(s["tokens_per_second"]),
         show(s["ratio_to_hf"], 2)]
        for s in summary
    ]  # fmt: skip
    return table(
        ["batch (prompts x samples)", "side", "tokens/s: median (min to max)", "ratio to HF, same round"], rows
    )
