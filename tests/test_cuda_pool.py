"""csrc/cuda/pool.cu on the CPU shim against float64 references that walk every window."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest
from cuda_on_cpu import DTYPES, INT64, Buffer, Dtype, Pool, arranged, assert_close, load, restored, runs, taken

RUNS = runs()


class Layer(NamedTuple):
    """A pooling layer with 1 to 3 spatial dimensions, as the constructors of torch.nn take it."""

    batch: int
    channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    ceil_mode: bool = False
    adaptive: tuple[int, ...] = ()

    def dimensions(self) -> list[tuple[int, int, int, int, int, int]]:
        """(input, output, kernel, stride, padding, dilation) of the three dimensions, those that are missing first."""
        result = [(1, 1, 1, 1, 0, 1)] * (3 - len(self.size))
        for d, size in enumerate(self.size):
            if self.adaptive:
                result.append((size, self.adaptive[d], 1, 1, 0, 1))
                continue
            kernel = self.kernel[d]
            stride = self.stride[d] if self.stride else kernel
            padding, dilation = (self.padding or (0,) * 3)[d], (self.dilation or (1,) * 3)[d]
            room = size + 2 * padding - dilation * (kernel - 1) - 1
            output = (room + (stride - 1 if self.ceil_mode else 0)) // stride + 1
            if self.ceil_mode and (output - 1) * stride >= size + padding:
                output -= 1  # the last window must start inside
            result.append((size, output, kernel, stride, padding, dilation))
        return result

    def struct(self, targets: int, channels_last: bool, **average: int) -> Pool:
        columns = [(np.ctypeslib.ctypes.c_int64 * 3)(*column) for column in zip(*self.dimensions(), strict=True)]
        pool = Pool(targets, self.batch, self.channels, *columns)
        pool.adaptive, pool.channels_last = bool(self.adaptive), channels_last
        for name, value in average.items():
            setattr(pool, name, value)
        return pool

    @property
    def input(self) -> tuple[int, ...]:
        return tuple(d[0] for d in self.dimensions())

    @property
    def output(self) -> tuple[int, ...]:
        return tuple(d[1] for d in self.dimensions())


LAYERS = [
    Layer(0, 3, (4, 4), (2, 2)),
    Layer(1, 1, (1, 1), (1, 1)),
    Layer(2, 8, (6, 8), (2, 2)),
    Layer(5, 3, (7, 9), (3, 3), (2, 2), (1, 1)),
    Layer(1, 130, (5, 5), (3, 3), (1, 1), (1, 1)),
    Layer(2, 16, (9, 7), (2, 3), (3, 1), (1, 1), ceil_mode=True),
    Layer(1, 5, (11, 10), (3, 3), (2, 2), (1, 0), (2, 3)),
    Layer(2, 24, (10, 10), (3, 2), (1, 3), (1, 1), (2, 1), ceil_mode=True),
    Layer(1, 4, (13,), (4,), (3,), (2,), ceil_mode=True),
    Layer(1, 8, (5, 6, 7), (2, 3, 2), (2, 1, 3), (1, 1, 0)),
    Layer(1, 3, (40, 41), (7, 7), (2, 2), (3, 3)),
    Layer(1, 2, (67, 90), (3, 3), (2, 2), (1, 1)),  # planes that take several tiles
    Layer(1, 1, (61, 100), (2, 3), (3, 1), (1, 1), (2, 1)),
    Layer(1, 2, (2, 3100), (2, 2)),  # rows that no tile holds
]
ADAPTIVE = [
    Layer(2, 8, (7, 7), adaptive=(1, 1)),
    Layer(1, 5, (10, 7), adaptive=(3, 7)),
    Layer(1, 16, (3, 2), adaptive=(7, 5)),
    Layer(1, 4, (5, 6, 7), adaptive=(2, 4, 7)),
    Layer(1, 2, (70, 80), adaptive=(33, 40)),
]


def values(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@functools.cache
def winners(layer: Layer) -> np.ndarray:
    """Flat positions of the largest input of each window, [batch, channels, *output]."""
    x = values(11, layer.batch, layer.channels, *layer.input)
    result = np.zeros((layer.batch, layer.channels, *layer.output), np.int64)
    for o in itertools.product(*map(range, layer.output)):
        ranges = [
            [i for i in (o[d] * stride - padding + k * dilation for k in range(kernel)) if 0 <= i < size]
            for d, (size, _, kernel, stride, padding, dilation) in enumerate(layer.dimensions())
        ]
        flat = np.array([np.ravel_multi_index(i, layer.input) for i in itertools.product(*ranges)])
        best = x.reshape(layer.batch, layer.channels, -1)[:, :, flat].argmax(-1) if layer.batch else 0
        result[(slice(None), slice(None), *o)] = flat[best]
    return result


@functools.cache
def windows(layer: Layer) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Which input each window holds, [output, input] of each dimension; the sizes of all windows with and without padding."""
    held, padded, inside = [], np.ones(()), np.ones(())
    for size, output, kernel, stride, padding, _ in layer.dimensions():
        matrix, lengths = np.zeros((output, size)), np.zeros(output)
        for o in range(output):
            begin, end = o * stride - padding, min(o * stride - padding + kernel, size + padding)
            if layer.adaptive:
                begin, end = o * size // output, -(-(o + 1) * size // output)
            matrix[o, max(begin, 0) : max(end, 0)], lengths[o] = 1, end - begin
        held.append(matrix)
        padded, inside = np.multiply.outer(padded, lengths), np.multiply.outer(inside, matrix.sum(1))
    return held, padded, inside


