"""The log of a training run: JSON lines as training goes, a CSV table after each epoch, and TensorBoard if requested."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isnet._files import atomic_path, read_text, write_text
from isnet._text import visible

LOG_NAME = "log.jsonl"
TABLE_NAME = "log.csv"
TENSORBOARD_NAME = "tensorboard"


def read_log(path: str | os.PathLike[str], *, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The entries of a JSONL log; an incomplete last line, left by a kill, is skipped.

    Args:
        path: The file.
        required: What each entry must have beside ``"kind"`` and ``"step"``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another line is no entry of a log; the text names file and line.
    """
    lines, entries = read_text(path).split("\n"), []
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line:
            break
        try:
            entry = json.loads(line)
            _require_entry(entry, required)
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # it has no end: a kill has cut it
                break
            told = "nested too deeply" if isinstance(error, RecursionError) else error
            raise ValueError(f"{path}, line {number}: no entry of a log ({told})") from error
        entries.append(entry)
    return entries


def _require_entry(entry: Any, required: Sequence[str]) -> None:
    """Raises ValueError for what :meth:`RunLog.add` does not write."""
    if not isinstance(entry, dict):
        raise ValueError("expected names with values")
    missing = [name for name in ("kind", "step", *required) if name not in entry]
    if missing:
        raise ValueError(f"{', '.join(missing)}: missing")
    if not isinstance(entry["kind"], str) or type(entry["step"]) is not int or entry["step"] < 0:
        raise ValueError(f"kind, step: got {entry['kind']!r}, {entry['step']!r}")
    for name in ("layers", "accuracy", "balanced_accuracy", "auc", "validation"):
        if not isinstance(entry.get(name, {}), dict):
            raise ValueError(f"{name}: expected names with values, got {entry[name]!r}")
    for warning in entry.get("warnings", ()):
        if not isinstance(warning, dict) or not all(isinstance(warning.get(key), str) for key in ("kind", "text")):
            raise ValueError(f"warnings: expected kind and text, got {warning!r}")
    for name, value in flatten(entry).items():
        if name not in ("kind", "phase", "best", "warnings") and not isinstance(value, int | float | None):
            raise ValueError(f"{name}: expected a number, got {value!r}")


class RunLog:
    """Keeps the entries of a run in memory and, given a folder, on the disk.

    Args:
        folder: Where the files go; None keeps nothing on disk.
        tensorboard: Write scalars for TensorBoard as well.

    Raises:
        ModuleNotFoundError: ``tensorboard`` without the package.
    """

    def __init__(self, folder: Path | None, *, tensorboard: bool = False) -> None:
        self.entries: list[dict[str, Any]] = []
        self.folder = folder
        self._tensorboard = tensorboard and folder is not None
        self._writer: Any = None

    def restore(self, step: int) -> None:
        """Reads the entries on the disk up to ``step``."""
        if self.folder is not None and (self.folder / LOG_NAME).exists():
            self.entries = [entry for entry in read_log(self.folder / LOG_NAME) if entry["step"] <= step]

    def start(self) -> None:
        """Starts new files with the entries so far."""
        if self.folder is None:
            return
        lines = "".join(json.dumps(entry) + "\n" for entry in self.entries)
        with atomic_path(self.folder / LOG_NAME) as temporary:
            temporary.write_text(lines)
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Events after the checkpoint belong to a future that did not happen.
            purge = self.entries[-1]["step"] + 1 if self.entries else 0
            self._writer = SummaryWriter(str(self.folder / TENSORBOARD_NAME), purge_step=purge)

    def add(self, entry: dict[str, Any]) -> None:
        """Adds one entry; it has a ``"kind"`` and a ``"step"``."""
        self.entries.append(entry)
        if self.folder is None:
            return
        with (self.folder / LOG_NAME).open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if self._writer is not None:
            for name, value in flatten(entry).items():
                if name not in ("kind", "step", "epoch") and isinstance(value, int | float):
                    self._writer.add_scalar(visible(f"{entry['kind']}/{name}"), value, entry["step"])

    def sync(self) -> None:
        """Brings the log to the disk: a checkpoint must not be there without the entries before it."""
        if self.folder is not None:
            with (self.folder / LOG_NAME).open("a") as file:
                os.fsync(file.fileno())

    def save_table(self) -> None:
        """Writes the table: one row per entry, one column per number."""
        if self.folder is None:
            return
        rows = [flatten(entry) for entry in self.entries]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(self.folder / TABLE_NAME, text.getvalue())

    def close(self) -> None:
        """Flushes what TensorBoard still holds."""
        if self._writer is not None:
            self._writer.close()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
