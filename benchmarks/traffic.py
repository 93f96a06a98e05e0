"""python -m benchmarks.traffic: global memory traffic of the CUDA kernels, counted on the CPU shim. Exact, needs no GPU.

All but the last column are relative to the bytes of all inputs and outputs, each read or written once. ``memory``: the 32-byte
sectors that a launch touches, each once, which is what the memory moves if the second-level cache keeps what neighbouring blocks
share. ``blocks``: each once per block, which is what the second-level cache delivers if the first level keeps what a block reads
again. ``lanes``: what the threads ask for. ``sectors`` is the share of the touched sectors' bytes that each warp access uses, at
most 1 (one address may serve several lanes).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import numpy as np

from . import roofline
from .conv_calls import conv
from .kernel_calls import BATCH, CHANNELS, SIDE, Call, affine, measure
from .kernel_calls import normal as _normal

from cuda_on_cpu import DTYPES, INT32, INT64, Buffer, Dtype, Extent, Heatmap, Kernels, Pool, load  # isort: skip


def _pointwise(dtype: Dtype) -> Iterator[Call]:
    numel, size = BATCH * CHANNELS * SIDE * SIDE, dtype.size
    wide = DTYPES["float64" if dtype.name == "float64" else "float32"]
    t, g, u, v, out, dg, du = (Buffer(_normal(numel), dtype) for _ in range(7))
    k, dk = Buffer(_normal(CHANNELS), wide), Buffer((CHANNELS,), wide)
    for layout, inner in (("NCHW", SIDE * SIDE), ("channels-last", 1)):
        extent = Extent(numel, 1, CHANNELS, inner)
        workspace = Buffer(
            (load("pointwise").epsilon_scale_backward_workspace(dtype, extent) // 8 + 1,), DTYPES["float64"]
        )

        def scale(kernels: Kernels, extent: Extent = extent) -> None:
            kernels.epsilon_scale(dtype, g, None, u, k, out, extent, 1e-2)

        def backward(kernels: Kernels, extent: Extent = extent, workspace: Buffer = workspace) -> None:
            kernels.epsilon_scale_backward(dtype, t, g, None, u, k, dg, du, dk, workspace, extent, 1e-2)

        yield Call("pointwise", "epsilon_scale", layout, dtype, 3 * numel * size, scale)
        yield Call("pointwise", "epsilon_scale_backward", layout, dtype, 5 * numel * size, backward)
    extent = Extent(numel, 1, 1, 1)
    yield Call(
        "pointwise",
        "ratio",
        "any",
        dtype,
        4 * numel * size,
        lambda kernels: kernels.ratio(dtype, g, u, v, out, extent, 1e-2),
    )
    yield Call(
        "pointwise",
        "ratio_backward",
        "any",
        dtype,
        7 * numel * size,
        lambda kernels: kernels.ratio_backward(dtype, t, g, u, v, dg, du, out, extent, 1e-2),
    )


def _pool(dtype: Dtype) -> Iterator[Call]:
    for window, padding in ((2, 0), (3, 1)):
        for layout, last in (("NCHW", False), ("channels-last", True)):
            yield from _pool_layer(dtype, window, padding, layout, last)


def _pool_layer(dtype: Dtype, window: int, padding: int, layout: str, last: bool) -> Iterator[Call]:
    """A layer of stride 2."""
    half, planes = SIDE // 2, BATCH * CHANNELS
    x, y = Buffer(_normal(planes * SIDE * SIDE), dtype), Buffer(_normal(planes * half * half), dtype)
    pool = Pool(1, BATCH, CHANNELS)
    pool.input[:], pool.output[:] = (1, SIDE, SIDE), (1, half, half)
    pool.kernel[:], pool.stride[:] = (1, window, window), (1, 2, 2)
    pool.padding[:], pool.dilation[:] = (0, padding, padding), (1, 1, 1)
    pool.channels_last, pool.count_include_pad = last, True
    # Winners anywhere in their windows, as trained networks have them.
    begin, reach = (
        np.arange(half) * 2 - padding,
        np.random.default_rng(1).integers(window, size=(2, planes, half, half)),
    )
    row, column = (np.clip(begin[:, None] + reach[0], 0, SIDE - 1), np.clip(begin + reach[1], 0, SIDE - 1))
    winners = (row * SIDE + column).reshape(BATCH, CHANNELS, half, half)
    where = Buffer(np.ascontiguousarray(np.moveaxis(winners, 1, -1) if last else winners), INT64)
    floats = planes * (SIDE * SIDE + half * half) * dtype.size
    both = floats + planes * half * half * 8

    def call(name: str, minimal: int, *arguments: Buffer) -> Call:
        return Call(
            "pool",
            f"{name} {window}x{window}",
            layout,
            dtype,
            minimal,
            lambda kernels: getattr(kernels, name)(dtype, *arguments, pool),
        )

    yield call("max_pool_winner", both, y, where, x)
    yield call("max_pool_winner_backward", both, x, where, y)
    yield call("average_pool", floats, x, y)
    yield call("average_pool_transpose", floats, y, x)


def _heatmap(dtype: Dtype) -> Iterator[Call]:
    images, channels, positions, decay, kept = 2, 3, 224 * 224, 0.9, 264
    rows, size = images * channels, dtype.size
    wide = DTYPES["float64" if dtype.name == "float64" else "float32"]
    shape = Heatmap(images, 1, channels, positions, 1, kept, decay)
    r = Buffer(_normal(rows * positions), dtype)
    m = Buffer((_normal(images * positions) > 0).astype(float), dtype)
    foreground, signed, background = Buffer((images,), wide), Buffer((images,), wide), Buffer((rows,), wide)
    order, grad = Buffer((rows, kept), INT32), Buffer((rows * positions,), dtype)
    workspace = Buffer((load("heatmap").heatmap_scores_workspace(shape) // 8 + 1,), DTYPES["float64"])
    mask = images * positions * size
    yield Call(
        "heatmap",
        "heatmap_scores",
        "rows",
        dtype,
        rows * positions * size + mask,
        lambda kernels: kernels.heatmap_scores(dtype, r, m, foreground, signed, background, order, workspace, shape),
    )
    yield Call(
        "heatmap",
        "heatmap_scores_backward",
        "rows",
        dtype,
        2 * rows * positions * size + mask,
        lambda kernels: kernels.heatmap_scores_backward(
            dtype, r, m, order, foreground, signed, background, grad, shape
        ),
    )


FAMILIES = (_pointwise, affine, _pool)


def calls(dtypes: list[str]) -> Iterator[Call]:
    """Every kernel that memory bounds, at 1 MiB and more."""
    for name in dtypes:
        for family in (*FAMILIES, _heatmap):
            yield from family(DTYPES[name])


def convolutions(dtypes: list[str]) -> Iterator[Call]:
    """The convolution kernels, which arithmetic bounds: for information."""
    for name in dtypes:
        yield from conv(DTYPES[name])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", action="append", choices=list(DTYPES), help="default: float32 and bfloat16")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--roofline", action="store_true", help="print what the counts allow on an A100 and an H100")
    parser.add_argument("--write", action="store_true", help="the same, into docs/gpu.md")
    arguments = parser.parse_args()
    if arguments.roofline or arguments.write:
        text = roofline.tables(FAMILIES)
        roofline.write(text) if arguments.write else print(text)
        return
    if not arguments.json:
        print(
            f"{'kernel':40} {'layout':14} {'dtype':9} {'MiB':>6} {'memory':>7} {'blocks':>7} {'lanes':>7} {'sectors':>8}"
        )
    dtypes = arguments.dtype or ["float32", "bfloat16"]
    for call in (*calls(dtypes), *convolutions(dtypes)):
        row = measure(call)
        if arguments.json:
            print(json.dumps(row._asdict()))
        else:
            numbers = f"{row.mebibytes:6.1f} {row.memory:7.3f} {row.blocks:7.3f} {row.lanes:7.3f} {row.sectors:8.1%}"
            print(f"{row.kernel:40} {row.layout:14} {row.dtype:9} {numbers}")


if __name__ == "__main__":
    main()
