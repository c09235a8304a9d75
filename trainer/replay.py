"""Bundles of steps that went wrong: everything one needs to see the same non-finite value again, offline.

``bundles/step-000012/``: `batch.pt` (trajectories, advantages, which take part), `hf/` (the weights before the step)
and `resolved.yaml`.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rollout.sharding import full_state
from rollout.trajectory import Finish, Trajectory
from trainer.checkpoint import export_hf
from trainer.config import KLConfig
from trainer.learner import Learner, NonFiniteError, TrainingBatch
from trainer.objective import needs_reference

if TYPE_CHECKING:
    from trainer.session import Session


def write_bundle(session: Session, step: int, batch: TrainingBatch) -> Path:
    folder = session.prepared.run_path / "bundles" / f"step-{step:06d}"
    learner, is_main = session.learner, session.world.is_main
    (folder / "hf").mkdir(parents=True, exist_ok=True)
    export_hf(folder / "hf", learner, session.prepared.tokenizer)
    value_head = None if learner.value_head is None else full_state(learner.value_head)
    reference = None if learner.reference is None else full_state(learner.reference.model)
    if not is_main:
        return folder
    trajectories = [asdict(t) | {"finish": str(t.finish)} for t in batch.trajectories]
    content = {"trajectories": trajectories, "advantages": batch.advantages, "included": batch.included_N,
               "values": batch.values, "returns": batch.returns}  # fmt: skip
    torch.save(content, folder / "batch.pt")
    if value_head is not None:
        torch.save(value_head, folder / "value_head.pt")
    if reference is not None:
        torch.save(reference, folder / "reference.pt")
    shutil.copy(session.prepared.run_path / "resolved.yaml", folder / "resolved.yaml")
    return folder


def replay(bundle: Path) -> list[str]:
    """Run the step of a bundle again, first each trajectory alone, then the whole update; say what is not finite."""
    from rollout.models import load_policy
    from trainer.compose import load_resolved
    from trainer.session import choose_device

    config = load_resolved(bundle / "resolved.yaml")
    model = config.model.model_copy(
        update={"path": str(bundle / "hf"), "scratch": None, "tokenizer": None, "lora": None}
    )
    config = config.model_copy(update={"model": model})
    lines: list[str] = []
    reference = bundle / "reference.pt"
    if needs_reference(config.objective.kl) and not reference.exists():
        lines.append("the KL term is left out: its reference, the base model of the adapter, is not in the bundle")
        objective = config.objective.model_copy(update={"kl": KLConfig()})
        config = config.model_copy(update={"objective": objective})
    device = choose_device(config)
    learner = Learner(config, load_policy(model, config.seed, device), device)
    learner.freeze_reference()
    if learner.reference is not None:
        learner.reference.model.load_state_dict(torch.load(reference, weights_only=True))
    if learner.value_head is not None:
        learner.value_head.load_state_dict(torch.load(bundle / "value_head.pt", weights_only=True))
    saved = torch.load(bundle / "batch.pt", weights_only=True)
    trajectories = [Trajectory(**(t | {"finish": Finish(t["finish"])})) for t in saved["trajectories"]]
    bad_weights = [n for n, p in learner.model.named_parameters() if not bool(torch.isfinite(p).all())]
    lines += [f"weight {name} holds non-finite values before the step" for name in bad_weights]
    for trajectory, logp, advantage in zip(
        trajectories, learner.logprobs(trajectories), saved["advantages"], strict=True
    ):
        name = f"example {trajectory.example_id}, sample {trajectory.sample}"
        if not bool(torch.isfinite(logp).all()):
            at = int((~torch.isfinite(logp)).nonzero()[0])
            lines.append(
                f"{name}: learner log-prob of response token {at} (id {trajectory.response_ids[at]}) is {logp[at]}"
            )
        if not all(math.isfinite(v) for v in trajectory.logp_sampled):
            lines.append(f"{name}: a log-prob reported by the engine is not finite")
        if not bool(torch.isfinite(advantage).all()):
            lines.append(f"{name}: the advantage is not finite")
    try:
        batch = TrainingBatch(
            trajectories, saved["advantages"], saved["included"], values=saved["values"], returns=saved["returns"]
        )
        metrics = learner.update(batch)
        lines.append(
            f"the update itself is finite here: loss {metrics.get('loss')}, grad_norm {metrics.get('grad_norm')}"
        )
    except NonFiniteError as error:
        lines.append(f"reproduced: {error.what} Sequences {error.sequences}.")
    return lines
