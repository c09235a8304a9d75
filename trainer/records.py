"""What a run leaves: ``runs/NAME/``.

    resolved.yaml        the whole configuration, defaults included; below it `derived` (numbers that follow from it)
                         and `environment` (git state, versions, command line of the latest start)
    metrics.jsonl        one object a step; deterministic content only, so a resumed run writes the very same bytes
    timings.jsonl        one object a step: seconds a phase, tokens per second
    warm_start.jsonl     one object a step of the warm start, if there is one
    evaluations/         step-000020-NAME.jsonl: every response of an evaluation with its verdict
    trajectories/        step-000012.jsonl: every trajectory of that step, with its verdict
    checkpoints/         see `trainer.checkpoint`
    events/              TensorBoard, if the recipe asks for it
    summary.json         written at the end

JSON has sorted keys and no NaN or infinity: a value that is not known is null. Errors of the disk are `RunError`s.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rollout.world import is_first_process
from verifiers.errors import RunError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from trainer.config import Config
    from trainer.fit_config import FitConfig

PACKAGES = ("assay-rl", "torch", "transformers", "tokenizers", "datasets", "peft", "numpy", "hydra-core", "omegaconf",
            "pydantic", "math-verify", "sympy", "safetensors")  # fmt: skip
# A resumed run may be longer, keep more, record less or run elsewhere, and still be the same experiment.
_MAY_CHANGE = ("train.steps", "checkpoint.", "record.", "alarms.", "run.", "hardware.", "description",
               "rollout.engine_options",
               "verifier.workers", "verifier.memory_mb")  # fmt: skip
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


class RunFolder:
    """The records of one run. tensorboard: also write ``events/``.

    Steps are counted from 1; step 0 is the evaluation before training. Every method raises `RunError` when the disk is
    full or the folder cannot be written.
    """

    def __init__(self, path: Path | str, *, tensorboard: bool = False):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self._trajectories, self._evaluations = self.path / "trajectories", self.path / "evaluations"
        self._metrics, self._timings = self.path / "metrics.jsonl", self.path / "timings.jsonl"
        self._keep_trajectories, self._tensorboard = True, tensorboard
        self._writer: SummaryWriter | None = None
        self._last_step = 0

    def open(self, config: Config | FitConfig, resolved_yaml: str, derived: Mapping[str, Any]) -> None:
        """Make the folders and write ``resolved.yaml``. Existing records stay."""
        self._keep_trajectories = config.record.trajectories
        for folder in (self.path, self._trajectories, self._evaluations, self.checkpoints):
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        facts = yaml.safe_dump({"derived": dict(derived), "environment": environment()}, sort_keys=False)
        head = "# Not settings: what followed from them, and where they ran."
        write_atomically(self.path / "resolved.yaml", f"{resolved_yaml}\n{head}\n{facts}")

    def append_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line of ``metrics.jsonl``. Nothing that depends on the clock belongs here."""
        self._append(self._metrics, step, metrics)

    def append_timings(self, step: int, timings: Mapping[str, Any]) -> None:
        """One line of ``timings.jsonl``."""
        self._append(self._timings, step, timings)

    def write_trajectories(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """``trajectories/step-NNNNNN.jsonl``, complete or not there at all. Nothing with record.trajectories=false."""
        if self._keep_trajectories:
            _write_rows(self._trajectories / f"step-{step:06d}.jsonl", rows)

    def append_warm_start(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line of ``warm_start.jsonl``."""
        path = self.path / "warm_start.jsonl"
        with disk_errors(path), path.open("w" if step == 1 else "a", encoding="utf-8") as file:
            file.write(to_json({**metrics, "step": step}, f"{path.name}, step {step}") + "\n")

    def write_evaluation(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """``evaluations/step-NNNNNN-NAME.jsonl``, likewise."""
        if self._keep_trajectories:
            _write_rows(self._evaluations / f"step-{step:06d}-{name}.jsonl", rows)

    def check_same_recipe(self, config: Config | FitConfig) -> None:
        """Raise `RunError` if the folder's run was started with settings that would make it another experiment."""
        from trainer.compose import load_any_resolved

        path = self.path / "resolved.yaml"
        if not path.exists():
            return
        old, new = (_flatten(c.model_dump()) for c in (load_any_resolved(path), config))
        changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k) and not k.startswith(_MAY_CHANGE)]
        if changed:
            shown = "; ".join(f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in changed[:5])
            raise RunError(
                "The run folder holds a run with other settings.",
                where=f"{self.path}: {shown}",
                why="a resumed run would be a mixture of two experiments",
                fix="start a new one with name=..., or put these settings back",
            )

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """``summary.json``."""
        write_atomically(self.path / "summary.json", to_json(summary, "summary.json", indent=2) + "\n")

    def truncate_after(self, step: int) -> None:
        """Forget every record after `step`, and a last line that a crash cut short. A resumed run then repeats them; -1
        forgets all.

        Raises `RunError` if a line before the last one is damaged.
        """
        for path in (self._metrics, self._timings):
            if path.exists():
                write_atomically(path, "".join(line for line in _whole_lines(path) if json.loads(line)["step"] <= step))
        with disk_errors(self._trajectories):
            for path in (*self._trajectories.glob("step-*.jsonl"), *self._evaluations.glob("step-*.jsonl")):
                if int(path.stem.split("-")[1]) > step:
                    path.unlink()
            (self.path / "summary.json").unlink(missing_ok=True)
        self._last_step = step

    def read_metrics(self) -> list[dict[str, Any]]:
        """The objects of ``metrics.jsonl``, in order of steps."""
        return [json.loads(line) for line in _whole_lines(self._metrics)] if self._metrics.exists() else []

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _append(self, path: Path, step: int, values: Mapping[str, Any]) -> None:
        line = to_json({**values, "step": step}, f"{path.name}, step {step}") + "\n"
        with disk_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if self._tensorboard:
            self._write_events(step, values)

    def _write_events(self, step: int, values: Mapping[str, Any]) -> None:
        with disk_errors(self.path / "events"):
            if self._writer is None:
                self._writer = _summary_writer(self.path / "events", purge_step=self._last_step + 1)
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()


