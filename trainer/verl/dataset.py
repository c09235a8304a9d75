"""The recipe's examples for verl: JSON lines that were written before the start, prompts already tokenised."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from data.example import Example
from trainer.verl.step import example_fields


def write_examples(
    examples: Sequence[Example], prompt_ids: Mapping[str, list[int]], path: Path, *, name: str, evaluation: bool
) -> None:
    """name: of the data set, under which verl reports its metrics."""
    with path.open("a", encoding="utf-8") as file:
        for example in examples:
            row = {"name": name, "evaluation": evaluation, "example": example_fields(example, prompt_ids[example.id])}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


class RecipeDataset(Dataset):
    """As verl builds one (``data.custom_cls``). A row has the fields that verl and its metrics read, and the example as
    text: queues and Arrow would change nested data."""

    def __init__(self, data_files: Any, **_: Any):
        files = [data_files] if isinstance(data_files, str) else list(data_files)
        # not splitlines: JSON leaves line separators such as U+2028 as they are
        lines = [line for file in files for line in Path(file).read_text("utf-8").split("\n")]
        self.rows = [json.loads(line) for line in lines if line]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        example = row["example"]
        return {
            "raw_prompt": [{"role": role, "content": content} for role, content in example["prompt"]],
            "data_source": row["name"],
            "reward_model": {"ground_truth": json.dumps(example["gold"])},
            "extra_info": {"index": index, "evaluation": row["evaluation"], "example": json.dumps(example)},
            "index": index,
            "dummy_tensor": torch.zeros(1, dtype=torch.uint8),  # verl's batches must hold a tensor
        }
