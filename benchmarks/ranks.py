"""Memory of two ranks while a model is loaded and while the engine takes its weights, beside that of earlier code.

`python -m benchmarks.ranks --code NAME=FOLDER ...` runs each checkout in turn, `--repeats` times: two ranks on this
machine's CPU, a model from scratch with 82 million parameters in float32, FSDP2, the torch engine. Measured for each
rank: the largest resident memory of the phase, beyond what the process held before (Linux only).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.faults import torchrun
from benchmarks.memory_worker import VOCABULARY, widened_tokenizer
from benchmarks.report import RESULTS, ROOT, Report, portable, progress, table

RANKS = 2
PHASES = ("loading", "weights to the engine")
SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_layers": 8, "num_kv_heads": 4,
         "num_heads": 12}  # fmt: skip
BASE = ("~warm_start", "data.eval=[]", "eval.every_steps=null", "data.train.count=50", "rollout.prompts_per_step=2",
        "rollout.samples_per_prompt=2", "rollout.max_response_tokens=16", "record.tensorboard=false",
        "hardware.threads=1")  # fmt: skip


def run_ranks(code: Path) -> list[dict[str, Any]]:
    """What each rank found."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = widened_tokenizer(folder / "tokenizer", VOCABULARY)
        sizes = ["model.scratch.tie_embeddings=false"] + [
            f"model.scratch.{key}={value}" for key, value in SIZES.items()
        ]
        overrides = [*BASE, *sizes, f"model.tokenizer={tokenizer}", f"run.dir={folder}/runs"]
        worker = str(ROOT / "benchmarks" / "ranks_worker.py")
        command = [*torchrun("--standalone", "--nproc-per-node", str(RANKS)), worker, name, *overrides]
        environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=code, env=environment, stdout=sys.stderr, check=True)
        return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]


def tables(body: dict[str, Any]) -> str:
    rows = []
    for m in body["measurements"]:
        for rank, found in enumerate(m["ranks"]):
            cells = [f"{found[phase][what]:.0f}" for phase in PHASES for what in ("peak_mb", "resident_mb")]
            rows.append([m["code"], str(m["repeat"]), str(rank), *cells])
    columns = ["code", "repeat", "rank", *(f"{phase}, {what}" for phase in PHASES for what in ("peak", "after it"))]
    return f"MB beyond the process. The whole model: {body['settings']['model_mb']:.0f} MB.\n\n" + table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", action="append", metavar="NAME=FOLDER", help="default: now=this checkout")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    report = Report("ranks", options)
    report.header["command"] = portable(["python", "-m", "benchmarks.ranks", *sys.argv[1:]])
    arms = dict(entry.split("=", 1) for entry in options.code or [f"now={ROOT}"])
    e, f = SIZES["hidden_size"], SIZES["intermediate_size"]
    kv = SIZES["num_kv_heads"] * e // SIZES["num_heads"]
    parameters = SIZES["num_layers"] * (2 * e * e + 2 * e * kv + 3 * e * f + 2 * e) + 2 * VOCABULARY * e + e
    measurements = []
    for repeat in range(options.repeats):
        for name, folder in arms.items():
            found = run_ranks(Path(folder).resolve())
            measurements.append({"code": name, "repeat": repeat, "ranks": found})
            progress(f"ranks, {name}, {repeat}: {found}")
    settings = {"ranks": RANKS, "parameters": parameters, "model_mb": round(4 * parameters / 2**20, 1), **SIZES}
    body = {"settings": settings, "measurements": measurements}
    report.write(body, tables(body))


if __name__ == "__main__":
    main()
