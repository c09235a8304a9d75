"""`assay bench iou`: the kinds `iou`, `grounding` and `classify` on golden cases, hostile outputs and perturbed boxes.

Writes bench_iou.json and bench_iou.md. What must hold is checked, and the exit code is 1 if something does not.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verifiers import iou as iou_kind
from verifiers.errors import ConfigError, MissingExtraError
from verifiers.runner import Runner
from verifiers.verdict import Verdict, VerifyRequest
from verifiers.visual.boxes import absolute
from verifiers.visual.coco import ImageDetections, mean_average_precision
from verifiers.visual.hostile import GOLD, REWARDED, hostile_responses
from verifiers.visual.labels import fold_label
from verifiers.visual.photographs import PERTURBATIONS, Photograph, perfect, photographs, response

GOLDEN_FILES = ("visual_rft_detection.json", "visual_rft_lisa_cls.json")
# A source checkout has the golden files, an installed package does not.
DEFAULT_GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
ABSOLUTE = {"coordinates": "absolute"}
SLOW_S = 2.0

# Where assay differs from the reference on purpose: note of the golden record -> why. docs/methods/visual_rft.md.
DEVIATIONS = {
    "confidence > 1": "a confidence outside 0..1 makes the answer unreadable",
    "confidence negative unmatched": "a confidence outside 0..1 makes the answer unreadable",
    "nan confidence": "NaN makes the answer unreadable; the reference's reward is NaN",
    "answer with newlines (regex has no DOTALL)": "newlines belong to an answer",
    "No Objects vs No Objects gt": "nothing to find and nothing found is right",
    "prediction where gt is No Objects": "the confidence part is 1 - c",
    "two answer blocks first wins": "several answers are none",
}
LISA_DEVIATIONS = {"two boxes": "two boxes are not one"}
CLASS_DEVIATIONS = {
    "exact": "'Boeing 737-800' is not '737-800'; list it as an alias",
    "gt in student": "a sentence needs the option mention",
    "empty answer hack": "an empty answer is none",
    "empty completion": "an empty answer is none",
}


def main(arguments: list[str]) -> int:
    """0 if everything that must hold does, 1 if not."""
    parser = argparse.ArgumentParser(prog="assay bench iou", description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for bench_iou.json and bench_iou.md")
    parser.add_argument("--golden", type=Path, default=DEFAULT_GOLDEN, help="folder with the golden files")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long throughput is measured")
    options = parser.parse_args(arguments)
    report = run(options.golden, seconds=options.seconds)
    write(report, options.out)
    failures = report["failures"]
    sys.stdout.write(markdown(report))
    sys.stdout.write(f"\nwritten: {options.out / 'bench_iou.json'} and .md\n")
    return 1 if failures else 0


def run(golden: Path = DEFAULT_GOLDEN, *, seconds: float = 2.0) -> dict[str, Any]:
    """The report as plain JSON data. `failures` lists what should hold and does not.

    Raises `ConfigError` if a golden folder other than the default has no golden files."""
    report: dict[str, Any] = {
        "golden": golden_section(golden),
        "hostile": hostile_section(),
        "perturbed": perturbed_section(),
        "map": map_section(),
        "throughput": throughput_section(seconds),
    }
    report["failures"] = [*_golden_failures(report["golden"]), *report["hostile"]["failures"], *_broken_laws(report)]
    return report


# Golden cases --------------------------------------------------------------------------------------------------------


def golden_section(folder: Path) -> dict[str, Any] | None:
    """Our verdict beside the reference's reward (math shortcut disabled) for every golden completion; None if the
    files are not there."""
    if not all((folder / name).exists() for name in GOLDEN_FILES):
        if folder != DEFAULT_GOLDEN:
            raise ConfigError(f"There are no golden files {', '.join(GOLDEN_FILES)}.", where=str(folder))
        return None
    records = [record for name in GOLDEN_FILES for record in json.loads((folder / name).read_text(encoding="utf-8"))]
    rows = [row for record in records if (row := _golden_row(record)) is not None]
    return {
        "cases": len(rows),
        "equal": sum(row["equal"] for row in rows),
        "deviating_on_purpose": sum(not row["equal"] and row["reason"] is not None for row in rows),
        "rows": rows,
    }


def _golden_row(record: Mapping[str, Any]) -> dict[str, Any] | None:
    outputs, note = record["outputs"], record["notes"].split(";")[0]
    if record["method"] == "visual_rft.detection_reward":
        expected = {**outputs["math_verify_disabled"], "format": outputs["format"]}
        parts = _one("iou", {"confidence_reward": "reference"}, record["inputs"]).parts
        return _compared(record, expected, dict(parts), DEVIATIONS.get(note))
    if record["method"] == "visual_rft.lisa_reward":
        part = _one("grounding", {}, record["inputs"]).parts["giou"]
        return _compared(
            record, {"giou_plus_1": outputs}, {"giou_plus_1": 2 * (part or 0.0)}, LISA_DEVIATIONS.get(note)
        )
    if record["method"] == "visual_rft.classification_reward":
        part = _one("classify", {}, record["inputs"]).parts["accuracy"]
        return _compared(record, {"accuracy": outputs}, {"accuracy": part}, CLASS_DEVIATIONS.get(note))
    return None


def _one(kind: str, options: Mapping[str, Any], inputs: Mapping[str, Any]) -> Verdict:
    with Runner(kind, options) as runner:
        return runner.verify([VerifyRequest(inputs["completion"], inputs["solution"])])[0]


def _compared(
    record: Mapping[str, Any], expected: dict[str, Any], got: dict[str, Any], reason: str | None
) -> dict[str, Any]:
    equal = all(not isinstance(v, str) and abs(v - (got[name] or 0.0)) <= 1e-6 for name, v in expected.items())
    return {"method": record["method"], "case": record["notes"], "reference": expected, "assay": got, "equal": equal,
            "reason": reason}  # fmt: skip


def _golden_failures(section: dict[str, Any] | None) -> list[str]:
    rows = section["rows"] if section else []
    return [f"golden case '{r['case']}' differs and should not" for r in rows if not r["equal"] and r["reason"] is None]


# Hostile outputs -----------------------------------------------------------------------------------------------------


def hostile_section() -> dict[str, Any]:
    """Every hostile output must end in a scored verdict that pays nothing but the format, soon."""
    rows, failures = [], []
    with Runner("iou", {}) as runner:
        for case in [*hostile_responses(), *REWARDED]:
            verdict = runner.verify([VerifyRequest(case.response, GOLD)])[0]
            paid = (verdict.parts.get("iou") or 0.0) + (verdict.parts.get("confidence") or 0.0)
            rewarded = case in REWARDED
            if verdict.score is None or (paid > 0) is not rewarded or verdict.milliseconds > 1000 * SLOW_S:
                failures.append(f"hostile case '{case.name}': {verdict.status}, {paid:.2f} paid beside the format")
            rows.append({"case": case.name, "chars": len(case.response), "status": str(verdict.status),
                         "score": verdict.score, "ms": verdict.milliseconds,
                         "evidence": verdict.evidence[:200]})  # fmt: skip
    slowest = max(rows, key=lambda row: row["ms"])
    return {"cases": len(rows), "failures": failures, "slowest": slowest, "rows": rows}


# Perturbed boxes on photographs --------------------------------------------------------------------------------------


def perturbed_section(seed: int = 0) -> dict[str, Any]:
    """Mean parts and share of correct answers over all photographs, for every perturbation."""
    images, rng = photographs(), random.Random(seed)
    rows: dict[str, dict[str, float]] = {}
    scores: dict[str, list[float]] = {}
    with Runner("iou", ABSOLUTE) as runner:
        for name, change in PERTURBATIONS.items():
            requests = [VerifyRequest(response(change(perfect(image), rng)), image.gold) for image in images]
            verdicts = runner.verify(requests)
            scores[name] = [verdict.score or 0.0 for verdict in verdicts]
            rows[name] = {"score": statistics.fmean(scores[name]), **_mean_parts(verdicts),
                          "correct": statistics.fmean(v.status == "correct" for v in verdicts),
                          "unscored": sum(v.is_fault for v in verdicts)}  # fmt: skip
    return {
        "images": len(images),
        "boxes": sum(len(i.gold["boxes"]) for i in images),
        "rows": rows,
        "laws": _laws(scores),
    }


def _mean_parts(verdicts: Sequence[Verdict]) -> dict[str, float]:
    return {
        name: statistics.fmean(v.parts.get(name) or 0.0 for v in verdicts) for name in ("iou", "confidence", "format")
    }


def _laws(scores: Mapping[str, Sequence[float]]) -> dict[str, bool]:
    """What must hold on every photograph (the moved boxes: in the mean)."""
    moved = [statistics.fmean(scores[name]) for name in PERTURBATIONS if name == "exact" or name.startswith("moved")]
    half, spam = scores["half of the boxes"], [scores[name] for name in PERTURBATIONS if "spurious" in name]
    return {
        "the gold itself scores 1": all(score == 1 for score in scores["exact"]),
        "order does not matter": list(scores["shuffled"]) == list(scores["exact"]),
        "duplicates do not matter": list(scores["every box twice"]) == list(scores["exact"]),
        "further away scores less": moved == sorted(moved, reverse=True),
        "spurious boxes never raise the score": all(b <= a for s in spam for a, b in zip(half, s, strict=True)),
    }


def _broken_laws(report: Mapping[str, Any]) -> list[str]:
    return [f"does not hold: {law}" for law, holds in report["perturbed"]["laws"].items() if not holds]


# mAP -----------------------------------------------------------------------------------------------------------------


def map_section(seed: int = 0) -> dict[str, Any] | None:
    """COCO statistics of moved boxes, with and without false positives on absent categories; None without
    pycocotools."""
    rng = random.Random(seed)
    change = PERTURBATIONS["moved by up to 10%"]
    images = [_with_absent_category(image, change(perfect(image), rng), rng) for image in photographs()]
    try:
        return {queries: mean_average_precision(images, queries=queries) for queries in ("all", "present")}
    except MissingExtraError:
        return None


def _with_absent_category(image: Photograph, rows: list[dict[str, Any]], rng: random.Random) -> ImageDetections:
    """Random confidences, and on images without platelets one box that says there are some."""
    stated = [{**row, "Confidence": round(rng.random(), 2)} for row in rows]
    if "Platelets" not in image.labels:
        stated.append({"Position": [10, 10, 60, 60], "Confidence": 0.99, "Label": "Platelets"})
    verifier = iou_kind.IouVerifier(iou_kind.IouVerifier.Options(coordinates="absolute"))
    reading, golds = verifier.read(response(stated), image.gold, {})
    return ImageDetections(golds, reading.detections or [], absolute(image.width, image.height))


# Throughput ----------------------------------------------------------------------------------------------------------


def throughput_section(seconds: float) -> dict[str, Any]:
    """Verdicts per second of one process through `Runner`: few boxes as in Visual-RFT's data, many as on BCCD."""
    return {name: measure_throughput(requests, seconds / 2) for name, requests in workloads().items()}


