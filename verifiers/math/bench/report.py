"""The report as data (`build`, which is report.json) and as Markdown (`markdown`)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from verifiers.math.bench.cases import Case, Dispute
from verifiers.math.bench.measure import HOSTILE_LIMIT_S, HOSTILE_MEMORY_MB, Round, Survival
from verifiers.math.bench.peers import OURS, Contestant
from verifiers.math.bench.statistics import Agreement, Outcome, agreement, spread
from verifiers.verdict import Verdict

PACKAGES = ("assay-rl", "math-verify", "latex2sympy2_extended", "sympy", "trl", "verl")
_SHOWN_CHARS = 160
_CLOCK_FLOOR_S = 0.001  # a coarse clock may see nothing of a short round


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that was measured. cases: the labelled ones. not_measured: name -> why."""

    cases_file: Path
    cases: Sequence[Case]
    disputes: Mapping[str, Dispute]
    contestants: Sequence[Contestant]
    rounds: Mapping[str, Sequence[Round]]
    survivals: Mapping[str, Sequence[Survival]]
    not_measured: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def build(measured: Measured) -> dict[str, Any]:
    """The whole report as plain JSON data."""
    return {
        "benchmark": "math",
        "header": header(measured),
        "verifiers": {contestant.name: _verifier(measured, contestant) for contestant in measured.contestants},
        "not_measured": dict(measured.not_measured),
        "ratios_to_ours": _ratios(measured.rounds),
        "disagreements": _disagreements(measured),
        "unjudged": _unjudged(measured),
        "disputed": {dispute.id: dispute.model_dump() for dispute in measured.disputes.values()},
    }


def header(measured: Measured) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cases": {
            "file": measured.cases_file.name,
            "sha256": hashlib.sha256(measured.cases_file.read_bytes()).hexdigest(),
            "labelled": len(measured.cases),
            "labelled_right": sum(bool(case.label) for case in measured.cases),
        },
        "settings": dict(measured.settings),
        "machine": {
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "system": platform.platform(),
            "load_average": [round(load, 2) for load in os.getloadavg()],
        },
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _verifier(measured: Measured, contestant: Contestant) -> dict[str, Any]:
    rounds = measured.rounds.get(contestant.name, [])
    result: dict[str, Any] = {"about": contestant.about, "options": dict(contestant.options)}
    if rounds and measured.cases:
        pairs = list(zip(measured.cases, rounds[0].verdicts, strict=True))
        result |= {
            "overall": _agreement(pairs).as_dict(),
            "boxed_only": _agreement([pair for pair in pairs if pair[0].is_boxed]).as_dict(),
            "without_disputed": _agreement([pair for pair in pairs if pair[0].id not in measured.disputes]).as_dict(),
            "by_category": {
                category: _agreement([pair for pair in pairs if pair[0].category == category]).as_dict()
                for category in sorted({case.category for case in measured.cases})
            },
            "verdicts_that_vary": _varying(measured.cases, rounds),
            "throughput": _throughput(rounds),
        }
    if contestant.name in measured.survivals:
        result["hostile"] = _hostile(measured.survivals[contestant.name])
    return result


def _agreement(pairs: Sequence[tuple[Case, Verdict]]) -> Agreement:
    return agreement(
        Outcome(bool(case.label), None if verdict.score is None else verdict.score >= 0.5, str(verdict.status))
        for case, verdict in pairs
    )


def _varying(cases: Sequence[Case], rounds: Sequence[Round]) -> list[str]:
    """Ids of the cases that did not get the same score in every round."""
    scores = [[verdict.score for verdict in one.verdicts] for one in rounds]
    return [case.id for case, seen in zip(cases, zip(*scores, strict=True), strict=True) if len(set(seen)) > 1]


def _throughput(rounds: Sequence[Round]) -> dict[str, Any]:
    per_cpu_s = [_per_cpu_s(one) for one in rounds]
    per_wall_s = [len(one.verdicts) / one.wall_s for one in rounds]
    return {
        "verdicts_per_cpu_second": spread(per_cpu_s) | {"rounds": per_cpu_s},
        "verdicts_per_wall_second": spread(per_wall_s) | {"rounds": per_wall_s},
    }


def _per_cpu_s(one: Round) -> float:
    return len(one.verdicts) / max(one.cpu_s, _CLOCK_FLOOR_S)