def average(layer: Layer, x: np.ndarray, transposed: bool, count_include_pad: int = 0, divisor_override: int = 0):
    """The map from input to output, of [images, channels, *input], or its transpose."""
    held, padded, inside = windows(layer)
    divisor = divisor_override or (padded if count_include_pad and not layer.adaptive else inside)
    if transposed:
        return np.einsum("ncxyz,xi,yj,zk->ncijk", x / divisor, *held, optimize=True)
    return np.einsum("ncijk,xi,yj,zk->ncxyz", x, *held, optimize=True) / divisor


@pytest.mark.parametrize(("dtype", "order"), RUNS)
def test_max_pool_winner(dtype: Dtype, order: int) -> None:
    kernels = load("pool")
    kernels.configure(order)
    cases = itertools.product(LAYERS, (False, True), [(1, 0), (3, 1), (2, 0)])
    for _, (layer, channels_last, (targets, shift)) in taken(cases, order, 1):
        index = winners(layer)
        pool = layer.struct(targets, channels_last)
        shape_in, shape_out = ((targets * layer.batch, layer.channels, *size) for size in (layer.input, layer.output))
        g = Buffer(arranged(values(1, *shape_out), channels_last), dtype, shift)
        t = Buffer(arranged(values(2, *shape_in), channels_last), dtype, shift)
        where = Buffer(arranged(index, channels_last), INT64)
        result, dg = Buffer(t.shape, dtype, shift), Buffer(g.shape, dtype, shift)
        kernels.max_pool_winner(dtype, g, where, result, pool)
        kernels.max_pool_winner_backward(dtype, t, where, dg, pool)
        if layer.batch == 0:
            continue
        got, got_dg = restored(result, shape_in, channels_last), restored(dg, shape_out, channels_last)
        spread = np.broadcast_to(index, (targets, *index.shape)).reshape(*shape_out[:2], -1)
        expected, magnitude = np.zeros((2, *shape_in[:2], int(np.prod(layer.input))))
        multiplier = restored(g, shape_out, channels_last).reshape(*shape_out[:2], -1)
        for n, c in np.ndindex(*shape_in[:2]):
            np.add.at(expected[n, c], spread[n, c], multiplier[n, c])
            np.add.at(magnitude[n, c], spread[n, c], np.abs(multiplier[n, c]))
        assert_close(got, expected.reshape(shape_in), dtype, magnitude.reshape(shape_in))
        grad = restored(t, shape_in, channels_last).reshape(*shape_in[:2], -1)
        np.testing.assert_array_equal(got_dg, np.take_along_axis(grad, spread, 2).reshape(shape_out))


AVERAGES: list[dict[str, Any]] = [{"count_include_pad": 1}, {}, {"divisor_override": 3}]


@pytest.mark.parametrize(("dtype", "order"), RUNS)
def test_average_pool(dtype: Dtype, order: int) -> None:
    kernels = load("pool")
    kernels.configure(order)
    plain = [layer for layer in LAYERS if not layer.dilation]
    cases = [*itertools.product(plain, AVERAGES), *((layer, AVERAGES[0]) for layer in ADAPTIVE)]
    forms = itertools.product(cases, (False, True), [(2, 0), (1, 1)])
    for _, ((layer, how), channels_last, (targets, shift)) in taken(forms, order, 1):
        pool = layer.struct(targets, channels_last, **how)
        shape_in, shape_out = ((targets * layer.batch, layer.channels, *size) for size in (layer.input, layer.output))
        x = Buffer(arranged(values(1, *shape_in), channels_last), dtype, shift)
        g = Buffer(arranged(values(2, *shape_out), channels_last), dtype, shift)
        y, result = Buffer(g.shape, dtype, shift), Buffer(x.shape, dtype, shift)
        kernels.average_pool(dtype, x, y, pool)
        kernels.average_pool_transpose(dtype, g, result, pool)
        if layer.batch == 0:
            continue
        for buffer, shape, source, transposed in (
            (y, shape_out, restored(x, shape_in, channels_last), False),
            (result, shape_in, restored(g, shape_out, channels_last), True),
        ):
            expected, magnitude = (average(layer, part, transposed, **how) for part in (source, np.abs(source)))
            assert_close(restored(buffer, shape, channels_last), expected, dtype, magnitude, 60)


def test_planes_beyond_32_bits_are_refused() -> None:
    pool = Layer(1, 1, (1 << 16, 1 << 15), (1, 1)).struct(1, False)
    with pytest.raises(RuntimeError, match="CUDA error 1"):
        load("pool").average_pool(DTYPES["float32"], None, None, pool)
