"""Progress for a person: a live panel on a terminal, one line a step elsewhere."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_VERDICT = "verdict/"
_MAX_NOTES = 5
_STEPS_FOR_PACE = 20


class Display:
    """live: a panel that redraws (None: if standard error is a terminal), else one line a step. Writes to standard
    error, or to `console`.

    Metrics by name, all optional: ``reward/mean``, ``reward/accuracy``, ``response/length_mean``, ``verdict/<status>``,
    ``groups/zero_variance_share``, ``policy/entropy``, ``policy/clip_fraction``, ``policy/approx_kl``,
    ``policy/kl_reference``, ``policy/grad_norm``, ``policy/lr``, ``<evaluation set>/avg@k``. Timings:
    ``tokens_per_second``, ``step_s``; the time left assumes the mean pace of the last steps.
    """

    def __init__(
        self, total_steps: int, live: bool | None = None, console: Console | None = None, silent: bool = False
    ):
        self.total_steps = total_steps
        self.console = console or Console(stderr=True, quiet=silent)
        self._notes: list[str] = []
        self._evaluations: dict[str, float] = {}
        self._step, self._metrics, self._timings = 0, dict[str, Any](), dict[str, Any]()
        self._recent_s: deque[float] = deque(maxlen=_STEPS_FOR_PACE)
        self._live: Live | None = None
        if not silent and (self.console.is_terminal if live is None else live):
            self._live = Live(self._panel(), console=self.console, refresh_per_second=4)
            self._live.start()

    def update(self, step: int, metrics: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
        """Step `step` (from 1) is done."""
        self._step, self._metrics, self._timings = step, dict(metrics), dict(timings)
        self._evaluations |= _averages(metrics)
        if step > 0 and "step_s" in timings:
            self._recent_s.append(timings["step_s"])
        if self._live is not None:
            self._live.update(self._panel())
        else:
            self.console.print(self._line(), highlight=False, markup=False, soft_wrap=True)

    def table(self, table: Table) -> None:
        """Print a table above everything else."""
        self.console.print(table)

    def note(self, text: str) -> None:
        """Something that happened: an evaluation, a checkpoint, an alarm."""
        self._notes = [*self._notes, text][-_MAX_NOTES:]
        if self._live is not None:
            self._live.update(self._panel())
        else:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last state on the screen. May be called twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _fields(self) -> list[tuple[str, str]]:
        """(label, value) of what is known, in order."""
        metrics, timings = self._metrics, self._timings
        known = [
            ("reward", "reward/mean", "{:.3f}"),
            ("accuracy", "reward/accuracy", "{:.3f}"),
            ("length", "response/length_mean", "{:.1f}"),
            ("zero-variance", "groups/zero_variance_share", "{:.0%}"),
            ("entropy", "policy/entropy", "{:.3f}"),
            ("clipped", "policy/clip_fraction", "{:.1%}"),
            ("step kl", "policy/approx_kl", "{:.2g}"),
            ("reference kl", "policy/kl_reference", "{:.2g}"),
            ("grad norm", "policy/grad_norm", "{:.3g}"),
            ("lr", "policy/lr", "{:.2g}"),
        ]
        fields = [(label, _format(form, metrics.get(name))) for label, name, form in known if name in metrics]
        fields += [("tok/s", _format("{:.0f}", timings["tokens_per_second"]))] if "tokens_per_second" in timings else []
        fields += [("step", _format("{:.1f} s", timings["step_s"]))] if "step_s" in timings else []
        if self._recent_s and self._step < self.total_steps:
            fields.append(("left", _duration((self.total_steps - self._step) * statistics.fmean(self._recent_s))))
        return fields

    def _verdicts(self) -> str:
        """Shares of the statuses that occur, largest first."""
        shares = {n.removeprefix(_VERDICT): v for n, v in self._metrics.items() if n.startswith(_VERDICT) and v}
        return ", ".join(f"{n} {v:.0%}" for n, v in sorted(shares.items(), key=lambda item: (-item[1], item[0])))

    def _line(self) -> str:
        parts = [f"{label} {value}" for label, value in self._fields()]
        parts += [self._verdicts()] if self._verdicts() else []
        parts += [f"{name} {_format('{:.3f}', value)}" for name, value in _averages(self._metrics).items()]
        return f"step {self._step}/{self.total_steps}  " + "  ".join(parts)

    def _panel(self) -> Panel:
        table = Table.grid(padding=(0, 3))
        fields = [Text.assemble((f"{label} ", "dim"), (value, "bold")) for label, value in self._fields()]
        for start in range(0, len(fields), 4):
            table.add_row(*fields[start : start + 4])
        bar = Table.grid(expand=True)  # a bar alone would not end its line
        bar.add_row(ProgressBar(total=max(1, self.total_steps), completed=self._step))
        rows: list[RenderableType] = [bar, table]
        rows += [Text(f"verdicts: {self._verdicts()}")] if self._verdicts() else []
        rows += [Text(f"{name}: {_format('{:.3f}', value)}") for name, value in self._evaluations.items()]
        rows += [Text(note, style="dim") for note in self._notes]
        return Panel(Group(*rows), title=f"step {self._step}/{self.total_steps}", title_align="left")


def _averages(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The ``<evaluation set>/avg@k`` values, without their intervals."""
    return {name: value for name, value in metrics.items() if name.rpartition("/")[2].startswith("avg@")}


def _format(form: str, value: Any) -> str:
    return "-" if value is None else form.format(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
