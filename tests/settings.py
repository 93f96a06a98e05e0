"""Settings of trainings on made-up data: none has validation images to choose by, and the networks are small."""

from __future__ import annotations

from typing import Any

from isnet.config import TrainConfig


def train_config(**options: Any) -> TrainConfig:
    """The settings with these options."""
    return TrainConfig.of(**{"batch_size": 64, "lr": 2e-3, "monitor": None, **options})
