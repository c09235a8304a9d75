"""``assay bench prm``: how well step scores tell right steps from wrong ones. docs/bench-prm.md says how to read it."""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """Run the report with command-line `arguments`; the exit code. Raises `AssayError` for what a user can fix."""
    # Look-ups of reward sources import this package, and must not pay for the report.
    from prm.bench.command import main as run

    return run(arguments)
