"""Every route of the CPU's convolutions gives what ATen gives, for the shapes it was made for and for any other."""

import pytest
import torch
from torch import Tensor

from lrpkernels.functional import ConvGeometry, conv_cpu

SHAPES = [
    # input (N, C, H, W), output channels, kernel, stride, padding, dilation, route per purpose (data, apply, weight)
    ((4, 512, 4, 4), 512, (3, 3), 1, 1, 1, ("product", "product", "product")),
    ((2, 256, 7, 5), 512, (3, 3), 2, 1, 1, ("product", "product", "product")),
    ((1, 300, 7, 7), 300, (3, 3), 1, 2, 2, ("product", "product", "product")),
    ((2, 512, 4, 4), 1024, (1, 1), 1, 0, 1, ("product", "product", None)),
    ((2, 24, 9, 11), 40, (1, 1), 1, 0, 1, ("pointwise", "pointwise", None)),
    ((2, 3, 31, 34), 32, (7, 7), 2, 3, 1, ("subpixel", None, None)),
    ((2, 6, 30, 27), 32, (7, 7), 2, 3, 1, ("subpixel", None, "threes")),
    ((2, 1, 30, 27), 32, (7, 7), 2, 3, 1, ("subpixel", None, "threes")),
    ((2, 2, 13, 17), 16, (3, 5), 3, 0, 1, ("subpixel", None, "threes")),
    ((2, 8, 16, 12), 16, (4, 4), 4, 0, 1, ("subpixel", None, None)),
    ((2, 3, 9, 23), 17, (2, 5), 4, 3, 1, ("subpixel", None, None)),
    ((2, 96, 30, 28), 192, (3, 3), 1, 1, 1, (None, None, "swapped")),
    ((1, 128, 33, 31), 256, (5, 3), 1, 2, 1, (None, None, "swapped")),
    ((4, 64, 16, 14), 70, (3, 3), 1, 0, 1, (None, None, None)),
    ((2, 5, 20, 20), 16, (3, 3), 1, 1, 1, (None, None, None)),
]


def operands(case: tuple) -> tuple[Tensor, Tensor, Tensor, Tensor, ConvGeometry]:
    size, channels, kernel, stride, padding, dilation, _ = case
    generator = torch.Generator().manual_seed(sum(size))
    geometry = ConvGeometry((stride,) * 2, (padding,) * 2, (dilation,) * 2, False, (0, 0), 1)
    x = torch.randn(size, generator=generator, dtype=torch.float64)
    weight = torch.randn((channels, size[1], *kernel), generator=generator, dtype=torch.float64)
    z = torch.convolution(x, weight, None, *geometry)
    return x, weight, z, torch.randn(z.shape, generator=generator, dtype=torch.float64), geometry


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_routes_equal_aten(case: tuple) -> None:
    x, weight, z, s, geometry = operands(case)
    data, gradient, _ = torch.ops.aten.convolution_backward(s, x, weight, None, *geometry, [True, True, False])
    results = (
        (conv_cpu.data_gradient(s, weight, x.shape[2:], geometry), data, "data", s),
        (conv_cpu.apply(x, weight, geometry), z, "apply", x),
        (conv_cpu.weight_gradient(s, x, weight, geometry), gradient, "weight", s),
    )
    for (ours, expected, purpose, values), route in zip(results, case[-1], strict=True):
        assert conv_cpu._route(purpose, values, weight, geometry) == route
        assert (ours is None) == (route is None)
        if ours is not None:
            assert ours.is_contiguous()
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("size", [(2, 3, 32, 32), (2, 3, 33, 30), (1, 3, 7, 40)], ids=str)
@pytest.mark.parametrize("kernel", [(1, 1), (2, 5), (3, 3), (7, 7)], ids=str)
@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_subpixels_of_any_stride(size: tuple, kernel: tuple, stride: int, padding: int) -> None:
    x, weight, _, s, geometry = operands((size, 16, kernel, stride, padding, 1, None))
    expected = torch.ops.aten.convolution_backward(s, x, weight, None, *geometry, [True, False, False])[0]
    ours = conv_cpu._subpixel(s, weight, x.shape[2:], geometry)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_other_layouts_dtypes_and_convolutions_are_atens() -> None:
    _, weight, _, s, geometry = operands(SHAPES[0])
    others = (
        (s.to(memory_format=torch.channels_last), geometry),
        (s.bfloat16(), geometry),
        (s.to("meta"), geometry),
        (s, geometry._replace(groups=2)),
        (s, geometry._replace(transposed=True)),
    )
    for values, other in others:
        assert conv_cpu._route("data", values, weight, other) is None
