"""csrc/cuda/sample_norm.cu on the CPU shim: layer, group, instance and RMS norm, and their derivatives.

The reference computes the forward in float64; its derivative for the input is taken by complex steps, which share nothing with the
kernels' formulas.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cuda_on_cpu import DTYPES, Buffer, Dtype, Extent, Norm, assert_close, load, runs, taken

# (rows, elements of a row, channels of the weight or 0, inner): warps and blocks, with and without vectors, planes and vectors of weights.
SIZES = [
    *((0, 8, 8, 1), (1, 1, 1, 1), (7, 33, 33, 1), (5, 192, 192, 1), (6, 64, 0, 1), (3, 1300, 1300, 1), (2, 2048, 0, 1)),
    *((6, 70, 6, 35), (16, 16, 8, 16), (4, 1056, 2, 1056), (6, 4, 12, 1), (10, 8, 40, 1), (4, 96, 8, 24)),
]
EPSILON = 0.05
STEP = 1e-30
RUNS = runs()


def values(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def pulled(g: np.ndarray, x: np.ndarray, w: np.ndarray, centred: bool) -> np.ndarray:
    """(w G - mean) / sqrt(variance + eps); g [T, rows, row], x [rows, row] real or complex, w [rows, row]."""
    away = x - x.mean(-1, keepdims=True) if centred else x
    inverse = 1 / np.sqrt((away * away).mean(-1, keepdims=True) + EPSILON)
    scaled = w * g
    return inverse * (scaled - scaled.mean(-1, keepdims=True) if centred else scaled)


@pytest.mark.parametrize(("dtype", "order"), RUNS)
def test_sample_norm(dtype: Dtype, order: int) -> None:
    kernels = load("sample_norm")
    kernels.configure(order)
    wide = DTYPES["float64" if dtype.name == "float64" else "float32"]
    cases = itertools.product(SIZES, (True, False), [(1, 0), (3, 0), (2, 1)])
    for _, ((rows, row, channels, inner), centred, (targets, shift)) in taken(cases, order, 1):
        n = rows * row
        norm = Norm(Extent(n, targets, max(1, channels), inner if channels else row), row, EPSILON, centred)
        g, t = (Buffer(values(i, targets, rows, row), dtype, shift) for i in (1, 2))
        x = Buffer(values(3, rows, row) + 0.5, dtype, shift)
        weight = Buffer(values(4, channels), wide) if channels else None
        result, dg = (Buffer((targets, rows, row), dtype, shift) for _ in range(2))
        dx = Buffer((rows, row), dtype, shift)
        dw = Buffer((channels,), wide) if channels else None
        bytes_of_scratch = kernels.sample_norm_backward_workspace(dtype, norm, bool(channels))
        scratch = Buffer((bytes_of_scratch // 8 + 1,), DTYPES["float64"])
        kernels.sample_norm(dtype, g, x, weight, result, norm)
        kernels.sample_norm_backward(dtype, t, g, x, weight, dg, dx, dw, scratch, norm)
        scratch.read()
        if n == 0:
            continue
        channel = np.arange(n) // norm.extent.inner % norm.extent.channels
        w = weight.read()[channel].reshape(rows, row) if channels else np.ones((rows, row))
        given, grads, inputs = g.read(), t.read(), x.read()
        away = inputs - inputs.mean(-1, keepdims=True) if centred else inputs
        inverse = 1 / np.sqrt((away**2).mean(-1, keepdims=True) + EPSILON)
        spread = 1 + np.abs(inputs).max() * inverse  # how far rounding of the mean shows
        size = np.abs(w * given) + np.abs(w * given).mean(-1, keepdims=True)
        assert_close(result.read(), pulled(given, inputs, w, centred), dtype, inverse * size * spread, 32)
        a = inverse * (grads - grads.mean(-1, keepdims=True) if centred else grads)
        size = inverse * (np.abs(grads) + np.abs(grads).mean(-1, keepdims=True)) * spread
        assert_close(dg.read(), w * a, dtype, np.abs(w) * size, 32)
        terms = np.abs(given) * size
        if channels:
            sums, bound = (np.bincount(channel, v.sum(0).ravel(), minlength=channels) for v in (given * a, terms))
            assert_close(dw.read(), sums, wide, bound, 64)
        expected = np.empty((rows, row))
        for place in range(row):
            moved = inputs.astype(complex)
            moved[:, place] += 1j * STEP
            expected[:, place] = (grads * pulled(given, moved, w, centred)).sum((0, 2)).imag / STEP
        bound = (np.abs(w) * terms).sum((0, 2))[:, None] * inverse**2 * (np.abs(away) + spread) / row
        assert_close(dx.read(), expected, dtype, bound, 64)
