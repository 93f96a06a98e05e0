"""What a training shows: on a terminal a table of epochs above a progress bar, elsewhere a line per epoch."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from isnet._text import Screen, say

# Title and width of the columns after the epoch; in a line the title stands before the number.
_COLUMNS = {
    "phase": 8, "loss": 8, "classification": 14, "heatmap": 8, "accuracy": 8, "AUC": 6, "background": 10, "images/s": 8, "left": 8,
}  # fmt: skip
_USUAL = ("few images",)  # cautions that hold in every epoch alike


class Display:
    """Shows the epochs of a training while it is entered.

    Args:
        title: What is trained.
        epochs: Of the whole training.
        steps_per_epoch: Optimizer steps.
        batch_size: Images per step.
        done: Steps done before.
        shown: Whether anything is shown.
    """

    def __init__(
        self, title: str, *, epochs: int, steps_per_epoch: int, batch_size: int, done: int = 0, shown: bool = True
    ) -> None:
        self.title, self.epochs, self.steps_per_epoch, self.batch_size = title, epochs, steps_per_epoch, batch_size
        self.console, self.shown = Screen(), shown
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self.console,
            disable=not (shown and self.console.is_terminal),
        )
        self._task = self._bar.add_task(title, total=epochs * steps_per_epoch, completed=done, loss="")
        self._began, self._first, self._headed = time.perf_counter(), done, False
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._step = done

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, step: int, loss: float) -> None:
        """Moves the bar to a step."""
        self._bar.update(self._task, completed=step, loss=f"loss {loss:.3f}")

    def window(self, entry: Mapping[str, Any]) -> None:
        """Takes the log entry of some steps."""
        steps, self._step = entry["step"] - self._step, entry["step"]
        supervised = next(iter(entry["layers"].values()), None)
        background = None if supervised is None else supervised["background"]
        values = {**{key: entry[key] for key in ("loss", "classification", "heatmap")}, "background": background}
        for name, value in values.items():
            if value is not None:
                self._sums[name] = self._sums.get(name, 0.0) + steps * value
                self._counts[name] = self._counts.get(name, 0) + steps

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Shows the epoch that has ended."""
        means = {name: f"{total / max(1, self._counts[name]):.3f}" for name, total in self._sums.items()}
        steps = sum(self._counts[name] for name in ("loss",) if name in self._counts)
        self._sums, self._counts = {}, {}
        if not self.shown:
            return
        name = next(iter(entry.get("accuracy", {})), None)  # the set that chooses the checkpoint
        auc = entry.get("auc", {}).get(name)
        left = (time.perf_counter() - self._began) / max(1, entry["step"] - self._first)
        left *= max(0, self.epochs * self.steps_per_epoch - entry["step"])
        cells = {
            "phase": entry["phase"],
            **means,
            "accuracy": None if name is None else f"{100 * entry['accuracy'][name]:.1f} %",
            "AUC": None if auc is None else f"{auc:.3f}",
            "images/s": f"{steps * self.batch_size / max(entry['seconds'], 1e-9):.1f}",
            "left": str(datetime.timedelta(seconds=round(left))),
        }
        caution = next(
            (w["kind"] for w in entry.get("warnings", []) if w["kind"] not in _USUAL), ""
        )  # the gravest first
        number = f"{entry['epoch']}/{self.epochs}"
        if self.console.is_terminal:
            self._row(number, cells, best=entry.get("best", False), caution=caution)
            return
        parts = [f"{key} {cells[key]}" for key in _COLUMNS if cells.get(key) is not None and key != "phase"]
        kept = ", best so far" if entry.get("best") else ""
        kept += f", caution: {caution}" if caution else ""
        say(f"{self.title}, epoch {number} ({cells['phase']}): {', '.join(parts)}{kept}")

    def _row(self, number: str, cells: Mapping[str, Any], best: bool, caution: str) -> None:
        """A row of the table; its columns have fixed widths, so that rows printed one by one stand below each other."""
        table = Table(box=None, show_header=not self._headed, padding=(0, 1, 0, 0))
        self._headed = True
        table.add_column("epoch", min_width=9)
        for name, width in _COLUMNS.items():
            table.add_column(name, min_width=width, justify="left" if name == "phase" else "right")
        if caution:
            table.add_column("")
        row = [number, *(cells.get(name) or "-" for name in _COLUMNS), *([caution] if caution else [])]
        table.add_row(*row, style="bold" if best else "")
        self.console.print(table)
