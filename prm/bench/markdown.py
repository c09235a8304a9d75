"""The report as markdown. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prm.bench.report import SAME_ITEMS

_NOTES = f"""\
A score says how likely a step is right; higher is better. AUC of 0.5 is chance; under it a scorer points the wrong way.
Numbers in brackets are earned without reading anything: by the majority class, by the share of right steps as a
constant score, by a random order. A scorer that does not beat the rows of `length`, `position` and `likelihood` has
shown nothing. Where the truth is known up to the first wrong step only (ProcessBench), that step is the last one known,
so `position` is never wrong within a response: read AUC there. A threshold chosen on {SAME_ITEMS} flatters what is
measured under it.
"""


def markdown(report: Mapping[str, Any]) -> str:
    scorers, critics = report["scorers"], report["critics"]
    sections = [
        "# Step scores\n",
        _header(report["header"]),
        _NOTES,
        _thresholds(scorers),
        _first_errors({**scorers, **critics}),
        _prmbench(scorers),
        _steps(scorers),
        _responses(scorers),
    ]
    return "\n".join(section for section in sections if section)


def _header(header: Mapping[str, Any]) -> str:
    splits = ", ".join(f"{name} {count}" for name, count in header["items"].items())
    lines = [f"Items: {splits}. Seed {header['seed']}. {header['date']}."]
    if header["empty_responses"]:
        lines.append(f"{header['empty_responses']} empty responses have no step and are left out.")
    return "\n".join(lines) + "\n"


def _thresholds(scorers: Mapping[str, Any]) -> str:
    rows = [
        [name, r["scale"], number(r["threshold"]["value"]), r["threshold"]["chosen_on"], str(r["steps_unscored"])]
        for name, r in scorers.items()
    ]
    return section("Scorers", ["scorer", "scale", "threshold", "chosen on", "steps without a score"], rows, left=4)


def _first_errors(results: Mapping[str, Any]) -> str:
    rows = []
    for name, result in results.items():
        for split, r in result.get("first_error", {}).items():
            counts = f"{r['erroneous']} / {r['correct']}"
            rows.append([name, split, counts, percent(r["acc_err"]), percent(r["acc_cor"]), percent(r["f1"]),
                         beside(r["accuracy"], r["majority_accuracy"], percent), str(r["unparsable"])])  # fmt: skip
        if len(result.get("first_error", {})) > 1:
            rows.append([name, "**mean**", "", "", "", f"**{percent(result['mean_f1'])}**", "", ""])
    names = ["scorer", "split", "wrong / right", "acc_err %", "acc_cor %", "F1", "exact % (majority)", "unparsable"]
    return section("First wrong step (ProcessBench's protocol)", names, rows, left=2)


def _prmbench(scorers: Mapping[str, Any]) -> str:
    rows = []
    for name, result in scorers.items():
        for split, r in result.get("prmbench", {}).items():
            shares = [r[key] for key in ("f1", "f1_neg", "prmscore", "prmscore_strict", "first_error_acc")]
            accuracy = beside(r["total_step_acc"], r["majority_acc"], percent)
            rows.append([name, split, str(r["items"]), *map(percent, shares), accuracy, number(r["similarity"]),
                         percent(r["validity_rate"])])  # fmt: skip
    names = ["scorer", "class", "items", "F1", "F1_neg", "PRMScore", "strict", "first error %", "steps % (majority)",
             "similarity", "readable %"]  # fmt: skip
    return section("PRMBench", names, rows, left=2)


def _steps(scorers: Mapping[str, Any]) -> str:
    rows = []
    for name, result in scorers.items():
        for split, r in result["steps"].items():
            rows.append([name, split, str(r["steps"]), percent(r["right"]), number(r["auc"]),
                         number(r["auc_to_first_error"]), number(r["within_response"]),
                         beside(r["accuracy"], r["majority_accuracy"], percent),
                         beside(r.get("brier"), r.get("base_rate_brier"), number),
                         number(r.get("calibration_error"))])  # fmt: skip
    names = ["scorer", "split", "steps", "right %", "AUC", "to the first error", "within a response",
             "accuracy % (majority)", "Brier (base rate)", "calibration error"]  # fmt: skip
    return section("Steps", names, rows, left=2)


def _responses(scorers: Mapping[str, Any]) -> str:
    rows = []
    for name, result in scorers.items():
        for split, table in result["responses"].items():
            shown = f"{table['solutions']} ({table['right']})" + (
                f", {table['left_out']} left out" * bool(table["left_out"])
            )
            for how, r in table["aggregations"].items():
                rows.append([name, split, how, shown, number(r["auc"]), _of_pairs(r), *_rewardmath(r["rewardmath"]),
                             number(r["length_correlation"])])  # fmt: skip
    names = ["scorer", "split", "aggregation", "solutions (right)", "AUC", "pairs of a problem",
             "best of all % (random)",
             "with ties %", "MRR (random)", "correlation with the number of steps"]  # fmt: skip
    return section("Whole solutions", names, rows, left=3)


def _of_pairs(r: Mapping[str, Any]) -> str:
    return f"{number(r['pairwise_accuracy'])} of {r['pairs']}" if r["pairs"] else ""


def _rewardmath(r: Mapping[str, Any] | None) -> list[str]:
    if r is None:
        return ["", "", ""]
    return [beside(r["accuracy"], r["random_accuracy"], percent), percent(r["accuracy_with_ties"]),
            beside(r["mrr"], r["random_mrr"], number)]  # fmt: skip


def section(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A table with its first `left` columns aligned to the left; nothing without rows."""
    if not rows:
        return ""
    aligned = ["---"] * left + ["---:"] * (len(names) - left)
    lines = ["| " + " | ".join(cells) + " |" for cells in (names, aligned, *rows)]
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def beside(value: float | None, baseline: float | None, shown: Any) -> str:
    return "" if value is None else f"{shown(value)} ({shown(baseline)})"
