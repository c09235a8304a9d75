"""The command `assay`. Heavy imports happen inside the commands, so that the light ones answer at once.

Exit codes: 0 done; 1 `doctor` found a problem, `verify` could not judge its one response, or what a `bench` must show
does not hold; 2 an error with a message for the user; 130 interrupted; 143 stopped by SIGTERM after saving a
checkpoint.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.export import add_arguments

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.fit_config import FitConfig

Command = Callable[[argparse.Namespace], int]

TRACEBACK_VARIABLE = "ASSAY_TRACEBACK"
_BENCHES = {
    "math": "verifiers.math.bench",
    "iou": "verifiers.visual.bench",
    "sandbox": "verifiers.code.bench",
    "prm": "prm.bench",
    "rm": "prm.bench.rm",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (default: the process's arguments) and return its exit code."""
    parsed = _parse(sys.argv[1:] if arguments is None else list(arguments))
    if parsed.command is _doctor:  # must answer even where another package hides ours
        return _doctor(parsed)
    try:
        from verifiers.errors import AssayError
    except ImportError as error:
        sys.stderr.write(f"assay's own packages cannot be imported ({error}): run `assay doctor`\n")
        return 2
    try:
        return parsed.command(parsed)
    except AssayError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="assay", description="Reinforcement learning with rewards that can be checked."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    overrides = "key.path=value, group=choice (hardware=gpu1), ~key; after the recipe"

    def add(name: str, command: Command, help_text: str, *, recipe: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=help_text)
        sub.set_defaults(command=command, takes_overrides=recipe)
        if recipe:
            sub.add_argument("recipe", metavar="RECIPE", help="name of a shipped recipe, or the path of your own .yaml")
            sub.add_argument("overrides", metavar="OVERRIDE", nargs="*", default=[], help=overrides)
        return sub

    add("train", _train, "Train a model by a recipe; continues an unfinished run of the same name.", recipe=True)
    check = add("check", _check, "Validate a recipe, its data and its model without training.", recipe=True)
    check.add_argument("--gpus", metavar="N", type=int, help="estimate the memory of one of N ranks with a GPU each")
    check.add_argument("--calibrate", action="store_true", help="measure the model here, and say how long a run takes")
    evaluate = add("eval", _eval, "Evaluate a checkpoint on the evaluation sets of a recipe.", recipe=True)
    evaluate.add_argument("--checkpoint", metavar="PATH", required=True, help="folder of a checkpoint or of a model")
    text = "Write the training questions of a recipe in other words, by a model behind an OpenAI-compatible server."
    paraphrase = add("paraphrase", _paraphrase, text, recipe=True)
    paraphrase.add_argument("--out", metavar="FILE", type=Path, required=True, help="JSONL; a report goes beside it")
    for name, known in (("judge", "base_url, model, cache_file, ...: see docs/judge.md"),
                        ("option", "temperature, max_tokens, tries, check_share")):  # fmt: skip
        paraphrase.add_argument(f"--{name}", metavar="KEY=VALUE", action="append", default=[], help=known)
    add("recipes", _recipes, "List the shipped recipes.")
    add("doctor", _doctor, "Say what works on this machine: versions, devices, extras, shadowed packages.")
    replay = add("replay", _replay, "Repeat the step that an alarm stopped, from its bundle.")
    replay.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that the alarm wrote")
    bench = add("bench", _bench, "Measure a verifier on labelled cases, beside other graders.")
    bench.add_argument("suite", metavar="SUITE", choices=sorted(_BENCHES), help=" or ".join(sorted(_BENCHES)))
    bench.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="see `assay bench SUITE --help`")
    export_help = "Write a model of a run as a checked Hugging Face folder with its card, and upload it."
    add_arguments(add("export", _export, export_help))
    _add_verifier_commands(commands)

    parsed, rest = parser.parse_known_args(arguments)
    # argparse does not take further positional arguments after an option; overrides may stand there.
    unknown = [word for word in rest if word.startswith("-") or not parsed.takes_overrides]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _add_verifier_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    try:
        from verifiers.cli import add_commands
    except ImportError:  # another package hides ours: `main` says so, and `doctor` must still answer
        return
    add_commands(commands)