class NoRecords(RunFolder):
    """Of the ranks beside the first: nothing is written, what is read is the same."""

    def _silent(self, *_: Any, **__: Any) -> None:
        pass

    open = append_metrics = append_timings = write_trajectories = append_warm_start = _silent  # type: ignore[assignment]
    write_evaluation = write_summary = truncate_after = _silent  # type: ignore[assignment]


def _summary_writer(path: Path, purge_step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError(
            "record.tensorboard=true needs the package 'tensorboard', which is not installed.",
            fix="pip install tensorboard, or set record.tensorboard=false",
        ) from error
    return SummaryWriter(str(path), purge_step=purge_step)


def _flatten(tree: Any, key: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {k: v for name, value in tree.items() for k, v in _flatten(value, f"{key}.{name}".lstrip(".")).items()}
    return {key: tree}


def to_json(value: Any, where: str, *, indent: int | None = None) -> str:
    """Sorted keys, no NaN or infinity. Raises `RunError` naming the key of the first non-finite value."""
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False, indent=indent)
    except ValueError as error:
        key = next(_non_finite(value, ""), None)
        if key is None:
            raise
        raise RunError(
            f"The value of '{key}' is not finite.",
            where=where,
            why="a NaN in the records hides where a run broke",
            fix="look at the step before; write null for a value that is not known",
        ) from error


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomically(path, "".join(f"{to_json(row, f'{path.name}, row {i}')}\n" for i, row in enumerate(rows)))


def _non_finite(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield key
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _non_finite(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _non_finite(inner, f"{key}[{i}]")


def _whole_lines(path: Path) -> list[str]:
    """The lines with their line ends, without a last one that a crash cut short. Raises `RunError` if others are."""
    with disk_errors(path):
        raw_lines = path.read_bytes().splitlines(keepends=True)
    if raw_lines and not _is_whole(raw_lines[-1]):
        raw_lines.pop()
    for number, raw in enumerate(raw_lines, start=1):
        if not _is_whole(raw):
            raise RunError(
                f"Line {number} of {path.name} is damaged, and it is not the last one.",
                where=str(path),
                why="a crash can only cut the last line short: something else changed this file",
                fix="restore the file, or start again under another name",
            )
    return [raw.decode("utf-8") for raw in raw_lines]


def _is_whole(raw: bytes) -> bool:
    try:
        return raw.endswith(b"\n") and isinstance(json.loads(raw), dict)
    except ValueError:
        return False


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the whole new one, also after a crash. Raises `RunError`."""
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            fsync_path(path.parent)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def fsync_path(path: Path) -> None:
    """Flush a file, or a folder's entries (so that a rename in it survives a power cut)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` into a `RunError` that says what to do."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        if error.errno in _FULL:
            raise RunError(
                f"The disk is full: {cause}.",
                where=str(path),
                why="what is on disk is whole; the step that was being written is not recorded",
                fix="free some space and start the same command again, or set run.dir to another disk",
            ) from error
        if error.errno in _FORBIDDEN:
            raise RunError(
                f"The run folder cannot be written: {cause}.",
                where=str(path),
                fix="set run.dir to a folder that you may write, or change name",
            ) from error
        raise RunError(f"Writing the records failed: {cause}.", where=str(path), fix="check the disk") from error


def check_writable(path: Path, min_free_mb: int) -> None:
    """Raise `RunError` unless a file can be written at `path` and `min_free_mb` are free. Leaves nothing behind. Of
    several ranks the first one checks."""
    if not is_first_process():
        return
    made: list[Path] = []
    with disk_errors(path):
        try:
            for folder in [*reversed(path.parents), path]:
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
            probe = path / f".writable-{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
            free_mb = shutil.disk_usage(path).free // 2**20
        finally:
            for folder in reversed(made):
                folder.rmdir()
    if free_mb < min_free_mb:
        raise RunError(
            f"{free_mb} MB are free, and the run needs {min_free_mb} MB.",
            where=str(path),
            why="a run that fills the disk loses the steps since its last checkpoint",
            fix="free some space, or set run.dir to another disk",
        )


# Environment ---------------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """What the results depend on besides the recipe."""
    return {
        "command": sys.argv,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "code": git_state(Path(__file__).parent),
        "working_folder": git_state(Path.cwd()),
    }


def installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """{"commit", "dirty"} of the repository that holds `folder`; None outside one, or without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
