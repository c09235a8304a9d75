"""Whether verl knows what is ours: ``python -m trainer.verl.registered``."""

# pyright: reportMissingImports=false
from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points

from trainer.losses.base import LOSSES
from trainer.verl.adapters import PREFIX, plain_estimators
from verifiers.errors import ConfigError


def check() -> list[str]:
    """Every name of ours that verl knows, one line each. Raises `ConfigError` where verl's processes would not load the
    plugin or one of the names is missing, and what importing the plugin raises."""
    allowed = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    if allowed != "auto" and "assay" not in [name.strip() for name in allowed.split(",")]:
        raise ConfigError("verl's plugins are switched off.", where=f"VERL_USE_EXTERNAL_PLUGINS={allowed}",
                          fix="unset it, or add 'assay'")  # fmt: skip
    if "assay" not in {point.name for point in entry_points(group="verl.plugins")}:
        raise ConfigError(
            "assay is not installed in this environment, only importable.",
            where="entry-point group verl.plugins",
            why="Ray's processes load the plugin by the entry point that installing it makes",
            fix="pip install assay-rl[verl] (from a clone: pip install -e .)",
        )
    import verl  # noqa: F401  # loads its plugins
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    import trainer.verl.plugin  # noqa: F401  # raises what verl was silent about

    wanted = [("estimator", PREFIX + kind, core_algos.ADV_ESTIMATOR_REGISTRY) for kind in plain_estimators()]
    wanted += [("loss", PREFIX + kind, core_algos.POLICY_LOSS_REGISTRY) for kind in LOSSES.names()]
    wanted += [("trainer", "assay", TRAINER_REGISTRY)]
    missing = [f"{noun} {name}" for noun, name, registry in wanted if name not in registry]
    if missing:
        raise ConfigError(f"Not registered with verl: {', '.join(missing)}.", where="trainer.verl.plugin",
                          why="verl would not find what the run asks for",
                          fix="is another version of assay first on the path?")  # fmt: skip
    return [f"{noun} {name}" for noun, name, _ in wanted]


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in check())
