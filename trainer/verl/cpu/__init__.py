"""verl on the CPU: platform, training engine and rollout replica, for tests and for machines without a GPU.

Loaded by the plugin only where ``VERL_PLATFORM=cpu``. On GPUs verl's own are used.
"""

from __future__ import annotations


def install() -> None:
    """Register all three with verl: the platform first, because the others' imports ask for it."""
    from trainer.verl.cpu import platform

    platform.register()
    from trainer.verl.cpu import engine, replica

    engine.register()
    replica.register()
