"""Small trainings with loggers, and a logger that keeps what it gets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from settings import train_config
from test_isnet_training import assert_same_model, blobs, small_model, train

from isnet.config import TrainConfig
from isnet.loggers import LOGGERS, Logger, RunInfo
from isnet.training.checkpoints import load_state, load_weights
from isnet.training.tracking import numbers

ODD = "größe*x/..//a$b"  # name of a validation set


class Memory(Logger):
    """Keeps what it gets; raises where it is told to."""

    package = "json"
    runs: list[Memory]
    broken: set[str]

    def __init__(self) -> None:
        self.values: list[tuple[str, int, float]] = []
        self.pictures: list[tuple[int, np.ndarray[Any, Any]]] = []
        self.outcome = ""
        self.runs.append(self)

    def _fails(self, where: str) -> None:
        if where in self.broken:
            raise OSError(f"no space left ({where})\nand more")

    def start(self, run: RunInfo, kept: Mapping[str, str] | None) -> dict[str, str]:
        self._fails("start")
        self.run, self.kept = run, kept
        return {"id": "one"}

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._fails("scalars")
        self.values += [(name, step, value) for name, value in values.items()]

    def picture(self, name: str, pixels: Any, step: int) -> None:
        self._fails("picture")
        self.pictures.append((step, pixels))

    def close(self, outcome: Any) -> None:
        self._fails("close")
        self.outcome = outcome


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> type[Memory]:
    monkeypatch.setitem(LOGGERS, "memory", Memory)
    Memory.runs, Memory.broken = [], set()
    return Memory


def config_of(*loggers: str, **options: Any) -> TrainConfig:
    return train_config(**{"epochs": 2, "batch_size": 16, "log_every": 2, "loggers": loggers, **options})


def trained(config: TrainConfig, kept: Path | None, **options: Any) -> list[dict[str, Any]]:
    options.setdefault("data", blobs(48))
    return train(small_model(), config, "selective", run_dir=kept, validation={ODD: blobs(16)}, **options)


def expected(log: list[dict[str, Any]]) -> list[tuple[str, int, float]]:
    return [(name, entry["step"], value) for entry in log for name, value in numbers(entry).items()]


def assert_weights(one: Path, other: Path) -> None:
    models = [small_model(), small_model()]
    for path, model in zip((one, other), models, strict=True):
        load_state(model, load_weights(path / "best.safetensors")[0], path)
    assert_same_model(*models)
