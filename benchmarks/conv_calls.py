"""Calls of the convolution kernels on the CPU shim, with the bytes they must move, for benchmarks.traffic."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from .kernel_calls import Call, normal, scratch, wide

from cuda_on_cpu import Buffer, ConvResult, ConvScale, Dtype, Kernels, load  # isort: skip
from cuda_on_cpu.conv_reference import Layer  # isort: skip

LAYERS = {
    "3x3": Layer(4, 64, 64, (28, 28), (3, 3), (1, 1), (1, 1)),
    "1x1": Layer(4, 64, 128, (28, 28), (1, 1)),
}


def conv(dtype: Dtype) -> Iterator[Call]:
    """The epsilon rule's relevance pass behind [batch norm and] ReLU, the forward map, the weight gradient; every available way.

    Factors of the scale and packed weights included, as everything that the launches touch.
    """
    for kind, layer in LAYERS.items():
        for layout, last in (("NCHW", False), ("channels-last", True)):
            for cores in (False, True) if dtype.name != "float64" else (False,):
                yield from _layer(dtype, kind, layer, layout, last, cores)


def _layer(dtype: Dtype, kind: str, layer: Layer, layout: str, last: bool, cores: bool) -> Iterator[Call]:
    struct, way = layer.struct(1, last, cores), "tensor cores" if cores else "FMA"
    y, x = (math.prod(shape(layer.batch)) for shape in (layer.output_shape, layer.input_shape))
    numbers = math.prod(layer.weight_shape)
    g, u = (Buffer(np.maximum(normal(y), 0), dtype) for _ in range(2))
    a, w = Buffer(normal(x), dtype), Buffer(normal(numbers), dtype)
    k = Buffer(normal(layer.channels_out), wide(dtype))
    back, out, grad = (Buffer((n,), dtype) for n in (x, y, numbers))
    kernels = load("conv")
    packed = [scratch(kernels.conv_workspace(dtype, struct, 0, transposed)) for transposed in (0, 1)]
    parts = scratch(load("conv_weight").conv_weight_gradient_workspace(dtype, struct))
    scale = ConvScale(output=u.pointer, scale=k.pointer, epsilon=1e-2)

    def relevance(kernels: Kernels) -> None:
        kernels.conv_relevance(dtype, g, scale, w, 0, ConvResult(), back, packed[1], struct)

    def apply(kernels: Kernels) -> None:
        kernels.conv(dtype, a, w, 0, out, packed[0], struct)

    def weight(kernels: Kernels) -> None:
        kernels.conv_weight_gradient(dtype, g, scale, a, grad, parts, struct)

    table = layer.channels_out * wide(dtype).size
    passes = (
        ("conv", "conv_relevance", 2 * y + x + numbers, table, relevance),
        ("conv", "conv_apply", y + x + numbers, 0, apply),
        ("conv_weight", "conv_weight_gradient", 2 * y + x + numbers, table, weight),
    )
    for family, name, elements, extra, run in passes:
        yield Call(family, f"{name} {kind} {way}", layout, dtype, elements * dtype.size + extra, run)
