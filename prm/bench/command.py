"""The command ``assay bench prm``: options, scoring, report.md, report.json and steps.jsonl."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from prm.bench.items import Item, read_items
from prm.bench.markdown import markdown
from prm.bench.oracles import CORRUPTIONS, Corruption, corrupted_items, response_items
from prm.bench.report import by_split, choose_threshold, evaluate, first_errors, step_rows
from prm.bench.scorers import Scored, StepScorer, controls, predictions_from_file, score_all, scores_from_file
from verifiers.arguments import make_folder, option_values
from verifiers.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from prm.bench.models import Reading

PROG = "assay bench prm"
Progress = Callable[[str], None]
_EVERY = 100  # items between two lines of progress
_CONTROLS = tuple(controls(0))


def main(arguments: Sequence[str]) -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog=PROG, description="How well step scores tell right steps from wrong ones.")
    add_arguments(parser)
    return run(parser.parse_args(arguments))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="FILE", action="append", default=[],
        help="JSONL as of ProcessBench (a split is named after its file) or PRMBench; may be repeated")  # fmt: skip
    add("--limit", type=positive, metavar="N", help="only N rows of each file, evenly spread over it")
    add("--generator", metavar="KIND", help="problems of a generator with a step oracle: chain or countdown")
    add("--option", metavar="KEY=VALUE", action="append", default=[], help="an option of the generator (count=200)")
    add("--responses", metavar="FILE",
        help="a run's trajectories/step-*.jsonl, instead of corrupted demonstrations")  # fmt: skip
    add("--corruption", choices=CORRUPTIONS, default="digit", help="of demonstrations (default: %(default)s)")
    add("--corruptions", type=positive, metavar="N", default=3, help="corrupted solutions a problem (%(default)s)")
    add("--error-rate", type=float, metavar="P", default=0.2, help="wrong entries of a systematic error's table (0.2)")
    add("--controls", metavar="A,B", default=",".join(_CONTROLS), help="default: %(default)s; 'none' for none")
    add("--model", metavar="DIR", help="token classifier with one label, read at each step's last token")
    add("--likelihood", metavar="DIR", help="causal model whose mean log-prob of a step is a control")
    add("--implicit", metavar="DIR", help="causal model whose log-ratio to --reference scores a step (PRIME)")
    add("--reference", metavar="DIR", help="causal model")
    add("--beta", type=float, metavar="B", default=0.05, help="factor of the log-ratio (%(default)s)")
    add("--scores", metavar="FILE", help='JSONL {"id": ..., "scores": [one a step, null for none]}')
    add("--critiques", metavar="FILE", help='JSONL {"id": ..., "critiques": ["... \\boxed{2}", ...]}; several vote')
    add("--tokenizer", metavar="DIR", help="where the models' folders hold none")
    add("--template", choices=["plain", "chat"], default="plain", help="of the prompt (default: %(default)s)")
    add("--prompt", metavar="TEXT", default="{question}", help="the prompt, with {question} in it")
    add("--separator", metavar="TEXT", help=r"between steps (default: \n for a generator, else \n\n)")
    add("--max-tokens", type=positive, metavar="N", help="read no more of a solution (default: the model's positions)")
    add("--threshold", type=float, metavar="T", help="a step that scores below is judged wrong")
    add("--threshold-split", metavar="NAME", help="choose each scorer's threshold on this split")
    add("--seed", type=int, metavar="N", default=0, help="of corruptions and of the control 'random' (0)")
    add("--out", type=Path, metavar="DIR", help="folder for report.md, report.json and steps.jsonl")


def positive(text: str) -> int:
    """The type of an argument that counts something."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """0. Raises `AssayError` for what a user can fix."""
    console = Console(stderr=True)

    def progress(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    _check(args)
    if args.out is not None:
        make_folder(args.out)
    report, rows = measure(args, progress)
    text = markdown(report)
    if args.out is not None:
        _write(args.out, report, text, rows)
    Console(highlight=False).print(text, markup=False, soft_wrap=True)
    return 0


def measure(args: argparse.Namespace, progress: Progress) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(report, one row for each item and scorer)."""
    items, empty = _items(args)
    critics = {}
    if args.critiques is not None:
        critics["critiques"] = _critics(args.critiques, items)
    found: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for scored in _scored(args, items, progress):
        try:
            threshold, how = choose_threshold(scored, items, given=args.threshold, split=args.threshold_split)
        except ValueError as error:
            valid = did_you_mean(args.threshold_split, by_split(items))
            raise ConfigError(f"There is no threshold: {error}.", where="--threshold-split", fix=valid) from error
        found[scored.name] = evaluate(scored, items, threshold, how)
        rows += step_rows(scored, items, threshold)
    header = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "items": {name: len(some) for name, some in by_split(items).items()},
        "empty_responses": empty,
        "seed": args.seed,
        "settings": {name: str(value) for name, value in vars(args).items() if value not in (None, [])},
    }
    return {"benchmark": "prm", "header": header, "scorers": found, "critics": critics}, rows


