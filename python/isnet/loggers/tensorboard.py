"""TensorBoard: event files in ``RUN/tensorboard``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from isnet.loggers.base import Logger, Names, Outcome, RunInfo

FOLDER = "tensorboard"  # of a run


class TensorBoard(Logger):
    """Writes event files; ``tensorboard --logdir RUN`` shows them."""

    package = "tensorboard"

    def __init__(self) -> None:
        self._writer: Any = None
        self._names = Names(r"[^-/\w.]")

    def start(self, run: RunInfo, kept: Mapping[str, str] | None) -> dict[str, str]:
        from torch.utils.tensorboard import SummaryWriter

        # Events after the checkpoint belong to a future that did not happen.
        self._writer = SummaryWriter(str(run.folder / FOLDER), purge_step=run.step + 1 if run.step else 0)
        if kept is None:
            rows = [f"| {name} | {value} |".replace("\n", " ") for name, value in run.options.items()]
            self._writer.add_text("options", "\n".join(["| option | value |", "| --- | --- |", *rows]), 0)
        return {}

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(self._names(name), value, step)

    def picture(self, name: str, pixels: npt.NDArray[np.uint8], step: int) -> None:
        self._writer.add_image(self._names(name), pixels, step, dataformats="HWC")

    def close(self, outcome: Outcome) -> None:
        self._writer.close()
