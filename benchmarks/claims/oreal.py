"""OREAL's token weights land on the tokens that decide, with its ablations.

`python -m benchmarks.claims.oreal --seeds 0 1 2`. A seed is one warm start of the recipe `oreal_chain` and, from there,
one run an arm: the recipe, and the recipe with one part changed. Accuracy is avg@k on held-out expressions after as
many steps of the policy. Where the weights land is measured on fresh responses of the warm start to held-out
expressions, line by line against the task's step oracle, with three controls: the reward model before training, one
trained on shuffled outcomes, and the policy's own likelihood.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import RESULTS, Report, portable, progress, table
from data.chain import ANSWER_MARK, check_steps
from data.example import Example
from prm.bench import ranking
from prm.token_credit import TokenCredit, success_probability, token_weight
from rollout.engine import Prompt, SamplingParams, derive_seed
from rollout.trajectory import Finish, Trajectory
from trainer.checkpoint import list_checkpoints
from trainer.compose import load_recipe
from trainer.config import Config
from trainer.evaluate import verify_trajectories
from trainer.session import Session
from trainer.train import train
from verifiers.errors import AssayError, RunError
from verifiers.verdict import Status

RECIPE = "oreal_chain"
CREDIT = "sources.1"
# smaller than the recipe, for one arm of one seed to take less than a minute on an idle machine
SIZES = ["rollout.prompts_per_step=48", f"{CREDIT}.warmup_steps=8", "data.eval.0.source.max_examples=150"]
ARMS = {
    "oreal": [],
    "shuffled outcomes": ["train.shuffle_rewards=true"],
    "weights of 1": [f"+{CREDIT}.weights=uniform", f"{CREDIT}.warmup_steps=0"],
    "no reshaping": ["objective.advantage.shaping=none"],
    "positives by 1": ["objective.advantage.pos_mult_adv=false"],
    "no KL": ["objective.kl.coef=0.0"],
    "rloo": ["sources=[{kind: rule}]", "objective=rloo", "objective.kl.coef=0.0"],
}

ACCURACY_NOTE = "Held-out accuracy, avg@4 in percent, after as many steps of the policy."
TOKEN_NOTE = """Where the weights land: tokens of fresh responses of the warm start to held-out expressions. A direct
response is the answer alone, a worked one has lines of work; what decides which is the first token. Columns: the reward
model as it starts, after each of two arms, and the policy's own log-probs.

- AUC response, at token k: a correct response's mean score, or P at its token k, is above a wrong one's.
- AUC first wrong line: in wrong worked responses, 1 - P (own score: -s) of a token in the first wrong line is above
  that of another token. From the error on: of a token in that line or after it, above that of one before it."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims.oreal", description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--runs", type=Path, default=Path("runs/claims-oreal"), help="finished runs in it are read")
    parser.add_argument("--warm-starts", type=Path, help="take them from these runs of the benchmark quickstart")
    parser.add_argument("--steps", type=int, default=12, help="rounds in which the policy learns")
    parser.add_argument("--prompts", type=int, default=150, help="held-out expressions for the weights, 4 samples")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--overrides", nargs="*", default=[], help="changes to the recipe, for all arms")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    options.name = "claims_oreal"
    report = Report(options.name, options)
    report.header["command"] = portable(["python", "-m", "benchmarks.claims.oreal", *arguments])
    settings = {"recipe": RECIPE, "sizes": SIZES, "overrides": options.overrides, "steps": options.steps, "arms": ARMS}
    measured: list[dict[str, Any]] = []
    try:
        for seed in options.seeds:
            measured.append(measure(seed, options))
            report.write({"settings": settings, "measurements": measured}, tables(measured))
    except AssayError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


# Runs ----------------------------------------------------------------------------------------------------------------


