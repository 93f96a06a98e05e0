"""Weak scaling: the same batch in each of 1 and 2 processes, gradients averaged by DistributedDataParallel over gloo.

Run by ``python -m benchmarks.scaling --ddp``. Processor time of each process, since two processes on a machine shared with others wait for
each other and for the processor; the wall clock says nothing there. What averaging costs is the difference to the same step under
``no_sync()``, in the same alternating run; waiting for the other process costs no processor time and is not in it. With ``--wall`` wall
clock, for machines of one's own.
"""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import isnet
from benchmarks.networks import NETWORKS
from benchmarks.timing import alternate, as_rows, steady_allocator

PROCESSES = (1, 2)


def _worker(
    rank: int, world: int, port: int, network: str, shape: tuple[int, int], repeats: int, wall: bool, results: Any
) -> None:
    torch.set_num_threads(1)
    steady_allocator()
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        rows = as_rows(alternate(_runs(network, *shape), repeats, wall=wall), processes=world)
    finally:
        dist.destroy_process_group()
    if rank == 0:
        results.put(rows)


def _runs(network: str, batch: int, size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    plain, inner = NETWORKS[network](10).train(), NETWORKS[network](10).train()
    plain_parallel = DistributedDataParallel(plain)
    net = DistributedDataParallel(isnet.ISNet(inner, "selective", check=False))
    criterion = isnet.ISNetLoss()
    x, labels = torch.rand(batch, 3, size, size), torch.randint(0, 10, (batch,))
    masks = torch.zeros(batch, 1, size, size)
    masks[..., size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1

    def plain_step() -> None:
        plain.zero_grad()
        F.cross_entropy(plain_parallel(x), labels).backward()

    def isnet_step() -> None:
        inner.zero_grad()
        criterion(net(x), labels, masks).total.backward()

    def alone(parallel: DistributedDataParallel, step: Callable[[], None]) -> None:
        with parallel.no_sync():
            step()

    return {
        "plain step": plain_step,
        "plain step, not averaged": partial(alone, plain_parallel, plain_step),
        "ISNet selective step": isnet_step,
        "ISNet selective step, not averaged": partial(alone, net, isnet_step),
    }


def measure(options: Any, network: str = "resnet18") -> list[dict[str, Any]]:
    """Rows of both steps, averaged or not, for each number of processes.

    ``weak`` is the time beside one process's, 1 at perfect scaling, ``averaging`` the share of a step that averaging takes.
    """
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    for world in PROCESSES:
        results = context.Queue()
        port = _free_port()
        shape = (options.batch, options.size)
        processes = [
            context.Process(
                target=_worker, args=(rank, world, port, network, shape, options.repeats, options.wall, results)
            )
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        found = _result(results, processes)
        for process in processes:
            process.join()
        one = {row["name"]: row["seconds"] for row in rows or found}
        seconds = {row["name"]: row["seconds"] for row in found}
        for row in found:
            name = row["name"]
            averaging = 1 - seconds.get(f"{name}, not averaged", row["seconds"]) / row["seconds"]
            rows.append({**row, "network": network, "weak": row["seconds"] / one[name], "averaging": averaging})
    print("| processes | step | s per process | x plain | x one process | spent in averaging |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        if not row["name"].endswith("not averaged"):
            cells = (row["processes"], row["name"], *(f"{row[key]:.2f}" for key in ("seconds", "ratio", "weak")))
            print(f"| {' | '.join(map(str, cells))} | {100 * row['averaging']:.0f} % |")
    return rows


def _result(results: Any, processes: list[Any]) -> list[dict[str, Any]]:
    import queue

    while True:
        try:
            return results.get(timeout=5)
        except queue.Empty:
            failed = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
            if failed:
                for process in processes:
                    process.terminate()
                raise RuntimeError(f"a process of the weak scaling ended with exit code {failed[0]}") from None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
