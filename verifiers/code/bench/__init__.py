"""``assay bench sandbox``: whether the sandbox holds, whether it is right, and how fast it is."""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """Run the report with command-line `arguments`: 1 if something that must hold does not, else 0. Raises `AssayError`
    for what a user can fix."""
    # A peer's own process imports this package, and must not pay for the report.
    from verifiers.code.bench.command import run

    return run(arguments)
