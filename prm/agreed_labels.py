"""Labels for a VerifyRM: (question, reference, response) is kept only where rule verifier and judge agree.

    python -m prm.agreed_labels IN.jsonl OUT.jsonl --verifier math --judge openai \
        --judge-option base_url=http://localhost:8000/v1 --judge-option model=NAME

IN holds one object a line with `question`, `reference` and `response` (other fields are copied). OUT gets those lines
on which both say the same, with `label` (true or false), in the same order; the recipe verify_rm reads it. What was
left out is counted by the reason and written to OUT.counts.json: a disagreement is where one of the two errs, and a
label that nobody trusts teaches errors.

Paper: arXiv:2508.05613 (65K triples, 58.7K kept by Math-Verify and Qwen3-4B).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from prm.judge.base import Judge, JudgeReply, JudgeRequest, build_judge
from prm.judge.parsing import parse_yes_no
from prm.judge.prompts import YES_NO, fill
from rollout.world import World
from verifiers.arguments import option_values
from verifiers.errors import AssayError, DataError
from verifiers.runner import Runner
from verifiers.verdict import Verdict, VerifyRequest

PROG = "python -m prm.agreed_labels"
KEPT, DISAGREE, NO_RULE, NO_JUDGE = "kept", "disagree", "rule_could_not_judge", "judge_said_nothing"
REASONS = (KEPT, DISAGREE, NO_RULE, NO_JUDGE)
FIELDS = ("question", "reference", "response")
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Labelled:
    """label: None if the row is not kept, for `reason`."""

    row: Mapping[str, Any]
    label: bool | None
    reason: str


def agreed(rows: Sequence[Mapping[str, Any]], runner: Runner, judge: Judge, *, first: int = 0) -> list[Labelled]:
    """One for each row, in order. first: number of the first row, for the judge's ids."""
    verdicts = runner.verify([VerifyRequest(r["response"], r["reference"], {}, f"row {first + i}")
                              for i, r in enumerate(rows)])  # fmt: skip
    replies = judge.ask([_request(row, f"agreed/{first + i}") for i, row in enumerate(rows)])
    return [Labelled(row, *_together(v, r)) for row, v, r in zip(rows, verdicts, replies, strict=True)]


def _request(row: Mapping[str, Any], id_: str) -> JudgeRequest:
    text = fill(YES_NO, question=row["question"], reference=row["reference"], response=row["response"], max_score=1)
    return JudgeRequest(id_, [{"role": "user", "content": text}])


def _together(verdict: Verdict, reply: JudgeReply) -> tuple[bool | None, str]:
    said = None if reply.text is None else parse_yes_no(reply.text)
    if verdict.score is None:
        return None, NO_RULE
    if said is None:
        return None, NO_JUDGE
    return (said, KEPT) if said == (verdict.score >= 0.5) else (None, DISAGREE)


def read(file: Path) -> Iterator[dict[str, Any]]:
    """Raises `DataError` naming the line."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The file cannot be read: {error}.", where=str(file)) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"Not JSON: {error}.", where=f"{file}, line {number}") from error
        missing = [f for f in FIELDS if not isinstance(row, dict) or not isinstance(row.get(f), str)]
        if missing:
            raise DataError(f"The row has no text in {', '.join(missing)}.", where=f"{file}, line {number}",
                            fix="one object a line with question, reference and response")  # fmt: skip
        yield row


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=PROG, description=str(__doc__).splitlines()[0])
    parser.add_argument("input", type=Path, metavar="IN.jsonl")
    parser.add_argument("output", type=Path, metavar="OUT.jsonl")
    parser.add_argument("--verifier", default="math", metavar="KIND", help="default: %(default)s")
    parser.add_argument("--verifier-option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--judge", required=True, metavar="KIND", help="openai, local, or your own package.module:Class"
    )
    parser.add_argument("--judge-option", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(arguments)
    try:
        counts = run(args)
    except AssayError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("".join(f"{name}: {count}\n" for name, count in counts.items()))
    return 0


def run(args: argparse.Namespace) -> dict[str, int]:
    """The counts, which are also written beside OUT."""
    rows = list(read(args.input))
    context: Any = SimpleNamespace(seed=0, device=torch.device("cpu"), world=World())
    judge = build_judge({"kind": args.judge, **option_values(args.judge_option)}, context, "--judge")
    counts: Counter[str] = Counter()
    try:
        with (
            Runner(args.verifier, option_values(args.verifier_option), key="--verifier") as runner,
            args.output.open("w", encoding="utf-8") as out,
        ):
            for start in range(0, len(rows), _BATCH):
                for one in agreed(rows[start : start + _BATCH], runner, judge, first=start):
                    counts[one.reason] += 1
                    if one.label is not None:
                        out.write(json.dumps({**one.row, "label": one.label}, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"The file cannot be written: {error}.", where=str(args.output)) from error
    finally:
        judge.close()
    found = {"rows": len(rows)} | {reason: counts[reason] for reason in REASONS}
    file = args.output.with_name(args.output.name + ".counts.json")
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
