"""Training in several processes: ``torchrun --nproc-per-node N -m isnet train ...``.

torchrun starts the processes and tells each its rank; gradients are averaged by ``DistributedDataParallel``. Nothing here
runs unless torchrun (or the caller) has set the processes up.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: Of this one, from 0.
        size: Their number.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes log and checkpoints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The (picklable) values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean of each value over all processes, the same in all of them, to the last bit."""
        if self.size == 1:
            return list(values)
        gathered = self.gather(list(values))
        return [sum(column) / self.size for column in zip(*gathered, strict=True)]

    def from_main(self, value: Any) -> Any:
        """Rank 0's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    @torch.no_grad()
    def share_buffers(self, module: nn.Module) -> None:
        """Gives ``module`` the buffers of rank 0's, such as running statistics, which differ where each saw its own images."""
        if self.size == 1:
            return
        buffers = list(module.buffers())
        for own, main in zip(buffers, self.from_main([buffer.cpu() for buffer in buffers]), strict=True):
            own.copy_(main)

    def barrier(self) -> None:
        """Waits for all."""
        if self.size > 1:
            dist.barrier()


def current_world() -> World:
    """The processes of ``torch.distributed``'s default group, or this one alone."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextlib.contextmanager
def launched_world(device: str) -> Iterator[tuple[World, str]]:
    """Joins the processes that torchrun started and leaves them at the end.

    Args:
        device: ``"cpu"``, or ``"cuda"``, of which each local process gets its own.

    Yields:
        The world, and the device of this process. Without torchrun: this process alone, and ``device``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield current_world(), device
        return
    backend = "gloo"
    if torch.device(device).type == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
        backend = "nccl"
    dist.init_process_group(backend)
    try:
        yield current_world(), device
        dist.barrier()  # nobody leaves while another still talks to it
    finally:
        # What reference cycles keep of DDP holds the group, whose threads must not outlive the interpreter.
        gc.collect()
        dist.destroy_process_group()
