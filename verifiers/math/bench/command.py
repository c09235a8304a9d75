"""The command ``assay bench math``: options, measurement, files and the summary on the terminal."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from verifiers.arguments import make_folder, option_values
from verifiers.errors import ConfigError, DataError
from verifiers.math.bench.cases import (
    SHIPPED_CASES,
    SHIPPED_DISPUTES,
    Case,
    Dispute,
    in_category,
    load_cases,
    load_disputes,
)
from verifiers.math.bench.hostile import hostile_cases
from verifiers.math.bench.measure import Progress, interleaved_rounds, start_error, survivals
from verifiers.math.bench.peers import CONTESTANTS, OURS, Contestant, contestants
from verifiers.math.bench.plot import svg
from verifiers.math.bench.report import Measured, build, markdown, percent, short


def run(arguments: Sequence[str]) -> int:
    """Measure and write. 0 if it was measured; raises `AssayError` for what a user can fix, before any compute."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)

    def progress(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    report = build(measure(options, progress))
    if options.out is not None:
        write(options.out, report)
    _summary(report, options.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="assay bench math", description="How often the verifier 'math' and its peers are right, on labelled cases."
    )
    add = parser.add_argument
    add("--cases", type=Path, metavar="FILE", default=SHIPPED_CASES, help="labelled cases, JSONL (default: shipped)")
    add("--disputed", type=Path, metavar="FILE", help="labels believed wrong, JSONL (default: shipped)")
    add("--out", type=Path, metavar="DIR", help="folder for report.md, report.json and report.svg")
    add("--verifiers", metavar="A,B", default=",".join(CONTESTANTS), help="default: all (%(default)s)")
    add("--option", metavar="KEY=VALUE", action="append", default=[], help="an option of ours; may be repeated")
    add("--category", metavar="NAME", help="only the cases of this category")
    add("--no-hostile", action="store_true", help="leave the hostile inputs out")
    add("--rounds", type=_positive, metavar="N", default=3, help="passes over the cases (default: 3)")
    add("--workers", type=_positive, metavar="N", default=1, help="worker processes of each verifier (default: 1)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def measure(options: argparse.Namespace, progress: Progress) -> Measured:
    labelled, hostile = _cases(options)
    disputes = _disputes(options, labelled)
    if options.out is not None:
        make_folder(options.out)
    chosen, not_measured = _startable(options)
    rounds = {}
    if labelled:
        rounds = interleaved_rounds(chosen, labelled, rounds=options.rounds, workers=options.workers, progress=progress)
    survived = {contestant.name: survivals(contestant, hostile, progress) for contestant in chosen} if hostile else {}
    settings = {"rounds": options.rounds, "workers": options.workers, "category": options.category or "all"}
    return Measured(options.cases, labelled, disputes, chosen, rounds, survived, not_measured, settings)


def _cases(options: argparse.Namespace) -> tuple[list[Case], list[Case]]:
    """Labelled cases, and hostile inputs: the generated ones and those of the file without a label."""
    cases = load_cases(options.cases) + hostile_cases()
    if options.category is not None:
        cases = in_category(cases, options.category)
    hostile = [] if options.no_hostile else [case for case in cases if case.label is None]
    labelled = [case for case in cases if case.label is not None]
    if not labelled and not hostile:
        raise DataError("There is no case to judge.", where=str(options.cases))
    return labelled, hostile


def _disputes(options: argparse.Namespace, labelled: Sequence[Case]) -> Mapping[str, Dispute]:
    """Only the shipped disputes of the shipped cases must fit: another file may hold some of the cases only."""
    file = options.disputed or SHIPPED_DISPUTES
    whole = options.category is None and (options.disputed is not None or options.cases == SHIPPED_CASES)
    ids = {case.id for case in labelled}
    return {name: one for name, one in load_disputes(file, labelled if whole else None).items() if name in ids}


def _startable(options: argparse.Namespace) -> tuple[list[Contestant], dict[str, str]]:
    """The verifiers asked for that run here, and why the others do not."""
    chosen, not_measured = [], {}
    for contestant in contestants([name.strip() for name in options.verifiers.split(",") if name.strip()]):
        if contestant.name == OURS:
            contestant = replace(contestant, options={**contestant.options, **option_values(options.option)})
        if contestant.missing:
            not_measured[contestant.name] = f"not installed ({', '.join(contestant.missing)})"
        elif (why := start_error(contestant)) is not None:
            not_measured[contestant.name] = why
        else:
            chosen.append(contestant)
    if not chosen:
        raise ConfigError(
            "None of the verifiers can be measured here.",
            where="--verifiers",
            why="; ".join(f"{name}: {why}" for name, why in not_measured.items()) or None,
        )
    return chosen, not_measured


def write(folder: Path, report: Mapping[str, Any]) -> None:
    """report.json, report.md and report.svg, all made from `report`."""
    make_folder(folder)
    content = json.dumps(report, indent=1, allow_nan=False)
    (folder / "report.json").write_text(content + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8", errors="replace")
    (folder / "report.svg").write_text(svg(report), encoding="utf-8")


def _summary(report: Mapping[str, Any], out: Path | None) -> None:
    console = Console(highlight=False)
    table = Table("verifier", title=f"{report['header']['cases']['labelled']} labelled cases")
    for column in ("accuracy", "FPR", "FNR", "unjudged", "hostile survived", "verdicts per CPU s", f"{OURS} faster by"):
        table.add_column(column, justify="right")
    for name, result in report["verifiers"].items():
        table.add_row(name, *_summary_cells(name, result, report["ratios_to_ours"]))
    console.print(table)
    for name, why in report["not_measured"].items():
        console.print(f"not measured: {name}: {why}", markup=False)
    if OURS in report["verifiers"]:
        ours = f"{len(report['disagreements'])} disagreements with the labels, {len(report['unjudged'])} unjudged"
        console.print(f"{OURS}: {ours}", markup=False)
    if out is not None:
        console.print(f"written: {out / 'report.md'}, .json and .svg", markup=False, soft_wrap=True)


def _summary_cells(name: str, result: Mapping[str, Any], ratios: Mapping[str, Any]) -> list[str]:
    cells = [""] * 4
    speed = ""
    if "overall" in result:
        overall = result["overall"]
        kinds = ("accuracy", "false_positive_rate", "false_negative_rate")
        cells = [*(percent(overall[kind]) for kind in kinds), str(sum(overall["unjudged"].values()))]
        speed = short(result["throughput"]["verdicts_per_cpu_second"]["median"])
    hostile = f"{result['hostile']['survived']}/{result['hostile']['inputs']}" if "hostile" in result else ""
    return [*cells, hostile, speed, f"{short(ratios[name]['median'])}x" if name in ratios else ""]
