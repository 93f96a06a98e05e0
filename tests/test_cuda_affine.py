"""csrc/cuda/affine.cu on the CPU shim: sums under z+, batch norm standing alone, and their derivatives.

The reference computes the forward in float64; the derivatives are those of the reference, by hand for the sums over targets
and by complex steps for the elementwise parts, which share nothing with the kernels' formulas.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from cuda_on_cpu import DTYPES, Buffer, Dtype, Extent, assert_close, load, runs, taken

SHAPES = [(0, 3, 4), (1, 1, 1), (5, 3, 5), (2, 7, 49), (5, 131, 3), (3, 64, 16), (33, 40, 1), (1, 2, 2100)]
EPSILON = 0.05
FAVOURS = ((1.0, 0.0), (0.0, 1.0), (1.0, 0.25))  # epsilon, z+, gamma
STEP = 1e-30  # of the complex derivative: no difference is taken, so it may be tiny
RUNS = runs()


def values(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def stable(d: np.ndarray) -> np.ndarray:
    return d + np.where(d.real >= 0, EPSILON, -EPSILON)


def positive(x: np.ndarray) -> np.ndarray:
    return np.where(x.real > 0, x, 0)


def sum_shares(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What G is multiplied by on the way to each summand."""
    s = (a + b) / stable(positive(a) + positive(b))
    return np.where(a.real >= 0, s, 0), np.where(b.real >= 0, s, 0)


def affine_share(favour: tuple[float, float], v: np.ndarray, x: np.ndarray, k: np.ndarray, c: np.ndarray) -> np.ndarray:
    whole, extra = favour
    part = np.where(np.where(x.real >= 0, k.real > 0, k.real < 0), k, 0)
    return v * (whole * k + extra * part) / stable(whole * (k * x + c) + extra * (positive(k * x) + positive(c)))


def derivative(function, arguments: list[np.ndarray], which: int) -> np.ndarray:
    moved = [x + 1j * STEP if i == which else x + 0j for i, x in enumerate(arguments)]
    return function(*moved).imag / STEP


@pytest.mark.parametrize(("dtype", "order"), RUNS)
def test_sum_zplus(dtype: Dtype, order: int) -> None:
    kernels = load("affine")
    kernels.configure(order)
    for shape, (targets, shift) in itertools.product(SHAPES, [(1, 0), (3, 0), (2, 1)]):
        n = math.prod(shape)
        extent = Extent(n, targets, 1, 1)
        g, ta, tb = (Buffer(values(i, targets, n), dtype, shift) for i in (1, 2, 3))
        a, b = (Buffer(values(i, n), dtype, shift) for i in (4, 5))
        ra, rb, dg = (Buffer((targets, n), dtype, shift) for _ in range(3))
        da, db = Buffer((n,), dtype, shift), Buffer((n,), dtype, shift)
        kernels.sum_zplus(dtype, g, a, b, ra, rb, extent, EPSILON)
        kernels.sum_zplus_backward(dtype, ta, tb, g, a, b, dg, da, db, extent, EPSILON)
        x, y = a.read(), b.read()
        to_a, to_b = sum_shares(x, y)
        scale = np.abs(x) + np.abs(y)
        magnitude = scale / np.abs(stable(positive(x) + positive(y)))
        assert_close(ra.read(), g.read() * to_a, dtype, np.abs(g.read()) * magnitude)
        assert_close(rb.read(), g.read() * to_b, dtype, np.abs(g.read()) * magnitude)
        if n == 0:
            continue
        grads = np.abs(ta.read()) + np.abs(tb.read())
        assert_close(dg.read(), ta.read() * to_a + tb.read() * to_b, dtype, grads * magnitude)
        pa, pb = (ta.read() * g.read()).sum(0), (tb.read() * g.read()).sum(0)
        size = (grads * np.abs(g.read())).sum(0)
        floor = stable(positive(x) + positive(y))
        bound = size / floor * (1 + scale / floor)
        for which, got in enumerate((da, db)):
            expected = sum(
                p * derivative(lambda u, w, part=part: sum_shares(u, w)[part], [x, y], which)
                for part, p in enumerate((pa, pb))
            )
            assert_close(got.read(), expected, dtype, bound, 16)


