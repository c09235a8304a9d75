"""Is what was written the model that was trained? The folder is loaded with plain transformers, and its logits are
compared with the trainer's own on token sequences of the run.

Both sides compute in float32, whatever the dtype of the files: what differs is then the files, not the arithmetic.
Where the files are rounded to bfloat16, they are compared with the trainer's weights rounded likewise, and what the
rounding itself changes is reported beside.

Shapes: T tokens of a sequence; V outputs of the head.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from data import encode, load_examples
from rollout.attention import packed_forward
from rollout.models import load_policy, load_tokenizer
from rollout.packing import TokenIds, pack
from trainer.config import Config
from trainer.export.gather import Chosen, LiveModel, plain_model
from verifiers.errors import ModelError

SEQUENCES = 4
MAX_TOKENS = 128
# of the largest logit, at least of 1: two orders of float32 summation are some 1e-6 apart, a wrong tensor some 1e-1
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Comparison:
    """difference: largest absolute difference of the reloaded logits and the live model's, both with the weights as
    written. rounding: what the export's dtype alone changes, None where it is the trained one. largest: largest
    absolute logit."""

    sequences: int
    tokens: int
    difference: float
    rounding: float | None
    largest: float

    @property
    def threshold(self) -> float:
        return TOLERANCE * max(1.0, self.largest)

    @property
    def text(self) -> str:
        cast = "" if self.rounding is None else f"; rounding the weights moved a logit by up to {self.rounding:.2g}"
        return (
            f"{self.sequences} sequences of the run, {self.tokens} tokens: largest difference {self.difference:.2g} "
            f"(allowed {self.threshold:.2g}; largest logit {self.largest:.3g}){cast}"
        )


def sequences_of(run: Path, config: Config) -> list[TokenIds]:
    """Prompts with responses from the newest trajectories; where none were recorded, the last prompts of the data."""
    out: dict[str, TokenIds] = {}
    for path in sorted(run.glob("trajectories/step-*.jsonl"), reverse=True)[:1]:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            kept = row["prompt_ids"][-MAX_TOKENS // 2 :]
            out.setdefault(row["example_id"], TokenIds(kept, row["response_ids"][: MAX_TOKENS - len(kept)]))
            if len(out) == SEQUENCES:
                break
    if not out:
        tokenizer, part = load_tokenizer(config.model), config.data.train
        for example in load_examples(part.kind, part.options, key="data.train")[:SEQUENCES]:
            ids = encode(example, config.template, tokenizer)[-MAX_TOKENS:]
            out[example.id] = TokenIds(ids[:-1], ids[-1:])
    return list(out.values())


@torch.no_grad()
def packed_logits(model: Any, head: str, sequences: Sequence[TokenIds]) -> list[Tensor]:
    """The trainer's forward: all sequences packed into one row. [T, V] each; of a sequence head [1, V]."""
    (batch,) = pack(sequences, sum(len(s.prompt_ids) + len(s.response_ids) for s in sequences))
    hidden_TE = packed_forward(getattr(model, model.base_model_prefix), batch)
    project = model.get_output_embeddings() if head == "lm" else model.score
    logits_TV = project(hidden_TE.to(project.weight.dtype))
    borders = batch.cu_seqlens.tolist()
    out = {i: logits_TV[borders[slot] : borders[slot + 1]] for slot, i in enumerate(batch.sequence_index)}
    return [out[i][-1:] if head == "sequence" else out[i] for i in range(len(sequences))]


@torch.no_grad()
def plain_logits(model: Any, sequences: Sequence[TokenIds]) -> list[Tensor]:
    """A user's forward: one sequence at a time."""
    return [model(torch.tensor([s.prompt_ids + s.response_ids])).logits.flatten(0, -2) for s in sequences]


def reload(chosen: Chosen, folder: Path, adapter: bool) -> Any:
    """The folder by plain transformers (and peft), computing in float32."""
    if not adapter:
        loaded, info = getattr(transformers, chosen.architecture).from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        if wrong:
            raise ModelError(f"transformers does not find {wrong[0]} where it should be.", where=str(folder))
        return loaded.eval()
    from peft import PeftModel

    # loaded in the dtype the adapter was trained on, not converted to it: that would round the rotary frequencies too
    options = chosen.config.model
    options = options.model_copy(update={"lora": None, "master_dtype": options.compute_dtype})
    base = load_policy(options, chosen.config.seed, torch.device("cpu")).model
    base.set_attn_implementation("sdpa")
    return PeftModel.from_pretrained(base, str(folder)).float().eval()


def compare(live: LiveModel, folder: Path, dtype: torch.dtype, adapter: bool, sequences: list[TokenIds]) -> Comparison:
    """Raises `ModelError` when the logits differ by more than the threshold, or are not finite."""
    chosen = live.chosen
    trained = packed_logits(live.model, chosen.head, sequences)
    expected, rounding = trained, None
    if dtype != chosen.master_dtype and dtype != torch.float32 and not adapter:
        weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in live.weights().items()}
        expected = packed_logits(plain_model(chosen, weights), chosen.head, sequences)
        rounding = _largest_difference(expected, trained)
    found = plain_logits(reload(chosen, folder, adapter), sequences)
    largest = max(float(t.abs().max()) for t in trained)
    tokens = sum(len(s.prompt_ids) + len(s.response_ids) for s in sequences)
    result = Comparison(len(sequences), tokens, _largest_difference(found, expected), rounding, largest)
    if not result.difference <= result.threshold:  # a NaN is not
        raise ModelError(
            f"The reloaded model's logits differ from the live model's by {result.difference:.3g}.",
            where=str(folder),
            why=f"more than {result.threshold:.2g} is another model, so nothing is uploaded",
            fix="export another checkpoint with --step; if that differs as well, this is a bug: report it with the "
            "model's architecture and the version of transformers",
        )
    return result


def _largest_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            raise ModelError(f"The reloaded model gives {tuple(x.shape)} numbers, the live one {tuple(y.shape)}.")
    pairs = zip(a, b, strict=True)
    return float(torch.stack([(x.double() - y.double()).abs().max() for x, y in pairs]).max())  # a NaN stays one
