"""The memory-bound CUDA kernels move little more than they must, counted sector by sector on the CPU shim."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cuda_on_cpu import DTYPES, Buffer, ConvResult, ConvScale, Dtype, load_counted, slow_unless
from cuda_on_cpu.conv_reference import Inputs, Layer

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.kernel_calls import measure, scratch
from benchmarks.roofline import BEGIN, END, PAGE, PASSES, conv_table, costs, elementwise_table, issued
from benchmarks.traffic import FAMILIES, calls, convolutions


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(name, marks=slow_unless(name == "float32"))
        for name in ("float32", "bfloat16", "float16", "float64")
    ],
)
def test_traffic(dtype: str) -> None:
    for call in calls([dtype]):
        if call.family == "heatmap":
            continue  # reads its rows several times by design; they fit the second-level cache
        row = measure(call)
        assert row.mebibytes >= 1
        assert row.memory <= 1.05, row
        assert row.sectors >= 0.95, row
        if call.family == "pool" and call.layout != "NCHW":
            continue  # windows overlap between blocks
        # Two tables per channel stand beside the four tensors of an affine layer: 6 % of what a block reads in float64.
        assert row.blocks <= (1.07 if call.family == "affine" else 1.05), row


def test_the_count_is_exact() -> None:
    """ratio reads three tensors and writes one: nothing else, no sector in part."""
    row = next(measure(call) for call in calls(["float32"]) if call.name == "ratio")
    assert (row.memory, row.blocks, row.lanes, row.sectors) == (1, 1, 1, 1)


@pytest.mark.slow
def test_convolutions_read_their_tensors_about_once_from_memory() -> None:
    """What is over: packed weights, written and read, and the partial sums of the weight gradient's parts."""
    for call in convolutions(["float32"]):
        row = measure(call)
        assert row.memory <= (2.4 if call.family == "conv_weight" else 1.2), row
        assert row.sectors >= 0.8, row


LAYERS = [
    Layer(2, 3, 16, (9, 11), (3, 3), (1, 1), (1, 1)),
    Layer(5, 4, 6, (9, 8), (3, 3), (2, 2), (1, 1)),
    Layer(1, 130, 66, (5, 4), (3, 3), (1, 1), (1, 1)),
    Layer(1, 8, 12, (6, 7), (3, 3), (1, 1), (2, 2), (2, 2), 4),
    Layer(2, 3, 5, (17, 19), (3, 3), (1, 1), (1, 1)),
    Layer(1, 8, 8, (33, 20), (5, 4), (3, 2), (2, 1)),
]


def operations(layer: Layer, dtype: Dtype, what: str, cores: bool) -> int:
    """Counted while a pass without factors runs."""
    inputs, conv = Inputs(layer, dtype, 1, False, 0), layer.struct(1, False, cores)
    kernels = load_counted("conv_weight" if what == "conv_weight_gradient" else "conv")
    kernels.configure()
    kernels.operations()
    g, x, w = (inputs.buffers[name] for name in ("g", "x", "weight"))
    if what == "conv_relevance":
        result, workspace = (
            Buffer(layer.input_shape(layer.batch), dtype),
            scratch(kernels.conv_workspace(dtype, conv, 0, 1)),
        )
        kernels.conv_relevance(dtype, g, ConvScale(), w, 0, ConvResult(), result, workspace, conv)
    elif what == "conv_apply":
        result, workspace = (
            Buffer(layer.output_shape(layer.batch), dtype),
            scratch(kernels.conv_workspace(dtype, conv, 0, 0)),
        )
        kernels.conv(dtype, x, w, 0, result, workspace, conv)
    else:
        result, workspace = (
            Buffer(layer.weight_shape, dtype),
            scratch(kernels.conv_weight_gradient_workspace(dtype, conv)),
        )
        kernels.conv_weight_gradient(dtype, g, ConvScale(), x, result, workspace, conv)
    return int(kernels.operations().simple)


@pytest.mark.parametrize("what", PASSES)
def test_the_roofline_counts_what_the_tiles_multiply(what: str) -> None:
    for layer in LAYERS:
        for name, cores in (("float32", False), ("float32", True), ("float16", True)):
            dtype = DTYPES[name]
            assert operations(layer, dtype, what, cores) == 2 * issued(layer, what, dtype.size, cores), (
                layer,
                name,
                cores,
            )


def test_the_documented_rooflines_are_current() -> None:
    page = PAGE.read_text()
    documented = page[page.index(BEGIN) : page.index(END)].splitlines()
    assert set(conv_table()) <= set(documented)
    dtypes = [DTYPES["float32"], DTYPES["bfloat16"]]
    assert set(elementwise_table(costs(dtypes, FAMILIES), dtypes)) <= set(documented)
