"""What every logger does."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Outcome = Literal["finished", "stopped", "failed"]


class RunInfo(NamedTuple):
    """The run that is logged.

    Attributes:
        folder: Of the run.
        name: For people.
        options: Name with dots -> JSON value.
        step: Up to which the logger has the entries; 0 for a new run.
    """

    folder: Path
    name: str
    options: Mapping[str, Any]
    step: int


class Logger(ABC):
    """Takes numbers and pictures of one run.

    Any method may raise: :class:`isnet.training.tracking.Tracking` then goes on without the logger.

    Attributes:
        package: What is imported, and what ``pip install`` fetches.
    """

    package: ClassVar[str]

    @abstractmethod
    def start(self, run: RunInfo, kept: Mapping[str, str] | None) -> dict[str, str]:
        """Begins the tracker's run, or goes on with it.

        Args:
            run: What is logged.
            kept: What an earlier call for the same run returned; None: it is a new one.

        Returns:
            What finds the tracker's run again; it is kept in the run's folder, so that nothing secret may be in it.
        """

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Logs numbers by name (``step/loss``, ``epoch/accuracy.validation``) at an optimizer step."""

    @abstractmethod
    def picture(self, name: str, pixels: npt.NDArray[np.uint8], step: int) -> None:
        """Logs a picture [H, W, 3]."""

    def scores(self, values: Mapping[str, float], step: int) -> None:
        """Logs the scores on the tests at the end."""
        self.scalars(values, step)

    @abstractmethod
    def close(self, outcome: Outcome) -> None:
        """Delivers what is still held back, and ends the tracker's run."""


class Names:
    """Names in the characters that a tracker takes; names that differ stay different.

    Args:
        forbidden: Regular expression of what becomes an underscore.
        longest: Characters of a name.
    """

    def __init__(self, forbidden: str, longest: int = 250) -> None:
        self._forbidden, self._longest = re.compile(forbidden), longest
        self._found: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """The name to use."""
        if name not in self._found:
            parts = [part for part in self._forbidden.sub("_", name).split("/") if part not in ("", ".", "..")]
            clean = "/".join(parts)[: self._longest] or "_"
            taken, number, found = set(self._found.values()), 2, clean
            while found in taken:
                found, number = f"{clean[: self._longest - 8]}_{number}", number + 1
            self._found[name] = found
        return self._found[name]
