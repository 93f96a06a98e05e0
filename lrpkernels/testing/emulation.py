"""The CUDA kernels on CPU tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .._extension import Backend, ops
from ..functional import tuner
from ..functional.tuner import Mode, Tuner


@contextmanager
def emulated_cuda(conv: Mode | Tuner = "fused") -> Iterator[Tuner]:
    """While active, the engine's own ops are the CUDA kernels, run thread by thread on the CPU, on CPU tensors of any dtype.

    Needs the emulated kernels as ``torch.ops.lrpkernels_emulated``; the tests compile them from ``csrc/cuda`` (see
    ``tests/test_emulated_ops.py``).

    Args:
        conv: the path of convolutions: "fused" kernels, ATen's with the elementwise kernels ("vendor"), tuned per shape ("auto"), or
            a tuner.

    Yields:
        The tuner in use.

    Raises:
        RuntimeError: the emulated kernels are not loaded.
    """
    if not hasattr(torch.ops.lrpkernels_emulated, "epsilon_scale"):
        raise RuntimeError(
            "emulated_cuda: torch.ops.lrpkernels_emulated is not loaded; tests/test_emulated_ops.py compiles it"
        )
    before = ops.backend, tuner.current
    ops.backend = Backend("lrpkernels_emulated", "cpu", ops.capturing)
    tuner.current = conv if isinstance(conv, Tuner) else Tuner(conv)
    try:
        yield tuner.current
    finally:
        ops.backend, tuner.current = before
