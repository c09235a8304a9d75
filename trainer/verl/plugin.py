"""verl's plugin of assay: importing it registers our estimators, losses and trainer with verl 0.9.1.

verl imports it in every one of its processes, through the entry-point group ``verl.plugins``, and tells nobody if that
fails (a line at level DEBUG). ``python -m trainer.verl.registered`` does, and prints what is registered.

Names: ``assay_<kind>`` in ``algorithm.adv_estimator`` and ``actor_rollout_ref.actor.policy_loss.loss_mode``; the
trainer ``assay`` in ``trainer.v1.trainer_mode``, which needs a recipe and is started by ``assay train RECIPE
engine=verl``.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import importlib.util
import os

from trainer.losses.base import LOSSES
from trainer.verl.adapters import PREFIX, advantage_function, loss_function, plain_estimators

if os.environ.get("VERL_PLATFORM") == "cpu":
    from trainer.verl.cpu import install

    install()
from verl.trainer.ppo import core_algos  # after the platform, which it asks for

for _kind in plain_estimators():
    core_algos.register_adv_est(PREFIX + _kind)(advantage_function(_kind))
for _kind in LOSSES.names():
    core_algos.register_policy_loss(PREFIX + _kind)(loss_function(_kind, core_algos.agg_loss))
# verl's training workers build models and know no trainer
if os.environ.get("WG_BACKEND") != "ray" and importlib.util.find_spec("transfer_queue") is not None:
    from trainer.verl import trainer  # noqa: F401  # registers itself
