"""A coverage-guided fuzz run, whatever is fuzzed: start libFuzzer on a target, read what it says, write the report.

The target is a module that calls `benchmarks.fuzzing_target.main` with what runs one input; it writes ``state.json``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, Report, progress
from verifiers.errors import RunError

HANG_S = 60
_STATUS = re.compile(r"#(\d+)\s+(\w+).*?cov: (\d+) ft: (\d+) corp: (\d+)/(\S+).*?exec/s: (\d+) rss: (\d+)Mb")


@dataclass(frozen=True, slots=True)
class Campaign:
    """name: of the module, of its target (``NAME_target``) and of the report. tokens: of the dictionary. max_bytes: of
    one input. memory_mb: above which the run ends."""

    name: str
    description: str
    seeds: Callable[[], Iterable[bytes]]
    tokens: Iterable[str]
    max_bytes: int
    memory_mb: int


# (facts of the run and `findings` so far, state of the target) -> the whole body of the report
Complete = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def run(
    campaign: Campaign, arguments: list[str], complete: Complete, tables: Callable[[Mapping[str, Any]], str]
) -> int:
    """0 if nothing was found, else 1."""
    options = _parser(campaign).parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(campaign.name, options)
    module = f"-m benchmarks.{campaign.name}"
    report.header["command"] = report.header["command"].replace("-m benchmarks", module, 1)
    started = time.monotonic()
    exit_code = _fuzz(campaign, options)
    body = complete(*_outcome(campaign, options, exit_code, time.monotonic() - started))
    report.write(body, tables(body))
    return 1 if body["findings"] else 0


def _parser(campaign: Campaign) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{campaign.name}", description=campaign.description)
    parser.add_argument("--seconds", type=int, default=3_600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for corpus, log and what was found")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"folder for {campaign.name}.json and .md")
    parser.set_defaults(threads=1)
    return parser


def _fuzz(campaign: Campaign, options: argparse.Namespace) -> int:
    """libFuzzer's exit code: 0 unless it had to stop for a hang, for memory or for a crash of the interpreter."""
    seeds, corpus = options.out / "seeds", options.out / "corpus"
    for folder in (seeds, corpus):
        folder.mkdir(exist_ok=True)
    for number, seed in enumerate(campaign.seeds()):
        (seeds / f"{number:05d}").write_bytes(seed)
    dictionary = options.out / "tokens.dict"
    dictionary.write_text("".join(f'"{_quoted(token)}"\n' for token in campaign.tokens), encoding="ascii")
    command = [
        sys.executable, "-m", f"benchmarks.{campaign.name}_target", "--out", str(options.out),
        f"-max_total_time={options.seconds}", f"-seed={options.seed + 1}", f"-dict={dictionary}", "-len_control=20",
        f"-max_len={campaign.max_bytes}", f"-timeout={HANG_S}", f"-rss_limit_mb={campaign.memory_mb}",
        "-print_final_stats=1", f"-artifact_prefix={options.out}/", str(corpus), str(seeds),
    ]  # fmt: skip
    progress(f"fuzzing for {options.seconds} s; log: {options.out / 'libfuzzer.log'}")
    with (options.out / "libfuzzer.log").open("w") as log:
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode


def _quoted(token: str) -> str:
    """As libFuzzer's dictionaries want it."""
    return "".join(f"\\x{byte:02x}" for byte in token.encode())


def _outcome(
    campaign: Campaign, options: argparse.Namespace, exit_code: int, wall_s: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what every report holds, the target's state)."""
    state_file, log_file = options.out / "state.json", options.out / "libfuzzer.log"
    log = log_file.read_text(encoding="utf-8", errors="replace")
    if not state_file.exists():
        raise RunError("The fuzzer did not start.", where=str(log_file), fix=log[-500:])
    state = json.loads(state_file.read_text(encoding="utf-8"))
    statuses = _STATUS.findall(log)
    last = statuses[-1]
    findings = dict(state["findings"])
    if exit_code != 0:
        findings[f"libFuzzer stopped with {exit_code}"] = {"log": log[-2_000:]}
    facts = {
        "settings": {"seconds": options.seconds, "seed": options.seed, "max_bytes": campaign.max_bytes,
                     "memory_mb": campaign.memory_mb},
        "wall_s": round(wall_s, 1),
        "executions": int(last[0]),
        "executions_by_target": state["executions"],
        "executions_per_s": round(int(last[0]) / wall_s, 1),
        "coverage": {"edges": int(last[2]), "features": int(last[3])},
        "growth": [{"executions": int(s[0]), "edges": int(s[2])} for s in _thinned(statuses)],
        "corpus": {"inputs": int(last[4]), "size": last[5]},
        "peak_rss_mb": max(int(s[7]) for s in statuses),
        "findings": findings,
    }  # fmt: skip
    return facts, state


def _thinned(statuses: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """One status line for each doubling of the executions."""
    kept: list[tuple[str, ...]] = []
    for status in statuses:
        if not kept or int(status[0]) >= 2 * int(kept[-1][0]):
            kept.append(status)
    return [*kept, statuses[-1]]


# Tables --------------------------------------------------------------------------------------------------------------


def run_rows(body: Mapping[str, Any]) -> list[list[str]]:
    """The first rows of the table of a run."""
    coverage = body["coverage"]
    return [
        ["wall time", f"{body['wall_s']:.0f} s"],
        ["executions", f"{body['executions']} ({by_target(body['executions_by_target'])})"],
        ["executions a second", f"{body['executions_per_s']}"],
        ["branches covered", f"{coverage['edges']} edges, {coverage['features']} features (libFuzzer's cov and ft)"],
        ["corpus", f"{body['corpus']['inputs']} inputs, {body['corpus']['size']}"],
        ["peak memory of the process, with the fuzzer's own", f"{body['peak_rss_mb']} MB"],
        ["findings", str(len(body["findings"]))],
    ]


def by_target(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def growth(body: Mapping[str, Any]) -> str:
    return "Edges by executions: " + ", ".join(f"{g['edges']} at {g['executions']}" for g in body["growth"]) + ".\n"


def found_rows(body: Mapping[str, Any]) -> list[list[str]]:
    return [[name, as_code(json.dumps(finding)[:200])] for name, finding in body["findings"].items()]


def as_code(text: str) -> str:
    return "`" + text[:100].replace("\n", "⏎").replace("|", "¦").replace("`", "'") + "`"
