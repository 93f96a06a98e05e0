"""csrc/cuda/heatmap.cu on the CPU shim against a full sort in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from cuda_on_cpu import DTYPES, INT32, Buffer, Dtype, Heatmap, assert_close, load, runs

RUNS = runs()


class Case(NamedTuple):
    """A batch of heatmaps; `levels` different values force ties."""

    images: int
    maps: int
    channels: int
    positions: int
    mask_channels: int
    decay: float
    levels: int = 0

    @property
    def kept(self) -> int:
        if self.decay == 1:
            return 0
        if self.decay == 0:
            return 1
        return min(self.positions, math.ceil(math.log(1e-12) / math.log(self.decay)) + 1)

    def struct(self) -> Heatmap:
        return Heatmap(*self[:5], self.kept, self.decay)


CASES = [
    Case(0, 1, 3, 4, 1, 0.9),
    Case(1, 1, 1, 1, 1, 0.9),
    Case(2, 1, 3, 49, 1, 0.9),
    Case(1, 2, 2, 784, 2, 0.9),
    Case(2, 1, 1, 1000, 1, 0.5),
    Case(1, 1, 2, 1024, 1, 0.0),
    Case(1, 2, 3, 300, 3, 1.0),
    Case(1, 1, 1, 700, 1, 0.9, levels=3),
    Case(1, 1, 1, 5000, 1, 0.99),
    Case(1, 1, 1, 3000, 1, 0.996),
]


def inputs(case: Case, dtype: Dtype, shift: int) -> tuple[Buffer, Buffer, np.ndarray, np.ndarray]:
    """Heatmap and mask, as buffers and in float64 [images, maps, channels, positions]; half of the mask is foreground."""
    rng = np.random.default_rng(case.positions)
    r = rng.standard_normal((case.images, case.maps, case.channels, case.positions))
    if case.levels:
        r = rng.integers(-case.levels, case.levels + 1, r.shape).astype(float)
    m = (rng.random((case.images, case.mask_channels, case.positions)) < 0.5).astype(float)
    heatmap, mask = Buffer(r, dtype, shift), Buffer(m, dtype, shift)
    return heatmap, mask, heatmap.read(), np.broadcast_to(m[:, None], (*r.shape[:2], m.shape[1], r.shape[3]))


def weights_of(case: Case) -> np.ndarray:
    """Of the ranks; those behind `kept` are left out of the sum, not of the denominator."""
    weights = case.decay ** np.arange(case.positions, dtype=float)  # 0 ** 0 = 1
    total = weights.sum()
    if case.kept:
        weights[case.kept :] = 0
    return weights / total


@pytest.mark.parametrize(("dtype", "order"), RUNS)
def test_heatmap_scores(dtype: Dtype, order: int) -> None:
    kernels = load("heatmap")
    kernels.configure(order)
    wide = DTYPES["float64" if dtype.name == "float64" else "float32"]
    for number, case in enumerate(CASES):
        heatmap, mask, r, m = inputs(case, dtype, number % 2)
        maps = (case.images, case.maps)
        foreground, signed = Buffer(maps, wide), Buffer(maps, wide)
        background = Buffer((*maps, case.channels), wide)
        ranks = Buffer((*maps, case.channels, case.kept), INT32)
        workspace = Buffer((kernels.heatmap_scores_workspace(case.struct()) // 8 + 1,), DTYPES["float64"])
        kernels.heatmap_scores(dtype, heatmap, mask, foreground, signed, background, ranks, workspace, case.struct())
        workspace.read()
        a = np.abs(r) * (1 - m)
        by_rank = np.argsort(-a, axis=-1, kind="stable")  # equal values in ascending order of position
        assert_close(foreground.read(), (np.abs(r) * m).sum((2, 3)), wide, operations=100)
        assert_close(signed.read(), (r * m).sum((2, 3)), wide, (np.abs(r) * m).sum((2, 3)), 100)
        pooled = np.take_along_axis(a, by_rank, -1) @ weights_of(case)
        assert_close(background.read(), pooled, wide, operations=100)
        if case.kept and case.images:
            first = by_rank[..., : case.kept]
            expected = np.where(np.take_along_axis(a, first, -1) > 0, first, -1)
            np.testing.assert_array_equal(ranks.read(), expected)

        rng = np.random.default_rng(1)
        gf, gs, gb = (Buffer(rng.standard_normal(shape), wide) for shape in (maps, maps, (*maps, case.channels)))
        grad = Buffer(r.shape, dtype, number % 2)
        kernels.heatmap_scores_backward(dtype, heatmap, mask, ranks, gf, gs, gb, grad, case.struct())
        spread = np.zeros_like(a)
        np.put_along_axis(spread, by_rank, np.broadcast_to(weights_of(case), a.shape), -1)
        sign = np.sign(r)
        expected = m * (sign * gf.read()[..., None, None] + gs.read()[..., None, None])
        expected = expected + (1 - m) * sign * gb.read()[..., None] * spread
        magnitude = np.abs(gf.read())[..., None, None] + np.abs(gs.read())[..., None, None] + np.abs(expected)
        assert_close(grad.read(), expected, dtype, magnitude * m + np.abs(expected), 8)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_nan_in_the_background_shows(dtype: Dtype) -> None:
    kernels = load("heatmap")
    kernels.configure()
    case = Case(1, 1, 1, 64, 1, 0.5)
    r, m = np.ones((1, 1, 1, 64)), np.zeros((1, 1, 64))
    r[..., 17] = np.nan
    wide = DTYPES["float64" if dtype.name == "float64" else "float32"]
    foreground, signed, background = Buffer((1, 1), wide), Buffer((1, 1), wide), Buffer((1, 1, 1), wide)
    workspace = Buffer((kernels.heatmap_scores_workspace(case.struct()) // 8 + 1,), DTYPES["float64"])
    ranks = Buffer((1, 1, 1, case.kept), INT32)
    kernels.heatmap_scores(
        dtype, Buffer(r, dtype), Buffer(m, dtype), foreground, signed, background, ranks, workspace, case.struct()
    )
    assert np.isnan(background.read()).all()
    assert foreground.read() == 0
    assert ranks.read()[0, 0, 0, 0] == 17


def test_rows_beyond_the_grid() -> None:
    dtype = DTYPES["float32"]
    kernels = load("heatmap")
    case = Case(3, 2, 3, 100, 1, 0.8)
    results = []
    for limit in (2, 2147483647):
        kernels.configure(max_grid_x=limit)
        heatmap, mask, _, _ = inputs(case, dtype, 0)
        buffers = [Buffer((3, 2), dtype), Buffer((3, 2), dtype), Buffer((3, 2, 3), dtype)]
        ranks = Buffer((3, 2, 3, case.kept), INT32)
        workspace = Buffer((kernels.heatmap_scores_workspace(case.struct()) // 8 + 1,), DTYPES["float64"])
        kernels.heatmap_scores(dtype, heatmap, mask, *buffers, ranks, workspace, case.struct())
        results.append([b.read() for b in (*buffers, ranks)])
    for limited, free in zip(*results, strict=True):
        np.testing.assert_array_equal(limited, free)