def workloads() -> dict[str, list[VerifyRequest]]:
    """`few`: the white cells and platelets of each photograph (2.4 boxes on average); `many`: all objects (17)."""
    rng, change = random.Random(0), PERTURBATIONS["moved by up to 10%"]
    found: dict[str, list[VerifyRequest]] = {"few": [], "many": []}
    for image in photographs():
        rare = {**image.gold, "boxes": [box for box in image.gold["boxes"] if box["label"] != "RBC"]}
        rows = change(perfect(image), rng)
        found["few"].append(VerifyRequest(response([row for row in rows if row["Label"] != "RBC"]), rare))
        found["many"].append(VerifyRequest(response(rows), image.gold))
    return found


def measure_throughput(requests: list[VerifyRequest], seconds: float) -> dict[str, float]:
    """Verdicts a second of this process, by wall and by CPU time."""
    verdicts = 0
    with Runner("iou", ABSOLUTE) as runner:
        runner.verify(requests)
        wall, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < seconds:
            verdicts += len(runner.verify(requests))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    boxes = statistics.fmean(len(request.gold["boxes"]) for request in requests)
    return {"boxes_per_image": boxes, "per_second": verdicts / wall, "per_cpu_second": verdicts / cpu}


# Files ---------------------------------------------------------------------------------------------------------------


