"""``assay bench rm``: how good a reward model is, and when optimising it stops helping. docs/bench-rm.md says how to
read it."""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """Run the report with command-line `arguments`; the exit code. Raises `AssayError` for what a user can fix."""
    from prm.bench.rm.command import main as run

    return run(arguments)
