"""Shared by the experiments: presets, methods chosen by name, and trainings side by side in processes of their own."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
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

ConfigT = TypeVar("ConfigT")
MethodT = TypeVar("MethodT")
JobT = TypeVar("JobT")


def preset(presets: Mapping[str, ConfigT], name: str, changes: Mapping[str, Any]) -> ConfigT:
    """The settings called ``name``, with some of them changed.

    Raises:
        ValueError: no such preset.
    """
    if name not in presets:
        raise ValueError(f"preset: expected one of {', '.join(presets)}, got {name!r}")
    return dataclasses.replace(presets[name], **changes)  # type: ignore[type-var]


def chosen(methods: Mapping[str, MethodT], wanted: Collection[str]) -> dict[str, MethodT]:
    """The methods wanted, in their own order; all if none is named.

    Raises:
        ValueError: an unknown name.
    """
    unknown = set(wanted) - set(methods)
    if unknown:
        raise ValueError(f"methods: no {', '.join(sorted(unknown))}; there are {', '.join(methods)}")
    return {name: method for name, method in methods.items() if not wanted or name in wanted}


def require_known(name: str, values: Iterable[str], known: Collection[str]) -> None:
    """Checks a setting's values.

    Raises:
        ValueError: one that is not known.
    """
    for value in values:
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def require_different(name: str, values: Sequence[int]) -> None:
    """Checks that there is at least one value, and none twice.

    Raises:
        ValueError: otherwise.
    """
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name}: expected one or several different numbers, got {list(values)}")


def train_missing(
    train: Callable[[Any, JobT], None],
    config: Any,
    jobs: Sequence[JobT],
    done: Callable[[JobT], bool],
    *,
    processes: int,
    progress: bool,
) -> None:
    """Calls ``train(config, job)`` for each job that is not done, some at a time, in processes that end with this one, however it ends.

    Args:
        train: A function that a new process can import; it leaves its result in files.
        config, jobs: Its arguments.
        done: Whether a job's result already exists.
        processes: Trainings at a time.
        progress: Show a progress bar.
    """
    missing = [job for job in jobs if not done(job)]
    if not missing:
        return
    context = multiprocessing.get_context("spawn")
    with (
        Progress(disable=not progress) as display,
        ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent) as pool,
    ):
        task = display.add_task("trainings", total=len(jobs), completed=len(jobs) - len(missing))
        for future in as_completed([pool.submit(train, config, job) for job in missing]):
            future.result()
            display.advance(task)


def _end_with_parent() -> None:
    """Has this process end when the one that started it does; a killed one cannot end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)  # the files that trainings leave are complete at any moment

    threading.Thread(target=watch, daemon=True).start()