def write(report: Mapping[str, Any], folder: Path) -> None:
    """bench_iou.json (everything) and bench_iou.md (tables) in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(report, indent=1, allow_nan=False)
    (folder / "bench_iou.json").write_text(content + "\n", encoding="utf-8")
    (folder / "bench_iou.md").write_text(markdown(report), encoding="utf-8")


def markdown(report: Mapping[str, Any]) -> str:
    parts = [_golden_text(report["golden"]), _hostile_text(report["hostile"]), _perturbed_text(report["perturbed"]),
             _map_text(report["map"]), _throughput_text(report["throughput"])]  # fmt: skip
    failures = "".join(f"- {failure}\n" for failure in report["failures"]) or "Everything that must hold does.\n"
    return "# bench iou\n\n" + "\n".join([failures, *parts])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in [list(columns), ["---"] * len(columns), *rows])


def _golden_text(section: Mapping[str, Any] | None) -> str:
    if section is None:
        return "## Golden cases\n\nNot measured: the golden files are part of the source tree only (`--golden`).\n"
    rows = [[r["case"].split(";")[0], json.dumps(r["reference"]), json.dumps(r["assay"]), r["reason"] or "?"]
            for r in section["rows"] if not r["equal"]]  # fmt: skip
    head = (
        f"## Golden cases\n\n{section['equal']} of {section['cases']} completions have the reward of Visual-RFT's code "
        f"with its Math-Verify shortcut disabled; {section['deviating_on_purpose']} differ on purpose. Compared with "
        "`confidence_reward: reference`.\n\n"
    )
    return head + _table(["case", "reference", "assay", "why"], rows)


def _hostile_text(section: Mapping[str, Any]) -> str:
    slowest, good = section["slowest"], section["cases"] - len(section["failures"])
    return (
        f"## Hostile outputs\n\n{good} of {section['cases']} end as they should: a scored verdict, and nothing paid "
        "for boxes that are not readable or not there. "
        f"The slowest: {slowest['case']}, {slowest['chars']:,} characters, {slowest['ms']:.0f} ms.\n"
    )


def _perturbed_text(section: Mapping[str, Any]) -> str:
    rows = [[name, *(f"{row[key]:.3f}" for key in ("score", "iou", "confidence", "correct"))]
            for name, row in section["rows"].items()]  # fmt: skip
    laws = "".join(f"- {law}: {'yes' if holds else 'NO'}\n" for law, holds in section["laws"].items())
    head = f"## Perturbed boxes\n\n{section['images']} photographs, {section['boxes']} boxes, three categories.\n\n"
    return f"{head}{_table(['answer', 'score', 'iou', 'confidence', 'correct'], rows)}\n{laws}"


def _map_text(section: Mapping[str, Any] | None) -> str:
    if section is None:
        return "## mAP\n\nNot measured: pip install 'assay-rl[vision]'\n"
    keys, classes = ("mAP", "mAP50", "mAP75"), ("RBC", "WBC", "Platelets")
    rows = []
    for queries, s in section.items():
        by_class = (s["classes"].get(fold_label(name), -1) for name in classes)
        rows.append([queries, *(f"{value:.4f}" for value in (*(s[key] for key in keys), *by_class))])
    head = (
        "## mAP\n\nBoxes moved by up to 10% with random confidences, and a sure box of platelets wherever there are "
        "none. `all` counts it; `present`, which asks for shown categories only, does not see it.\n\n"
    )
    return head + _table(["queries", *keys, *classes], rows)


def _throughput_text(section: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{s['boxes_per_image']:.1f}", f"{s['per_second']:,.0f}", f"{s['per_cpu_second']:,.0f}"]
        for name, s in section.items()
    ]
    head = "## Throughput\n\nOne process, through `Runner`; as many processes as there are cores run side by side.\n\n"
    return head + _table(["workload", "boxes an image", "verdicts a second", "per CPU second"], rows)
