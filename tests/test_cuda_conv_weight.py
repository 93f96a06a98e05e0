"""csrc/cuda/conv_weight.cu on the CPU shim: the weight gradient with the scale applied as it is loaded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cuda_on_cpu import DTYPES, ORDERS, Buffer, Dtype, arranged, assert_close, load, restored, taken, thin_runs
from cuda_on_cpu.conv_reference import LAYERS, Inputs, Layer

RUNS = thin_runs()
# Several parts: more than twice 256 positions.
SPLIT = [Layer(2, 3, 5, (17, 19), (3, 3), (1, 1), (1, 1)), Layer(1, 4, 6, (50, 41), (2, 1), (2, 1), (1, 0))]


@pytest.mark.parametrize(("dtype", "order", "share"), RUNS)
def test_weight_gradient(dtype: Dtype, order: int, share: int) -> None:
    kernels = load("conv_weight")
    kernels.configure(order)
    for number, (layer, has) in taken(itertools.product([*LAYERS, *SPLIT], ("", "auk", "d")), order, share):
        targets, channels_last, shift = [(1, False, 0), (2, True, 1), (1, True, 0), (3, False, 3)][number % 4]
        inputs = Inputs(layer, dtype, targets, channels_last, shift)
        images = layer.input_shape(targets * layer.batch)
        x = Buffer(arranged(np.random.default_rng(30).standard_normal(images), channels_last), dtype, shift)
        result = Buffer(layer.weight_shape, dtype, shift)
        conv = layer.struct(targets, channels_last)
        workspace = Buffer((kernels.conv_weight_gradient_workspace(dtype, conv) // 8 + 1,), DTYPES["float64"])
        kernels.conv_weight_gradient(dtype, inputs.buffers["g"], inputs.scale(has), x, result, workspace, conv)
        workspace.read()
        s, size = inputs.scaled(has)
        image = restored(x, images, channels_last)
        expected, magnitude = layer.weight_gradient(s, image), layer.weight_gradient(size, np.abs(image))
        assert_close(result.read(), expected, dtype, magnitude, 60)


def test_parts_do_not_depend_on_the_order() -> None:
    dtype, layer = DTYPES["float32"], SPLIT[0]
    kernels = load("conv_weight")
    results = []
    for order in ORDERS:
        kernels.configure(order)
        inputs = Inputs(layer, dtype, 1, False, 0)
        result, conv = Buffer(layer.weight_shape, dtype), layer.struct(1, False)
        workspace = Buffer((kernels.conv_weight_gradient_workspace(dtype, conv) // 8 + 1,), DTYPES["float64"])
        assert kernels.conv_weight_gradient_workspace(dtype, conv) > result.read().size * dtype.size
        kernels.conv_weight_gradient(
            dtype, inputs.buffers["g"], inputs.scale("uk"), inputs.buffers["x"], result, workspace, conv
        )
        results.append(result.read())
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)
