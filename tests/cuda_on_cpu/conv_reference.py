"""Convolutions in float64, tap by tap, and a layer's description: the reference of test_cuda_conv*.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .buffers import DTYPES, Buffer, Dtype, Float64, arranged, restored
from .kernels import Conv, ConvScale

EPSILON = 1e-2


class Layer(NamedTuple):
    """A convolution of two spatial dimensions."""

    batch: int
    channels_in: int
    channels_out: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        room = [n + 2 * p - r for n, p, r in zip(self.size, self.padding, reach, strict=True)]
        return room[0] // self.stride[0] + 1, room[1] // self.stride[1] + 1

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """[channels_out, channels_in / groups, height, width]."""
        return (self.channels_out, self.channels_in // self.groups, *self.kernel)

    def input_shape(self, images: int) -> tuple[int, int, int, int]:
        """[images, channels_in, height, width]."""
        return (images, self.channels_in, *self.size)

    def output_shape(self, images: int) -> tuple[int, int, int, int]:
        """[images, channels_out, height, width]."""
        return (images, self.channels_out, *self.output)

    def struct(self, targets: int, channels_last: bool, tensor_cores: bool = False) -> Conv:
        """LrpConv."""
        conv = Conv(targets, self.batch, self.channels_in, self.channels_out, self.groups)
        pairs = (self.size, self.output, self.kernel, self.stride, self.padding, self.dilation)
        for name, pair in zip(("input", "output", "kernel", "stride", "padding", "dilation"), pairs, strict=True):
            getattr(conv, name)[:] = pair
        conv.channels_last, conv.tensor_cores = channels_last, tensor_cores
        return conv

    def _taps(self) -> Iterator[tuple[int, int, slice, slice]]:
        """Each kernel position with the padded input rows and columns that it reads."""
        height, width = self.output
        for ky, kx in np.ndindex(*self.kernel):
            y, x = ky * self.dilation[0], kx * self.dilation[1]
            yield (
                ky,
                kx,
                slice(y, y + (height - 1) * self.stride[0] + 1, self.stride[0]),
                slice(x, x + (width - 1) * self.stride[1] + 1, self.stride[1]),
            )

    def _padded(self, x: Float64) -> Float64:
        (py, px), groups = self.padding, self.groups
        grouped = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
        return np.pad(grouped, ((0, 0), (0, 0), (0, 0), (py, py), (px, px)))

    def forward(self, x: Float64, weight: Float64) -> Float64:
        """W x."""
        padded, w = self._padded(x), weight.reshape(self.groups, -1, *weight.shape[1:])
        out = np.zeros((x.shape[0], self.groups, w.shape[1], *self.output))
        for ky, kx, rows, columns in self._taps():
            out += np.einsum("goi,ngihw->ngohw", w[..., ky, kx], padded[..., rows, columns], optimize=True)
        return out.reshape(self.output_shape(x.shape[0]))

    def transpose(self, s: Float64, weight: Float64) -> Float64:
        """W^T s."""
        images = s.shape[0]
        padded = self._padded(np.zeros(self.input_shape(images)))
        w = weight.reshape(self.groups, -1, *weight.shape[1:])
        grouped = s.reshape(images, self.groups, s.shape[1] // self.groups, *self.output)
        for ky, kx, rows, columns in self._taps():
            padded[..., rows, columns] += np.einsum("goi,ngohw->ngihw", w[..., ky, kx], grouped, optimize=True)
        (py, px), (height, width) = self.padding, self.size
        return padded[..., py : py + height, px : px + width].reshape(self.input_shape(images))

    def weight_gradient(self, s: Float64, x: Float64) -> Float64:
        """Sum over images and positions of s times the input under each kernel position."""
        padded = self._padded(x)
        grouped = s.reshape(s.shape[0], self.groups, s.shape[1] // self.groups, *self.output)
        result = np.zeros((self.groups, grouped.shape[2], padded.shape[2], *self.kernel))
        for ky, kx, rows, columns in self._taps():
            result[..., ky, kx] = np.einsum("ngohw,ngihw->goi", grouped, padded[..., rows, columns], optimize=True)
        return result.reshape(self.weight_shape)


def values(seed: int, *shape: int) -> Float64:
    """Normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape)


