"""Worker of `ranks`, one rank of it: a session of one scratch model, and its memory in two phases.

Run as a file by torchrun with the code to measure on the path, so that it measures older code too; it uses nothing of
this package for that reason.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from trainer.compose import load_recipe
from trainer.session import Session

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measured(start_mb: float) -> dict[str, float]:
    """MB: the peak since the last call, and what is resident now, both beyond the process itself."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    CLEAR.write_text("5")  # the peak starts anew from what is resident
    return {name: round(int(lines[field].split()[0]) / 2**10 - start_mb, 1)
            for name, field in (("peak_mb", "VmHWM"), ("resident_mb", "VmRSS"))}  # fmt: skip


def main(overrides: list[str], folder: Path) -> None:
    config = load_recipe("quickstart", overrides)
    start_mb = measured(0.0)["resident_mb"]
    found: dict[str, Any] = {"process_mb": start_mb}
    with Session(config) as session:
        found["loading"] = measured(start_mb)
        session.world.barrier()
        session.sync(0)
        found["weights to the engine"] = measured(start_mb)
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[2:], Path(sys.argv[1]))
