"""Where a step's time goes on a GPU: kernels and the processor's launches, by torch.profiler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_cases import isnet_step, make_case, plain_step
from benchmarks.gpu_timing import Run, first_line, milliseconds, precision, synchronize

Row = dict[str, Any]
TOP = 15


def profiles(device: str, tiny: bool) -> Iterator[Row]:
    """One step of ResNet50 and ViT-B under bfloat16 autocast: plain, recorded, static."""
    for network in ("resnet50", "vit_b_16"):
        with precision("bf16"):
            case = make_case(network, device, True, tiny)
            case.model.train().requires_grad_(True)
            runs = {"plain": plain_step(case), "static": isnet_step(case, static=True), "recorded": isnet_step(case)}
            for by, run in runs.items():
                columns = {"network": network, "precision": "bf16", "by": by}
                try:
                    yield from profiled(run, device, columns)
                except Exception as error:  # the other steps are profiled all the same
                    yield {"what": "profile", **columns, "error": first_line(error)}


def profiled(run: Run, device: str, columns: Row) -> Iterator[Row]:
    """A row for the step and one for each of the kernels that took longest; on the CPU operators stand in for kernels.

    The step's: ms without the profiler, busy_ms of its kernels, their number, the calls that start them and what those take of the
    processor, launch_ms.
    """
    for _ in range(3):
        run()
    ms = min(milliseconds(run, device) for _ in range(3))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities, acc_events=True) as found:
        run()
        synchronize(device)
    events = found.key_averages()
    if device == "cuda":
        kernels = [(e.self_device_time_total, e) for e in events if e.device_type == DeviceType.CUDA]
    else:
        kernels = [(e.self_cpu_time_total, e) for e in events]
    launches = [e for e in events if "launchkernel" in e.key.lower() and e.device_type == DeviceType.CPU]
    total = sum(time for time, _ in kernels)
    yield {
        "what": "profile", **columns, "ms": ms, "busy_ms": 1e-3 * total, "kernels": sum(e.count for _, e in kernels),
        "launches": sum(e.count for e in launches), "launch_ms": 1e-3 * sum(e.self_cpu_time_total for e in launches),
    }  # fmt: skip
    for time, event in sorted(kernels, key=lambda pair: -pair[0])[:TOP]:
        yield {
            "what": "profile kernel", **columns, "kernel": event.key[:160], "calls": event.count, "kernel_ms": 1e-3 * time,
            "share": time / total if total else 0.0,
        }  # fmt: skip