def _ratios(rounds: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """Our verdicts per CPU second over those of each other verifier, within each round."""
    ours = rounds.get(OURS, [])
    return {
        name: spread([_per_cpu_s(mine) / _per_cpu_s(other) for mine, other in zip(ours, theirs, strict=True)])
        for name, theirs in rounds.items()
        if name != OURS and ours and ours[0].verdicts
    }


def _hostile(survivals: Sequence[Survival]) -> dict[str, Any]:
    peaks = [survival.peak_mb for survival in survivals if survival.peak_mb is not None]
    return {
        "inputs": len(survivals),
        "survived": sum(survival.survived for survival in survivals),
        "in_time": sum(survival.in_time for survival in survivals),
        "workers_lost": sum(survival.lost_worker for survival in survivals),
        "next_answer_right": sum(survival.next_right for survival in survivals),
        "slowest_s": max((survival.wall_s for survival in survivals), default=None),
        "peak_mb": max(peaks, default=None),
        "cases": [
            {
                "id": survival.case.id,
                "category": survival.case.category,
                "what": survival.case.why,
                "status": str(survival.verdict.status),
                "score": survival.verdict.score,
                "survived": survival.survived,
                "wall_s": round(survival.wall_s, 4),
                "peak_mb": survival.peak_mb,
                "lost_worker": survival.lost_worker,
                "next_right": survival.next_right,
            }
            for survival in survivals
        ],
    }


def _our_pairs(measured: Measured) -> list[tuple[Case, Verdict]]:
    rounds = measured.rounds.get(OURS)
    return list(zip(measured.cases, rounds[0].verdicts, strict=True)) if rounds else []


def _disagreements(measured: Measured) -> list[dict[str, Any]]:
    """Where our verdict contradicts the label, in full."""
    return [
        _row(case, verdict, measured.disputes)
        for case, verdict in _our_pairs(measured)
        if verdict.score is not None and (verdict.score >= 0.5) != case.label
    ]


def _unjudged(measured: Measured) -> list[dict[str, Any]]:
    return [_row(case, verdict, measured.disputes) for case, verdict in _our_pairs(measured) if verdict.score is None]


def _row(case: Case, verdict: Verdict, disputes: Mapping[str, Dispute]) -> dict[str, Any]:
    dispute = disputes.get(case.id)
    return {
        "id": case.id,
        "category": case.category,
        "gold": case.gold,
        "response": case.response,
        "answer": verdict.answer,
        "label": case.label,
        "status": str(verdict.status),
        "score": verdict.score,
        "evidence": verdict.evidence,
        "why": case.why,
        "source": case.source,
        "dispute": dispute.reason if dispute else None,
    }


# Markdown ------------------------------------------------------------------------------------------------------------

_CONVENTIONS = f"""FPR: accepted among the answers labelled wrong. FNR: refused among those labelled right.
Accuracy: agreeing with the label. All three are over the cases the verifier judged; in brackets the 95% Wilson
interval. *Unjudged* are its faults, time-outs and abstentions: they are no wrong answers, and *agreement* counts them
as failures to agree. Labels count as they are given; *without disputed* leaves out the cases whose label a maintainer
disputes.

A hostile input is *survived* if a verdict came within {HOSTILE_LIMIT_S:g} s of wall time (then the worker is killed),
the worker was not lost, no process passed {HOSTILE_MEMORY_MB} MB of resident memory, and the next, ordinary answer was
judged rightly.

Throughput is verdicts per second of CPU time of the worker processes: one pass over all cases, new workers, warmed up
on other requests, verifiers alternating within each round. Median of the rounds, smallest and largest in brackets."""


def markdown(report: Mapping[str, Any]) -> str:
    sections = [
        "# Accuracy of the math verifiers",
        _caption(report["header"]),
        "![False positives and false negatives](report.svg)",
        "## All cases",
        _overall_table(report),
        _CONVENTIONS,
        _not_measured(report),
        "## Hostile inputs",
        _hostile_tables(report),
        "## Categories",
        _category_table(report),
    ]
    if OURS in report["verifiers"]:
        sections += [
            "## Our disagreements with the labels",
            _row_table(report["disagreements"]) or "None.",
            "## What we did not judge",
            _row_table(report["unjudged"]) or "Nothing: every case got a score.",
        ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _caption(header: Mapping[str, Any]) -> str:
    cases, machine = header["cases"], header["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in header["packages"].items() if version)
    settings = ", ".join(f"{name} {value}" for name, value in header["settings"].items())
    return (
        f"`{cases['file']}` (sha256 {cases['sha256'][:16]}): {cases['labelled']} labelled cases, "
        f"{cases['labelled_right']} right and {cases['labelled'] - cases['labelled_right']} wrong. {header['date']}; "
        f"{settings}; {machine['cores']} cores, {machine['memory_gb']} GB, load {machine['load_average'][0]}; "
        f"Python {header['python']}, {versions}. Every figure is in `report.json`."
    )


def _overall_table(report: Mapping[str, Any]) -> str:
    columns = ["verifier", "accuracy", "FPR", "FNR", "unjudged", "agreement", "without disputed",
               "boxed only: accuracy", "verdicts per CPU second", f"{OURS} is faster by"]  # fmt: skip
    rows = []
    for name, result in report["verifiers"].items():
        if "overall" not in result:
            continue
        overall = result["overall"]
        unjudged = ", ".join(f"{number} {status}" for status, number in overall["unjudged"].items())
        ratio = report["ratios_to_ours"].get(name)
        rows.append(
            [
                name,
                percent(overall["accuracy"], interval=True),
                percent(overall["false_positive_rate"], interval=True),
                percent(overall["false_negative_rate"], interval=True),
                unjudged or "0",
                percent(overall["agreement"]),
                percent(result["without_disputed"]["accuracy"]),
                percent(result["boxed_only"]["accuracy"]),
                _show(result["throughput"]["verdicts_per_cpu_second"]),
                _show(ratio) if ratio else "",
            ]
        )
    return _table(columns, rows) if rows else "No labelled case was judged."


def _not_measured(report: Mapping[str, Any]) -> str:
    return "".join(f"- Not measured: {name}: {why}\n" for name, why in report["not_measured"].items()).rstrip()


def _hostile_tables(report: Mapping[str, Any]) -> str:
    measured = {name: result["hostile"] for name, result in report["verifiers"].items() if "hostile" in result}
    if not measured:
        return "Not run."
    rows = [
        [name, f"{result['survived']}/{result['inputs']}", f"{result['in_time']}", f"{result['workers_lost']}",
         f"{result['next_answer_right']}", f"{result['slowest_s']:.2f}",
         "unknown" if result["peak_mb"] is None else f"{result['peak_mb']:.0f}"]
        for name, result in measured.items()
    ]  # fmt: skip
    columns = ["verifier", "survived", "verdict in time", "workers lost", "next answer right", "slowest, s", "peak, MB"]
    text = _table(columns, rows)
    lost = [case for case in measured.get(OURS, {}).get("cases", []) if not case["survived"]]
    details = [
        [case["id"], case["what"], case["status"], f"{case['wall_s']:.2f}", "yes" if case["lost_worker"] else "no"]
        for case in lost
    ]
    if details:
        text += f"\nNot survived by {OURS}:\n\n" + _table(["id", "what", "status", "s", "worker lost"], details)
    return text.rstrip()


def _category_table(report: Mapping[str, Any]) -> str:
    measured = {name: result["by_category"] for name, result in report["verifiers"].items() if "by_category" in result}
    if not measured:
        return "No labelled case was judged."
    first = next(iter(measured.values()))
    rows = [
        [category, str(first[category]["agreement"]["total"]),
         *(f"{percent(result[category]['accuracy'])} ({percent(result[category]['false_positive_rate'])} / "
           f"{percent(result[category]['false_negative_rate'])})" for result in measured.values())]
        for category in first
    ]  # fmt: skip
    return "Accuracy (FPR / FNR).\n\n" + _table(["category", "cases", *measured], rows).rstrip()


def _row_table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = ["id", "category", "gold", "answer", "label", "verdict", "evidence", "tests", "disputed because"]
    table = [
        [row["id"], row["category"], _code(row["gold"]), _code(row["answer"] or f"…{row['response'][-60:]}"),
         "right" if row["label"] else "wrong", row["status"], _code(row["evidence"]), _cell(row["why"]),
         _cell(row["dispute"] or "")]
        for row in rows
    ]  # fmt: skip
    return _table(columns, table).rstrip() if table else ""


def percent(rate: Mapping[str, Any], *, interval: bool = False) -> str:
    """``97.3% (95.9 to 98.2)``; "-" where nothing was judged."""
    if rate["value"] is None:
        return "-"
    text = f"{100 * rate['value']:.1f}%"
    return f"{text} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})" if interval else text


def _show(values: Mapping[str, float]) -> str:
    """``median (min to max)``."""
    return f"{short(values['median'])} ({short(values['min'])} to {short(values['max'])})"


def short(value: float) -> str:
    """Two or more digits that mean something, whatever the size."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _cell(text: str) -> str:
    """On one line, as text that no Markdown reader takes for a column or a formula."""
    shown = " ".join(text.split())
    shown = shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + "…"
    return shown.replace("|", "\\|").replace("$", "\\$")


def _code(text: str) -> str:
    shown = " ".join(text.encode("utf-8", "replace").decode().replace("`", "'").split())
    shown = shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + "…"
    return f"`{shown.replace('|', '¦')}`" if shown else "(empty)"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