@pytest.mark.parametrize(("dtype", "order"), RUNS)
def test_affine(dtype: Dtype, order: int) -> None:
    kernels = load("affine")
    kernels.configure(order)
    wide = DTYPES["float64" if dtype.name == "float64" else "float32"]
    cases = itertools.product(SHAPES, FAVOURS, [(1, 0, True), (3, 0, True), (2, 1, False)])
    for _, (shape, favour, (targets, shift, has_shift)) in taken(cases, order, 1):
        n, channels = math.prod(shape), shape[1]
        for inner in {shape[2], 1}:
            extent = Extent(n, targets, channels, inner)
            where = np.arange(n) // inner % channels
            g, t = (Buffer(values(i, targets, n), dtype, shift) for i in (1, 2))
            v, x = (Buffer(values(i, n), dtype, shift) for i in (3, 4))
            slope, c = Buffer(values(5, channels), wide), Buffer(values(6, channels), wide)
            result, dg = Buffer((targets, n), dtype, shift), Buffer((targets, n), dtype, shift)
            dv, dx = Buffer((n,), dtype, shift), Buffer((n,), dtype, shift)
            dk, dc = Buffer((channels,), wide), Buffer((channels,), wide)
            workspace = Buffer((kernels.affine_backward_workspace(dtype, extent) // 8 + 1,), DTYPES["float64"])
            given = c if has_shift else None
            kernels.affine(dtype, *favour, g, v, x, slope, given, result, extent, EPSILON)
            outputs = (dk, dc, workspace)
            kernels.affine_backward(dtype, *favour, t, g, v, x, slope, given, dg, dv, dx, *outputs, extent, EPSILON)
            workspace.read()
            if n == 0:
                continue
            k, add = slope.read()[where], (c.read() if has_shift else np.zeros(channels))[where]
            arguments = [v.read(), x.read(), k, add]

            def share(*parts: np.ndarray, favour: tuple[float, float] = favour) -> np.ndarray:
                return affine_share(favour, *parts)

            # Near the jump of sgn the denominator's own rounding shows: it is at least EPSILON, its terms may cancel.
            whole, extra = favour
            product = k * arguments[1]
            floor = np.abs(stable(whole * (product + add) + extra * (positive(product) + positive(add))))
            cancel = 1 + (np.abs(k * arguments[1]) + np.abs(add)) / floor
            most = whole + extra
            factor = most * np.abs(arguments[0] * k) / floor * cancel
            away = np.abs(whole * (product + add) + extra * (positive(product) + positive(add))) > (
                1e-4 if whole else -1
            )
            products, size = (t.read() * g.read()).sum(0), np.abs(t.read() * g.read()).sum(0)
            for got, expected, bound in (
                (result, g.read() * share(*arguments), np.abs(g.read()) * factor),
                (dg, t.read() * share(*arguments), np.abs(t.read()) * factor),
                (dv, products * derivative(share, arguments, 0), size * np.abs(k) / floor * cancel),
                (dx, products * derivative(share, arguments, 1), size * factor * np.abs(k) / floor * cancel),
            ):
                assert_close(np.where(away, got.read(), 0), np.where(away, expected, 0), dtype, bound, 16)
            if away.all():
                for got, which in ((dk, 2), (dc, 3)):
                    each = products * derivative(share, arguments, which)
                    scale = size * (np.abs(arguments[0]) / floor + factor * (np.abs(arguments[1]) + 1) / floor) * cancel
                    expected, bound = (np.bincount(where, w, minlength=channels) for w in (each, scale))
                    assert_close(got.read(), expected, wide, bound, 16)
