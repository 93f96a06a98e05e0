"""Stopping a training between two steps, when a signal asks for it."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# Ctrl-C; the end of a job; what a batch system may send some time before that end (SLURM: --signal=USR1@120).
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


class Interrupted(KeyboardInterrupt):
    """A signal has ended a training, whose state was saved.

    Attributes:
        signum: The signal; a command line ends with status 128 + signum.
        step: Steps done.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"{signal.Signals(signum).name} after step {step}")
        self.signum, self.step = signum, step


class StopSignals:
    """Notes SIGINT, SIGTERM and SIGUSR1 while it is entered, so that the loop can stop between two steps.

    A second SIGINT raises KeyboardInterrupt at once. Signals that the process ignores stay ignored. Handlers can be set in the main thread
    alone: elsewhere, and with ``active`` False, nothing changes.

    Attributes:
        signum: The first of the signals that came; 0: none.
    """

    def __init__(self, active: bool = True) -> None:
        self.signum = 0
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> StopSignals:
        for name in _NAMES if self._active else ():
            number = getattr(signal, name, None)  # Windows has no SIGUSR1
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked process that loads images: its parent says when it ends
            return
        if self.signum and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = self.signum or number


def ignore_signals(_: int = 0) -> None:
    """For processes that load images: their parent says when they end, although a terminal or batch system signals all."""
    for name in _NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
