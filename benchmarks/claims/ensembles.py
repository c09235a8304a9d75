"""WCO and UWO against a single reward model whose labels are 25% noise: arXiv:2310.02743 on arithmetic.

    python -m benchmarks.claims.ensembles --seeds 601 602 603

Every seed has one warm start, from which every arm begins. The members are VerifyRMs trained before the RL on the same
sampled responses, a quarter of whose labels (the verifier's) are turned round, the same for all; they differ in their
head and in the order of the samples. All arms are normalised on the same calibration set; the reward is theirs alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.claims.arms import best, last, main_of, mean_tables, options_parser, run_arms
from benchmarks.report import Report, table

RECIPE = "ensemble_chain"
NOTE = """Held-out accuracy in percent (avg@k) / mean reward of the training batches since the evaluation before, in
standard deviations of the calibration set; mean over the seeds.

"""


def arms(members: int, noise: float, rm_steps: int, coef: float) -> dict[str, list[str]]:
    def source(count: int, objective: str) -> list[str]:
        train = (f"train: {{prompts: 256, samples_per_prompt: 2, steps: {rm_steps}, solutions_per_step: 32, "
                 f"label_noise: {noise}}}, optim: {{lr: 1e-3, warmup_steps: 5}}")  # fmt: skip
        models = ", ".join(f"{{kind: verify_rm, member: {k}, {train}}}" for k in range(count))
        return [f"sources=[{{kind: rule, weight: 0.0}}, {{kind: ensemble, objective: {objective}, coef: {coef}, "
                f"calibrate: {{prompts: 64}}, members: [{models}]}}]"]  # fmt: skip

    return {
        "rule": ["sources=[{kind: rule}]"],
        "single": source(1, "mean"),
        "mean": source(members, "mean"),
        "WCO": source(members, "wco"),
        "UWO": source(members, "uwo"),
    }


def main(arguments: list[str]) -> int:
    names = list(arms(1, 0.0, 1, 0.0))
    parser = options_parser("ensembles", str(__doc__).splitlines()[0], names, seeds=[601, 602, 603], steps=40)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--label-noise", type=float, default=0.25)
    parser.add_argument("--rm-steps", type=int, default=60, help="of each member, before the RL")
    parser.add_argument("--coef", type=float, default=0.5, help="of UWO's variance")
    return main_of("ensembles", arguments, parser, run)


def run(options: argparse.Namespace, report: Report) -> None:
    made = arms(options.members, options.label_noise, options.rm_steps, options.coef)
    measured = run_arms(
        options, RECIPE, made, common=["rollout.max_response_tokens=40"], warm_start_recipe="quickstart"
    )
    report.write({"settings": {"recipe": RECIPE, "arms": made}, "measurements": measured},
                 NOTE + mean_tables(measured, options.arms) + against_single(measured, options.arms))  # fmt: skip


def against_single(measured: Sequence[Mapping[str, Any]], arms_run: Sequence[str]) -> str:
    if "single" not in arms_run:
        return ""
    single = last(measured, "single", "accuracy")
    lines = []
    for arm in arms_run:
        end = last(measured, arm, "accuracy")
        gain = [a - b for a, b in zip(end, single, strict=True)]
        fell = [b - e for b, e in zip(best(measured, arm, "accuracy"), end, strict=True)]
        lines.append([arm, f"{statistics.mean(end):.1f}", f"{statistics.mean(gain):+.1f}",
                      f"{min(gain):+.1f} to {max(gain):+.1f}", f"{statistics.mean(fell):.1f}"])  # fmt: skip
    columns = ["arm", "accuracy at the end", "against single, points", "by seed", "points below its best"]
    return "\n" + table(columns, lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
