"""Every op of ``torch.ops.lrpkernels`` beside eager PyTorch, on shapes of real layers.

    python -m pytest benchmarks/bench_kernels.py --benchmark-timer=time.process_time --benchmark-json=kernels.json
    python -m pytest benchmarks/bench_kernels.py --device cuda --dtype bfloat16 -k "epsilon_scale and 512"

Before anything is timed, the op's result is checked against float64 on the input that is timed. Eager is the plain formula, for a
backward op autograd's pass through it. The convolution ops have kernels on CUDA alone; on the CPU those
of the heatmap loss are plain PyTorch themselves: no gain is possible there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.kernel_inputs import LAYERS, arguments_of, eager
from lrpkernels.testing import CPU_OPS, OPS, accuracies


def _synchronised(run: Callable[[], object], device: str) -> Callable[[], object]:
    if device == "cpu":
        return run

    def synchronised() -> None:
        run()
        torch.cuda.synchronize()

    return synchronised


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The ops that the device has; the fused convolutions have kernels on CUDA alone."""
    if "op" in metafunc.fixturenames:
        metafunc.parametrize("op", CPU_OPS if metafunc.config.getoption("--device") == "cpu" else OPS)


@pytest.mark.parametrize("layer", list(LAYERS))
@pytest.mark.parametrize("by", ["lrpkernels", "eager"])
def test_kernel(op: str, by: str, layer: str, kernel_options: tuple[str, str], benchmark: Any) -> None:
    device, name = kernel_options
    dtype = getattr(torch, name)
    arguments = arguments_of(op, layer, dtype)
    there = tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments)
    kernel = getattr(torch.ops.lrpkernels, op)
    assert max(found.ratio for found in accuracies(op, arguments, kernel(*there))) <= 1
    benchmark.group = f"{op}, {layer}"
    benchmark.extra_info.update(op=op, by=by, layer=layer, dtype=name, device=device)
    benchmark(_synchronised((lambda: kernel(*there)) if by == "lrpkernels" else eager(op, there), device))
