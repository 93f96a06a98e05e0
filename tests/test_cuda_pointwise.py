"""csrc/cuda/pointwise.cu on the CPU shim against float64 references, over shapes, layouts, dtypes and thread orders."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from cuda_on_cpu import DTYPES, ORDERS, Buffer, Dtype, Epsilon, Extent, assert_close, load, runs, taken

# (batch, channels, pixels): empty, tails of every vector width, odd channels, more than one block, slab and chunk.
SHAPES = [
    (0, 3, 4),
    (1, 1, 1),
    (1, 1, 7),
    (5, 3, 5),
    (1, 130, 1),
    (5, 131, 3),
    (2, 7, 49),
    (3, 64, 16),
    (5, 16, 121),
    (1, 2, 4099),
    (33, 40, 1),
    (70, 3, 1),
]
RUNS = runs()
EPSILON = 1e-2


def extents(batch: int, channels: int, pixels: int, targets: int) -> list[Extent]:
    """NCHW and channels-last."""
    numel = batch * channels * pixels
    return [Extent(numel, targets, channels, inner) for inner in {pixels, 1}]


def channel_of(extent: Extent) -> np.ndarray:
    return np.arange(extent.numel) // extent.inner % extent.channels


def values(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def arithmetic(dtype: Dtype) -> Dtype:
    """Per-channel tensors are in the arithmetic type."""
    return DTYPES["float64" if dtype.name == "float64" else "float32"]


def epsilon_scale_reference(g, g2, u, k, extent):
    """(s, m, dm/du, G + G2, k per element) from the definition."""
    m = np.ones(extent.numel) if u is None else np.where(u > 0, u / np.where(u > 0, u + EPSILON, 1), 0)
    dm = np.zeros(extent.numel) if u is None else np.where(u > 0, EPSILON / (u + EPSILON) ** 2, 0)
    factor = np.ones(extent.numel) if k is None else k[channel_of(extent)]
    total = g if g2 is None else g + g2
    return total * m * factor, m, dm, total, factor


CASES = [
    (shape, targets, shift, has)
    for shape, (targets, shift, has) in itertools.product(
        SHAPES, [(1, 0, "uk"), (1, 1, "auk"), (3, 0, "auk"), (2, 3, "u"), (1, 0, "k"), (1, 2, "au")]
    )
]


@pytest.mark.parametrize(("dtype", "order"), RUNS)
def test_epsilon_scale(dtype: Dtype, order: int) -> None:
    kernels = load("pointwise")
    kernels.configure(order)
    for _, (shape, targets, shift, has) in taken(CASES, order, 1):
        for extent in extents(*shape, targets):
            n = extent.numel
            g = Buffer(values(1, targets, n), dtype, shift)
            g2 = Buffer(values(2, targets, n), dtype, shift) if "a" in has else None
            u = Buffer(np.maximum(values(3, n), 0), dtype, shift) if "u" in has else None
            k = Buffer(values(4, extent.channels), arithmetic(dtype)) if "k" in has else None
            out = Buffer((targets, n), dtype, shift)
            kernels.epsilon_scale(dtype, g, g2, u, k, out, extent, EPSILON)
            inputs = [None if b is None else b.read() for b in (g, g2, u, k)]
            expected, m, _, _, factor = epsilon_scale_reference(*inputs, extent)
            terms = np.abs(inputs[0]) + (0 if g2 is None else np.abs(inputs[1]))
            assert_close(out.read(), expected, dtype, terms * np.abs(m * factor))


@pytest.mark.parametrize(("dtype", "order"), RUNS)
def test_epsilon_scale_backward(dtype: Dtype, order: int) -> None:
    kernels = load("pointwise")
    kernels.configure(order)
    for _, ((shape, targets, shift, has), need_scale) in taken(itertools.product(CASES, (True, False)), order, 1):
        for extent in extents(*shape, targets):
            n = extent.numel
            t, g = (Buffer(values(i, targets, n), dtype, shift) for i in (5, 1))
            g2 = Buffer(values(2, targets, n), dtype, shift) if "a" in has else None
            u = Buffer(np.maximum(values(3, n), 0), dtype, shift) if "u" in has else None
            k = Buffer(values(4, extent.channels), arithmetic(dtype)) if "k" in has else None
            dg, du = Buffer((targets, n), dtype, shift), Buffer((n,), dtype, shift) if u else None
            dk = Buffer((extent.channels,), arithmetic(dtype)) if k and need_scale else None
            size = kernels.epsilon_scale_backward_workspace(dtype, extent)
            workspace = Buffer((size // 8 + 1,), DTYPES["float64"])
            kernels.epsilon_scale_backward(
                dtype, t, g, g2, u, k, dg, du, dk, workspace if dk else None, extent, EPSILON
            )
            if n == 0:
                continue
            inputs = [None if b is None else b.read() for b in (g, g2, u, k)]
            _, m, dm, total, factor = epsilon_scale_reference(*inputs, extent)
            grad = t.read()
            assert_close(dg.read(), grad * m * factor, dtype)
            products, size_of_terms = (grad * total).sum(0), (np.abs(grad) * np.abs(total)).sum(0)
            if u:
                assert_close(du.read(), products * factor * dm, dtype, 4 * size_of_terms * np.abs(factor * dm))
            if dk:
                per_channel = [
                    np.bincount(channel_of(extent), x * m, minlength=extent.channels) for x in (products, size_of_terms)
                ]
                assert_close(dk.read(), per_channel[0], arithmetic(dtype), 8 * per_channel[1])


@pytest.mark.parametrize(("dtype", "order"), RUNS)
def test_ratio(dtype: Dtype, order: int) -> None:
    kernels = load("pointwise")
    kernels.configure(order)
    for shape, (targets, shift) in itertools.product(SHAPES, [(1, 0), (3, 0), (2, 1)]):
        n = math.prod(shape)
        extent = Extent(n, targets, 1, 1)
        t, g = (Buffer(values(i, targets, n), dtype, shift) for i in (5, 1))
        v = Buffer(values(2, n), dtype, shift)
        d = Buffer(np.where(np.arange(n) % 7 == 3, 0.0, values(3, n)), dtype, shift)
        out, dg = Buffer((targets, n), dtype, shift), Buffer((targets, n), dtype, shift)
        dv, dd = Buffer((n,), dtype, shift), Buffer((n,), dtype, shift)
        kernels.ratio(dtype, g, v, d, out, extent, EPSILON)
        kernels.ratio_backward(dtype, t, g, v, d, dg, dv, dd, extent, EPSILON)
        stable = d.read() + np.where(d.read() >= 0, EPSILON, -EPSILON)
        assert_close(out.read(), g.read() * v.read() / stable, dtype)
        if n == 0:
            continue
        products, terms = (t.read() * g.read()).sum(0), np.abs(t.read() * g.read()).sum(0)
        assert_close(dg.read(), t.read() * v.read() / stable, dtype)
        assert_close(dv.read(), products / stable, dtype, 2 * terms / np.abs(stable))
        assert_close(dd.read(), -products * v.read() / stable**2, dtype, 2 * terms * np.abs(v.read()) / stable**2)


@pytest.mark.parametrize(("dtype", "order"), RUNS)
def test_stabilizers_per_image(dtype: Dtype, order: int) -> None:
    """Vectors cross the border of images wherever these are of no whole number of vectors."""
    kernels = load("pointwise")
    kernels.configure(order)
    for (batch, channels, pixels), targets, shift in itertools.product(SHAPES[1:], (1, 2), (0, 1)):
        for extent in extents(batch, channels, pixels, targets):
            n = extent.numel
            numbers = Buffer(np.linspace(0.05, 1, batch), arithmetic(dtype))
            eps, image = numbers.read()[np.arange(n) * batch // n], Epsilon(0.0, numbers.pointer, n // batch)
            t, g = (Buffer(values(i, targets, n), dtype, shift) for i in (5, 1))
            u, v = Buffer(np.maximum(values(3, n), 0), dtype, shift), Buffer(values(2, n), dtype, shift)
            d, k = Buffer(values(6, n), dtype, shift), Buffer(values(4, extent.channels), arithmetic(dtype))
            s, dg, q, dq = (Buffer((targets, n), dtype, shift) for _ in range(4))
            du, dv, dd = (Buffer((n,), dtype, shift) for _ in range(3))
            kernels.epsilon_scale(dtype, g, None, u, k, s, extent, image)
            kernels.epsilon_scale_backward(dtype, t, g, None, u, k, dg, du, None, None, extent, image)
            kernels.ratio(dtype, g, v, d, q, extent, image)
            kernels.ratio_backward(dtype, t, g, v, d, dq, dv, dd, extent, image)
            x, factor, stable = u.read(), k.read()[channel_of(extent)], d.read() + np.where(d.read() >= 0, eps, -eps)
            m = np.where(x > 0, x / np.where(x > 0, x + eps, 1), 0)
            dm = np.where(x > 0, eps / (x + eps) ** 2, 0)
            products, terms = (t.read() * g.read()).sum(0), np.abs(t.read() * g.read()).sum(0)
            assert_close(s.read(), g.read() * m * factor, dtype)
            assert_close(dg.read(), t.read() * m * factor, dtype)
            assert_close(du.read(), products * factor * dm, dtype, 4 * terms * np.abs(factor * dm))
            assert_close(q.read(), g.read() * v.read() / stable, dtype)
            assert_close(dq.read(), t.read() * v.read() / stable, dtype)
            assert_close(dv.read(), products / stable, dtype, 2 * terms / np.abs(stable))
            assert_close(dd.read(), -products * v.read() / stable**2, dtype, 2 * terms * np.abs(v.read()) / stable**2)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_special_values(dtype: Dtype) -> None:
    """Zero and -0 count as inactive with sgn +1; NaN in gives NaN out; epsilon 0 is ReLU's derivative."""
    kernels = load("pointwise")
    kernels.configure()
    u = Buffer(np.array([0.0, -0.0, -1.0, 2.0, np.nan, 3.0]), dtype)
    g = Buffer(np.array([[1.0, 1.0, 1.0, 1.0, 1.0, np.nan]]), dtype)
    out = Buffer((1, 6), dtype)
    kernels.epsilon_scale(dtype, g, None, u, None, out, Extent(6, 1, 1, 6), 0.0)
    np.testing.assert_array_equal(out.read()[0], [0.0, 0.0, 0.0, 1.0, np.nan, np.nan])
    d, v = Buffer(np.array([0.0, -0.0, -1.0, np.inf]), dtype), Buffer(np.ones(4), dtype)
    out = Buffer((1, 4), dtype)
    kernels.ratio(dtype, Buffer(np.ones((1, 4)), dtype), v, d, out, Extent(4, 1, 1, 4), 0.25)
    assert_close(out.read()[0], np.array([4.0, 4.0, -0.8, 0.0]), dtype)


