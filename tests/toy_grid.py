"""A grid whose trainings only write down that they ran, and digits in place of MNIST's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from isnet.config import RunConfig
from isnet.experiments.cells import Cell, Method, Result
from isnet.experiments.digits import DigitsConfig, digits_run
from isnet.experiments.grid import Experiment
from isnet.experiments.grid_tables import Column
from isnet.experiments.mnist_files import MNIST
from isnet.runs import Run, RunData

METHODS = {
    "plain": Method(),
    "warm-up": Method({"epochs": 0, "warmup": 1}, scored=False),
    "guarded": Method({"variant": "selective", "warmup": 1}, after="warm-up"),
    # Another run's folder as the value of an option; any that takes a path will do.
    "taught": Method(after="guarded", handed="weights"),
}


@dataclass(frozen=True)
class Toy(Experiment):
    """Settings are groups of images that do not exist."""

    name: ClassVar[str] = "toy"
    groups: tuple[str, ...] = ("land", "water")
    size: int = 3
    lr: float = 1e-3
    broken: str = ""
    seconds: float = 0.0

    @classmethod
    def all_methods(cls) -> Mapping[str, Method]:
        return METHODS

    @property
    def settings(self) -> tuple[str, ...]:
        return self.groups

    def prepare(self, setting: str, seed: int, *, processes: int, progress: bool) -> None:
        self.say(f"prepare {setting} {seed}")

    def notes(self, cell: Cell) -> dict[str, Any]:
        return {"size": self.size}

    def run_config(self, cell: Cell) -> RunConfig:
        return digits_run(DigitsConfig(), lr=self.lr, seed=cell.seed, **METHODS[cell.method].options)

    def run_cell(self, cell: Cell, folder: Path, before: Path | None) -> dict[str, Any]:
        self.say(f"{cell} after {before and before.name}")
        if cell.method == self.broken:
            raise ValueError("no convergence")
        time.sleep(self.seconds)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "last.safetensors").touch()
        scores = {"worst group": {"accuracy": 0.5 + cell.seed / 10}}
        return {"scores": scores if METHODS[cell.method].scored else {}, "cpu_seconds": 2.0, "steps": 4}

    def data(self, cell: Cell, run: RunConfig) -> RunData:
        raise NotImplementedError

    def score(self, cell: Cell, run: Run, data: RunData) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def columns(cls, results: Sequence[Result]) -> list[Column]:
        return [Column("worst", ("scores", "worst group", "accuracy"), 100)]

    def say(self, text: str) -> None:
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        with (Path(self.folder) / "said.txt").open("a") as file:
            file.write(text + "\n")

    def said(self) -> list[str]:
        """What was said since the last call."""
        path = Path(self.folder) / "said.txt"
        found = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return found


def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of a grid run in threads of this process, which start at once."""
    monkeypatch.setattr("isnet.experiments.trainings.ProcessPoolExecutor", lambda count, **_: ThreadPoolExecutor(count))


def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few digits of random strokes in place of MNIST."""
    rng = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 10
        images = rng.integers(0, 60, (count, 28, 28))
        images[np.arange(count), 4 + 2 * labels] = 255
        return images.astype(np.uint8), labels.astype(np.uint8)

    few = MNIST(*part(140), *part(40), source="test")
    for module in ("mnist", "digits"):
        monkeypatch.setattr(f"isnet.experiments.{module}.load_mnist", lambda *_, **__: few)
