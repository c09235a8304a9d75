"""The command ``assay bench sandbox``: options, measurement, report.json and report.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from verifiers.code.bench import accuracy, corpus, throughput
from verifiers.code.bench.report import failures, markdown
from verifiers.code.verifier import CodeVerifier
from verifiers.code.walls import Tier
from verifiers.errors import ConfigError, VerifierError

SECTIONS = ("corpus", "references", "responses", "throughput")
_MEMORY_MB = 1024


def run(arguments: Sequence[str]) -> int:
    """0, or 1 if something that must hold does not. Raises `VerifierError` if no tier works here."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)

    def progress(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    report = measure(options, progress)
    text = markdown(report)
    if options.out is not None:
        write(options.out, report, text)
    Console(highlight=False).print(text, markup=False, soft_wrap=True)
    return int(bool(failures(report)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="assay bench sandbox", description="Attack the sandbox of the kind 'code', check its verdicts, time it."
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="folder for report.md and report.json")
    add("--only", metavar="A,B", default=",".join(SECTIONS), help="sections (default: %(default)s)")
    add("--tier", choices=[Tier.NAMESPACES.value, Tier.LANDLOCK.value], help="default: every one that works here")
    add("--responses", type=Path, metavar="DIR", help="labelled completions of HumanEval: a folder with samples.jsonl")
    add("--every", type=_positive, metavar="N", default=1, help="only each N-th program, task and completion")
    add("--programs", type=_positive, metavar="N", default=60, help="programs with 5 stdin tests in a round (60)")
    add("--functions", type=_positive, metavar="N", default=200, help="functions with 20 calls in a round (200)")
    add("--rounds", type=_positive, metavar="N", default=3, help="rounds of the throughput measurement (3)")
    add("--workers", type=_positive, metavar="N", default=2, help="programs at one time (2)")
    add("--timeout-s", type=float, metavar="S", default=5.0, help="CPU seconds of one run (5)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def measure(options: argparse.Namespace, progress: accuracy.Progress) -> dict[str, Any]:
    """The whole report as plain JSON data."""
    sections = _sections(options.only)
    samples = None
    if options.responses is not None and "responses" in sections:
        samples = accuracy.labelled(options.responses, options.every)
    with ExitStack() as stack:
        stack.enter_context(corpus.canaries())
        make = partial(CodeVerifier, memory_mb=_MEMORY_MB, workers=options.workers)
        verifiers, refused = _start(options, make, stack)
        tier, best = next(iter(verifiers.items()))
        report: dict[str, Any] = {"benchmark": "sandbox", "header": _header(options, tier), "refused": refused}
        if "corpus" in sections:
            report["corpus"] = {name: _corpus(verifier, name, options.every, progress)
                                for name, verifier in verifiers.items()}  # fmt: skip
        if "references" in sections:
            patient = partial(make, best.options, timeout_s=accuracy.SLOW_FACTOR * options.timeout_s)
            report["references"] = accuracy.judge_references(best, patient, options.every, progress)
        if samples is not None:
            report["responses"] = accuracy.judge_labelled(best, samples, progress)
        if "throughput" in sections:
            figures, missing = throughput.measure(
                verifiers, programs=options.programs, functions=options.functions, rounds=options.rounds,
                workers=options.workers, progress=progress,
            )  # fmt: skip
            report["throughput"] = {"samples": figures, "medians": throughput.medians(figures), "not_measured": missing}
        report["counters"] = {name: dict(verifier.sandbox.counters) for name, verifier in verifiers.items()}
    return report


def _sections(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in SECTIONS]
    if unknown or not names:
        raise ConfigError(
            f"Unknown section '{', '.join(unknown)}'.", where="--only", fix=f"valid: {', '.join(SECTIONS)}"
        )
    return names


def _start(options: argparse.Namespace, make: Any, stack: ExitStack) -> tuple[dict[str, CodeVerifier], dict[str, str]]:
    """A verifier for each tier that works, the strongest first, and why the others do not."""
    verifiers, refused = {}, {}
    for tier in [options.tier] if options.tier else [Tier.NAMESPACES.value, Tier.LANDLOCK.value]:
        try:
            verifier = make(CodeVerifier.Options.model_validate({"isolation": tier}), timeout_s=options.timeout_s)
        except VerifierError as error:
            refused[tier] = error.what
            continue
        verifiers[tier] = stack.enter_context(closing(verifier))
    if not verifiers:
        raise VerifierError("No tier of the sandbox works here: " + "; ".join(refused.values()))
    return verifiers, refused


def _corpus(verifier: CodeVerifier, tier: str, every: int, progress: accuracy.Progress) -> list[dict[str, Any]]:
    programs = [program for name in corpus.FILES for program in corpus.load(name)][::every]
    progress(f"{len(programs)} programs of the corpus in tier {tier}")
    with corpus.Listeners() as listeners:
        return [corpus.judge(verifier, listeners, program) for program in programs]


def _header(options: argparse.Namespace, tier: str) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version(),
                    "user": "root" if os.geteuid() == 0 else "ordinary"},
        "verdicts_in_tier": tier,
        "settings": {"every": options.every, "workers": options.workers, "timeout_s": options.timeout_s,
                     "memory_mb": _MEMORY_MB, "rounds": options.rounds, "programs": options.programs,
                     "functions": options.functions},
    }  # fmt: skip


def write(folder: Path, report: dict[str, Any], text: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The report cannot be written: {error}.", where="--out") from error
