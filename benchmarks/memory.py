r"""Peak memory of training steps and heatmaps, above what the model itself holds.

    python -m benchmarks.memory
    python -m benchmarks.memory --networks resnet18 vgg16 densenet121 --size 224 --json memory.json
    python -m benchmarks.memory --networks resnet101 vit_b --batch 32 --size 224 --warmup 2 \
        --kinds selective "selective, checkpointed" epsilon EpsilonPlus                             # a minute or two a run

Each run happens in a process of its own whose allocator returns freed memory to the system at once; the peak of its resident memory
counts (on a GPU, PyTorch's own count). Beside it the processor time of that one run (on a GPU, wall clock), whose ratio is that of single
runs, not of alternating ones.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lrpkernels as lrp
from benchmarks import command_line
from benchmarks.heatmap import heatmap, input_gradient
from benchmarks.networks import NETWORKS, images
from benchmarks.step import steps

STEPS = ("selective", "selective, checkpointed", "dual", "dual, checkpointed", "original")
HEATMAPS: dict[str, Callable[[], Any]] = {"epsilon": lambda: lrp.Epsilon(1e-2), "EpsilonPlus": lrp.EpsilonPlus}


def _run(kind: str, network: str, batch: int, size: int, classes: int, device: str) -> Callable[[], object]:
    torch.manual_seed(0)
    model = NETWORKS[network](classes).to(device)
    if kind == "plain" or kind in STEPS:
        variant, _, checkpoint = ("selective" if kind == "plain" else kind).partition(", ")
        shape = {"batch": batch, "size": size, "classes": classes}
        runs = steps(network, variant, **shape, training=True, device=device, model=model, checkpoint=bool(checkpoint))
        return list(runs.values())[0 if kind == "plain" else -1]
    model.eval().requires_grad_(False)
    x = images(network, batch, size, device)
    return input_gradient(model, x) if kind == "input gradient" else heatmap(model, x, HEATMAPS[kind]())


def _measure(arguments: tuple[Any, ...]) -> tuple[float, float, float]:
    """Bytes at the peak of the second run, gradients included, above those of the model between the runs; all bytes then; seconds."""
    torch.set_num_threads(1)
    *shape, device, warmup = arguments
    kind, network, _, *others = shape
    allocator = ctypes.CDLL(None)
    if device == "cpu":
        allocator.mallopt(-3, 64 << 10)  # M_MMAP_THRESHOLD: freed blocks go back at once
    run = _run(kind, network, warmup, *others, device)
    run()  # also loads the code that it needs into memory
    run = _run(*shape, device)
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        return peak - before, peak, time.perf_counter() - begin
    allocator.malloc_trim(0)
    resident = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    begin = time.process_time()
    run()
    seconds = time.process_time() - begin
    return _status("VmHWM") - resident, _status("VmHWM"), seconds


def _status(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * float(line.split()[1])


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = command_line.parser(__doc__, ["resnet18", "vgg16", "densenet121"], repeats=None)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--kinds", nargs="+", default=[*STEPS, *HEATMAPS], choices=[*STEPS, *HEATMAPS])
    parser.add_argument(
        "--warmup", type=int, metavar="BATCH", help="images of the run ahead; default: as many as are measured"
    )
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    print(f"{'network':<12} {'what':<24} {'MiB':>8} {'ratio':>7} {'all MiB':>8} {'seconds':>8} {'ratio':>7}")
    processes = multiprocessing.get_context("forkserver")  # forked from one that has imported torch and opened no GPU
    processes.set_forkserver_preload(["benchmarks.heatmap", "benchmarks.step", "torch._dynamo"])
    with processes.Pool(1, maxtasksperchild=1) as pool:
        for network in options.networks:
            for baseline, all_kinds in (("plain", STEPS), ("input gradient", tuple(HEATMAPS))):
                kinds = [kind for kind in all_kinds if kind in options.kinds]
                base: tuple[float, float] | None = None
                for kind in (baseline, *kinds) if kinds else ():
                    shape = (
                        options.batch,
                        options.size,
                        options.classes,
                        options.device,
                        options.warmup or options.batch,
                    )
                    # `map` divides by the workers alive, 0 between two
                    peak, whole, seconds = pool.apply(_measure, ((kind, network, *shape),))
                    base = base or (peak, seconds)
                    row = {"network": network, "what": kind, "batch": options.batch, "size": options.size}
                    row |= {"bytes": peak, "ratio": peak / base[0], "all_bytes": whole}
                    rows.append(row | {"seconds": seconds, "time_ratio": seconds / base[1]})
                    print(
                        f"{network:<12} {kind:<24} {peak / 2**20:8.1f} {peak / base[0]:7.2f} {whole / 2**20:8.1f} {seconds:8.2f} "
                        f"{seconds / base[1]:7.2f}",
                        flush=True,
                    )
    return command_line.finish(options, rows)


if __name__ == "__main__":
    main()