def measure(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Every arm of one seed, then the token weights of those with a reward model."""
    base = [
        *options.overrides, f"seed={seed}", f"run.dir={options.runs.absolute()}", f"hardware.threads={options.threads}",
        "record.tensorboard=false", "record.trajectories=false",
    ]  # fmt: skip
    if options.warm_starts is None:
        warm = run([*base, f"name=seed-{seed}-warm-start", "train.steps=0", "eval.every_steps=null"])
    else:
        warm = options.warm_starts / f"seed-{seed}-recipe"
    weights = (list_checkpoints(warm / "checkpoints")[0] / "hf").absolute()
    from_there = [
        *base,
        *SIZES,
        "warm_start=null",
        "model.scratch=null",
        "model.tokenizer=null",
        f"model.path={weights}",
    ]
    accuracy, folders = {}, {}
    for arm in options.arms:
        changes = [*from_there, f"name=seed-{seed}-{arm.replace(' ', '-').replace(',', '')}"]
        rounds = options.steps + waiting_rounds([*changes, *ARMS[arm]])
        folders[arm] = run([*changes, f"train.steps={rounds}", f"eval.every_steps={rounds}", *ARMS[arm]])
        accuracy[arm] = before_after(folders[arm])
        progress(f"seed {seed}, {arm}: {accuracy[arm]}")
    with_model = {arm: folders[arm] for arm in ("oreal", "shuffled outcomes") if arm in folders}
    tokens = token_study(load_recipe(RECIPE, [*from_there, "name=unused"]), with_model, options.prompts)
    return {"seed": seed, "accuracy": accuracy, "tokens": tokens}


def waiting_rounds(overrides: list[str]) -> int:
    """Rounds before the policy learns."""
    return max(source.options.get("warmup_steps", 0) for source in load_recipe(RECIPE, overrides).sources)


def run(overrides: list[str]) -> Path:
    """The run folder; a finished run is read, not repeated."""
    return train(load_recipe(RECIPE, overrides))


def before_after(folder: Path) -> dict[str, float]:
    (found,) = [
        value
        for name, value in json.loads((folder / "summary.json").read_text(encoding="utf-8"))["evaluations"].items()
        if "/avg@" in name
    ]
    return {side: round(found[side]["value"], 4) for side in ("before", "after")}


# Tokens --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judged:
    """A response with what the oracle says of its tokens [T], one token a character and the end of sequence.

    direct: it answers without a line of work. region_T: 0 before the first wrong line, 1 in it, 2 after it (all 0 in a
    correct response)."""

    trajectory: Trajectory
    correct: bool
    direct: bool
    region_T: Tensor


def judged(trajectory: Trajectory, example: Example, correct: bool) -> Judged:
    length = trajectory.num_response_tokens
    if length != len(trajectory.text) + 1:
        raise RunError("A response has not one token a character.", where=trajectory.example_id)
    region, now = [], 0
    for label in check_steps(example, trajectory.text):
        now = 1 if label.first_error else 2 if now else 0
        region += [now] * (label.end - label.start)
    region.append(2 if now else 0)
    return Judged(trajectory, correct, trajectory.text.startswith(ANSWER_MARK), torch.tensor(region))


def token_study(config: Config, runs: dict[str, Path], prompts: int) -> dict[str, dict[str, float]]:
    """By reward model: mean weights by place, and how well scores find what is wrong."""
    with Session(config) as session:
        session.sync(0)
        responses = sample(session, prompts)
        credit = next(s for s in session.sources if isinstance(s, TokenCredit))
        credit.start_from(session.learner.weights())
        found = {"untrained": study(responses, scores(credit, responses), credit)}
        for name, folder in runs.items():
            checkpoint = list_checkpoints(folder / "checkpoints")[-1]
            credit.model.load(checkpoint / "sources" / "token_credit" / "model", credit.model.state_dict())
            found[name] = study(responses, scores(credit, responses), credit)
        found["likelihood"] = likelihood(responses)
        return found


def sample(session: Session, prompts: int) -> list[Judged]:
    """Four responses of the warm-started policy to each of the first held-out expressions; what was cut off or is
    empty is left out."""
    (examples,) = session.prepared.evals.values()
    examples = examples[:prompts]
    asked = [Prompt(e.id, i, session.prepared.prompt_ids[e.id]) for i, e in enumerate(examples)]
    rollout = session.config.rollout
    sampling = SamplingParams(rollout.max_response_tokens, 1.0, 1.0, tuple(rollout.stop))
    made = session.engine.generate(asked, 4, sampling, derive_seed(session.config.seed, "claims/oreal"))
    made = [t for t in made if t.finish != Finish.LENGTH and t.text]
    verdicts = verify_trajectories(session.prepared.runner, made, [examples[t.group] for t in made])
    return [judged(t, examples[t.group], v.status is Status.CORRECT) for t, v in zip(made, verdicts, strict=True)]


def scores(credit: TokenCredit, responses: Sequence[Judged]) -> list[Tensor]:
    return credit.model.outputs([r.trajectory for r in responses])


def study(responses: Sequence[Judged], score: Sequence[Tensor], credit: TokenCredit) -> dict[str, float]:
    """The measures of `TOKEN_NOTE`; what has no tokens is left out."""
    weight = [token_weight(s, r.correct, credit.options) for r, s in zip(responses, score, strict=True)]
    both = list(zip(responses, weight, strict=True))
    correct = torch.tensor([r.correct for r in responses])
    doubt = [1 - success_probability(s) for s in score]
    worked = [i for i, r in enumerate(responses) if not r.correct and not r.direct]
    found = {
        "wrong responses": float((~correct).double().mean()),
        "direct, of wrong": mean([torch.tensor([float(r.direct)]) for r in responses if not r.correct]),
        "AUC response": auc(torch.stack([s.mean() for s in score]), correct),
        "AUC at token 1": auc(torch.stack([-d[0] for d in doubt]), correct),
        "AUC at token 2": auc(torch.stack([-d[1] for d in doubt]), correct),
        "w- direct, token 1": mean([w[:1] for r, w in both if not r.correct and r.direct]),
        "w- direct, later": mean([w[1:] for r, w in both if not r.correct and r.direct]),
        "w+ worked, token 1": mean([w[:1] for r, w in both if r.correct and not r.direct]),
        "w+ worked, later": mean([w[1:] for r, w in both if r.correct and not r.direct]),
    }
    names = ("w- worked, before error", "w- worked, first wrong line", "w- worked, after")
    for place, name in enumerate(names):
        found[name] = mean([weight[i][responses[i].region_T == place] for i in worked])
    if worked:
        region = torch.cat([responses[i].region_T for i in worked])
        found["AUC first wrong line"] = auc(torch.cat([doubt[i] for i in worked]), region == 1)
        found["AUC from the error on"] = auc(torch.cat([doubt[i] for i in worked]), region > 0)
        own = -torch.cat([score[i] for i in worked])
        found["AUC first wrong line, own score"] = auc(own, region == 1)
        found["AUC from the error on, own score"] = auc(own, region > 0)
    return {name: round(value, 4) for name, value in found.items() if value is not None}


def likelihood(responses: Sequence[Judged]) -> dict[str, float]:
    """The same questions to the policy's own log-probs."""
    total = torch.tensor([sum(r.trajectory.logp_model) for r in responses])
    first = torch.tensor([r.trajectory.logp_model[0] for r in responses])
    correct = torch.tensor([r.correct for r in responses])
    found = {"AUC response": auc(total, correct), "AUC at token 1": auc(first, correct)}
    worked = [r for r in responses if not r.correct and not r.direct]
    if worked:
        region = torch.cat([r.region_T for r in worked])
        surprise = -torch.cat([torch.tensor(r.trajectory.logp_model) for r in worked])
        found["AUC first wrong line"] = auc(surprise, region == 1)
        found["AUC from the error on"] = auc(surprise, region > 0)
    return {name: round(value, 4) for name, value in found.items() if value is not None}


def mean(parts: Sequence[Tensor]) -> float | None:
    joined = torch.cat([*parts, torch.zeros(0)])
    return float(joined.double().mean()) if len(joined) else None


def auc(score: Tensor, label: Tensor) -> float | None:
    return ranking.auc(score.tolist(), label.tolist())


# Tables --------------------------------------------------------------------------------------------------------------


def tables(measured: Sequence[dict[str, Any]]) -> str:
    seeds = [str(m["seed"]) for m in measured]
    arms = list(measured[0]["accuracy"])
    rows = [
        [arm, *(f"{100 * m['accuracy'][arm]['after']:.1f}" for m in measured),
         f"{100 * statistics.mean(m['accuracy'][arm]['after'] for m in measured):.1f}"]
        for arm in arms
    ]  # fmt: skip
    before = [f"{100 * m['accuracy'][arms[0]]['before']:.1f}" for m in measured]
    accuracy = table(["arm", *(f"seed {s}" for s in seeds), "mean"], [["warm start", *before, ""], *rows])
    sides = list(measured[0]["tokens"])
    names = dict.fromkeys(name for side in sides for name in measured[0]["tokens"][side])
    token_rows = [
        [name, *(show([m["tokens"][side][name] for m in measured if name in m["tokens"][side]]) for side in sides)]
        for name in names
    ]
    where = table(["measure, median (min to max) over seeds", *sides], token_rows)
    return f"{ACCURACY_NOTE}\n\n{accuracy}\n{TOKEN_NOTE}\n\n{where}"


def show(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
