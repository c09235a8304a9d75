"""The process that libFuzzer runs in: what every target of `benchmarks.fuzzing` keeps and writes.

An oracle runs one input and writes down what must not happen, each kind of finding once; it writes ``state.json`` in
--out as it goes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import atheris

_REPORT_EVERY_S = 15.0


class Oracle:
    """Subclasses give `__call__(data)`, which counts in `executions`, runs the input under `guarded` and ends with
    `report_when_due`; and `state`."""

    def __init__(self, out: Path, targets: Sequence[str]):
        self.out = out
        self.findings: dict[str, dict[str, Any]] = {}
        self.executions = dict.fromkeys(targets, 0)
        self._reported = time.monotonic()

    def __call__(self, data: bytes) -> None:
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What is written beside executions and findings."""
        return {}

    def guarded(self, run: Callable[[], None], finding: Callable[[str], None]) -> None:
        """`run`, and `finding` with the kind of whatever escapes from it."""
        try:
            run()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 (whatever escapes is what we look for)
            frame = traceback.extract_tb(error.__traceback__)[-1]
            finding(f"{type(error).__name__} at {Path(frame.filename).name}:{frame.name}")

    def report_when_due(self) -> None:
        if time.monotonic() - self._reported > _REPORT_EVERY_S:
            self._reported = time.monotonic()
            body = {"executions": self.executions, "findings": self.findings, **self.state()}
            (self.out / "state.json").write_text(json.dumps(body, indent=1), encoding="utf-8")


def main(arguments: list[str], description: str, oracle: Callable[[Path], Oracle]) -> None:
    """Fuzz with what `oracle(--out)` makes; the other arguments are libFuzzer's."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True)
    options, libfuzzer = parser.parse_known_args(arguments)
    atheris.Setup([sys.argv[0], *libfuzzer], oracle(options.out))
    atheris.Fuzz()