def _check(args: argparse.Namespace) -> None:
    if not args.data and args.generator is None:
        raise ConfigError("There is nothing to score.", where="--data, --generator", fix="give a file or a generator")
    if args.generator is None and (args.responses or args.option):
        raise ConfigError("--responses and --option belong to a generator.", fix="add --generator chain")
    if (args.implicit is None) != (args.reference is None):
        raise ConfigError("A log-ratio needs two models.", where="--implicit, --reference", fix="give both")
    if args.threshold is not None and args.threshold_split is not None:
        raise ConfigError("The threshold is given or chosen, not both.", where="--threshold, --threshold-split")


# ---- items -------------------------------------------------------


def _items(args: argparse.Namespace) -> tuple[list[Item], int]:
    """(all items, number of empty responses)."""
    items = read_items(args.data, limit=args.limit)
    empty = 0
    if args.generator is not None:
        options = option_values(args.option)
        if args.responses is not None:
            made, empty = response_items(args.generator, options, args.responses)
        else:
            corruption = Corruption(args.corruption, args.corruptions, args.error_rate, args.seed)
            made = corrupted_items(args.generator, options, corruption)
        items += made
    if not items:
        raise DataError("There is no solution to score.", where="--data, --responses")
    return items, empty


# ---- scorers -----------------------------------------------------


def _scored(args: argparse.Namespace, items: Sequence[Item], progress: Progress) -> Iterator[Scored]:
    if args.scores is not None:
        yield scores_from_file(args.scores, items)
    for scorer in _scorers(args):

        def on_item(done: int, name: str = scorer.name) -> None:
            if done % _EVERY == 0 and name not in _CONTROLS:
                progress(f"{name}: {done} of {len(items)} solutions")

        yield score_all(scorer, items, on_item)


def _scorers(args: argparse.Namespace) -> Iterator[StepScorer]:
    names = [] if args.controls == "none" else [name.strip() for name in args.controls.split(",") if name.strip()]
    for name in names:
        if name not in _CONTROLS:
            raise ConfigError(f"Unknown control '{name}'.", where="--controls", fix=did_you_mean(name, _CONTROLS))
    if any((args.model, args.likelihood, args.implicit)):
        yield from _models(args)
    yield from (controls(args.seed)[name] for name in names)


def _models(args: argparse.Namespace) -> Iterator[StepScorer]:
    from prm.bench.models import Likelihood, LogRatio, StepClassifier

    reading, tokenizer = _reading(args), args.tokenizer
    if args.model is not None:
        yield StepClassifier(args.model, reading, tokenizer=tokenizer)
    if args.implicit is not None:
        pair = [Likelihood(folder, reading, tokenizer=tokenizer) for folder in (args.implicit, args.reference)]
        yield LogRatio(*pair, beta=args.beta)
    if args.likelihood is not None:
        yield Likelihood(args.likelihood, reading, tokenizer=tokenizer)


def _reading(args: argparse.Namespace) -> Reading:
    from data.template import TemplateOptions
    from prm.bench.models import Reading
    from verifiers.options import parse_options

    default = "\n" if args.generator is not None and not args.data else "\n\n"
    separator = default if args.separator is None else args.separator.replace("\\n", "\n")
    template = parse_options(TemplateOptions, {"kind": args.template, "prompt": args.prompt}, "--template")
    return Reading(template, separator, args.max_tokens)


def _critics(path: str, items: Sequence[Item]) -> dict[str, Any]:
    asked = [item for item in items if item.kind != "prmbench"]
    if not asked:
        raise DataError("PRMBench asks for every step, a critique names the first wrong one.", where="--critiques")
    return first_errors(asked, predictions_from_file(path, asked))


# ---- files -------------------------------------------------------


def _write(folder: Path, report: dict[str, Any], text: str, rows: Sequence[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    try:
        (folder / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(text, encoding="utf-8")
        (folder / "steps.jsonl").write_text(lines, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The report cannot be written: {error}.", where="--out") from error
