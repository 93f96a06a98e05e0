"""Calls of the CUDA kernels on the CPU shim, with the bytes they must move, for benchmarks.traffic: layers without windows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from cuda_on_cpu import DTYPES, Buffer, Dtype, Extent, Kernels, load


class Row(NamedTuple):
    """The traffic of one kernel call."""

    kernel: str
    layout: str
    dtype: str
    mebibytes: float
    memory: float
    blocks: float
    lanes: float
    sectors: float


class Call(NamedTuple):
    """A kernel call with its compulsory traffic in bytes."""

    family: str
    name: str
    layout: str
    dtype: Dtype
    minimal: int
    run: Callable[[Kernels], object]


BATCH, CHANNELS, SIDE = 16, 64, 28  # 1.5 MiB in 16-bit types


def normal(*shape: int) -> np.ndarray:
    """The same normal numbers for every call."""
    return np.random.default_rng(0).standard_normal(shape)


def wide(dtype: Dtype) -> Dtype:
    """Of tensors per channel."""
    return DTYPES["float64" if dtype.name == "float64" else "float32"]


def scratch(size: int) -> Buffer:
    """A workspace of this many bytes."""
    return Buffer((size // 8 + 1,), DTYPES["float64"])


def measure(call: Call) -> Row:
    """Runs one call and counts."""
    kernels = load(call.family)
    kernels.configure(count=True)
    call.run(kernels)
    counts = kernels.counts()
    kernels.configure()
    return Row(
        call.name,
        call.layout,
        call.dtype.name,
        call.minimal / 2**20,
        32 * counts.launch_sectors / call.minimal,
        32 * counts.block_sectors / call.minimal,
        counts.bytes / call.minimal,
        min(1.0, counts.bytes / (32 * counts.sectors)),
    )


def affine(dtype: Dtype) -> Iterator[Call]:
    """Batch norm standing alone under two rules, and sums under z+."""
    numel, size = BATCH * CHANNELS * SIDE * SIDE, dtype.size
    t, g, v, x, out, dg, dv, dx = (Buffer(normal(numel), dtype) for _ in range(8))
    k, c = (Buffer(normal(CHANNELS), wide(dtype)) for _ in range(2))
    dk, dc = (Buffer((CHANNELS,), wide(dtype)) for _ in range(2))
    for layout, inner in (("NCHW", SIDE * SIDE), ("channels-last", 1)):
        extent = Extent(numel, 1, CHANNELS, inner)
        workspace = scratch(load("affine").affine_backward_workspace(dtype, extent))
        for rule, favour in (("epsilon", (1.0, 0.0)), ("z+", (0.0, 1.0))):
            name = f"affine ({rule})"

            def forward(kernels: Kernels, extent: Extent = extent, favour: tuple[float, float] = favour) -> None:
                kernels.affine(dtype, *favour, g, v, x, k, c, out, extent, 1e-2)

            def backward(
                kernels: Kernels,
                extent: Extent = extent,
                favour: tuple[float, float] = favour,
                workspace: Buffer = workspace,
            ) -> None:
                kernels.affine_backward(dtype, *favour, t, g, v, x, k, c, dg, dv, dx, dk, dc, workspace, extent, 1e-2)

            yield Call("affine", name, layout, dtype, 4 * numel * size, forward)
            yield Call("affine", f"{name} backward", layout, dtype, 7 * numel * size, backward)
    extent = Extent(numel, 1, 1, 1)
    yield Call(
        "affine",
        "sum_zplus",
        "any",
        dtype,
        5 * numel * size,
        lambda kernels: kernels.sum_zplus(dtype, g, v, x, out, dg, extent, 1e-2),
    )
    yield Call(
        "affine",
        "sum_zplus_backward",
        "any",
        dtype,
        8 * numel * size,
        lambda kernels: kernels.sum_zplus_backward(dtype, t, out, g, v, x, dg, dv, dx, extent, 1e-2),
    )
