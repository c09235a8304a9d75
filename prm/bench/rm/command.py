"""The command ``assay bench rm``: options, scoring, report.md, report.json and scores.jsonl."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from data.labelled import LabelledResponse
from prm.bench.command import positive
from prm.bench.rm.items import Item, Problem, Sample, read_rewardmath, read_run, read_samples, read_verifybench
from prm.bench.rm.markdown import markdown
from prm.bench.rm.report import rewardmath_report, samples_report, verifybench_report
from prm.bench.rm.scorers import Control, ResponseScorer, Trained, Verified, scores_from_file
from verifiers.arguments import make_folder, option_values
from verifiers.errors import ConfigError, did_you_mean

PROG = "assay bench rm"
CONTROLS = ("length", "constant", "random")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def main(arguments: Sequence[str]) -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog=PROG, description="How good a reward model is, and when optimising it fails.")
    add_arguments(parser)
    return run(parser.parse_args(arguments))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rewardmath", metavar="FILE", action="append", default=[], help="JSONL id, problem, chosen, rejected")
    add("--verifybench", metavar="FILE", action="append", default=[],
        help="JSONL question, gold_answer, completion, gold_correct, answer_type, answer_subtype")  # fmt: skip
    add("--samples", metavar="FILE", action="append", default=[],
        help="a run's trajectories or evaluations, or JSONL group, prompt, response, gold: best-of-n")  # fmt: skip
    add("--run", metavar="DIR", help="a run folder: the curve over its steps, by --proxy")
    add("--proxy", metavar="KEY", help="number in the rows that stands for the reward (reward, sources.bt_rm.score)")
    add("--model", metavar="DIR", help="reward model that `assay train` left")
    add("--verifier", metavar="KIND", help="rule verifier, on what has a reference answer")
    add("--option", metavar="KEY=VALUE", action="append", default=[], help="an option of the verifier")
    add("--scores", metavar="FILE", help='JSONL {"id", "score"} or {"id", "output"} (a judge\'s text, last yes or no)')
    add("--controls", metavar="A,B", default=",".join(CONTROLS), help="default: %(default)s; 'none' for none")
    add("--threshold", type=float, metavar="T", default=0.5, help="VerifyBench: above it is right (%(default)s)")
    add("--n", metavar="A,B", default=",".join(map(str, SIZES)), help="sizes of best-of-n (%(default)s)")
    add("--max-tokens-per-microbatch", type=positive, metavar="N", default=16384, help="of --model (%(default)s)")
    add("--device", metavar="D", default="cpu", help="of --model (%(default)s)")
    add("--seed", type=int, metavar="N", default=0, help="of the control 'random' (0)")
    add("--out", type=Path, metavar="DIR", help="folder for report.md, report.json and scores.jsonl")


def run(args: argparse.Namespace) -> int:
    """0. Raises `AssayError` for what a user can fix."""
    _check(args)
    if args.out is not None:
        make_folder(args.out)
    report, rows = measure(args)
    text = markdown(report)
    if args.out is not None:
        _write(args.out, report, text, rows)
    Console(highlight=False).print(text, markup=False, soft_wrap=True)
    return 0


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(report, one row for each response and scorer)."""
    problems, items = read_rewardmath(args.rewardmath), read_verifybench(args.verifybench)
    samples = [s for path in args.samples for s in read_samples(path, args.proxy)]
    samples += read_run(args.run, args.proxy) if args.run is not None else []
    sizes = _sizes(args.n)
    found: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    if args.proxy is not None and samples:
        found[args.proxy] = {"samples": samples_report(samples, [s.proxy for s in samples], sizes)}
    if problems or items or (samples and args.proxy is None):
        for scorer in _scorers(args):
            found[scorer.name] = _of_scorer(scorer, problems, items, [] if args.proxy else samples, sizes, args, rows)
    counts = {"RewardMATH problems": len(problems), "VerifyBench items": len(items), "samples": len(samples)}
    header = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "items": counts,
        "seed": args.seed,
        "settings": {name: str(value) for name, value in vars(args).items() if value not in (None, [])},
    }
    return {"benchmark": "rm", "header": header, "scorers": found}, rows


def _of_scorer(
    scorer: ResponseScorer,
    problems: Sequence[Problem],
    items: Sequence[Item],
    samples: Sequence[Sample],
    sizes: Sequence[int],
    args: argparse.Namespace,
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """What a scorer earns on each protocol it can be asked about; a verifier needs a reference answer."""
    found: dict[str, Any] = {"scale": scorer.scale}

    def scores(asked: Sequence[LabelledResponse]) -> list[float | None]:
        given = scorer.score(asked)
        rows.extend({"id": one.id, "scorer": scorer.name, "score": score, "label": one.label}
                    for one, score in zip(asked, given, strict=True))  # fmt: skip
        return given

    has_reference = not isinstance(scorer, Verified)
    if problems and has_reference:
        found["rewardmath"] = rewardmath_report(problems, scores([one for p in problems for one in p.asked]))
    if items and scorer.scale == "probability":
        given = scores([item.asked for item in items])
        found["verifybench"] = verifybench_report(items, given, scorer.scale, args.threshold)
    if samples and has_reference:
        found["samples"] = samples_report(samples, scores([s.asked for s in samples]), sizes)
    return found


def _scorers(args: argparse.Namespace) -> Iterator[ResponseScorer]:
    if args.scores is not None:
        yield scores_from_file(args.scores)
    if args.model is not None:
        yield Trained(args.model, args.max_tokens_per_microbatch, args.device)
    if args.verifier is not None:
        verified = Verified(args.verifier, option_values(args.option))
        try:
            yield verified
        finally:
            verified.close()
    names = [] if args.controls == "none" else [name.strip() for name in args.controls.split(",") if name.strip()]
    for name in names:
        if name not in CONTROLS:
            raise ConfigError(f"Unknown control '{name}'.", where="--controls", fix=did_you_mean(name, CONTROLS))
        yield Control(name, args.seed)


def _check(args: argparse.Namespace) -> None:
    if not (args.rewardmath or args.verifybench or args.samples or args.run):
        raise ConfigError("There is nothing to score.", where="--rewardmath, --verifybench, --samples, --run")
    if args.run is not None and args.proxy is None:
        raise ConfigError("What the run was rewarded by is not named.", where="--proxy",
                          fix="--proxy reward, or a source's score: --proxy sources.bt_rm.score")  # fmt: skip
    if args.option and args.verifier is None:
        raise ConfigError("--option belongs to a verifier.", where="--option", fix="add --verifier math")
    if args.verifier is not None and not args.verifybench:
        raise ConfigError("A verifier needs reference answers.", where="--verifier", fix="add --verifybench FILE")


def _sizes(text: str) -> list[int]:
    sizes = [part.strip() for part in text.split(",")]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ConfigError(f"'{text}' is no list of sizes.", where="--n", fix="--n 1,2,4,8")
    return [int(size) for size in sizes]


def _write(folder: Path, report: dict[str, Any], text: str, rows: Sequence[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    try:
        (folder / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(text, encoding="utf-8")
        (folder / "scores.jsonl").write_text(lines, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The report cannot be written: {error}.", where="--out") from error
