"""Whole networks through the CUDA sources on CPU tensors: heatmaps and training gradients equal the CPU backend's."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from networks import NETWORKS, build
from spy import SeenOps
from test_emulated_ops import load_emulated_ops
from torch import Tensor

import isnet
import lrpkernels as lrp
from benchmarks.networks import NETWORKS as FULL_NETWORKS
from lrpkernels.functional import POSITIVE, Scaled
from lrpkernels.rules.views import Layer
from lrpkernels.testing import emulated_cuda

X = torch.rand(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    load_emulated_ops()


def _run(name: str, rule: lrp.Rule, dtype: torch.dtype, emulated: bool) -> tuple[Tensor, Tensor]:
    """Heatmap and all gradients of a loss on it, as one vector."""
    net = build(NETWORKS[name]).to(dtype)
    if emulated:
        with emulated_cuda():
            heatmap = lrp.LRP(net, rule)(X.to(dtype), 1)[1]
            heatmap.float().square().sum().backward() if dtype == torch.float16 else heatmap.square().sum().backward()
    else:
        heatmap = lrp.LRP(net, rule)(X.to(dtype), 1)[1]
        heatmap.square().sum().backward()
    return heatmap.detach(), torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


RULES = {
    "epsilon, z^B": lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)),
    "z^B per channel": lrp.Epsilon(1e-2, first=lrp.ZBox((-1.0, -2.0, 0.0), (1.0, 2.0, 3.0))),
    "z+": lrp.ZPlus(1e-2),
    "alpha-beta": lrp.AlphaBeta(2.0, 1.0, 1e-2),
    "layer-wise epsilon": lrp.EpsilonLayerwise(1e-2),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_through_the_cuda_sources_equal_the_cpu_backend(name: str, dtype: torch.dtype, rule: lrp.Rule) -> None:
    ours, expected = _run(name, rule, dtype, True), _run(name, rule, dtype, False)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    for a, b in zip(ours, expected, strict=True):
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@pytest.mark.parametrize("name", ["residual", "dense"])
def test_static_calls_through_the_cuda_sources(name: str) -> None:
    net = build(NETWORKS[name]).eval()
    rule = lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1))
    with emulated_cuda(), torch.no_grad():
        expected = lrp.LRP(net, rule)(X, 1)[1]
        attribution = lrp.LRP(net, rule, static=True)
        for _ in range(4):
            assert torch.equal(attribution(X, 1)[1], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", [lrp.Epsilon(1e-2), RULES["epsilon, z^B"]], ids=["epsilon", "epsilon, z^B"])
@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_through_the_cuda_sources_is_close_to_float64(
    name: str, rule: lrp.Rule, dtype: torch.dtype
) -> None:
    exact, _ = _run(name, rule, torch.float64, False)
    half, gradients = _run(name, rule, dtype, True)
    assert half.dtype == dtype and bool(torch.isfinite(gradients).all())
    error = float((half.double() - exact).abs().mean() / exact.abs().mean())
    assert error < (0.2 if dtype == torch.float16 else 0.3), error


def test_the_cpu_kernels_are_back_afterwards() -> None:
    net = build(NETWORKS["vgg"])
    with SeenOps("lrpkernels_emulated") as seen, torch.no_grad():
        with emulated_cuda():
            lrp.LRP(net, lrp.Epsilon(1e-2))(X, 1)
        during = len(seen.calls)
        lrp.LRP(net, lrp.Epsilon(1e-2))(X, 1)
    assert during == len(seen.calls) > 0


POOLS = {
    "average": torch.nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "ceil": torch.nn.AvgPool2d(3, 2, ceil_mode=True, divisor_override=5),
    "adaptive": torch.nn.AdaptiveAvgPool2d((3, 5)),
    "3-D": torch.nn.AvgPool3d(2, (1, 2, 2)),
}


@pytest.mark.parametrize("pool", POOLS)
def test_average_pooling_runs_through_the_cuda_sources(pool: str) -> None:
    x = torch.rand((2, 2, 4, 8, 8) if pool == "3-D" else (2, 2, 8, 8), dtype=torch.float64)
    conv = torch.nn.Conv3d(2, 4, 3, padding=1) if pool == "3-D" else torch.nn.Conv2d(2, 4, 3, padding=1)
    net = torch.nn.Sequential(conv, torch.nn.ReLU(), POOLS[pool], torch.nn.Flatten(), torch.nn.LazyLinear(3)).double()
    net(x)
    expected = lrp.LRP(net, lrp.Epsilon(1e-2))(x, 1)[1]
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), conv.weight)
    with emulated_cuda(), SeenOps("lrpkernels_emulated") as seen:
        heatmap = lrp.LRP(net, lrp.Epsilon(1e-2))(x, 1)[1]
        (gradient,) = torch.autograd.grad(heatmap.square().sum(), conv.weight)
    assert "average_pool_transpose" in seen.names
    torch.testing.assert_close(heatmap, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


class Reduce(torch.nn.Module):
    """A mean or sum over dimensions."""

    def __init__(self, how: str, *dims: int, keepdim: bool = False) -> None:
        super().__init__()
        self.how, self.dims, self.keepdim = how, dims, keepdim

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = getattr(x, self.how)(self.dims, keepdim=self.keepdim)
        return result


HEADS = {
    "adaptive 1": torch.nn.AdaptiveAvgPool2d(1),
    "mean": Reduce("mean", 2, 3),
    "mean, kept": Reduce("mean", -1, -2, keepdim=True),
    "sum": Reduce("sum", 2, 3),
    "1-D, adaptive 1": torch.nn.AdaptiveAvgPool1d(1),
    "1-D, adaptive": torch.nn.AdaptiveAvgPool1d(5),
    "1-D, windows": torch.nn.AvgPool1d(3, 2, 1, count_include_pad=False),
    "1-D, stride of the window": torch.nn.AvgPool1d(3, ceil_mode=True),
    "1-D, mean": Reduce("mean", 2),
    "3-D, adaptive 1": torch.nn.AdaptiveAvgPool3d(1),
}


@pytest.mark.parametrize("rule", [lrp.Epsilon(1e-2), lrp.ZPlus(1e-2), lrp.EpsilonLayerwise(1e-2)], ids=repr)
@pytest.mark.parametrize("head", HEADS)
def test_the_pooling_of_a_head_runs_through_the_cuda_sources(head: str, rule: lrp.Rule) -> None:
    torch.manual_seed(2)
    dimensions = int(head[0]) if head[0].isdigit() else 2
    conv = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[dimensions - 1](2, 4, 3, padding=1)
    x = torch.rand(2, 2, *(7, 6, 5)[:dimensions], dtype=torch.float64)
    layers = (conv, torch.nn.ReLU(), HEADS[head], torch.nn.Flatten(), torch.nn.LazyLinear(3))
    net = torch.nn.Sequential(*layers).double()
    net(x)
    results = []
    for backend in (emulated_cuda, nullcontext):
        with backend(), SeenOps("lrpkernels_emulated") as seen:
            heatmap = lrp.LRP(net, rule, check=False)(x, "all")[1]
            results.append((heatmap, *torch.autograd.grad(heatmap.square().sum(), (conv.weight, net[-1].weight))))
        pools = [name for name in seen.names if "pool" in name]
        assert pools == (["average_pool_transpose", "average_pool"] if backend is emulated_cuda else [])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@dataclass(frozen=True)
class PositiveByOutput(lrp.Rule):
    """z+ for outputs above zero, its mirror image for those below: both parts of a weight in one sum."""

    reads = frozenset({"input", "output"})

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        return layer.share(g, POSITIVE, 1e-2, by_output=True)


def test_a_sum_over_parts_of_weights_through_the_cuda_sources() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.LazyLinear(3)).double()
    net(X)
    expected = lrp.LRP(net, PositiveByOutput())(X, 1)[1]
    with emulated_cuda():
        torch.testing.assert_close(lrp.LRP(net, PositiveByOutput())(X, 1)[1], expected, rtol=1e-10, atol=1e-12)


def test_the_rules_use_the_parts_of_the_weights_in_the_kernels() -> None:
    """W+ and W- are picked inside the kernels: every kind of part occurs among the calls, none is made beforehand."""
    net = build(NETWORKS["vgg"]).float()
    with emulated_cuda(), SeenOps("lrpkernels_emulated") as seen:
        for rule in (lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)), lrp.AlphaBeta(2.0, 1.0, 1e-2)):
            lrp.LRP(net, rule)(X.float(), 1)[1].square().sum().backward()
        lrp.LRP(net, rule)(X.float() - 0.5, 1)
    places = {"conv_relevance": 7, "conv_apply": 2}
    found = {int(args[places[name]]) for name, args in seen.calls if name in places}
    assert found == {weights.value for weights in lrp.functional.Weights}


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule", [lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)), lrp.EpsilonPlus()], ids=["epsilon", "EpsilonPlus"]
)
@pytest.mark.parametrize("name", ["resnet18", "vgg11", "densenet121"])
def test_full_networks_through_the_cuda_sources(name: str, rule: lrp.Composite | lrp.Rule) -> None:
    """ResNet18, VGG11 and DenseNet121 of their real widths at 32x32: heatmap and training gradients."""
    torch.manual_seed(0)
    net = FULL_NETWORKS[name](10).eval()
    x = torch.rand(1, 3, 32, 32)
    results = []
    for backend in (emulated_cuda, nullcontext):
        net.zero_grad()
        with backend():
            heatmap = lrp.LRP(net, rule)(x, 1)[1]
            heatmap.square().sum().backward()
        results.append(
            (heatmap.detach(), torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
        )
    for ours, expected in zip(*results, strict=True):
        assert float((ours - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("name", "rule", "op"),
    [
        ("dense", lrp.ZPlus(1e-2), "affine"),
        ("dense", lrp.EpsilonLayerwise(1e-2), "affine"),
        ("residual", lrp.ZPlus(1e-2), "sum_zplus"),
    ],
    ids=str,
)
def test_layers_without_a_matrix_product_have_kernels(name: str, rule: lrp.Rule, op: str) -> None:
    """Batch norm standing alone and residual sums: that these ops run is asserted here, what they give in the tests of networks."""
    with emulated_cuda(), SeenOps("lrpkernels_emulated") as seen:
        lrp.LRP(build(NETWORKS[name]), rule)(X, 1)[1].square().sum().backward()
    assert {op, f"{op}_backward"} <= set(seen.names)


@pytest.mark.parametrize(
    "options", [{}, {"normalization": "signed"}, {"normalization": "none"}, {"d": 1.0}, {"d": 0.0}], ids=str
)
@pytest.mark.parametrize("mask_channels", [1, 3])
def test_the_heatmap_loss_through_the_cuda_sources(options: dict[str, object], mask_channels: int) -> None:
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 2, 3, 9, 7, dtype=torch.float64, generator=generator).requires_grad_()
    masks = torch.rand(2, mask_channels, 9, 7, generator=generator) > 0.5
    loss = isnet.HeatmapLoss(**options)  # type: ignore[arg-type]
    results = []
    for backend in (emulated_cuda, nullcontext):
        with backend():
            found = loss(maps, masks)
            results.append((*vars(found).values(), torch.autograd.grad(found.loss, maps)[0]))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
