"""The report of ``assay bench sandbox`` as Markdown, and what in it must hold and does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verifiers.code.bench.corpus import CATEGORIES
from verifiers.code.bench.throughput import BARE

MIN_AGREEMENT = 0.99


def failures(report: Mapping[str, Any]) -> list[str]:
    """What must hold and does not. Throughput is a figure, not a requirement: it is the machine's as well."""
    found = [f"{tier}: {row['id']}: {problem}" for tier, rows in report.get("corpus", {}).items()
             for row in rows for problem in row["problems"]]  # fmt: skip
    for suite, result in report.get("references", {}).items():
        found += [f"{suite}: {task}: {words}" for task, words in result["failed"].items()]
    responses = report.get("responses")
    if responses and responses["agreed"] < MIN_AGREEMENT * responses["completions"]:
        found.append(f"only {responses['agreed']} of {responses['completions']} labels are reproduced")
    return found


def markdown(report: Mapping[str, Any]) -> str:
    header = report["header"]
    machine = header["machine"]
    lines = [
        "# Sandbox",
        f"{header['date']}, {machine['system']}, {machine['cores']} cores, Python {machine['python']}, "
        f"{machine['user']} user. Settings: {', '.join(f'{k} {v}' for k, v in header['settings'].items())}.",
        *(f"Not available here: {words}" for words in report["refused"].values()),
        *_corpus(report.get("corpus")),
        *_references(report),
        *_responses(report.get("responses")),
        *_throughput(report.get("throughput")),
        "## What does not hold",
        "\n".join(f"- {words}" for words in failures(report)) or "Nothing.",
    ]
    return "\n\n".join(lines) + "\n"


def _corpus(tiers: Mapping[str, Any] | None) -> list[str]:
    if tiers is None:
        return []
    rows = []
    for category, words in CATEGORIES.items():
        cells = [words]
        for results in tiers.values():
            mine = [row for row in results if row["category"] == category]
            cells.append(f"{sum(not row['problems'] for row in mine)} of {len(mine)}")
        rows.append(cells)
    return ["## Programs that behave as they should", _table(["", *(f"tier {tier}" for tier in tiers)], rows)]


def _references(report: Mapping[str, Any]) -> list[str]:
    if "references" not in report:
        return []
    rows = [[suite, f"{r['passed']} of {r['tasks']}", ", ".join(r["slow"]) or "none", ", ".join(r["failed"]) or "none"]
            for suite, r in report["references"].items()]  # fmt: skip
    table = _table(["", "pass", "of these under ten times the time limit only", "fail"], rows)
    return [f"## Reference solutions, tier {report['header']['verdicts_in_tier']}", table]


def _responses(responses: Mapping[str, Any] | None) -> list[str]:
    if responses is None:
        return []
    share = responses["agreed"] / max(1, responses["completions"])
    text = f"{responses['agreed']} of {responses['completions']} labels are reproduced ({100 * share:.2f}%)."
    lines = ["## Labelled completions", text]
    if responses["differences"]:
        rows = [[d["completion"], d["label"], _cell(d["verdict"])] for d in responses["differences"]]
        lines.append(_table(["completion", "label", "verdict"], rows))
    return lines


def _throughput(figures: Mapping[str, Any] | None) -> list[str]:
    if figures is None:
        return []
    bare = figures["medians"].get(BARE, {}).get("stdin_per_s")
    rows = []
    for way, median in figures["medians"].items():
        stdin = median.get("stdin_per_s")
        rows.append([way, _number(stdin), f"{stdin / bare:.2f}" if stdin and bare else "",
                     _number(median.get("functions_per_s")), _number(median.get("one_run_ms"))])  # fmt: skip
    columns = ["median of the rounds", "programs with 5 stdin tests / s", f"to {BARE}", "functions with 20 calls / s",
               "one run, ms"]  # fmt: skip
    lines = ["## Throughput", _table(columns, rows)]
    missing = figures["not_measured"]
    if missing:
        lines.append("Not measured: " + "; ".join(f"{name} ({why})" for name, why in missing.items()) + ".")
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(columns), ["---"] * len(columns), *rows])
