"""Alternating runs timed on a GPU's own clock, with peak memory; a run that fails is a row with its error."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median, quantiles
from typing import Any

import torch

Run = Callable[[], object]
PRECISIONS = ("fp32", "tf32", "bf16")


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Products of float32 tensors in float32 or tf32, in matrix products and convolutions alike; "bf16" leaves float32 exact."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def first_line(error: BaseException) -> str:
    """Type and first line of an error: what a row says in place of a figure."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]


def synchronize(device: str) -> None:
    """Waits for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(run: Run, device: str, calls: int = 1) -> float:
    """Of one call, by CUDA events on a GPU that had nothing else to do, so that gaps between launches count."""
    synchronize(device)
    if device != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return 1e3 * (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / calls


def measure(
    runs: Mapping[str, Run], device: str, *, repeats: int = 10, warmup: int = 3, calls: int = 1, seconds: float = 5.0
) -> list[dict[str, Any]]:
    """Runs all in turn and compares each with the first.

    Args:
        runs: name -> function; the first is the baseline.
        device: "cuda" or "cpu".
        repeats: rounds of which medians and quartiles count, at least 2.
        warmup: runs of each beforehand; memory is read in the last.
        calls: of each function between two readings of the clock.
        seconds: no further round begins after them, once there are three.

    Returns:
        Per run: by, ms, low_ms and high_ms (quartiles), ratio to the first with its quartiles low and high, rounds, peak_mib (of all
        memory allocated, on a GPU); or by and error.
    """
    rows: dict[str, dict[str, Any]] = {}
    able: dict[str, Run] = {}
    for name, run in runs.items():
        try:
            for _ in range(warmup - 1):
                run()
            rows[name] = {"by": name, "peak_mib": _peak(run, device)}
            able[name] = run
        except Exception as error:  # the others are measured all the same
            rows[name] = {"by": name, "error": first_line(error)}
            if device == "cuda":
                torch.cuda.empty_cache()
    times: dict[str, list[float]] = {name: [] for name in able}
    begun = time.perf_counter()
    for index in range(repeats):
        if index >= 3 and time.perf_counter() - begun > seconds:
            break
        for name, run in list(able.items()):
            try:
                times[name].append(milliseconds(run, device, calls))
            except Exception as error:
                rows[name] = {"by": name, "error": first_line(error)}
                del able[name], times[name]
    first = next(iter(runs))
    for name, values in times.items():
        low, _, high = quantiles(values, n=4, method="inclusive")
        rows[name].update(ms=median(values), low_ms=low, high_ms=high, rounds=len(values))
        if first in times:
            ratios = [v / b for v, b in zip(values, times[first], strict=True)]
            low, _, high = quantiles(ratios, n=4, method="inclusive")
            rows[name].update(ratio=median(ratios), low=low, high=high)
    return list(rows.values())


def _peak(run: Run, device: str) -> float | None:
    if device != "cuda":
        run()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def captured(run: Callable[[], Any], device: str) -> tuple[Run, Any]:
    """What replays ``run`` as a CUDA graph, and the result that a replay overwrites; on the CPU ``run`` itself and its result."""
    if device != "cuda":
        return run, run()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    gc.collect()  # a graph of autograd that is still alive belongs to another stream
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph.replay, result
