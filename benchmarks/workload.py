"""Real text for the speed benchmarks: MAWPS problems, as token blocks of a given length or as prompts of the recipe."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data import Example, encode, load_examples, render
from rollout.models import load_tokenizer
from trainer.compose import load_recipe
from trainer.config import Config

RECIPE = "smollm2_mawps"


def recipe(*overrides: str) -> Config:
    """The recipe all speed benchmarks take their model and objective from, at temperature 1."""
    return load_recipe(RECIPE, ["rollout.temperature=1.0", *overrides])


def tokenizer_and_path(config: Config) -> tuple[PreTrainedTokenizerBase, Path]:
    """The tokenizer, and the local folder that the model is in."""
    tokenizer = load_tokenizer(config.model)
    return tokenizer, Path(tokenizer.name_or_path)


def token_blocks(config: Config, tokenizer: PreTrainedTokenizerBase, lengths: list[int]) -> list[list[int]]:
    """Consecutive pieces of the problems' text, tokenised and written end to end, of exactly these lengths."""
    text = "\n".join(e.question for e in _examples(config))
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if sum(lengths) > len(ids):
        raise ValueError(f"MAWPS has {len(ids)} tokens, {sum(lengths)} were asked for")
    blocks, at = [], 0
    for length in lengths:
        blocks.append(ids[at : at + length])
        at += length
    return blocks


def prompts_near(config: Config, tokenizer: PreTrainedTokenizerBase, count: int, tokens: int) -> list[str]:
    """The `count` prompts of the recipe whose lengths are nearest to `tokens`."""
    examples = _examples(config)
    distance = {e.id: abs(len(encode(e, config.template, tokenizer)) - tokens) for e in examples}
    nearest = sorted(examples, key=lambda e: distance[e.id])[:count]
    return [render(e, config.template, tokenizer) for e in nearest]


def _examples(config: Config) -> list[Example]:
    source = config.data.train
    return load_examples(source.kind, source.options, key="data.train")
