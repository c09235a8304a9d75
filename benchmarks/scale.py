"""Writes the tables of docs/scale.md: memory of one rank by model and number of GPUs. Estimated, nothing is run.

`python -m benchmarks.scale` rewrites the file between its markers; `--check` only says whether it is up to date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transformers import Qwen2Config

from benchmarks.report import table
from trainer.compose import load_recipe
from trainer.config import Config
from trainer.memory import ModelFacts, estimate, model_facts

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
BEGIN, END = "<!-- made by python -m benchmarks.scale -->", "<!-- end -->"
GPUS = (8, 16, 32, 64, 128, 256, 512)
GPU_GB = 80

# hidden size, feed-forward size, layers, heads, key-value heads, vocabulary, tied: Qwen2.5's published configurations
MODELS = {
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "32B": (5120, 27648, 64, 40, 8, 152064, False),
}
OVERRIDES = (
    "data.max_prompt_tokens=1024", "rollout.max_response_tokens=7168", "rollout.prompts_per_step=128",
    "rollout.samples_per_prompt=16", "rollout.max_rows=64", "train.minibatches_per_step=1",
    "train.max_tokens_per_microbatch=16384", "train.logprob_chunk_tokens=1024", "eval.every_steps=null", "data.eval=[]",
    "checkpoint.best_by=null",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    parsed = parser.parse_args(arguments)
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    made = f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"
    if parsed.check:
        return int(made != page)
    PAGE.write_text(made, encoding="utf-8")
    sys.stdout.write(f"written: {PAGE.name}\n")
    return 0


def tables() -> str:
    config = load_recipe("grpo_math", ["hardware=gpu8", *OVERRIDES])
    return "\n".join(f"### {name}\n\n{model_table(config, facts_of(name))}" for name in MODELS)


def facts_of(name: str) -> ModelFacts:
    hidden, feed_forward, layers, heads, kv_heads, vocabulary, tied = MODELS[name]
    return model_facts(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            tie_word_embeddings=tied,
        )
    )


def model_table(config: Config, facts: ModelFacts) -> str:
    names = ["weights", "optimizer", "gradients", "activations", "logits", "gradient_buffers", "gathered_weights"]
    columns = ["GPUs", *(name.replace("_", " ") for name in names), "learner alone", "engine's weights", "KV cache",
               "with the engine on the same GPU"]  # fmt: skip
    rows = []
    for gpus in GPUS:
        memory = estimate(config, facts, gpus, "cuda")
        updates = [terms for phase, terms in memory.phases.items() if phase.startswith("update")]
        rollout = memory.phases["rollout"]
        learner = memory.process + sum(memory.resident.values()) + max(sum(terms.values()) for terms in updates)
        shown = [gb(max(terms.get(name, 0) for terms in [memory.resident, *updates])) for name in names]
        rows.append([str(gpus), *shown, fits(learner), gb(rollout["engine_weights"]), gb(rollout["kv_cache"]),
                     f"{fits(memory.total)}, {memory.fullest}"])  # fmt: skip
    return table(columns, rows)


def gb(mb: float) -> str:
    return f"{mb / 1024:.1f}"


def fits(mb: float) -> str:
    return gb(mb) if mb / 1024 <= GPU_GB else f"**{gb(mb)}: too much**"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