def test_more_work_than_the_grid_holds() -> None:
    """With two blocks at most, every kernel loops over the rest."""
    dtype = DTYPES["float32"]
    kernels = load("pointwise")
    for extent in extents(9, 70, 60, 1):
        results = []
        for limit in (2, 2147483647):
            kernels.configure(max_grid_x=limit)
            g, u, t = (Buffer(np.abs(values(i, 1, extent.numel)), dtype) for i in (1, 3, 5))
            k = Buffer(values(4, extent.channels), dtype)
            s, dg, du = (Buffer((1, extent.numel), dtype) for _ in range(3))
            dk = Buffer((extent.channels,), dtype)
            size = kernels.epsilon_scale_backward_workspace(dtype, extent)
            workspace = Buffer((size // 8 + 1,), DTYPES["float64"])
            kernels.epsilon_scale(dtype, g, None, u, k, s, extent, EPSILON)
            kernels.epsilon_scale_backward(dtype, t, g, None, u, k, dg, du, dk, workspace, extent, EPSILON)
            results.append([b.read() for b in (s, dg, du, dk)])
        for limited, free in zip(*results, strict=True):
            np.testing.assert_array_equal(limited, free)


def test_sums_do_not_depend_on_the_order() -> None:
    """The channel sum is the same to the last bit in every thread and block order."""
    dtype = DTYPES["float32"]
    kernels = load("pointwise")
    for extent in extents(17, 12, 300, 2):
        results = []
        for order in ORDERS:
            kernels.configure(order)
            t, g = (Buffer(values(i, 2, extent.numel), dtype) for i in (5, 1))
            u, k = Buffer(np.abs(values(3, extent.numel)), dtype), Buffer(values(4, extent.channels), dtype)
            dg, du = Buffer((2, extent.numel), dtype), Buffer((extent.numel,), dtype)
            dk = Buffer((extent.channels,), dtype)
            size = kernels.epsilon_scale_backward_workspace(dtype, extent)
            workspace = Buffer((size // 8 + 1,), DTYPES["float64"])
            kernels.epsilon_scale_backward(dtype, t, g, None, u, k, dg, du, dk, workspace, extent, EPSILON)
            results.append(dk.read())
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)
