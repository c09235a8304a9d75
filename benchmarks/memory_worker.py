"""Worker of `memory`: one run of `assay train` and its peak."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import data
from benchmarks.worker import peak_mb
from trainer.compose import load_recipe
from trainer.config import Config
from trainer.train import train

VOCABULARY = 16384


def measure(options: dict[str, Any]) -> dict[str, Any]:
    with composed(options["overrides"]) as config:
        train(config)
        return {"measured_mb": round(peak_mb(), 1)}


@contextmanager
def composed(overrides: Sequence[str]) -> Iterator[Config]:
    """The quickstart with `overrides`, the wide vocabulary, and a run folder that vanishes."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = widened_tokenizer(Path(folder) / "tokenizer", VOCABULARY)
        yield load_recipe("quickstart", [*overrides, f"model.tokenizer={tokenizer}", f"run.dir={folder}/runs"])


def widened_tokenizer(folder: Path, vocabulary: int) -> Path:
    """The character tokenizer with words that no text contains, up to `vocabulary` entries."""
    shutil.copytree(Path(data.__file__).parent / "assets" / "char_tokenizer", folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    words |= {f"<unused {i}>": i for i in range(len(words), vocabulary)}
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder
