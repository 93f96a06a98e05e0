"""csrc/cuda/conv.cu on the CPU shim: the transposed map with its scales and weight sets, and the map itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cuda_on_cpu import (
    DTYPES,
    Buffer,
    ConvResult,
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

WEIGHT, POSITIVE, NEGATIVE, SAME_SIGN, OPPOSITE_SIGN, BOX = range(6)
RUNS = thin_runs()
# (weights, parts of the scale): every weight set and every part of the scale at least once.
MODES = [
    (WEIGHT, ""),
    (WEIGHT, "auk"),
    (POSITIVE, "d"),
    (NEGATIVE, "uk"),
    (SAME_SIGN, "d"),
    (OPPOSITE_SIGN, "ad"),
    (BOX, "d"),
]


def values(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def parts(weight: np.ndarray, weights: int) -> tuple[np.ndarray, ...]:
    positive, negative = np.maximum(weight, 0), np.minimum(weight, 0)
    return {
        WEIGHT: (weight,),
        POSITIVE: (positive,),
        NEGATIVE: (negative,),
        SAME_SIGN: (positive, negative),
        OPPOSITE_SIGN: (negative, positive),
        BOX: (weight, positive, negative),
    }[weights]


def relevance_reference(inputs: Inputs, weights: int, has: str) -> tuple[np.ndarray, np.ndarray]:
    """The result and its magnitude."""
    layer, data = inputs.layer, inputs.data
    s, size = inputs.scaled(has)
    sums = [layer.transpose(s, w) for w in parts(data["weight"], weights)]
    sizes = [layer.transpose(size, np.abs(w)) for w in parts(data["weight"], weights)]
    a = np.concatenate([data["x"]] * inputs.targets)
    low, high = (data[name].reshape(1, -1, 1, 1) for name in ("low", "high"))
    if weights == BOX:
        return (
            a * sums[0] - low * sums[1] - high * sums[2],
            np.abs(a) * sizes[0] + np.abs(low) * sizes[1] + np.abs(high) * sizes[2],
        )
    result, magnitude = sums[0], sizes[0]
    if len(sums) == 2:
        result, magnitude = np.where(a >= 0, sums[0], sums[1]), np.where(a >= 0, sizes[0], sizes[1])
    return result, magnitude


def run_relevance(
    layer: Layer, dtype: Dtype, mode: tuple, targets: int, channels_last: bool, shift: int, tensor_cores: bool = False
) -> tuple:
    """(got, expected, magnitude)."""
    weights, has = mode
    kernels = load("conv")
    inputs = Inputs(layer, dtype, targets, channels_last, shift)
    b = inputs.buffers
    shape = layer.input_shape(targets * layer.batch)
    result = Buffer(arranged(np.full(shape, np.nan), channels_last), dtype, shift)
    conv = layer.struct(targets, channels_last, tensor_cores)
    workspace = Buffer((kernels.conv_workspace(dtype, conv, weights, 1) // 8 + 1,), DTYPES["float64"])
    combine = ConvResult(b["x"].pointer, b["low"].pointer, b["high"].pointer)
    kernels.conv_relevance(dtype, b["g"], inputs.scale(has), b["weight"], weights, combine, result, workspace, conv)
    workspace.read()
    expected, magnitude = relevance_reference(inputs, weights, has)
    return restored(result, shape, channels_last), expected, magnitude


@pytest.mark.parametrize(("dtype", "order", "share"), RUNS)
def test_conv_relevance(dtype: Dtype, order: int, share: int) -> None:
    load("conv").configure(order)
    for number, (layer, mode) in taken(itertools.product(LAYERS, MODES), order, share):
        targets, channels_last, shift = [(1, False, 0), (2, True, 1), (1, True, 0), (3, False, 3)][number % 4]
        got, expected, magnitude = run_relevance(layer, dtype, mode, targets, channels_last, shift)
        assert_close(got, expected, dtype, magnitude, 40)


TENSOR_CORE_RUNS = [run for run in RUNS if not run.id.startswith("float64")]


@pytest.mark.parametrize(("dtype", "order", "share"), TENSOR_CORE_RUNS)
def test_tensor_cores(dtype: Dtype, order: int, share: int) -> None:
    """As test_conv_relevance, up to the rounding of both factors to tf32 or to the storage type."""
    load("conv").configure(order)
    unit = 2.0**-11 if dtype.name == "float32" else dtype.unit
    for number, (layer, mode) in taken(itertools.product(LAYERS, MODES), order, share):
        targets, channels_last, shift = [(1, False, 0), (2, True, 1), (1, True, 0), (3, False, 3)][number % 4]
        got, expected, magnitude = run_relevance(layer, dtype, mode, targets, channels_last, shift, tensor_cores=True)
        assert_close(got, expected, dtype, magnitude * (2.1 * unit / dtype.arithmetic_unit + 40), 1)


@pytest.mark.parametrize(("dtype", "order", "share"), RUNS)
def test_conv(dtype: Dtype, order: int, share: int) -> None:
    kernels = load("conv")
    kernels.configure(order)
    for number, (layer, weights) in taken(itertools.product(LAYERS, (WEIGHT, POSITIVE, NEGATIVE)), order, share):
        channels_last, shift = [(False, 0), (True, 1)][number % 2]
        x = Buffer(arranged(values(1, *layer.input_shape(layer.batch)), channels_last), dtype, shift)
        weight = Buffer(values(2, *layer.weight_shape), dtype, shift)
        shape = layer.output_shape(layer.batch)
        result = Buffer(arranged(np.full(shape, np.nan), channels_last), dtype, shift)
        conv = layer.struct(1, channels_last)
        workspace = Buffer((kernels.conv_workspace(dtype, conv, weights, 0) // 8 + 1,), DTYPES["float64"])
        kernels.conv(dtype, x, weight, weights, result, workspace, conv)
        image = restored(x, layer.input_shape(layer.batch), channels_last)
        (part,) = parts(weight.read(), weights)
        expected, magnitude = layer.forward(image, part), layer.forward(np.abs(image), np.abs(part))
        assert_close(restored(result, shape, channels_last), expected, dtype, magnitude, 40)


def test_nan_spreads() -> None:
    """A NaN weight reaches the result in every weight set, and so does a NaN multiplier."""
    dtype, layer = DTYPES["float32"], Layer(1, 2, 2, (3, 3), (1, 1))
    kernels = load("conv")
    kernels.configure()
    for weights, (spoil_weight, spoil_g) in itertools.product(range(6), [(True, False), (False, True)]):
        data = Inputs(layer, dtype, 1, False, 0)
        weight, g = np.ones(layer.weight_shape), np.ones(layer.output_shape(1))
        weight[0, 0] = np.nan if spoil_weight else 1
        g[0, 0, 1, 1] = np.nan if spoil_g else 1
        conv, result = layer.struct(1, False), Buffer(layer.input_shape(1), dtype)
        workspace = Buffer((kernels.conv_workspace(dtype, conv, weights, 1) // 8 + 1,), DTYPES["float64"])
        combine = ConvResult(*(data.buffers[name].pointer for name in ("x", "low", "high")))
        kernels.conv_relevance(
            dtype, Buffer(g, dtype), ConvScale(), Buffer(weight, dtype), weights, combine, result, workspace, conv
        )
        assert np.isnan(result.read()[0, 0, 1, 1])
