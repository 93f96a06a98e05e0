"""csrc/cuda/conv_weight.cu on the CPU shim: the weight gradient with the scale applied as it is loaded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cuda_on_cpu import (
    DTYPES,
    ORDERS,
    Buffer,
    ConvScale,
    Dtype,
    arranged,
    assert_close,
    load,
    restored,
    taken,
    thin_runs,
)
from cuda_on_cpu.conv_reference import LAYERS, Inputs, Layer

RUNS = thin_runs()
# Several parts: more than twice 256 positions.
SPLIT = [Layer(2, 3, 5, (17, 19), (3, 3), (1, 1), (1, 1)), Layer(1, 4, 6, (50, 41), (2, 1), (2, 1), (1, 0))]


def run_weight_gradient(
    layer: Layer, dtype: Dtype, has: str, targets: int, channels_last: bool, shift: int, tensor_cores: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the kernels give, the float64 reference, and the sum of the absolute values of its terms."""
    kernels = load("conv_weight")
    inputs = Inputs(layer, dtype, targets, channels_last, shift)
    images = layer.input_shape(targets * layer.batch)
    x = Buffer(arranged(np.random.default_rng(30).standard_normal(images), channels_last), dtype, shift)
    result = Buffer(layer.weight_shape, dtype, shift)
    conv = layer.struct(targets, channels_last, tensor_cores)
    workspace = Buffer((kernels.conv_weight_gradient_workspace(dtype, conv) // 8 + 1,), DTYPES["float64"])
    kernels.conv_weight_gradient(dtype, inputs.buffers["g"], inputs.scale(has), x, result, workspace, conv)
    workspace.read()
    s, size = inputs.scaled(has)
    image = restored(x, images, channels_last)
    return result.read(), layer.weight_gradient(s, image), layer.weight_gradient(size, np.abs(image))


CASES = list(itertools.product([*LAYERS, *SPLIT], ("", "auk", "d")))
FORMS = [(1, False, 0), (2, True, 1), (1, True, 0), (3, False, 3)]  # targets, channels-last, shift


@pytest.mark.parametrize(("dtype", "order", "share"), RUNS)
def test_weight_gradient(dtype: Dtype, order: int, share: int) -> None:
    load("conv_weight").configure(order)
    for number, (layer, has) in taken(CASES, order, share):
        got, expected, magnitude = run_weight_gradient(layer, dtype, has, *FORMS[number % 4], tensor_cores=False)
        assert_close(got, expected, dtype, magnitude, 60)


@pytest.mark.parametrize(("dtype", "order", "share"), [run for run in RUNS if not run.id.startswith("float64")])
def test_tensor_cores(dtype: Dtype, order: int, share: int) -> None:
    """As test_weight_gradient, up to the rounding of both factors to tf32 or to the storage type."""
    load("conv_weight").configure(order)
    unit = 2.0**-11 if dtype.name == "float32" else dtype.unit
    for number, (layer, has) in taken(CASES, order, share):
        got, expected, magnitude = run_weight_gradient(layer, dtype, has, *FORMS[number % 4], tensor_cores=True)
        assert_close(got, expected, dtype, magnitude * (2.1 * unit / dtype.arithmetic_unit + 60), 1)


def test_tensor_cores_drop_the_bits_that_tf32_lacks() -> None:
    dtype, layer, number = DTYPES["float32"], Layer(1, 2, 3, (6, 5), (1, 1)), 1 + 2.0**-13
    kernels = load("conv_weight")
    kernels.configure()
    g, x = (Buffer(np.full(shape, number), dtype) for shape in (layer.output_shape(1), layer.input_shape(1)))
    for tensor_cores, product in ((False, number**2), (True, 1.0)):
        result, conv = Buffer(layer.weight_shape, dtype), layer.struct(1, False, tensor_cores)
        workspace = Buffer((kernels.conv_weight_gradient_workspace(dtype, conv) // 8 + 1,), DTYPES["float64"])
        kernels.conv_weight_gradient(dtype, g, ConvScale(), x, result, workspace, conv)
        np.testing.assert_allclose(result.read(), 30 * product, rtol=1e-6)


@pytest.mark.parametrize("tensor_cores", [False, True], ids=["arithmetic", "tensor cores"])
def test_parts_do_not_depend_on_the_order(tensor_cores: bool) -> None:
    dtype, layer = DTYPES["float32"], SPLIT[0]
    kernels = load("conv_weight")
    results = []
    for order in ORDERS:
        kernels.configure(order)
        inputs = Inputs(layer, dtype, 1, False, 0)
        result, conv = Buffer(layer.weight_shape, dtype), layer.struct(1, False, tensor_cores)
        workspace = Buffer((kernels.conv_weight_gradient_workspace(dtype, conv) // 8 + 1,), DTYPES["float64"])
        assert kernels.conv_weight_gradient_workspace(dtype, conv) > result.read().size * dtype.size
        kernels.conv_weight_gradient(
            dtype, inputs.buffers["g"], inputs.scale("uk"), inputs.buffers["x"], result, workspace, conv
        )
        results.append(result.read())
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)
