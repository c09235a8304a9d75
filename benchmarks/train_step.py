"""Forward and backward of one optimizer step: packed (the learner) against padded (a usual Hugging Face loop).

Same model (float32 master weights, bfloat16 autocast), same sequences, same loss: -log-prob weighted by advantage,
mean over response tokens. The padded side pads on the right, micro-batches as many sequences as a packed micro-batch
holds on average, and takes the log-softmax of full float32 logits. Every measurement is a process of its own; the sides
alternate within every round. The gradient norms of both sides are recorded: they show that both compute the same thing.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

from benchmarks.report import Report, progress, show, spread, table
from benchmarks.worker import run_worker
from benchmarks.workload import recipe, token_blocks, tokenizer_and_path
from rollout.packing import first_fit_decreasing

SIDES = ("packed", "padded")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2, help="timed steps in each process, after one that is not")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-tokens-per-microbatch", type=int, default=2048)


def run(options: argparse.Namespace, report: Report) -> None:
    config = recipe()
    tokenizer, path = tokenizer_and_path(config)
    sequences = draw_sequences(config, tokenizer, options.prompts, options.samples)
    lengths = [len(s["prompt_ids"]) + len(s["response_ids"]) for s in sequences]
    microbatches = len(first_fit_decreasing(lengths, options.max_tokens_per_microbatch))
    asked = {
        "model": str(path), "sequences": sequences, "threads": options.threads, "repeats": options.repeats,
        "max_tokens_per_microbatch": options.max_tokens_per_microbatch,
        "sequences_per_microbatch": -(-len(sequences) // microbatches),
    }  # fmt: skip
    measured = []
    for number in range(1, options.rounds + 1):
        for side in SIDES:
            result = run_worker("benchmarks.train_step_worker", asked | {"side": side})
            measured.append({"round": number, "side": side, **result})
            progress(f"train_step round {number} {side}: {result['seconds']} s, peak {result['peak_mb']:.0f} MB")
    body = {
        "settings": {"model": config.model.path, "compute_dtype": "bfloat16", "master_dtype": "float32",
                     "sequences": len(lengths), "tokens": sum(lengths), "lengths": lengths,
                     "response_tokens": sum(len(s["response_ids"]) for s in sequences),
                     "microbatches": microbatches,
                     **{k: asked[k] for k in ("repeats", "max_tokens_per_microbatch", "sequences_per_microbatch")}},
        "measurements": measured,
        "summary": summarise(measured, sum(lengths)),
    }  # fmt: skip
    report.write(body, tables(body))


def draw_sequences(config: Any, tokenizer: Any, prompts: int, samples: int) -> list[dict[str, Any]]:
    """Lengths as rollouts have them: prompts of 90 to 140 tokens, most responses short and a few up to 160."""
    draw = random.Random(0)
    prompt_lengths = [draw.randint(90, 140) for _ in range(prompts)]
    response_lengths = [8 + round(152 * draw.betavariate(1.2, 3.0)) for _ in range(prompts * samples)]
    blocks = token_blocks(config, tokenizer, prompt_lengths + response_lengths)
    return [
        {"prompt_ids": blocks[i // samples], "response_ids": blocks[prompts + i], "advantage": draw.gauss(0.0, 1.0)}
        for i in range(prompts * samples)
    ]


def summarise(measured: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    """A process counts with the median of its repeats; ratios are taken within a round."""
    by_side = {side: [m for m in measured if m["side"] == side] for side in SIDES}
    seconds = {side: [spread(m["seconds"])["median"] for m in by_side[side]] for side in SIDES}
    pairs = list(zip(by_side["packed"], by_side["padded"], strict=True))
    out: dict[str, Any] = {
        side: {
            "seconds": spread(seconds[side]),
            "tokens_per_second": spread([tokens / s for s in seconds[side]]),
            "peak_mb": spread([m["peak_mb"] for m in by_side[side]]),
            "peak_over_loaded_mb": spread([m["peak_mb"] - m["loaded_mb"] for m in by_side[side]]),
            "grad_norm": by_side[side][0]["grad_norm"],
            "loss": by_side[side][0]["loss"],
        }
        for side in SIDES
    }
    out["padded_over_packed"] = {
        "seconds": spread([b / a for a, b in zip(seconds["packed"], seconds["padded"], strict=True)]),
        "peak_mb": spread([b["peak_mb"] / a["peak_mb"] for a, b in pairs]),
        "peak_over_loaded_mb": spread(
            [(b["peak_mb"] - b["loaded_mb"]) / (a["peak_mb"] - a["loaded_mb"]) for a, b in pairs]
        ),
    }
    return out


def tables(body: dict[str, Any]) -> str:
    settings, summary = body["settings"], body["summary"]
    facts = (
        f"{settings['sequences']} sequences, {settings['tokens']} tokens ({settings['response_tokens']} of them "
        f"responses), {settings['microbatches']} micro-batches. Every figure: median (min to max).\n\n"
    )
    rows = [
        [side, show(s["seconds"], 2), show(s["tokens_per_second"]), show(s["peak_mb"]), show(s["peak_over_loaded_mb"]),
         f"{s['loss']:.5f}", f"{s['grad_norm']:.4f}"]
        for side, s in ((side, summary[side]) for side in SIDES)
    ]  # fmt: skip
    ratio = summary["padded_over_packed"]
    rows.append(["padded / packed, same round", show(ratio["seconds"], 2), "", show(ratio["peak_mb"], 2),
                 show(ratio["peak_over_loaded_mb"], 2), "", ""])  # fmt: skip
    columns = [
        "side",
        "seconds a step",
        "tokens/s",
        "peak MB",
        "peak MB beyond the loaded model",
        "loss",
        "gradient norm",
    ]
    return facts + table(columns, rows)
