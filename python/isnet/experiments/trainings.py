"""Shared by the experiments: presets, names that are checked, and trainings side by side in processes of their own."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from rich.progress import Progress

from isnet.config import NetworkConfig

# A residual network narrow enough for a CPU: 40 x 40 images become 20 x 20 in the first convolution.
NARROW_RESNET = NetworkConfig(
    arch="monai:ResNet",
    arch_args={
        "block": "basic",
        "layers": [1, 1, 1, 1],
        "block_inplanes": [16, 32, 64, 64],
        "conv1_t_size": 3,
        "conv1_t_stride": 2,
        "no_max_pool": True,
    },
)

_TOLD = 3  # failures in an error

ConfigT = TypeVar("ConfigT", bound="Any")
JobT = TypeVar("JobT")


class TrainingsError(RuntimeError):
    """Some trainings failed; the text says which and why. The others are done."""


def preset(presets: Mapping[str, ConfigT], name: str, changes: Mapping[str, Any]) -> ConfigT:
    """The settings called ``name``, with some of them changed.

    Raises:
        ValueError: no such preset.
    """
    if name not in presets:
        raise ValueError(f"preset: expected one of {', '.join(presets)}, got {name!r}")
    return dataclasses.replace(presets[name], **changes)


def require_known(name: str, values: Iterable[str], known: Collection[str]) -> None:
    """Checks a setting's values.

    Raises:
        ValueError: one that is not known.
    """
    for value in values:
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def require_different(name: str, values: Sequence[Any], what: str = "numbers") -> None:
    """Checks that there is at least one value, and none twice.

    Raises:
        ValueError: otherwise.
    """
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name}: expected one or several different {what}, got {list(values)}")


def train_missing(
    train: Callable[[Any, JobT], None],
    config: Any,
    jobs: Sequence[JobT],
    done: Callable[[JobT], bool],
    *,
    processes: int,
    progress: bool,
    after: Callable[[JobT], JobT | None] = lambda job: None,
    prepare: Callable[[JobT], Callable[[], None] | None] = lambda job: None,
    hours: float | None = None,
) -> list[JobT]:
    """Calls ``train(config, job)`` for each job that is not done, some at a time, in processes that end with this one, however it ends.

    A job that fails stops only those that wait for it. Where this process is asked to stop, those that train are asked as well.

    Args:
        train: A function that a new process can import; it leaves its result in files.
        config: Its first argument.
        jobs: Its second arguments, in the order in which they are begun.
        done: Whether a job's result already exists.
        processes: Trainings at a time.
        progress: Show a progress bar.
        after: The job, one of ``jobs``, that must be done before a job begins.
        prepare: Gives what is to be called in this process before a job begins, if anything is.
        hours: Begin no job once this much time has passed; None: no limit.

    Returns:
        The jobs that were left for another time.

    Raises:
        TrainingsError: some failed.
    """
    waiting = [job for job in jobs if not done(job)]
    if not waiting:
        return []
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    running: dict[Future[None], JobT] = {}
    failed: dict[JobT, str] = {}
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with (
        Progress(disable=not progress) as display,
        ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent) as pool,
    ):
        task = display.add_task("trainings", total=len(jobs), completed=len(jobs) - len(waiting))
        try:
            while True:
                while len(running) < processes and (deadline is None or time.monotonic() < deadline):
                    held = {*waiting, *running.values(), *failed}
                    job = next((job for job in waiting if after(job) not in held), None)
                    if job is None:
                        break
                    if (preparation := prepare(job)) is not None:
                        display.stop()  # it may show its own progress
                        preparation()
                        display.start()
                    waiting.remove(job)
                    running[pool.submit(train, config, job)] = job
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        raise TrainingsError(f"{job}: its process was killed (out of memory?); run again to go on")
                    if error is not None:
                        failed[job] = f"{type(error).__name__}: {error}"
                    display.advance(task)
        except BaseException:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()  # a training saves its state
            raise
    if failed:
        told = [f"{job}: {text}" for job, text in failed.items()]
        more = f"; and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
        raise TrainingsError(f"{len(failed)} of {len(jobs)} trainings failed: {'; '.join(told[:_TOLD])}{more}")
    return waiting


def _end_with_parent() -> None:
    """Has this process end when the one that started it does; a killed one cannot end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)  # the files that trainings leave are complete at any moment

    threading.Thread(target=watch, daemon=True).start()
