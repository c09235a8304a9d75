"""`assay export`: a checkpoint of a run as a folder that plain transformers loads, checked, described and uploaded.

`gather` writes the folder, `check` reloads it and compares logits, `card` and `curves` describe it, `secrets` searches
it, `upload` sends it, `command` puts them in order. Heavy imports happen when the command runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `assay export`, for `trainer.export.command.run`."""
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, or the name of one in runs/")
    parser.add_argument("--to", metavar="ORG/NAME", help="repository on the hub; without it nothing is uploaded")
    parser.add_argument(
        "--what", metavar="MODEL", default="policy", help="policy (default), critic, prm or another of the checkpoint"
    )
    parser.add_argument("--step", metavar="N|best", help="which checkpoint (default: the newest)")
    parser.add_argument("--public", action="store_true", help="let everyone see the repository (default: private)")
    parser.add_argument("--dry-run", action="store_true", help="make and check the folder, show it, and send nothing")
    parser.add_argument("--max-shard-size", metavar="SIZE", default="5GB", help="of one weights file (default: 5GB)")
    parser.add_argument(
        "--lora", choices=["merged", "adapter"], default="merged", help="of a LoRA run: how (default: merged)"
    )
    parser.add_argument(
        "--dtype",
        choices=["master", "float32", "bfloat16"],
        default="master",
        help="of the weights (default: as they were trained)",
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="default: RUN/exports/MODEL-step-N")
    parser.add_argument("--base-model", metavar="ORG/NAME", help="hub id of the base, where the run had it elsewhere")
    parser.add_argument("--license", metavar="ID", help="licence of the export (default: that of the base, if known)")
    parser.add_argument("--tag", action="store_true", help="tag the commit step-N")
