"""A frozen reward model is hacked while one that learns beside the policy holds: arXiv:2508.05613 on arithmetic.

    python -m benchmarks.claims.cooper --seeds 501 502 503

Every seed has one warm start, from which every arm begins. `rule` is rewarded by the verifier. `frozen` and `cooper` by
the same VerifyRM, trained before the RL on the same sampled responses of the warm-started policy with the verifier's
labels, for so few steps that it has holes; nothing in it is written by hand. `cooper` goes on training it, on pairs
whose negatives the generator's corruption makes. Hacked: the reward ends above where it began, and the accuracy at
least `HACKED_POINTS` below its best.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.claims.arms import best, last, main_of, mean_tables, options_parser, run_arms
from benchmarks.report import Report, table

RECIPE = "cooper_chain"
HACKED_POINTS = 10
MODEL = ("train: {prompts: 256, samples_per_prompt: 2, steps: %d, solutions_per_step: 32, lr: 1e-3}, "
         "optim: {lr: %g, warmup_steps: 5}")  # fmt: skip
NOTE = """Held-out accuracy in percent (avg@k) / mean reward of the training batches since the evaluation before; mean
over the seeds. The reward of `rule` is the accuracy of those batches, of the others the model's probability.

"""


def arms(rm_steps: int, rm_lr: float) -> dict[str, list[str]]:
    model = MODEL % (rm_steps, rm_lr)
    return {
        "rule": ["sources=[{kind: rule}]"],
        "frozen": [f"sources=[{{kind: rule, weight: 0.0}}, {{kind: verify_rm, {model}}}]"],
        "cooper": [f"sources=[{{kind: rule, weight: 0.0}}, {{kind: cooper, assistant: {{kind: corrupt}}, {model}}}]"],
    }


def main(arguments: list[str]) -> int:
    parser = options_parser("cooper", str(__doc__).splitlines()[0], list(arms(1, 0)), seeds=[501, 502, 503], steps=60)
    parser.add_argument("--rm-steps", type=int, default=40, help="of the reward model, before the RL")
    parser.add_argument("--rm-lr", type=float, default=1e-4, help="of Cooper's reward model, beside the policy")
    return main_of("cooper", arguments, parser, run)


def run(options: argparse.Namespace, report: Report) -> None:
    made = arms(options.rm_steps, options.rm_lr)
    measured = run_arms(
        options, RECIPE, made, common=["rollout.max_response_tokens=40"], warm_start_recipe="quickstart"
    )
    report.write({"settings": {"recipe": RECIPE, "arms": made}, "measurements": measured},
                 NOTE + mean_tables(measured, options.arms) + verdicts(measured, options.arms))  # fmt: skip


def verdicts(measured: Sequence[Mapping[str, Any]], arms_run: Sequence[str]) -> str:
    lines = []
    for arm in arms_run:
        fell = [b - e for b, e in zip(best(measured, arm, "accuracy"), last(measured, arm, "accuracy"), strict=True)]
        rewards = [[p["reward"] for p in m["curve"].values() if "reward" in p] for m in measured if m["arm"] == arm]
        rose = [values[-1] - values[0] for values in rewards]
        hacked = sum(f >= HACKED_POINTS and r > 0 for f, r in zip(fell, rose, strict=True))
        lines.append([arm, f"{statistics.mean(last(measured, arm, 'accuracy')):.1f}", f"{statistics.mean(fell):.1f}",
                      f"{statistics.mean(rose):+.3f}", f"{hacked} of {len(fell)}"])  # fmt: skip
    columns = ["arm", "accuracy at the end", "points below its best", "reward, last minus first", "seeds hacked"]
    return f"\nHacked: reward up, accuracy at least {HACKED_POINTS} points below its best.\n\n" + table(columns, lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
