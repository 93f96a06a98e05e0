"""The log of a training run: JSON lines as training goes, a CSV table after each epoch, and TensorBoard if requested."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isnet._files import atomic_path, write_text
from isnet._text import visible

LOG_NAME = "log.jsonl"
TABLE_NAME = "log.csv"
TENSORBOARD_NAME = "tensorboard"


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The entries of a JSONL log; an incomplete last line, left by a kill, is skipped."""
    entries = []
    for line in Path(path).read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    return entries


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
