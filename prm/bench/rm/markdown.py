"""The report as markdown. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prm.bench.markdown import beside, number, percent, section

_NOTES = """\
Numbers in brackets are earned without reading anything: by a random order, by the majority class, by the base rate as
a constant score. A model that does not beat `length` and `random` has shown nothing. Strict accuracy resolves ties
against the right solution; judges that give whole numbers collapse on it, so the variant with ties stands beside it.
Best-of-n is the expectation over which n of a problem's samples are drawn. A curve whose proxy goes on rising while the
true score falls is marked as hacked; one seed is one curve.
"""


def markdown(report: Mapping[str, Any]) -> str:
    header, scorers = report["header"], report["scorers"]
    counts = ", ".join(f"{name} {count}" for name, count in header["items"].items() if count)
    sections = [
        "# Reward model\n",
        f"{counts}. Seed {header['seed']}. {header['date']}.\n",
        _NOTES,
        _rewardmath(scorers),
        _verifybench(scorers),
        _samples(scorers),
        _best_of_n(scorers),
        _steps(scorers),
    ]
    return "\n".join(one for one in sections if one)


def _rewardmath(scorers: Mapping[str, Any]) -> str:
    rows = []
    for name, found in scorers.items():
        if r := found.get("rewardmath"):
            rows.append([name, str(r["problems"]), beside(r["accuracy"], r["random_accuracy"], percent),
                         percent(r["accuracy_with_ties"]), beside(r["mrr"], r["random_mrr"], number),
                         beside(r["length_correlation"], r["label_length_correlation"], number),
                         str(r["unscored"])])  # fmt: skip
    names = ["scorer", "problems", "accuracy % (random)", "with ties %", "MRR (random)",
             "correlation with length (of the truth)", "unscored"]  # fmt: skip
    return section("RewardMATH", names, rows, left=1)


def _verifybench(scorers: Mapping[str, Any]) -> str:
    rows = []
    for name, found in scorers.items():
        for kind, r in found.get("verifybench", {}).get("types", {}).items():
            whole = found["verifybench"] if kind == "all" else {}
            rows.append([name, kind, str(r["items"]), beside(r["accuracy"], r["majority_accuracy"], percent),
                         percent(r["false_accept"]), percent(r["false_reject"]), percent(r["unparsable"]),
                         number(whole.get("auc")), beside(whole.get("brier"), whole.get("base_rate_brier"), number),
                         number(whole.get("calibration_error"))])  # fmt: skip
    names = ["scorer", "type", "items", "accuracy % (majority)", "false accept %", "false reject %", "no judgement %",
             "AUC", "Brier (base rate)", "calibration error"]  # fmt: skip
    return section("VerifyBench", names, rows, left=2)


def _samples(scorers: Mapping[str, Any]) -> str:
    rows = []
    for name, found in scorers.items():
        if r := found.get("samples"):
            rows.append([name, str(r["samples"]), str(r["problems"]), number(r["auc"]),
                         f"{number(r['within_problem'])} of {r['within_problem_pairs']}",
                         number(r["length_correlation"]), str(r["unscored"])])  # fmt: skip
    names = ["proxy", "samples", "problems", "AUC", "pairs of a problem", "correlation with length", "unscored"]
    return section("Samples of a policy", names, rows, left=1)


def _best_of_n(scorers: Mapping[str, Any]) -> str:
    rows = []
    for name, found in scorers.items():
        r = found.get("samples", {})
        for i, p in enumerate(r.get("best_of_n", [])):
            last = i == len(r["best_of_n"]) - 1
            verdict = _verdict(r["best_of_n_summary"], r["best_of_n"], "n") if last else ""
            rows.append([name, str(p["n"]), number(p["kl"]), number(p["proxy"]), number(p["gold"]),
                         number(p["gold_error"]), verdict])  # fmt: skip
    names = ["proxy", "n", "KL, nats", "proxy score", "true score", "standard error", "in the end"]
    return section("Best of n", names, rows, left=1)


def _steps(scorers: Mapping[str, Any]) -> str:
    rows = []
    for name, found in scorers.items():
        r = found.get("samples", {})
        for i, p in enumerate(r.get("steps", [])):
            last = i == len(r["steps"]) - 1
            verdict = _verdict(r["steps_summary"], r["steps"], "step") if last else ""
            rows.append([name, str(p["step"]), number(p["proxy"]), number(p["gold"]), number(p["auc"]),
                         number(p["characters"]), verdict])  # fmt: skip
    names = ["proxy", "step", "proxy score", "true score", "AUC", "characters", "in the end"]
    return section("Over training", names, rows, left=1)


def _verdict(summary: Mapping[str, Any], points: Any, key: str) -> str:
    where = f"{key} {points[summary['peak']][key]}"
    if summary["hacked"]:
        return f"hacked: {summary['lost']:.3f} below {where}"
    return f"{summary['lost']:.3f} below {where}" if summary["lost"] > 0 else "highest here"
