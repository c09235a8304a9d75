"""``assay bench math``: how often the verifier ``math`` and its peers are right on labelled cases.

docs/math-accuracy.md says how to read the report.
"""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """Run the report with command-line `arguments`; the exit code. Raises `AssayError` for what a user can fix."""
    # Worker processes import this package for a peer, and must not pay for the report.
    from verifiers.math.bench.command import run

    return run(arguments)
