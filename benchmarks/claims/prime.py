"""PRIME's claims on a small model: does a PRM trained on outcomes find the wrong lines, and does it save rollouts?

The policy errs systematically: its demonstrations come from somebody who has learnt wrong entries of the tables of
`chain`. Certain entries are always answered wrongly, so that the policy is as sure of the error as of anything else;
likely ones in a share of their uses, so that the error is more likely than the right answer, which is sampled too.

1. Ranking. An implicit PRM learns online from the outcomes of the fixed policy, all groups kept; then its line rewards
   on held-out samples are compared with the line oracle. Controls: the likelihood of a line under the untrained model,
   and a PRM trained on outcomes that were permuted within each step.
2. Rollouts. The same policy is trained on outcomes alone, and with the PRM's rewards beside them, with the recipe's
   band of pass rates: equal settings, equal rollouts a step.

The command: python -m benchmarks.claims.prime --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import RESULTS, Report, portable, progress, show, spread, table
from data.chain import Chain, Expression, Rule, check_steps
from data.example import Example
from data.sampler import Sampler
from prm.bench.ranking import auc
from prm.implicit import ImplicitSource, log_ratio
from rollout.engine import Prompt, SamplingParams, derive_seed
from rollout.trajectory import Trajectory
from trainer.collect import collect
from trainer.compose import load_recipe
from trainer.config import Config
from trainer.loop import LoopState
from trainer.session import Session, with_weights
from trainer.train import train

RECIPE = "prime_chain"
SOURCE = "benchmarks.claims.prime:WrongChain"
RUNS = {"outcome only": ["sources=[{kind: rule}]"], "PRIME": []}


@dataclasses.dataclass(frozen=True, slots=True)
class Taught:
    """A wrong result, and the share of its uses in which it is taught."""

    result: int
    share: float


class WrongChain(Chain):
    """`chain` whose demonstrations answer some entries of the operation tables wrongly: `certain` of them always,
    `likely` of them in a share `likely_share` of their uses. Golds are right."""

    class Options(Chain.Options):
        certain: int
        likely: int
        likely_share: float
        seed_of_entries: int

    def load(self) -> list[Example]:
        o = self.options
        wrong = wrong_entries(o.certain, o.likely, o.likely_share, o.modulus, o.operators, o.seed_of_entries)
        return [self._taught(example, wrong) for example in super().load()]

    def _taught(self, example: Example, wrong: dict[str, Taught]) -> Example:
        rng = random.Random(f"{self.options.seed_of_entries}/{example.id}")
        line = Expression.parse(example.meta["expression"])
        written = ""
        while line is not None and line.operators:
            done, taught = self.rule.do(line, 0), wrong.get(first_entry(line))
            if taught is not None and rng.random() < taught.share:
                done = Expression((taught.result, *done.numbers[1:]), done.operators)
            written, line = f"{written}{done.text}\n", done
        assert line is not None
        return dataclasses.replace(example, solution=f"{written}#{line.numbers[0]}")


def wrong_entries(
    certain: int, likely: int, likely_share: float, modulus: int, operators: str, seed: int
) -> dict[str, Taught]:
    """By entry, such as "3+4"."""
    rng = random.Random(f"wrong entries/{seed}")
    entries = [f"{a}{o}{b}" for a in range(modulus) for o in operators for b in range(modulus)]
    rule = Rule(modulus, "left_to_right")
    found = {}
    for i, entry in enumerate(rng.sample(entries, certain + likely)):
        expression = Expression.parse(entry)
        assert expression is not None
        result = (rule.value(expression) + rng.randrange(1, modulus)) % modulus
        found[entry] = Taught(result, 1.0 if i < certain else likely_share)
    return found


def first_entry(line: Expression) -> str:
    return f"{line.numbers[0]}{line.operators[0]}{line.numbers[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims.prime", description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--prm-steps", type=int, default=32, help="batches that the PRM learns from, for the ranking")
    parser.add_argument("--rl-steps", type=int, default=18)
    parser.add_argument("--certain", type=int, default=5, help="entries of 75 that are always taught wrongly")
    parser.add_argument("--likely", type=int, default=7, help="entries of 75 that are mostly taught wrongly")
    parser.add_argument("--likely-share", type=float, default=0.8, help="in which share of their uses")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs") / f"claims-prime-{time.strftime('%Y%m%d-%H%M%S')}")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--overrides", nargs="*", default=[], help="changes to the recipe, for all runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    report = Report("claims_prime", options)
    report.header["command"] = portable(["python", "-m", "benchmarks.claims.prime", *(arguments or sys.argv[1:])])
    measured = []
    for seed in options.seeds:
        measured.append(measure(seed, options))
        report.write({"settings": settings(options), "seeds": measured}, tables(measured))
    return 0


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in
            ("prm_steps", "rl_steps", "certain", "likely", "likely_share", "overrides")}  # fmt: skip


def recipe(seed: int, options: argparse.Namespace, *overrides: str) -> Config:
    taught = f"{{kind: '{SOURCE}', count: 10000, part: train, min_operands: 4, max_operands: 4, modulus: 5, " \
             f"seed_of_entries: {seed}, certain: {options.certain}, likely: {options.likely}, " \
             f"likely_share: {options.likely_share}}}"  # fmt: skip
    return load_recipe(RECIPE, [
        f"warm_start.source={taught}", "warm_start.steps=250", f"seed={seed}", f"hardware.threads={options.threads}",
        f"run.dir={options.runs.absolute()}", "record.tensorboard=false", "record.trajectories=false",
        *options.overrides, *overrides,
    ])  # fmt: skip


def measure(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    config = recipe(seed, options, f"name=seed-{seed}-warm", "train.steps=0")
    warm = train(config) / "checkpoints" / "step-000000"
    progress(f"seed {seed}: warm start done, {time.perf_counter() - started:.0f} s")
    every_group = ["rollout.keep.pass_rate=null", "rollout.keep.oversample=1", "rollout.keep.put_back_surplus=false",
                   "objective.zero_variance.drop=false"]  # fmt: skip
    with Session(recipe(seed, options, f"name=seed-{seed}-ranking", *every_group), weights=str(warm)) as session:
        ranking = rank_lines(session, seed, options)
    progress(f"seed {seed}: {json.dumps(ranking['auc'])}, {time.perf_counter() - started:.0f} s")
    curves = {name: learn(seed, options, name, warm) for name in RUNS}
    seconds = time.perf_counter() - started
    progress(f"seed {seed}: {json.dumps(curves)}, {seconds:.0f} s")
    return {"seed": seed, "seconds": round(seconds, 1), "ranking": ranking, "curves": curves}


# ---- ranking -----------------------------------------------------


def rank_lines(session: Session, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """AUCs on held-out samples, of the line rewards after all batches and after a quarter of them."""
    session.sync(0)
    learned = session.sources[1]
    assert isinstance(learned, ImplicitSource)
    permuted = ImplicitSource(learned.options, learned.context)
    for source in (learned, permuted):
        source.start_from(session.learner.weights())
    held = held_out(session)
    state = LoopState(Sampler(len(session.train_examples), seed))
    generator = torch.Generator().manual_seed(seed)
    rollouts, after = 0, {}
    for step in range(options.prm_steps):
        found = collect(session, state)
        kept = found.what_is_kept(step)
        state.step, rollouts = step + 1, rollouts + len(found.trajectories)
        if kept.trajectories:
            learned.credit(kept)
            order = torch.randperm(len(kept.outcome_N), generator=generator)
            permuted.credit(dataclasses.replace(kept, outcome_N=kept.outcome_N[order]))
        if step + 1 in (options.prm_steps // 4, options.prm_steps):
            after[rollouts] = line_table(held, learned, permuted, seed, options)
    final = after[rollouts]
    quarter = {str(n): found["auc"]["PRM"] for n, found in after.items()}
    return {"rollouts": rollouts, **final, "prm_by_rollouts": quarter}


def held_out(session: Session) -> list[tuple[Trajectory, Example]]:
    """Samples of the policy for the evaluation set."""
    (examples,) = session.prepared.evals.values()
    rollout = session.config.rollout
    prompts = [Prompt(e.id, i, session.prepared.prompt_ids[e.id]) for i, e in enumerate(examples)]
    sampling = SamplingParams(rollout.max_response_tokens, rollout.temperature, rollout.top_p, tuple(rollout.stop))
    seed = derive_seed(session.config.seed, "held out")
    return [(t, examples[t.group]) for t in session.engine.generate(prompts, 4, sampling, seed)]


def line_table(
    held: list[tuple[Trajectory, Example]],
    learned: ImplicitSource,
    permuted: ImplicitSource,
    seed: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """{"auc": {scorer: {what: AUC}}, and how the policy errs}."""
    trajectories = [t for t, _ in held]
    likelihood = learned.reference_logp(trajectories)
    rewards = {
        "PRM": log_ratio(learned.prm.outputs(trajectories), likelihood),
        "permuted labels": log_ratio(permuted.prm.outputs(trajectories), likelihood),
        "untrained likelihood": likelihood,
    }
    solved = [t.text.rpartition("#")[2] == e.gold for t, e in held]
    wrong = wrong_entries(options.certain, options.likely, options.likely_share, 5, "+-*", seed)
    facts = [fact for t, e in held for fact in line_facts(t, e, wrong)]
    areas, probability = {}, []
    for name, of in rewards.items():
        scores = [line.reward for (t, e), r in zip(held, of, strict=True) for line in learned.lines.lines(t, e, r)]
        areas[name] = {"outcome": auc([float(r.sum()) for r in of], solved)}
        for what, chosen in SUBSETS.items():
            index = [i for i, fact in enumerate(facts) if chosen(fact)]
            areas[name][what] = auc([scores[i] for i in index], [facts[i].right for i in index])
        if name == "untrained likelihood":
            probability = [math.exp(s) for s in scores]
    return {"auc": areas, "held_out": {"samples": len(held), "solved": sum(solved) / len(solved)}
            | {kind: confidence(kind, facts, probability) for kind in ("certain", "likely")}}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class LineFact:
    """until: no earlier line is wrong. entry: which kind of wrongly taught entry it needs, if any."""

    right: bool
    until: bool
    entry: str | None


SUBSETS: dict[str, Callable[[LineFact], bool]] = {
    "line": lambda fact: True,
    "until": lambda fact: fact.until,
    "certain": lambda fact: fact.until and (fact.entry == "certain" or (fact.entry is None and fact.right)),
    "likely": lambda fact: fact.until and fact.entry == "likely",
}


def confidence(kind: str, facts: list[LineFact], probability: list[float]) -> dict[str, Any]:
    """Lines up to the first error that need such an entry: how many, how many are wrong, and the median probability
    that the policy gives a wrong one."""
    chosen = [(f, p) for f, p in zip(facts, probability, strict=True) if f.until and f.entry == kind]
    wrong = [p for f, p in chosen if not f.right]
    return {"lines": len(chosen), "wrong": len(wrong), "probability": statistics.median(wrong) if wrong else None}


def line_facts(trajectory: Trajectory, example: Example, wrong: dict[str, Taught]) -> list[LineFact]:
    previous, clean, facts = Expression.parse(example.meta["expression"]), True, []
    for step in check_steps(example, trajectory.text):
        taught = wrong.get(first_entry(previous)) if previous is not None and previous.operators else None
        entry = None if taught is None else "certain" if taught.share == 1 else "likely"
        facts.append(LineFact(step.correct, clean, entry))
        clean = clean and step.correct
        previous = Expression.parse(step.text.removesuffix("\n"))
    return facts


# ---- rollouts ----------------------------------------------------


def learn(seed: int, options: argparse.Namespace, name: str, warm: Path) -> list[dict[str, float]]:
    """[{rollouts so far, held-out accuracy}] of an RL run from the warm-started weights."""
    slug = name.replace(" ", "-").lower()
    changes = [f"name=seed-{seed}-{slug}", f"train.steps={options.rl_steps}", "eval.every_steps=3", *RUNS[name]]
    config = with_weights(recipe(seed, options, *changes), str(warm)).model_copy(update={"warm_start": None})
    rollouts, curve = 0.0, []
    for line in (train(config) / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        metrics = json.loads(line)
        rollouts += metrics.get("rollout/trajectories", 0.0)
        if "chain/avg@4" in metrics:
            curve.append({"rollouts": rollouts, "accuracy": metrics["chain/avg@4"]})
    return curve


def needed(curve: list[dict[str, float]], accuracy: float) -> float | None:
    """Rollouts at the first evaluation that reaches `accuracy`."""
    return next((point["rollouts"] for point in curve if point["accuracy"] >= accuracy), None)


# ---- tables ------------------------------------------------------


def tables(measured: list[dict[str, Any]]) -> str:
    return "\n".join([ranking_table(measured), policy_table(measured), rollouts_table(measured)])


def ranking_table(measured: list[dict[str, Any]]) -> str:
    def cell(scorer: str, what: str) -> str:
        values = [m["ranking"]["auc"][scorer][what] for m in measured]
        return "-" if None in values else show(spread(values), 2)

    whats = ["outcome", *SUBSETS]
    rows = [[scorer, *(cell(scorer, what) for what in whats)] for scorer in measured[0]["ranking"]["auc"]]
    each = [[str(m["seed"]), scorer, *(three(areas[what]) for what in whats)]
            for m in measured for scorer, areas in m["ranking"]["auc"].items()]  # fmt: skip
    early = [[str(m["seed"]), n, *(three(areas[what]) for what in whats)]
             for m in measured for n, areas in m["ranking"]["prm_by_rollouts"].items()]  # fmt: skip
    return (
        "AUC on held-out samples of the policy, median over seeds (min to max). outcome: summed reward against the "
        "answer; line: all lines; until: lines up to the first error; certain: of these, errors that were always "
        "taught, against right lines without a taught error; likely: lines that need an entry mostly taught wrongly."
        f"\n\n{table(['scorer', *whats], rows)}\nBy seed:\n\n{table(['seed', 'scorer', *whats], each)}\n"
        f"The PRM by rollouts sampled for it:\n\n{table(['seed', 'rollouts', *whats], early)}"
    )


def three(area: float | None) -> str:
    return "-" if area is None else f"{area:.3f}"


def policy_table(measured: list[dict[str, Any]]) -> str:
    columns = ["seed", "solved", "certain: lines", "wrong", "probability", "likely: lines", "wrong", "probability", "s"]
    rows = []
    for m in measured:
        held = m["ranking"]["held_out"]
        cells = []
        for kind in ("certain", "likely"):
            p = held[kind]["probability"]
            cells += [str(held[kind]["lines"]), str(held[kind]["wrong"]), "-" if p is None else f"{p:.2f}"]
        rows.append([str(m["seed"]), f"{held['solved']:.1%}", *cells, f"{m['seconds']:.0f}"])
    return f"The policy on held-out samples; probability: the median one of a wrong line:\n\n{table(columns, rows)}"


def rollouts_table(measured: list[dict[str, Any]]) -> str:
    rows = []
    for m in measured:
        target = m["curves"]["outcome only"][-1]["accuracy"]
        for name, curve in m["curves"].items():
            reached = needed(curve, target)
            rows.append([str(m["seed"]), name, *(f"{100 * p['accuracy']:.1f}" for p in curve),
                         "never" if reached is None else f"{reached:.0f}"])  # fmt: skip
    points = [f"{p['rollouts']:.0f}" for p in measured[0]["curves"]["PRIME"]]
    return (
        "Held-out accuracy (avg@4, percent) by rollouts, and the rollouts at which a run first reaches what outcome "
        f"only ends with:\n\n{table(['seed', 'run', *points, 'reached after'], rows)}"
    )


if __name__ == "__main__":
    sys.exit(main())