class Inputs:
    """Everything a transposed pass may read, in buffers and in float64."""

    def __init__(self, layer: Layer, dtype: Dtype, targets: int, channels_last: bool, shift: int) -> None:
        self.layer, self.targets = layer, targets
        images, wide = targets * layer.batch, DTYPES["float64" if dtype.name == "float64" else "float32"]
        many, one = layer.output_shape(images), layer.output_shape(layer.batch)
        self.shapes = {"g": many, "a": many, "u": one, "v": one, "d": one, "x": layer.input_shape(layer.batch)}
        self.buffers: dict[str, Buffer] = {}
        for seed, (name, shape) in enumerate(self.shapes.items()):
            data = values(seed, *shape)
            data = np.maximum(data, 0) if name == "u" else data
            self.buffers[name] = Buffer(arranged(data, channels_last), dtype, shift)
        self.buffers["k"] = Buffer(values(8, layer.channels_out), wide)
        self.buffers["low"], self.buffers["high"] = (
            Buffer(x + values(9, layer.channels_in), wide) for x in (-1.0, 1.0)
        )
        self.buffers["weight"] = Buffer(values(10, *layer.weight_shape), dtype, shift)
        self.data = {name: restored(self.buffers[name], shape, channels_last) for name, shape in self.shapes.items()}
        self.data.update({name: self.buffers[name].read() for name in ("k", "low", "high", "weight")})

    def scale(self, has: str) -> ConvScale:
        """LrpConvScale with the addend (a), the ReLU's output (u), the factor per channel (k), value and denominator (d)."""
        b = self.buffers
        names = {"addend": "a" in has and "a", "output": "u" in has and "u", "scale": "k" in has and "k"}
        names.update({"value": "d" in has and "v", "denominator": "d" in has and "d"})
        pointers = {key: b[name].pointer if name else None for key, name in names.items()}
        return ConvScale(**pointers, epsilon=EPSILON)

    def scaled(self, has: str) -> tuple[np.ndarray, np.ndarray]:
        """s and the sum of the absolute values of its terms."""
        d = self.data
        s = d["g"] + (d["a"] if "a" in has else 0)
        size = np.abs(d["g"]) + (np.abs(d["a"]) if "a" in has else 0)
        factor: Any = np.ones(())
        if "u" in has:
            factor = factor * np.where(d["u"] > 0, d["u"] / (d["u"] + EPSILON), 0)
        if "k" in has:
            factor = factor * d["k"].reshape(1, -1, 1, 1)
        if "d" in has:
            factor = factor * d["v"] / (d["d"] + np.where(d["d"] >= 0, EPSILON, -EPSILON))
        factor = np.broadcast_to(factor, d["u"].shape)
        factor = np.concatenate([factor] * self.targets)
        return s * factor, size * np.abs(factor)


LAYERS = [
    Layer(0, 3, 4, (5, 5), (3, 3)),
    Layer(1, 1, 1, (1, 1), (1, 1)),
    Layer(2, 3, 16, (9, 11), (3, 3), (1, 1), (1, 1)),
    Layer(1, 16, 24, (8, 8), (1, 1)),
    Layer(1, 5, 7, (7, 6), (1, 1), (2, 2)),
    Layer(5, 4, 6, (9, 8), (3, 3), (2, 2), (1, 1)),
    Layer(1, 3, 12, (20, 21), (7, 7), (2, 2), (3, 3)),
    Layer(1, 6, 5, (13, 12), (3, 2), (3, 2), (0, 1), (2, 3)),
    Layer(2, 4, 4, (10, 9), (4, 3), (2, 3), (2, 1), (2, 2)),
    Layer(1, 8, 12, (6, 7), (3, 3), (1, 1), (2, 2), (2, 2), 4),
    Layer(1, 130, 66, (5, 4), (3, 3), (1, 1), (1, 1)),
    Layer(2, 8, 8, (9, 10), (3, 3), (1, 1), (1, 1), (1, 1), 8),
    Layer(1, 16, 16, (11, 8), (5, 3), (2, 1), (2, 0), (1, 2), 16),
    Layer(1, 5, 10, (7, 9), (3, 3), (2, 3), (1, 2), (1, 1), 5),
]
