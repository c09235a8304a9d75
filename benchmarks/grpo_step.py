"""A whole GRPO step (sample, reward, learn, sync) against TRL's GRPOTrainer.

Same model, same prompts, every completion forced to the same number of tokens, a random reward (no group is without
variance), one optimizer step a batch, no KL term. Every measurement is a process of its own;
the sides alternate within every round. The first step of a process is not counted.

Our side runs twice: `assay` as the recipe stands, without gradient checkpointing as TRL, and `assay recompute` with
gradient checkpointing and micro-batches of half the tokens, for machines with less memory.

TRL runs with bf16=True in several settings: float32 master weights, as here, with micro-batches of 8 and of all
completions, and bfloat16 weights without a master copy, which are faster and not the same numerics.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

from benchmarks.report import Report, progress, show, spread, table
from benchmarks.worker import run_worker
from benchmarks.workload import prompts_near, recipe, tokenizer_and_path
from verifiers.errors import RunError

TRL_SETTINGS = ("float32:8", "float32:32", "bfloat16:8")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="steps of each process; the first is not counted")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=140, help="prompts are chosen near this length")
    parser.add_argument("--response-tokens", type=int, default=120)
    parser.add_argument("--max-tokens-per-microbatch", type=int, default=2048)
    parser.add_argument("--trl", nargs="+", default=list(TRL_SETTINGS), metavar="DTYPE:MICROBATCH")
    parser.add_argument("--trl-python", default=sys.executable, help="the Python that has trl, if it is another one")


def run(options: argparse.Namespace, report: Report) -> None:
    if options.steps < 2:
        raise RunError("The first step of a process is not counted.", fix="--steps 2 or more")
    _require_trl(options.trl_python)
    config = recipe()
    tokenizer, path = tokenizer_and_path(config)
    prompts = prompts_near(config, tokenizer, options.prompts * options.steps, options.prompt_tokens)
    asked: dict[str, Any] = {
        "model": str(path), "prompts": prompts, "threads": options.threads,
        **{k: getattr(options, k) for k in ("steps", "samples", "response_tokens", "max_tokens_per_microbatch")},
        "prompts_per_step": options.prompts,
    }  # fmt: skip
    measured = []
    for number in range(1, options.rounds + 1):
        for side in ("assay", "assay recompute", *(f"trl {setting}" for setting in options.trl)):
            result = _measure(side, asked, options.trl_python)
            measured.append({"round": number, "side": side, **result})
            progress(f"grpo_step round {number} {side}: {result['seconds']} s, peak {result['peak_mb']:.0f} MB")
    facts = {k: v for k, v in asked.items() if k not in ("model", "prompts")}
    facts |= {"model": config.model.path, "prompt_lengths": [len(tokenizer(p)["input_ids"]) for p in prompts]}
    body = {"settings": facts, "measurements": measured, "summary": summarise(measured)}
    report.write(body, tables(body))


def _measure(side: str, asked: dict[str, Any], trl_python: str) -> dict[str, Any]:
    if side == "assay":
        return run_worker("benchmarks.grpo_step_assay", asked | {"gradient_checkpointing": False})
    if side == "assay recompute":
        half = asked["max_tokens_per_microbatch"] // 2
        lean = {"gradient_checkpointing": True, "max_tokens_per_microbatch": half}
        return run_worker("benchmarks.grpo_step_assay", asked | lean)
    dtype, microbatch = side.removeprefix("trl ").split(":")
    return run_worker("benchmarks.grpo_step_trl", asked | {"dtype": dtype, "microbatch": int(microbatch)}, trl_python)


def _require_trl(python: str) -> None:
    if subprocess.run([python, "-c", "import trl"], capture_output=True).returncode:
        raise RunError(
            "TRL is not installed.",
            fix="pip install --no-deps trl==1.16.0 accelerate, or name another Python that has it: --trl-python",
        )


def summarise(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """A process counts with the median of its steps; ratios are taken within a round."""
    sides = dict.fromkeys(m["side"] for m in measured)
    seconds = {s: [spread(m["seconds"])["median"] for m in measured if m["side"] == s] for s in sides}
    peaks = {s: [m["peak_mb"] for m in measured if m["side"] == s] for s in sides}
    return {
        side: {
            "seconds": spread([t for m in measured if m["side"] == side for t in m["seconds"]]),
            "peak_mb": spread(peaks[side]),
            "seconds_over_assay": spread([a / b for a, b in zip(seconds[side], seconds["assay"], strict=True)]),
            "peak_over_assay": spread([a / b for a, b in zip(peaks[side], peaks["assay"], strict=True)]),
        }
        for side in sides
    }


def tables(body: dict[str, Any]) -> str:
    settings = body["settings"]
    versions = {m["trl"] for m in body["measurements"] if "trl" in m}
    facts = (f"{settings['prompts_per_step']} prompts x {settings['samples']} completions of "
             f"{settings['response_tokens']} tokens, prompts of {min(settings['prompt_lengths'])} to "
             f"{max(settings['prompt_lengths'])} tokens; TRL {', '.join(sorted(versions))}. "
             "Every figure: median (min to max).\n\n")  # fmt: skip
    rows = [
        [
            side,
            show(s["seconds"], 1),
            show(s["peak_mb"]),
            show(s["seconds_over_assay"], 2),
            show(s["peak_over_assay"], 2),
        ]
        for side, s in body["summary"].items()
    ]
    phases = [m["phases"] for m in body["measurements"] if "phases" in m]
    parts = {name: spread([step[name] for steps in phases for step in steps]) for name in phases[0][0]}
    split = table(["phase of our step", "seconds"], [[name, show(s, 1)] for name, s in parts.items()])
    columns = ["side", "seconds a step", "peak MB", "time / assay, same round", "memory / assay, same round"]
    return facts + table(columns, rows) + "\n" + split
