"""What reward sources cost beside their model forwards, and whether their models share the policy's packed batches.

`python -m benchmarks.source_overhead` trains each CPU recipe for some steps in this process, with an exclusive
stopwatch around every call of a source: time inside a model (forward, backward, optimizer step), the engine, the
verifier, a judge or the generator's program is theirs, what is left is the source's own. Packing is counted: how often
sequences were packed in a step, how often a packing was there already, and how many of the packed tokens are padding.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

import data.chain
import prm.cotrained
import trainer.learner
from benchmarks.report import RESULTS, Report, progress, spread, table
from prm.judge.base import JUDGES
from prm.signal import SOURCES
from rollout import packing
from rollout.packed_model import PackedModel
from rollout.torch_engine import TorchEngine
from trainer.compose import load_recipe
from trainer.loop import run_steps
from trainer.session import Session
from trainer.train import start
from verifiers.runner import Runner

RECIPES = ("prime_chain", "oreal_chain", "tp_grpo_chain", "step_prm_chain", "orm_chain", "clip_delta_chain",
           "co_reward_chain", "cooper_chain")  # fmt: skip
SMALL = ["warm_start.steps=60", "eval.every_steps=null", "data.eval.0.source.max_examples=8",
         "checkpoint.every_steps=null", "record.tensorboard=false", "record.trajectories=false",
         "hardware.threads=1"]  # fmt: skip
FEWER = {"oreal_chain": ["sources.1.warmup_steps=1"]}  # or the policy would learn in none of them
PHASES = ("start", "score", "credit", "learn")


class Stopwatch:
    """Seconds by label, exclusive: what runs inside something else counts there only."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._stack: list[str] = []
        self._since = time.perf_counter()

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    @contextmanager
    def __call__(self, label: str) -> Iterator[None]:
        self._switch()
        self._stack.append(label)
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()

    def around(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(label):
                result = function(*args, **kwargs)
            return self.around(result, label) if label == "source" and callable(result) else result

        return timed


def measured(recipe: str, steps: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Seconds a step by label, for the steps after the first two, and the packings."""
    overrides = [f"run.dir={folder}", f"train.steps={steps}", *FEWER.get(recipe, []), *overrides]
    config = load_recipe(recipe, [*SMALL, *overrides])
    watch, packed = Stopwatch(), Counter[str]()
    pack_one, pack = packing._pack_one, packing.Packer.pack

    def counted_pack(self: packing.Packer, sequences: Any, max_tokens: int, device: Any) -> Any:
        before = packed["new"]
        batches = pack(self, sequences, max_tokens, device)
        packed["shared"] += packed["new"] == before
        packed["tokens"] += sum(len(b.ids_T) for b in batches)
        packed["real_tokens"] += sum(len(s.prompt_ids) + len(s.response_ids) for s in sequences)
        return batches

    def counted_one(*args: Any) -> Any:
        packed["new"] += 1
        return pack_one(*args)

    patches = [
        patch.object(PackedModel, "forward", watch.around(PackedModel.forward, "model")),
        patch.object(torch.Tensor, "backward", watch.around(torch.Tensor.backward, "model")),
        patch.object(prm.cotrained, "clip_and_step", watch.around(prm.cotrained.clip_and_step, "model")),
        patch.object(trainer.learner, "clip_and_step", watch.around(trainer.learner.clip_and_step, "model")),
        patch.object(TorchEngine, "generate", watch.around(TorchEngine.generate, "engine")),
        patch.object(TorchEngine, "load_weights", watch.around(TorchEngine.load_weights, "engine")),
        patch.object(Runner, "submit", watch.around(Runner.submit, "verifier")),
        patch.object(Runner, "verify", watch.around(Runner.verify, "verifier")),
        patch.object(data.chain, "label_lines", watch.around(data.chain.label_lines, "oracle")),
        patch.object(packing.Packer, "pack", counted_pack),
        patch.object(packing, "_pack_one", counted_one),
    ]
    for name in JUDGES.names():
        judge = JUDGES.get(name, key="judge")
        patches.append(patch.object(judge, "ask", watch.around(judge.ask, "judge")))
    kinds = {part.kind for part in config.sources}
    for kind in kinds:
        source = SOURCES.get(kind, key="sources.kind")
        patches += [patch.object(source, phase, watch.around(getattr(source, phase), "source"))
                    for phase in PHASES if hasattr(source, phase)]  # fmt: skip
    with Session(config) as session:
        session.folder.open(config, "", {})
        state = start(session)
        for p in patches:
            p.start()
        marks: list[Counter[str]] = []
        append = session.folder.append_timings

        def mark(step: int, timings: dict[str, float]) -> None:
            append(step, timings)
            marks.append(Counter(watch.seconds) | Counter({"step": timings["step_s"]}))

        session.folder.append_timings = mark  # type: ignore[method-assign, assignment]
        try:
            run_steps(session, state)
        finally:
            for p in patches:
                p.stop()
    labels = sorted({label for m in marks for label in m} - {"step"})
    by_step = [{label: b[label] - a[label] for label in labels} | {"step": b["step"]}
               for a, b in pairwise(marks)][1:]  # fmt: skip
    share = spread([100 * s.get("source", 0.0) / s["step"] for s in by_step])
    return {"recipe": recipe, "steps": by_step, "own_share": share, "packing": dict(packed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--overrides", nargs="*", default=[])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = Report("source_overhead", options)
    found = []
    with tempfile.TemporaryDirectory(prefix="assay-overhead-") as folder:
        for recipe in options.recipes:
            found.append(measured(recipe, options.steps, Path(folder) / recipe, options.overrides))
            progress(f"{recipe}: own share {found[-1]['own_share']['median']:.1f}%")
    rows = []
    for f in found:
        seconds = {label: median(s.get(label, 0.0) for s in f["steps"])
                   for label in ("step", "source", "model", "engine", "verifier", "judge", "oracle")}  # fmt: skip
        p, share = f["packing"], f["own_share"]
        rows.append([f["recipe"], f"{share['median']:.1f}% ({share['min']:.1f} to {share['max']:.1f})",
                     *(f"{seconds[label]:.3f}" for label in seconds), str(p["shared"]),
                     str(p["tokens"] - p["real_tokens"])])  # fmt: skip
    columns = ["recipe", "the sources' own share of a step", "step, s", "sources' own", "models", "engine", "verifier",
               "judge", "the generator's program", "packings that were there already", "padding tokens"]  # fmt: skip
    report.write({"found": found}, table(columns, rows))


if __name__ == "__main__":
    main()
