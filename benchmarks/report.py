"""What every benchmark leaves: NAME.json with everything measured, and NAME.md, tables made from it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from trainer.records import PACKAGES, installed_version, write_atomically

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


class Report:
    """The header is taken when the benchmark starts."""

    def __init__(self, name: str, options: argparse.Namespace):
        self.name, self.folder, self.header = name, options.results, header(options.threads)

    def write(self, body: dict[str, Any], tables: str) -> None:
        """body: settings, raw measurements and summary; tables: Markdown made from them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"benchmark": self.name, "header": self.header, **body}, indent=1, allow_nan=False)
        write_atomically(self.folder / f"{self.name}.json", content + "\n")
        write_atomically(self.folder / f"{self.name}.md", f"# {self.name}\n\n{self._caption()}\n\n{tables}")
        sys.stdout.write(f"{tables}\nwritten: {self.folder / self.name}.json and .md\n")

    def _caption(self) -> str:
        h, machine = self.header, self.header["machine"]
        commit = "no git repository" if h["commit"] is None else f"commit {h['commit'][:12]}{' + changes' * h['dirty']}"
        packages = ", ".join(f"{k} {v}" for k, v in h["packages"].items() if k in ("torch", "transformers"))
        return (
            f"`{h['command']}`, {h['date']}, {commit}. {machine['cpu']}, {machine['cores']} cores, "
            f"{machine['memory_gb']} GB; {h['threads']} threads; {packages}. "
            f"Made from `{self.name}.json`, which holds every single measurement."
        )


def header(threads: int) -> dict[str, Any]:
    """Command, code, machine and versions."""
    return {
        "command": portable(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **_code(),
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "system": platform.platform(),
            "load_average_at_start": round(os.getloadavg()[0], 2),
        },
        "threads": threads,
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
    }


def portable(command: Sequence[str]) -> str:
    """The command without the folders of absolute paths, which mean nothing on another machine."""
    return re.sub(r"(^|[\s=,\[])/(?:[^/\s,=\]]+/)*", r"\1", " ".join(command))


def _code() -> dict[str, Any]:
    """Commit, and whether anything but the benchmarks' own results differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(dirty)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", path.read_text(), re.MULTILINE) if path.exists() else []
    return names[0] if names else platform.processor()


# Numbers and tables --------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(values: dict[str, float], digits: int = 0) -> str:
    """``median (min to max)``."""
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f} to {values['max']:.{digits}f})"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def progress(text: str) -> None:
    sys.stderr.write(f"{datetime.now():%H:%M:%S} {text}\n")
