"""Sizes that the kernels' indices do not hold are refused: declared ones, of which nothing is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cuda_on_cpu import DTYPES, Conv, ConvResult, ConvScale, Extent, Heatmap, Kernels, Norm, Pool, load

DTYPE = DTYPES["float32"]
NONE = ConvScale()


def conv(**sizes: Any) -> Conv:
    """A 3x3 convolution of 8 channels on 4x4 pixels, but for what is named."""
    struct = Conv(1, 1, 8, 8, 1)
    pairs = {"input": (4, 4), "output": (2, 2), "kernel": (3, 3), "stride": (1, 1), "padding": (0, 0)}
    for name, value in {**pairs, "dilation": (1, 1), **sizes}.items():
        if isinstance(value, tuple):
            getattr(struct, name)[:] = value
        else:
            setattr(struct, name, value)
    return struct


CONVOLUTIONS = {
    "weight of 2^31 elements": conv(channels_in=2**15, channels_out=2**16, kernel=(1, 1)),
    "weight of 2^64 elements": conv(channels_in=2**20, channels_out=2**20, kernel=(2**12, 2**12)),
    "columns": conv(channels_in=2**20, channels_out=1, kernel=(2**6, 2**6)),
    "kernel positions that wrap to 0": conv(kernel=(2**16, 2**16)),
    "kernel positions without channels": conv(kernel=(2**16, 2**16), channels_in=0, groups=1),
    "kernel": conv(kernel=(2**40, 1)),
    "padded side": conv(padding=(2**28, 0)),
    "padding that wraps": conv(padding=(2**62, 0)),
    "reach of the kernel": conv(dilation=(2**27, 1)),
    "stride": conv(stride=(2**40, 1)),
    "plane": conv(input=(2**16, 2**16)),
    "output": conv(output=(2**27, 2**27)),
    "channels": conv(channels_in=2**24),
    "images": conv(batch=2**45),
    "images that wrap to 0": conv(batch=2**32, targets=2**32),
}


@pytest.mark.parametrize("tensor_cores", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, tensor_cores: bool) -> None:
    kernels, weight_kernels, layer = load("conv"), load("conv_weight"), CONVOLUTIONS[name]
    layer.tensor_cores = tensor_cores
    for transposed in (0, 1):
        assert kernels.conv_workspace(DTYPE, layer, 0, transposed) == 0
    assert weight_kernels.conv_weight_gradient_workspace(DTYPE, layer) == 0
    calls: list[Callable[[], object]] = [
        lambda: kernels.conv_relevance(DTYPE, None, NONE, None, 0, ConvResult(), None, None, layer),
        lambda: kernels.conv(DTYPE, None, None, 0, None, None, layer),
        lambda: weight_kernels.conv_weight_gradient(DTYPE, None, NONE, None, None, None, layer),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="CUDA error 1"):
            call()


def test_phases_of_large_strides() -> None:
    """The transposed map has stride x stride phases, each with packed weights and blocks of its own."""
    kernels = load("conv")
    for stride in (2**16, 2**28):
        layer = conv(stride=(stride, stride), output=(1, 1))
        assert kernels.conv_workspace(DTYPE, layer, 0, 1) == 0
        assert kernels.conv_workspace(DTYPE, layer, 0, 0) > 0
        with pytest.raises(RuntimeError, match="CUDA error 1"):
            kernels.conv_relevance(DTYPE, None, NONE, None, 0, ConvResult(), None, None, layer)


def pool(**sizes: Any) -> Pool:
    """2x2 windows on 4x4 positions of 8 channels, but for what is named."""
    struct = Pool(1, 1, 8)
    planes = {"input": (1, 4, 4), "output": (1, 2, 2), "kernel": (1, 2, 2), "stride": (1, 2, 2), "dilation": (1, 1, 1)}
    for name, value in {**planes, **sizes}.items():
        if isinstance(value, tuple):
            getattr(struct, name)[:] = value
        else:
            setattr(struct, name, value)
    return struct


POOLS = {
    "plane": pool(input=(2**10, 2**10, 2**10)),
    "plane that wraps to 0": pool(input=(2**30, 2**30, 2**30)),
    "output": pool(output=(2**22, 2**22, 2**22)),
    "padded plane": pool(padding=(0, 2**15, 2**15)),
    "padding": pool(padding=(0, 2**62, 0)),
    "reach of a window": pool(kernel=(1, 2**20, 1), dilation=(1, 2**20, 1)),
    "begin of the last window": pool(output=(1, 2**20, 1), stride=(1, 2**20, 1)),
    "images": pool(batch=2**45),
    "images that wrap to 0": pool(batch=2**32, targets=2**32),
    "divisor": pool(divisor_override=2**40),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools(name: str) -> None:
    kernels, layer = load("pool"), POOLS[name]
    for launch in (kernels.max_pool_winner, kernels.max_pool_winner_backward):
        with pytest.raises(RuntimeError, match="CUDA error 1"):
            launch(DTYPE, None, None, None, layer)
    for launch in (kernels.average_pool, kernels.average_pool_transpose):
        with pytest.raises(RuntimeError, match="CUDA error 1"):
            launch(DTYPE, None, None, layer)


def elementwise(kernels: dict[str, Kernels], extent: Extent) -> list[Callable[[], object]]:
    pointwise, affine, none = kernels["pointwise"], kernels["affine"], (None,) * 12
    return [
        lambda: pointwise.epsilon_scale(DTYPE, *none[:5], extent, 0.1),
        lambda: pointwise.epsilon_scale_backward(DTYPE, *none[:9], extent, 0.1),
        lambda: pointwise.ratio(DTYPE, *none[:4], extent, 0.1),
        lambda: pointwise.ratio_backward(DTYPE, *none[:7], extent, 0.1),
        lambda: affine.affine(DTYPE, 1.0, 0.0, *none[:6], extent, 0.1),
        lambda: affine.affine_backward(DTYPE, 1.0, 0.0, *none[:12], extent, 0.1),
        lambda: affine.sum_zplus(DTYPE, *none[:5], extent, 0.1),
        lambda: affine.sum_zplus_backward(DTYPE, *none[:8], extent, 0.1),
    ]


@pytest.mark.parametrize("sizes", [(2**50, 1, 1, 1), (2**32, 2**32, 1, 1), (8, 1, 2**32, 2**32)], ids=str)
def test_elementwise_ops(sizes: tuple[int, ...]) -> None:
    kernels, extent = {name: load(name) for name in ("pointwise", "affine")}, Extent(*sizes)
    assert kernels["pointwise"].epsilon_scale_backward_workspace(DTYPE, extent) == 0
    assert kernels["affine"].affine_backward_workspace(DTYPE, extent) == 0
    for call in elementwise(kernels, extent):
        with pytest.raises(RuntimeError, match="CUDA error 1"):
            call()


@pytest.mark.parametrize("sizes", [(2**50, 1, 1, 1), (2**32, 2**32, 1, 1), (8, 1, 2**32, 2**32)], ids=str)
def test_norms(sizes: tuple[int, ...]) -> None:
    kernels, norm = load("sample_norm"), Norm(Extent(*sizes), 8, 0.1, True)
    assert kernels.sample_norm_backward_workspace(DTYPE, norm, True) == 0
    for call in (
        lambda: kernels.sample_norm(DTYPE, *(None,) * 4, norm),
        lambda: kernels.sample_norm_backward(DTYPE, *(None,) * 8, norm),
    ):
        with pytest.raises(RuntimeError, match="CUDA error 1"):
            call()


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 2**30, 1, 1), (1, 1, 1, 8, 1, 2**40), (2**32, 2**32, 1, 8, 1, 1), (1, 1, 1, 8, 1, -1)], ids=str
)
def test_heatmaps(sizes: tuple[int, ...]) -> None:
    kernels, shape = load("heatmap"), Heatmap(*sizes, 0.5)
    assert kernels.heatmap_scores_workspace(shape) == 0
    for launch in (kernels.heatmap_scores, kernels.heatmap_scores_backward):
        with pytest.raises(RuntimeError, match="CUDA error 1"):
            launch(DTYPE, *(None,) * 7, shape)
