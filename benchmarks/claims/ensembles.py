"""WCO and UWO against a single reward model whose labels are 25% noise: arXiv:2310.02743 on arithmetic.

    python -m benchmarks.claims.ensembles --seeds 601 602 603

Every seed has one warm start, from which every arm begins. The members are VerifyRMs trained before the RL on the same
sampled responses, a quarter of whose labels (the verifier's) are turned round, the same for all; they differ in their
head and in the order of the samples. All arms are normalised on the same calibration set; the reward is theirs alone.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.claims.arms import best, last, mean_tables, options_parser, run_arms
from benchmarks.report import Report, portable, table
from verifiers.errors import AssayError

NAME, RECIPE = "claims_ensembles", "ensemble_chain"
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
    parser = options_parser("ensembles", str(__doc__).splitlines()[0], names, steps=40)
    parser.set_defaults(seeds=[601, 602, 603])
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--label-noise", type=float, default=0.25)
    parser.add_argument("--rm-steps", type=int, default=60, help="of each member, before the RL")
    parser.add_argument("--coef", type=float, default=0.5, help="of UWO's variance")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    report = Report(NAME, options)
    report.header["command"] = portable(["python", "-m", "benchmarks.claims.ensembles", *arguments])
    made = arms(options.members, options.label_noise, options.rm_steps, options.coef)
    try:
        measured = run_arms(options, RECIPE, made, ["rollout.max_response_tokens=40"])
    except AssayError as error:
        sys.stderr.write(f"{NAME}: {error}\n")
        return 1
    report.write({"settings": {"recipe": RECIPE, "arms": made}, "measurements": measured},
                 NOTE + mean_tables(measured, options.arms) + against_single(measured, options.arms))  # fmt: skip
    return 0


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
