"""The loggers of a run: started before the first step, and left out, with a warning, when they fail later."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isnet._files import read_json, write_json
from isnet.loggers import LOGGERS, Logger, Outcome, RunInfo, require_packages

STATE_NAME = "loggers.json"
_LONGEST = 400  # characters of an error that is told
_COUNT = "entries"  # in a logger's state: how many of the log it has


class Tracking:
    """Passes the log to loggers and notes in the run's folder how far each has got.

    A logger that has missed entries, since it failed or came later, gets them when the run is resumed.

    Args:
        names: Of the loggers (:data:`isnet.loggers.LOGGERS`).
        folder: Of the run; None: nothing is logged.
        options: Of the run, by names with dots.

    Raises:
        ModuleNotFoundError: the package of a logger is missing.
    """

    def __init__(self, names: Sequence[str], folder: Path | None, options: Mapping[str, Any]) -> None:
        require_packages(names)
        self.folder, self.options, self.wanted = folder, options, () if folder is None else tuple(dict.fromkeys(names))
        self._running: dict[str, Logger] = {}
        self._states: dict[str, dict[str, Any]] = {}
        self._count, self._step, self._draws = 0, 0, True

    def start(self, entries: Sequence[Mapping[str, Any]], *, resumed: bool) -> None:
        """Starts the loggers and passes on those entries of a resumed run that they lack.

        Raises:
            RuntimeError: one cannot be started for a new run.
            ValueError: the note on those of a resumed run is damaged.
        """
        if self.folder is None or not self.wanted:
            return
        self._states = _states(self.folder / STATE_NAME) if resumed else {}
        self._step = entries[-1]["step"] if entries else 0
        for name in self.wanted:
            kept = self._states.get(name)
            known = None if kept is None else {key: value for key, value in kept.items() if key != _COUNT}
            count = 0 if kept is None else kept[_COUNT]
            step = entries[min(count, len(entries)) - 1]["step"] if count and entries else 0
            logger = LOGGERS[name]()
            try:
                state = logger.start(RunInfo(self.folder, self.folder.absolute().name, self.options, step), known)
            except Exception as error:
                if kept is None:
                    self.close("failed")
                    raise RuntimeError(f"--logger {name}: cannot be started ({_told(error)})") from error
                _warn(name, error)
                continue
            self._running[name], self._states[name] = logger, {**state, _COUNT: count}
            for number, entry in enumerate(entries, 1):
                self._pass(name, entry, number)
        self._count = len(entries)
        self.note()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Passes an entry of the log on."""
        self._step, self._count = entry["step"], self._count + 1
        for name in tuple(self._running):
            self._pass(name, entry, self._count)

    def _pass(self, name: str, entry: Mapping[str, Any], number: int) -> None:
        """Passes the entry of that number on, unless the logger has it or has failed."""
        state = self._states[name]
        if number > state[_COUNT] and self._try(name, lambda logger: logger.scalars(numbers(entry), entry["step"])):
            state[_COUNT] = number

    def picture(self, name: str, draw: Callable[[], npt.NDArray[np.uint8]]) -> None:
        """Passes on a picture [H, W, 3] of the network as it is after the last entry; one that fails is the last to be drawn."""
        if not self._running or not self._draws:
            return
        try:
            pixels = draw()
        except Exception as error:
            self._draws = False
            warnings.warn(f"pictures for the loggers cannot be drawn, and are left out ({_told(error)})", stacklevel=2)
            return
        for key in tuple(self._running):
            self._try(key, lambda logger: logger.picture(name, pixels, self._step))

    def scores(self, scores: Mapping[str, Any]) -> None:
        """Passes on the scores at the end."""
        values = numbers({"kind": "final", **scores})
        for name in tuple(self._running):
            self._try(name, lambda logger: logger.scores(values, self._step))

    def note(self) -> None:
        """Notes how many entries the loggers have; to be called before a checkpoint is written."""
        if self.folder is not None and self._states:
            write_json(self.folder / STATE_NAME, self._states)

    def close(self, outcome: Outcome) -> None:
        """Ends the loggers' runs."""
        for name in tuple(self._running):
            self._try(name, lambda logger: logger.close(outcome))
        self._running = {}

    def _try(self, name: str, act: Callable[[Logger], None]) -> bool:
        """Whether a logger did it; one that did not is left out from then on."""
        if name not in self._running:
            return False
        try:
            act(self._running[name])
        except Exception as error:  # of any library, for any reason: training is worth more than its log elsewhere
            del self._running[name]
            _warn(name, error)
            return False
        return True


def numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an entry of the log, by kind and name with dots, as ``step/loss``."""
    found = {}
    for name, value in flatten(entry).items():
        if name not in ("kind", "step", "epoch") and isinstance(value, int | float):
            found[f"{entry['kind']}/{name}"] = float(value)
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _states(path: Path) -> dict[str, dict[str, Any]]:
    """What the loggers of a run are known by.

    Raises:
        ValueError: the file is damaged.
    """
    found = read_json(path) if path.exists() else {}
    good = isinstance(found, dict) and all(
        isinstance(state, dict)
        and type(state.get(_COUNT)) is int
        and state[_COUNT] >= 0
        and all(isinstance(value, str) for key, value in state.items() if key != _COUNT)
        for state in found.values()
    )
    if not good:
        raise ValueError(f"{path}: expected loggers with their runs; remove the file, and new runs are begun there")
    return found


def _warn(name: str, error: Exception) -> None:
    warnings.warn(f"logger {name} failed and is left out from here on; training goes on ({_told(error)})", stacklevel=3)


def _told(error: Exception) -> str:
    """What an error says, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...'}"
