"""Ratios of functions that run in turn, so that both run under the same conditions: for ``lrpkernels bench`` and the benchmarks."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Ratio:
    """How long ``name`` takes beside the baseline: medians over pairs of runs, one after the other.

    Attributes:
        name: what was measured.
        seconds: median time of one run.
        ratio: median of the pairs' ratios; ``low`` and ``high`` are their 10 % and 90 % quantiles.
    """

    name: str
    seconds: float
    ratio: float
    low: float
    high: float


def alternate(
    runs: Mapping[str, Callable[[], object]],
    repeats: int = 11,
    warmup: int = 2,
    wall: bool = False,
    read: Callable[[], float] | None = None,
) -> list[Ratio]:
    """Run all functions in turn, ``repeats`` times, and compare each with the first.

    Args:
        runs: name -> function; the first is the baseline.
        repeats: pairs of runs, at least 3.
        warmup: runs of each beforehand.
        wall: wall-clock time; otherwise the processor time of this process, which other programs on a shared machine disturb less.
            On a GPU always wall-clock time, synchronised.
        read: the clock, in seconds; None: by ``wall``.

    Raises:
        ValueError: fewer than 3 repeats, whose median would mean little.
    """
    if repeats < 3:
        raise ValueError(f"repeats must be at least 3, got {repeats}")
    read = read or clock(wall)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(-warmup, repeats):
        for name, run in runs.items():
            start = read()
            run()
            if index >= 0:
                times[name].append(read() - start)
    baseline = next(iter(times.values()))
    rows = []
    for name, values in times.items():
        ratios = sorted(v / b for v, b in zip(values, baseline, strict=True))
        rows.append(Ratio(name, median(values), median(ratios), _quantile(ratios, 0.1), _quantile(ratios, 0.9)))
    return rows


def clock(wall: bool) -> Callable[[], float]:
    """Seconds by the wall or of this process; with a GPU by the wall, once all its work is done."""
    if not torch.cuda.is_available():
        return time.perf_counter if wall else time.process_time

    def read() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return read


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, max(0, round(q * (len(ordered) - 1))))]


def steady_allocator() -> None:
    """Keep freed memory in the process, as in the middle of a long training run.

    glibc otherwise returns large blocks to the system after every step and takes page faults for them in the next: more of them the
    more memory a step uses, and at a cost that depends on the machine's other tenants.
    """
    if platform.system() == "Linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
