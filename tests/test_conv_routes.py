"""The ways of our own that convolutions take on the CPU: the same numbers as ATen's, for every form that their conditions let in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lrpkernels.functional import Scaled, conv_columns, conv_routes
from lrpkernels.functional.geometry import ConvGeometry

# batch, input channels, output channels, kernel, input size, further options
TILING = [
    (3, 3, 5, (4,), (17,), {}),
    (2, 3, 8, (4, 2), (13, 9), {}),
    (2, 12, 8, (16, 16), (32, 48), {}),
    (2, 1, 4, (2, 3, 2), (5, 7, 4), {}),
    (1, 6, 4, (7, 7), (7, 7), {}),
    (0, 3, 4, (2, 2), (4, 4), {}),
]
POINTWISE = [
    (4, 9, 7, (1, 1), (3, 3), {}),
    (1, 9, 70, (1, 1), (8, 8), {}),
    (2, 5, 7, (1,), (11,), {}),
    (2, 5, 1, (1, 1, 1), (2, 3, 2), {}),
    (2, 5, 7, (1, 1), (7, 6), {"stride": (2, 3)}),
    (4, 5, 7, (1, 1), (1, 1), {}),
    (0, 5, 7, (1, 1), (3, 3), {}),
]
DEPTHWISE = [
    (2, 6, 6, (5, 5), (9, 8), {}),
    (1, 6, 6, (7, 7), (9, 8), {"padding": (3, 3)}),
    (3, 4, 4, (5, 5), (12, 13), {"stride": (2, 3), "padding": (2, 1)}),
    (2, 4, 4, (5, 3), (16, 11), {"dilation": (2, 3), "padding": (4, 3), "stride": (2, 1)}),
    (2, 4, 4, (11,), (30,), {"padding": (5,), "stride": (4,)}),
    (2, 3, 3, (3, 3, 3), (6, 5, 7), {"padding": (1, 1, 1), "stride": (2, 1, 2)}),
    (2, 1, 1, (4, 4), (7, 7), {"stride": (3, 3)}),
]
# Stems: blocks of pixels become channels.
STEM = [
    (2, 3, 16, (7, 7), (40, 41), {"stride": (2, 2), "padding": (3, 3)}),
    (2, 1, 16, (7, 7), (40, 41), {"stride": (2, 2), "padding": (3, 2)}),
    (1, 2, 64, (7, 7, 7), (12, 11, 13), {"padding": (3, 3, 3)}),
    (1, 2, 64, (7, 5, 6), (25, 26, 27), {"stride": (2, 1, 2), "padding": (3, 0, 1)}),
    (1, 1, 64, (5, 5), (37, 41), {"padding": (2, 4)}),
    (1, 3, 16, (3, 3), (70, 71), {}),
    (1, 6, 16, (3, 3), (70, 71), {"padding": (1, 2)}),
    (1, 1, 16, (31,), (5000,), {"stride": (4,), "padding": (15,)}),
    (1, 1, 16, (9,), (5000,), {"padding": (8,)}),
    (1, 2, 16, (11, 11), (130, 129), {"stride": (3, 4), "padding": (1, 5)}),
    (1, 1, 16, (5, 5), (200, 210), {"stride": (2, 3)}),
    (1, 2, 16, (8, 8), (133, 134), {"stride": (2, 2), "padding": (7, 0)}),
]
# Images of a few more channels than colours, and hidden layers of as many.
COLOURS = [
    (2, 6, 16, (7, 7), (40, 41), {"stride": (2, 2), "padding": (3, 3)}),
    (2, 4, 5, (3, 3), (9, 8), {"padding": (1, 1)}),
    (1, 15, 4, (3, 5), (12, 13), {"dilation": (2, 1), "padding": (1, 0), "stride": (1, 2)}),
]
# Many weights beside few pixels.
COLUMNS = [
    (4, 128, 128, (3, 3), (4, 4), {"padding": (1, 1)}),
    (3, 130, 128, (3, 3), (7, 6), {"padding": (1, 1), "stride": (2, 2)}),
    (1, 64, 160, (3, 5), (5, 9), {"padding": (2, 3), "stride": (1, 2), "dilation": (2, 2)}),
    (2, 96, 64, (3, 3, 3), (3, 2, 3), {"padding": (1, 1, 1)}),
    (2, 96, 64, (3, 3, 3), (5, 4, 3), {"padding": (1, 0, 1), "stride": (2, 1, 3)}),
    (2, 600, 300, (3,), (9,), {"padding": (1,)}),
    (2, 128, 128, (3, 3), (3, 3), {}),
    (1, 128, 128, (3, 3), (4, 4), {"padding": (3, 4)}),
    (1, 128, 128, (3, 3), (4, 4), {"padding": (1, 1)}),
]
# Single images that ATen multiplies by matrices.
ALONE = [
    (1, 32, 32, (3, 3, 3), (6, 7, 5), {"padding": (1, 1, 1)}),
    (1, 32, 48, (3, 3, 3), (8, 8, 7), {"padding": (1, 0, 2), "dilation": (1, 2, 1)}),
    (1, 32, 48, (3, 3, 3), (9, 8, 7), {"padding": (1, 1, 1), "stride": (2, 1, 2)}),
    (1, 16, 32, (3, 3, 3), (8, 8, 7), {"padding": (3, 1, 1)}),
    (1, 64, 64, (3, 3), (13, 14), {"padding": (1, 1)}),
    (1, 64, 64, (2, 5), (13, 14), {"padding": (1, 4)}),
]


def _case(case: tuple[Any, ...], dtype: torch.dtype, channels_last: bool = False) -> tuple[Any, ...]:
    batch, inputs, outputs, kernel, size, options = case
    torch.manual_seed(0)
    n = len(kernel)
    groups = inputs if case in DEPTHWISE else 1
    one, zero = (1,) * n, (0,) * n
    stride = options.get("stride", kernel if case in TILING else one)
    geometry = ConvGeometry(stride, options.get("padding", zero), options.get("dilation", one), False, zero, groups)
    x = torch.randn(batch, inputs, *size, dtype=dtype)
    weight = torch.randn(outputs, inputs // groups, *kernel, dtype=dtype)
    s = torch.randn(batch, outputs, *geometry.output_size(x.shape, weight.shape), dtype=dtype)
    if channels_last and n == 2:
        x, s = (t.contiguous(memory_format=torch.channels_last) for t in (x, s))
    return x, weight, torch.randn(outputs, dtype=dtype), s, geometry


@pytest.fixture(autouse=True)
def _any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_routes, "_has_wide_registers", lambda: True)
    monkeypatch.setattr(conv_routes, "_FEW_NUMBERS", 0)
    monkeypatch.setattr(conv_routes, "_FEW_PRODUCTS", 0)
    monkeypatch.setattr(conv_routes, "prefers_onednn", lambda: True)
    monkeypatch.setattr(conv_routes, "_LEAST_PULLED", 1)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", TILING + POINTWISE + DEPTHWISE + STEM + COLOURS + COLUMNS + ALONE, ids=str)
def test_every_way_gives_atens_numbers(case: tuple[Any, ...], dtype: torch.dtype, channels_last: bool) -> None:
    x, weight, bias, s, geometry = _case(case, dtype, channels_last)
    aten, backward = torch.ops.aten.convolution, torch.ops.aten.convolution_backward
    mask = [True, True, False]
    wide = [t.double() for t in (x, weight, bias, s)]
    z = aten(*wide[:3], *geometry) if len(x) else wide[3]
    pulled, gradient, _ = (
        backward(wide[3], *wide[:2], None, *geometry, mask) if len(x) else (wide[0], wide[1] * 0, None)
    )
    precision = 1e-5 if dtype == torch.float32 else 1e-12
    found = (
        conv_routes.apply(x, weight, bias, geometry),
        conv_routes.relevance(Scaled(s), weight, x, geometry),
        conv_routes.weight_gradient(Scaled(s), x, weight, geometry),
    )
    for ours, reference in zip(found, (z, pulled, gradient), strict=True):
        assert ours.dtype == dtype
        largest = float(reference.abs().amax()) if reference.numel() else 0.0
        torch.testing.assert_close(ours.double(), reference, rtol=0.0, atol=precision * max(1.0, largest))


@pytest.mark.parametrize("case", [TILING[1], POINTWISE[0], DEPTHWISE[1]], ids=["tiling", "pointwise", "depthwise"])
def test_several_targets_share_one_input(case: tuple[Any, ...]) -> None:
    x, weight, _, s, geometry = _case(case, torch.float32)
    s = torch.cat([s, -2 * s])
    pulled = conv_routes.relevance(Scaled(s), weight, x, geometry)
    torch.testing.assert_close(pulled[len(x) :], -2 * pulled[: len(x)])
    twice = conv_routes.weight_gradient(Scaled(s), torch.cat([x, x]), weight, geometry)
    torch.testing.assert_close(
        twice, -conv_routes.weight_gradient(Scaled(s[: len(x)]), x, weight, geometry), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("case", "product"),
    [
        (TILING[2], "aten::mm"),
        (POINTWISE[0], "aten::mm"),
        (DEPTHWISE[1], "aten::convolution"),
        *((stem, "aten::convolution") for stem in STEM),
    ],
    ids=str,
)
def test_these_forms_are_taken_by_our_ways(case: tuple[Any, ...], product: str) -> None:
    x, weight, _, s, geometry = _case(case, torch.float32)
    call = conv_routes.weight_gradient if case in DEPTHWISE else conv_routes.relevance
    arguments = (Scaled(s), x, weight) if case in DEPTHWISE else (Scaled(s), weight, x)
    with torch.profiler.profile() as profile:
        call(*arguments, geometry)
    names = {event.name for event in profile.events()}
    assert product in names
    assert "aten::convolution_backward" not in names


@pytest.mark.parametrize(
    ("case", "calls"), [(COLUMNS[0], 0), (COLOURS[0], 2), (ALONE[0], 0)], ids=["columns", "colours", "alone"]
)
def test_weight_gradients_are_taken_by_our_ways(case: tuple[Any, ...], calls: int) -> None:
    x, weight, _, s, geometry = _case(case, torch.float32)
    with torch.profiler.profile() as profile:
        conv_routes.weight_gradient(Scaled(s), x, weight, geometry)
    assert [event.name for event in profile.events()].count("aten::convolution_backward") == calls


@pytest.mark.parametrize(
    ("case", "name"),
    [(COLUMNS[-1], "aten::index_select"), (ALONE[0], "aten::mkldnn_convolution")],
    ids=["columns", "alone"],
)
def test_both_maps_are_taken_by_our_ways(case: tuple[Any, ...], name: str) -> None:
    x, weight, bias, s, geometry = _case(case, torch.float32)
    with torch.profiler.profile() as profile:
        conv_routes.apply(x, weight, bias, geometry)
        conv_routes.relevance(Scaled(s), weight, x, geometry)
    names = [event.name for event in profile.events()]
    assert names.count(name) == 2
    assert "aten::convolution_backward" not in names


@pytest.mark.parametrize("case", COLUMNS + ALONE, ids=str)
def test_columns_give_atens_numbers_for_every_size(case: tuple[Any, ...]) -> None:
    """Where the condition for one of the three maps lets in fewer forms, too."""
    x, weight, _, s, geometry = _case(case, torch.float64)
    pulled, gradient, _ = torch.ops.aten.convolution_backward(s, x, weight, None, *geometry, [True, True, False])
    torch.testing.assert_close(conv_columns.apply(x, weight, geometry), torch.convolution(x, weight, None, *geometry))
    torch.testing.assert_close(conv_columns.data_gradient(s, weight, tuple(x.shape[2:]), geometry), pulled)
    torch.testing.assert_close(conv_columns.weight_gradient(s, x, weight, geometry), gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", TILING[:5] + POINTWISE[:6] + STEM, ids=str)
def test_planes_of_one_number_each(case: tuple[Any, ...], dtype: torch.dtype) -> None:
    x, weight, bias, s, geometry = _case(case, dtype)
    view = torch.randn(*x.shape[:2], *(1,) * (x.dim() - 2), dtype=dtype).expand(x.shape)
    dense = view.double().contiguous()
    wide = [t.double() for t in (weight, bias, s)]
    z = torch.ops.aten.convolution(dense, *wide[:2], *geometry)
    gradient = torch.ops.aten.convolution_backward(wide[2], dense, wide[0], None, *geometry, [False, True, False])[1]
    found = (
        conv_routes.apply(view, weight, bias, geometry),
        conv_routes.weight_gradient(Scaled(s), view, weight, geometry),
    )
    precision = 1e-5 if dtype == torch.float32 else 1e-12
    for ours, reference in zip(found, (z, gradient), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(
            ours.double(), reference, rtol=0.0, atol=precision * max(1.0, float(reference.abs().amax()))
        )