def _load(parsed: argparse.Namespace) -> Config:
    from trainer.compose import load_recipe

    return load_recipe(parsed.recipe, parsed.overrides)


def _load_any(parsed: argparse.Namespace) -> Config | FitConfig:
    from trainer.compose import load_any

    return load_any(parsed.recipe, parsed.overrides)


def _train(parsed: argparse.Namespace) -> int:
    config = _load_any(parsed)
    from trainer.fit import fit
    from trainer.fit_config import FitConfig
    from trainer.train import StopRequested, train

    if not isinstance(config, FitConfig) and config.engine == "verl":
        from trainer.verl.run import train
    try:
        path = fit(config) if isinstance(config, FitConfig) else train(config)
    except StopRequested as stop:
        sys.stderr.write(f"{stop}\n")
        return 128 + signal.SIGTERM
    for line in _outcome(path / "summary.json"):
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"{path}\n")
    return 0


def _outcome(summary: Path) -> list[str]:
    """What training changed, one line a metric."""
    if not summary.exists():
        return []
    evaluations = json.loads(summary.read_text(encoding="utf-8"))["evaluations"]
    return [
        f"{name}: {e['before']['value']:.3f} -> {e['after']['value']:.3f}{_interval(e['after'])}"
        for name, e in evaluations.items()
        if e["before"] and e["after"]
    ]


def _interval(estimate: dict[str, float]) -> str:
    known = "low" in estimate and "high" in estimate
    return f" (95% interval {estimate['low']:.3f} to {estimate['high']:.3f})" if known else ""


def _check(parsed: argparse.Namespace) -> int:
    config = _load_any(parsed)
    from rich.console import Console

    from trainer.derived import render_table
    from trainer.fit import check_fit
    from trainer.fit_config import FitConfig
    from trainer.preflight import check
    from verifiers.errors import ConfigError

    if isinstance(config, FitConfig):
        if parsed.calibrate:
            raise ConfigError("--calibrate is for recipes with rollouts.", where=parsed.recipe, fix="leave it out")
        report = check_fit(config, parsed.gpus)
    else:
        if config.engine == "verl":
            from trainer.verl import translate

            translate.check(config)
        report = check(config, parsed.gpus, parsed.calibrate)
    console = Console()
    console.print(render_table(report.derived))
    for line in report.lines:
        console.print(line, highlight=False, markup=False)
    console.print(f"{parsed.recipe} can be run.", highlight=False, markup=False)
    return 0


def _eval(parsed: argparse.Namespace) -> int:
    config = _load(parsed)
    from trainer.evaluate import evaluate_checkpoint

    metrics = evaluate_checkpoint(config, parsed.checkpoint)
    sys.stdout.write(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    return 0


def _paraphrase(parsed: argparse.Namespace) -> int:
    config = _load(parsed)
    from trainer.paraphrase import paraphrase
    from verifiers.cli import key_values

    judge, options = key_values(parsed.judge, "--judge"), key_values(parsed.option, "--option")
    found = paraphrase(config, judge, parsed.out, options)
    for name, value in found.summary.items():
        sys.stdout.write(f"{name.replace('_', ' ')}: {'unknown' if value is None else value}\n")
    sys.stdout.write(f"{parsed.out}\n")
    return 0


def _recipes(parsed: argparse.Namespace) -> int:
    from trainer.compose import recipe_index

    index = recipe_index()
    width = max(len(name) for name, _ in index)
    for name, description in index:
        sys.stdout.write(f"{name:<{width}}  {description}\n")
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    from trainer.doctor import run

    return run()


def _replay(parsed: argparse.Namespace) -> int:
    from trainer.replay import replay

    for line in replay(parsed.bundle):
        sys.stdout.write(f"{line}\n")
    return 0


def _export(parsed: argparse.Namespace) -> int:
    from trainer.export.command import run

    return run(parsed)


def _bench(parsed: argparse.Namespace) -> int:
    return importlib.import_module(_BENCHES[parsed.suite]).main(parsed.arguments)


if __name__ == "__main__":
    sys.exit(main())
