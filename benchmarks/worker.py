"""Measurements that need a process of their own (peak memory, another environment).

A worker is a module with ``measure(options) -> result``, both JSON; it is run as
``PYTHON -m benchmarks.worker MODULE FILE``, where FILE holds the options before and the result after.
"""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def run_worker(module: str, options: dict[str, Any], python: str = sys.executable) -> dict[str, Any]:
    """The worker's result. Its output goes to standard error; raises CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "worker.json"
        file.write_text(json.dumps(options), encoding="utf-8")
        command = [python, "-m", "benchmarks.worker", module, str(file)]
        subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=True)
        return json.loads(file.read_text(encoding="utf-8"))


def resident_mb() -> float:
    """Resident memory now."""
    return _status_mb("VmRSS")


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    return _status_mb("VmHWM")


def _status_mb(field: str) -> float:
    """ru_maxrss also counts what the parent held when it started us, so Linux's own record is preferred."""
    path = Path("/proc/self/status")
    if not path.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 2**10


if __name__ == "__main__":
    name, path = sys.argv[1], Path(sys.argv[2])
    result = importlib.import_module(name).measure(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(result), encoding="utf-8")
