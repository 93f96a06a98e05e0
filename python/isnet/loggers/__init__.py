"""Experiment trackers that a run's log goes to as well: a class in a file of its own, and its entry in :data:`LOGGERS`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from isnet.loggers.base import Logger, Names, Outcome, RunInfo
from isnet.loggers.mlflow import MLflow
from isnet.loggers.tensorboard import TensorBoard
from isnet.loggers.wandb import WandB

__all__ = ["LOGGERS", "Logger", "Names", "Outcome", "RunInfo", "require_packages"]

LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def require_packages(names: Iterable[str]) -> None:
    """Checks that the packages of loggers are there.

    Args:
        names: Of the loggers.

    Raises:
        ModuleNotFoundError: one is not installed; the text says how to install it.
        RuntimeError: one is installed and cannot be imported.
    """
    for name in names:
        package = LOGGERS[name].package
        try:
            found = importlib.import_module(package)
        except ImportError as error:
            if not isinstance(error, ModuleNotFoundError) or error.name != package:
                raise RuntimeError(
                    f"--logger {name}: {package} is installed, but cannot be imported ({error})"
                ) from error
            found = None
        # A folder of this name beside the user's files, such as the one that wandb makes, looks like an empty package.
        if found is None or getattr(found, "__file__", None) is None:
            raise ModuleNotFoundError(f"--logger {name}: its package is not installed: pip install {package}")
