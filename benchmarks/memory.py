"""Peak memory of training steps and heatmaps, above what the model itself holds.

    python -m benchmarks.memory
    python -m benchmarks.memory --networks resnet18 vgg16 densenet121 --size 224 --json memory.json

Each run happens in a process of its own whose allocator returns freed memory to the system at once; the peak of its resident memory
counts (on a GPU, PyTorch's own count).
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lrpkernels as lrp
from benchmarks import command_line
from benchmarks.heatmap import heatmap, input_gradient
from benchmarks.networks import NETWORKS, images
from benchmarks.step import steps

STEPS = ("selective", "selective, checkpointed", "dual", "dual, checkpointed", "original")
HEATMAPS: dict[str, Callable[[], Any]] = {"epsilon": lambda: lrp.Epsilon(1e-2), "EpsilonPlus": lrp.EpsilonPlus}


def _run(
    kind: str, network: str, batch: int, size: int, classes: int, device: str
) -> tuple[Callable[[], object], nn.Module]:
    torch.manual_seed(0)
    model = NETWORKS[network](classes).to(device)
    if kind == "plain" or kind in STEPS:
        variant, _, checkpoint = ("selective" if kind == "plain" else kind).partition(", ")
        shape = {"batch": batch, "size": size, "classes": classes}
        runs = steps(network, variant, **shape, training=True, device=device, model=model, checkpoint=bool(checkpoint))
        return list(runs.values())[0 if kind == "plain" else -1], model
    model.eval().requires_grad_(False)
    x = images(network, batch, size, device)
    return input_gradient(model, x) if kind == "input gradient" else heatmap(model, x, HEATMAPS[kind]()), model


def _measure(arguments: tuple[Any, ...]) -> float:
    """Bytes at the peak of the second run, gradients included, above those of the model between the runs."""
    torch.set_num_threads(1)
    allocator, device = ctypes.CDLL(None), arguments[-1]
    if device == "cpu":
        allocator.mallopt(-3, 64 << 10)  # M_MMAP_THRESHOLD: freed blocks go back at once
    run, model = _run(*arguments)
    run()  # also loads the code that it needs into memory
    model.zero_grad()
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    allocator.malloc_trim(0)
    resident = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    run()
    return _status("VmHWM") - resident


def _status(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * float(line.split()[1])


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = command_line.parser(__doc__, ["resnet18", "vgg16", "densenet121"], repeats=None)
    parser.add_argument("--classes", type=int, default=10)
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    print(f"{'network':<12} {'what':<24} {'MiB':>8} {'ratio':>7}")
    processes = multiprocessing.get_context("forkserver")  # forked from one that has imported torch and opened no GPU
    processes.set_forkserver_preload(["benchmarks.heatmap", "benchmarks.step", "torch._dynamo"])
    with processes.Pool(1, maxtasksperchild=1) as pool:
        for network in options.networks:
            for kinds in (("plain", *STEPS), ("input gradient", *HEATMAPS)):
                base = None
                for kind in kinds:
                    shape = (options.batch, options.size, options.classes, options.device)
                    peak = pool.apply(
                        _measure, ((kind, network, *shape),)
                    )  # `map` divides by the workers alive, 0 between two
                    base = base or peak
                    rows.append({"network": network, "what": kind, "bytes": peak, "ratio": peak / base})
                    print(f"{network:<12} {kind:<24} {peak / 2**20:8.1f} {peak / base:7.2f}", flush=True)
    return command_line.finish(options, rows)


if __name__ == "__main__":
    main()
