"""Ratios measured in turn, and the environment they were measured in."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

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
    runs: Mapping[str, Callable[[], object]], repeats: int = 11, warmup: int = 2, wall: bool = False
) -> list[Ratio]:
    """Run all functions in turn, ``repeats`` times, and compare each with the first.

    Args:
        runs: name -> function; the first is the baseline.
        repeats: pairs of runs, at least 3.
        warmup: runs of each beforehand.
        wall: wall-clock time; otherwise the processor time of this process, which other programs on a shared machine disturb less.
            On a GPU always wall-clock time, synchronised.
    """
    clock = time.perf_counter if wall or torch.cuda.is_available() else time.process_time
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(-warmup, repeats):
        for name, run in runs.items():
            _synchronize()
            start = clock()
            run()
            _synchronize()
            if index >= 0:
                times[name].append(clock() - start)
    baseline = next(iter(times.values()))
    rows = []
    for name, values in times.items():
        ratios = sorted(v / b for v, b in zip(values, baseline, strict=True))
        rows.append(Ratio(name, median(values), median(ratios), _quantile(ratios, 0.1), _quantile(ratios, 0.9)))
    return rows


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, max(0, round(q * (len(ordered) - 1))))]


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def steady_allocator() -> None:
    """Keep freed memory in the process, as it is in the middle of a long training run.

    glibc otherwise returns large blocks to the system after every step and pays page faults for them in the next, more of them the
    more memory a step uses, at a price that depends on the machine's other tenants.
    """
    if platform.system() == "Linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def environment(device: str) -> dict[str, Any]:
    """What a figure depends on: processor or GPU, torch, threads, commit."""
    info = {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": time.strftime("%Y-%m-%d"),
    }
    return info


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return f"{names[0]}, {torch.backends.cpu.get_cpu_capability()}"
    except (OSError, IndexError):
        return platform.processor()


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=False
        ).stdout.strip()
    except OSError:
        return ""


def as_rows(ratios: list[Ratio], **more: Any) -> list[dict[str, Any]]:
    """The ratios as plain dicts for JSON, each with the same further columns."""
    return [{**more, **asdict(r)} for r in ratios]
