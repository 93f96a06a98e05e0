"""Training in several processes: ``torchrun --nproc-per-node N -m isnet train ...``, or ``srun isnet train ...``.

torchrun (or SLURM's srun) starts the processes and gives each its rank; gradients are averaged by ``DistributedDataParallel``. Nothing here
runs unless torchrun (or the caller) has set the processes up.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn

from isnet.training.slurm import adopt_slurm


class ProcessLostError(RuntimeError):
    """Another process of the training has ended, or cannot be reached, or torchrun ends this one: none can continue alone."""


class _Terminated(BaseException):
    """SIGTERM; not an error, which code on the way might mistake for one of its own."""


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: The number of this one, from 0.
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

    def largest(self, value: int) -> int:
        """The largest value of all processes, at the cost of one small message."""
        if self.size == 1:
            return value
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        values = torch.tensor(value, device=device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def from_main(self, value: Any) -> Any:
        """Rank 0's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    @torch.no_grad()
    def share_buffers(self, module: nn.Module) -> None:
        """Gives ``module`` the buffers of rank 0's, such as running statistics, which differ if each saw its own images."""
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

    Raises:
        ProcessLostError: in the block, a connection to another process broke, or SIGTERM came.
    """
    adopt_slurm(os.environ)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield current_world(), device
        return
    backend = "gloo"
    if torch.device(device).type == "cuda":
        # Where the batch system shows each process its own GPU alone, that one is number 0.
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0') if torch.cuda.device_count() > 1 else '0'}"
        torch.cuda.set_device(device)
        backend = "nccl"
    dist.init_process_group(backend)
    try:
        with _losses_as_errors():
            yield current_world(), device
            dist.barrier()  # no process leaves while another still talks to it
    finally:
        # What reference cycles keep of DDP holds the group, whose threads must not outlive the interpreter.
        gc.collect()
        dist.destroy_process_group()


@contextlib.contextmanager
def _losses_as_errors() -> Iterator[None]:
    """Raises ProcessLostError for broken connections and for SIGTERM, which torchrun sends to the others when one process ends.

    After such an error SIGTERM stays ignored, so that it cannot cut this process short while it reports the error; a process
    that does not end gets SIGKILL from torchrun. Otherwise the former handler is restored at the end.
    """
    told = []

    def terminate(*_: object) -> NoReturn:
        told.append(True)
        raise _Terminated

    catches = threading.current_thread() is threading.main_thread()  # handlers can be set there alone
    after = signal.signal(signal.SIGTERM, terminate) if catches else None
    try:
        yield
    except (_Terminated, RuntimeError) as error:
        if told:  # also where a loader's worker, signalled too, raises an error of its own on the way
            after = signal.SIG_IGN
            text = "SIGTERM: another process of this training has ended, or the training was told to end"
            raise ProcessLostError(text) from None
        # gloo's errors have no class of their own.
        if not (isinstance(error, dist.DistError) or "gloo/transport" in str(error)):
            raise
        after = signal.SIG_IGN
        # The first sentence, without the place in gloo's source.
        reason = str(error).partition("\n")[0].split("] ", 1)[-1].partition(". ")[0]
        raise ProcessLostError(f"another process of this training has ended or cannot be reached ({reason})") from error
    finally:
        if catches:
            signal.signal(signal.SIGTERM, after or signal.SIG_DFL)


def speaks_first(text: str | None = None) -> bool:
    """Whether this process is to print an error: the first of those that torchrun started to say ``text``, or, for None, anything.

    The processes ask the store of torchrun itself, which outlives each of them. Without torchrun, or where it cannot be asked: True.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return True
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
        key = f"isnet/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}/said"
        first = store.add(key, 1) == 1
        return first if text is None else store.add(f"{key}/{text}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True
