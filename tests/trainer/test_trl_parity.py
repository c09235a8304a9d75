"""One GRPO step of ours and of TRL's GRPOTrainer, from the same weights on the same completions: the same advantages,
the same loss, the same updated weights. TRL generates; what it generated is then given to our learner.

Adam's eps is large here, so that an update shows the size of a gradient and not its sign alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rollout.models import load_policy
from tests.helpers import CPU, make_config, sharpen, tokenizer, trajectory
from trainer.advantages.grpo import GrpoOptions, grpo_advantage
from trainer.checkpoint import export_hf
from trainer.learner import Learner, TrainingBatch

trl = pytest.importorskip("trl")

pytestmark = [pytest.mark.golden, pytest.mark.filterwarnings("ignore")]

GROUPS, SAMPLES, LIMIT = 4, 4, 12
PROMPTS = ["1+2=", "3*4-5=", "7-1+2*3=", "9="]
REDUCE = {
    "grpo": {"objective.reduce": "sequence"},
    "dr_grpo": {"objective.reduce": "constant", "objective.constant_tokens": LIMIT},
    "dapo": {"objective.reduce": "token"},
    "bnpo": {"objective.reduce": "token"},
}
OPTIM = {"lr": 3e-3, "eps": 1e-3, "grad_clip": 1e9}


def learner(overrides: dict[str, Any]) -> Learner:
    config = make_config(
        {
            "rollout": {"prompts_per_step": GROUPS, "samples_per_prompt": SAMPLES, "max_response_tokens": LIMIT},
            "objective.advantage": {"kind": "grpo", "eps": 1e-4},
            "objective.loss": {"kind": "ppo_clip", "clip_low": 0.2, "clip_high": 0.2},
            "optim": OPTIM,
        }
        | overrides
    )
    policy = load_policy(config.model, config.seed, CPU)
    sharpen(policy.model)
    made = Learner(config, policy, CPU)
    made.freeze_reference()
    return made


class Recorder:
    """TRL's trainer, with what it generated and the loss of every micro-batch kept."""

    def __init__(self, folder: Path, loss_type: str, accumulation: int, **options: Any):
        from datasets import Dataset

        arguments = {
            "output_dir": str(folder / "trl"), "use_cpu": True, "bf16": False,
            "model_init_kwargs": {"dtype": "float32"},
            "learning_rate": OPTIM["lr"], "adam_epsilon": OPTIM["eps"], "max_grad_norm": OPTIM["grad_clip"],
            "lr_scheduler_type": "constant", "loss_type": loss_type, "max_steps": 1, "num_generations": SAMPLES,
            "per_device_train_batch_size": GROUPS * SAMPLES // accumulation,
            "gradient_accumulation_steps": accumulation, "max_completion_length": LIMIT, "temperature": 1.0,
            "top_p": 1.0, "top_k": 0, "gradient_checkpointing": False, "shuffle_dataset": False, "report_to": "none",
            "save_strategy": "no", "disable_tqdm": True, "seed": 0, "beta": 0.0,
        } | options  # fmt: skip

        def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
            return [sum(i % 3 == 0 for i in ids) / 4 - 0.1 * len(ids) for ids in completion_ids]

        self.trainer = trl.GRPOTrainer(
            model=str(folder / "hf"),
            reward_funcs=reward,
            args=trl.GRPOConfig(**arguments),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=tokenizer(),
        )
        self.generated: dict[str, Tensor] = {}
        self.losses: list[float] = []
        self._wrap()

    def _wrap(self) -> None:
        generate, loss = self.trainer._generate_and_score_completions, self.trainer._compute_loss

        def recording_generate(inputs: Any) -> Any:
            out = generate(inputs)
            self.generated = {k: v.clone() for k, v in out.items() if isinstance(v, Tensor)}
            return out

        def recording_loss(model: Any, inputs: Any) -> Tensor:
            value = loss(model, inputs)
            self.losses.append(float(value.detach()))
            return value

        self.trainer._generate_and_score_completions = recording_generate
        self.trainer._compute_loss = recording_loss

    def batch(self) -> TrainingBatch:
        """What TRL generated, with TRL's advantages."""
        rows = []
        kept = [self.generated[k] for k in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")]
        for i, (prompt, pmask, response, rmask) in enumerate(zip(*kept, strict=True)):
            ids = response[rmask.bool()].tolist()
            rows.append(trajectory(prompt[pmask.bool()].tolist(), ids, i // SAMPLES, i % SAMPLES))
        advantages = [a.repeat(t.num_response_tokens) for a, t in zip(self.generated["advantages"], rows, strict=True)]
        return TrainingBatch(rows, advantages, torch.ones(len(rows), dtype=torch.bool))


def rewards(batch: TrainingBatch) -> Tensor:
    return torch.tensor([sum(i % 3 == 0 for i in t.response_ids) / 4 - 0.1 * t.num_response_tokens
                         for t in batch.trajectories])  # fmt: skip


def step_both(
    folder: Path, loss_type: str, overrides: dict[str, Any], accumulation: int, **options: Any
) -> dict[str, float]:
    """Assert that both sides do the same; our metrics."""
    ours = learner(REDUCE[loss_type] | overrides)
    start = {n: p.detach().clone() for n, p in ours.model.named_parameters()}
    (folder / "hf").mkdir()
    export_hf(folder / "hf", ours, tokenizer())
    theirs = Recorder(folder, loss_type, accumulation, **options)
    theirs.trainer.train()
    batch = theirs.batch()
    assert len({t.num_response_tokens for t in batch.trajectories}) > 2  # padding was there

    group = torch.tensor([t.group for t in batch.trajectories])
    found = grpo_advantage(rewards(batch), group, GrpoOptions(eps=1e-4))
    torch.testing.assert_close(found, torch.stack([a[0] for a in batch.advantages]), atol=1e-5, rtol=1e-5)

    metrics = ours.update(batch)
    updates = ours.optimizer_steps
    assert metrics["loss"] == pytest.approx(sum(theirs.losses) / updates, abs=1e-5)
    after = dict(theirs.trainer.model.named_parameters())
    moved = 0.0
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), after[name].detach(), atol=1e-5, rtol=0)
        moved = max(moved, float((parameter.detach() - start[name]).abs().max()))
    assert moved > 1e-4  # ten times the tolerance
    return metrics


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_a_step_has_the_loss_and_the_weights_of_trl(tmp_path: Path, loss_type: str) -> None:
    step_both(tmp_path, loss_type, {}, accumulation=1)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_with_gradient_accumulation_too(tmp_path: Path, loss_type: str) -> None:
    step_both(tmp_path, loss_type, {"train.max_tokens_per_microbatch": 40}, accumulation=2)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_two_passes_over_a_batch_too(tmp_path: Path, loss_type: str) -> None:
    """The second pass has ratios other than 1, and some are clipped."""
    bounds = {"objective.loss": {"kind": "ppo_clip", "clip_low": 0.05, "clip_high": 0.05}}
    ours = step_both(
        tmp_path, loss_type, bounds | {"train.epochs_per_batch": 2}, accumulation=1, num_iterations=2, max_steps=2,
        epsilon=0.05,
    )  # fmt: skip
    assert ours["clip_fraction"] > 0


def test_the_kl_term_too(tmp_path: Path) -> None:
    """With TRL's default, the estimator times the ratio; a second pass, for the KL is 0 in the first."""
    kl = {"objective.kl": {"coef": 0.5, "estimator": "k3", "gradient": "ratio"}, "train.epochs_per_batch": 2}
    ours = step_both(tmp_path, "dapo", kl, accumulation=1, num_iterations=2, max_steps=2, beta=0.5)
    assert ours["kl_reference"] > 0


def test_bnpo_depends_on_its_micro_batches_where_the_token_mean_does_not(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        step_both(tmp_path, "bnpo", {"train.max_tokens_per_microbatch": 40}, accumulation=2)
