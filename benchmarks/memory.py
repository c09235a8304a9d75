"""Estimated against measured peak memory of whole training runs, each of two steps in a process of its own.

Models from scratch with a vocabulary of 16,384 (the character tokenizer's, filled up with words that never occur), so
that responses run to their limit and the estimate's bounds are met. Measured is the largest resident memory of the
process (VmHWM) from its start to the end of `assay train`, the checkpoint included. The error beyond the process is of
what the run allocates, without Python and torch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.memory_worker import VOCABULARY, composed
from benchmarks.report import Report, progress, table
from benchmarks.worker import run_worker
from rollout.models import load_config, load_tokenizer
from trainer.memory import estimate, model_facts

LIMIT = 0.15  # of the measured peak
_OPTIM = "optim:{lr:1.0e-4}"
_PRIME = f"sources=[{{kind:rule}},{{kind:implicit,beta:1.0,update:after,reference:frozen,{_OPTIM}}}]"
_SMALL, _MIDDLE, _LARGE, _LARGEST = (256, 704, 6), (384, 1024, 8), (512, 1408, 8), (640, 1728, 10)

# name: (hidden size, feed-forward size, layers), tokens of a micro-batch, further overrides
CONFIGURATIONS: dict[str, tuple[tuple[int, int, int], int, tuple[str, ...]]] = {
    "small, one micro-batch": (_SMALL, 2048, ("rollout.prompts_per_step=8",)),
    "large, one micro-batch": (_LARGE, 1024, ()),
    "large, four micro-batches": (_LARGE, 256, ()),
    "largest, short batch": (_LARGEST, 256, ("rollout.prompts_per_step=2",)),
    "LoRA": (_LARGE, 512, ("model.lora={rank:8,alpha:16}",)),
    "gradient checkpointing": (_LARGE, 1024, ("model.gradient_checkpointing=true",)),
    "critic": (_MIDDLE, 512, ("objective=ppo", "objective.zero_variance.drop=false")),
    "implicit PRM and reference": (_MIDDLE, 512, ("objective=prime", _PRIME)),
    "bfloat16 products": (_LARGE, 512, ("model.compute_dtype=bfloat16", "rollout.dtype=bfloat16")),
}
QUICK = ("small, one micro-batch", "LoRA")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=list(CONFIGURATIONS), default=list(CONFIGURATIONS))
    parser.add_argument("--measured", type=Path, help="estimate anew for the measurements of an earlier memory.json")


def run(options: argparse.Namespace, report: Report) -> None:
    known, earlier = {}, {}
    if options.measured is not None:
        earlier = json.loads(options.measured.read_text(encoding="utf-8"))
        known = {m["name"]: m["measured_mb"] for m in earlier["measurements"]}
    rows = []
    for name in options.only:
        row = compare(name, known[name] if name in known else measure(name, options.threads))
        rows.append(row)
        progress(f"memory, {name}: estimate {row['estimate_mb']:.0f} MB, measured {row['measured_mb']:.0f} MB")
    body = {
        "settings": {"vocabulary": VOCABULARY, "steps": 2, "limit": LIMIT},
        "measured_by": earlier.get("header"),
        "measurements": rows,
        "summary": {
            "largest_error": max((abs(r["error"]) for r in rows), default=0.0),
            "largest_error_beyond_process": max((abs(r["error_beyond_process"]) for r in rows), default=0.0),
        },
    }
    report.write(body, tables(body))


def overrides(name: str) -> list[str]:
    (hidden, feed_forward, layers), tokens, more = CONFIGURATIONS[name]
    scratch = {"hidden_size": hidden, "intermediate_size": feed_forward, "num_layers": layers, "num_kv_heads": 4}
    sizes = [f"model.scratch.{key}={value}" for key, value in scratch.items()]
    return [*BASE, *more, *sizes, f"train.max_tokens_per_microbatch={tokens}"]


def measure(name: str, threads: int) -> float:
    """MB at the peak."""
    asked = {"overrides": [*overrides(name), f"hardware.threads={threads}"]}
    return run_worker("benchmarks.memory_worker", asked)["measured_mb"]


def compare(name: str, measured: float) -> dict[str, Any]:
    """The estimate beside it. error_beyond_process: of what the run allocates, without Python, torch and tokenizer."""
    with composed(overrides(name)) as config:
        facts = model_facts(load_config(config.model, load_tokenizer(config.model)), config.model.lora)
        memory = estimate(config, facts)
    return {
        "name": name,
        "overrides": overrides(name),
        "parameters": facts.parameters,
        "tokens": config.train.max_tokens_per_microbatch,
        "terms": {term: round(value, 1) for term, value in memory.peak_terms().items()},
        "peak_in": memory.fullest,
        "estimate_mb": round(memory.total, 1),
        "measured_mb": measured,
        "error": round(memory.total / measured - 1, 4),
        "error_beyond_process": round((memory.total - measured) / (measured - memory.process), 4),
    }


BASE = (
    "~warm_start", "data.eval=[]", "eval.every_steps=null", "data.train.count=200", "train.steps=2",
    "rollout.prompts_per_step=4", "rollout.samples_per_prompt=4", "rollout.max_response_tokens=48",
    "objective.zero_variance.drop=false", "record.tensorboard=false", "alarms.max_fault_share=1.0",
)  # fmt: skip


def tables(body: dict[str, Any]) -> str:
    rows = [
        [r["name"], f"{r['parameters'] / 1e6:.1f}M", str(r["tokens"]), f"{r['estimate_mb']:.0f}",
         f"{r['measured_mb']:.0f}", f"{100 * r['error']:+.1f}%", f"{100 * r['error_beyond_process']:+.1f}%",
         r["peak_in"]]
        for r in body["measurements"]
    ]  # fmt: skip
    columns = ["configuration", "parameters", "tokens a micro-batch", "estimate MB", "measured MB", "error",
               "error beyond the process", "peak (estimate)"]  # fmt: skip
    names = list(dict.fromkeys(name for r in body["measurements"] for name in r["terms"]))
    terms = [[r["name"], *(f"{r['terms'].get(name, 0):.0f}" for name in names)] for r in body["measurements"]]
    earlier = body["measured_by"]
    made = f"Measured by `{earlier['command']}`, {earlier['date']}; estimated anew.\n\n" if earlier else ""
    return (
        made + table(columns, rows) + "\nTerms of the estimated peak, MB:\n\n" + table(["configuration", *names], terms)
    )
