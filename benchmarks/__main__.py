"""`python -m benchmarks [NAME [options]]`: one benchmark, or all of them one after the other with their defaults."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import torch

from benchmarks.report import RESULTS, Report
from verifiers.errors import AssayError

NAMES = (
    "decode", "train_step", "grpo_step", "objective", "objectives", "quickstart", "mawps", "verifier_pool",
    "math_responses", "iou", "sandbox", "code_rlvr", "vllm_engine", "memory",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """0 if every benchmark asked for was measured, else 1."""
    parser = _parser()
    if arguments:
        return _run(parser.parse_args(arguments))
    failed = [name for name in NAMES if _run(parser.parse_args([name])) != 0]
    if failed:
        sys.stderr.write(f"not measured: {', '.join(failed)} (the reasons stand above)\n")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Without NAME: all benchmarks.")
    commands = parser.add_subparsers(required=True, metavar="NAME", dest="name")
    for name in NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        summary = str(module.__doc__).splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's own choice")
        command.add_argument("--results", type=Path, default=RESULTS, help="folder for NAME.json and NAME.md")
        module.add_options(command)
    return parser


def _run(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    report = Report(options.name, options)
    try:
        importlib.import_module(f"benchmarks.{options.name}").run(options, report)
    except AssayError as error:
        sys.stderr.write(f"{options.name}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
