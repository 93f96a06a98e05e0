"""Stopping a training between two steps, when a signal asks for it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

# Ctrl-C; the end of a job; what a batch system may send some time before that end (SLURM: --signal=USR1@120).
STOPPING = ("SIGINT", "SIGTERM", "SIGUSR1")


class Interrupted(KeyboardInterrupt):
    """A signal has ended a training, whose state was saved.

    Attributes:
        signum: The signal; a command line ends with status 128 + signum.
        step: Steps done; None: it did not come during the steps.
    """

    def __init__(self, signum: int, step: int | None = None) -> None:
        super().__init__(f"{signal.Signals(signum).name} after step {step}")
        self.signum, self.step = signum, step


@contextlib.contextmanager
def on_signals(act: Callable[[int], None], *names: str) -> Iterator[None]:
    """Calls ``act`` with the number of a signal that comes in the block; it may raise.

    Signals that the process ignores stay ignored. Processes that are forked meanwhile end by SIGTERM as they would otherwise, and leave the
    others to their parent. Handlers can be set in the main thread alone: elsewhere nothing changes.

    Args:
        act: Called in the main thread, between two instructions.
        names: ``"SIGINT"`` etc.; those that the system lacks are left out.
    """
    process, before = os.getpid(), dict[int, Any]()

    def handle(number: int, _: FrameType | None) -> None:
        if os.getpid() == process:
            act(number)
        elif number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    catches = threading.current_thread() is threading.main_thread()
    for number in (getattr(signal, name, None) for name in names if catches):
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        for name in STOPPING if self._active else ():
            number = getattr(signal, name, None)  # Windows has no SIGUSR1
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._note)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook

    def _unraisable(self, found: Any) -> None:
        if not (self.signum and found.exc_type is KeyboardInterrupt):
            self._hook(found)

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked process that loads images: its parent says when it ends
            return
        if self.signum and number == signal.SIGINT:
            # Where Python can only report an exception, as in a destructor, the end of the step remains.
            raise KeyboardInterrupt
        self.signum = self.signum or number


def ignore_signals(_: int = 0) -> None:
    """For processes that load images: their parent says when they end, although a terminal or batch system signals all."""
    for name in STOPPING:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
