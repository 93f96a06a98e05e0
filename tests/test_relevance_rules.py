"""Rules that yield relevance itself (z^B, flat, w^2, pass): bounds, hidden layers, what may stand ahead of the first layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functions import slope
from networks import Residual, VGGLike, build
from torch import Tensor, nn

import lrpkernels as lrp

D = torch.float64
EPS = 1e-2


def _matrix(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """W and b of a linear layer on inputs of this shape."""
    zero = torch.zeros(1, *shape, dtype=D)
    W = torch.autograd.functional.jacobian(lambda v: layer(v.view(1, *shape)).flatten(), zero.flatten())
    return W, layer(zero).flatten().detach()


def _box(layer: nn.Module, x: Tensor, R: Tensor, low: Tensor, high: Tensor, bias: bool) -> Tensor:
    W, b = _matrix(layer, x.shape[1:])
    a, low, high = (t.expand_as(x).flatten(1) for t in (x, low, high))
    up, down = W.clamp(min=0), W.clamp(max=0)
    z = a @ W.T - low @ up.T - high @ down.T
    if bias:
        z = z + b - low.mean(1, keepdim=True) * b.clamp(min=0) - high.mean(1, keepdim=True) * b.clamp(max=0)
    s = R.flatten(1) / (z + EPS * torch.where(z >= 0, 1.0, -1.0))
    return (a * (s @ W) - low * (s @ up) - high * (s @ down)).view_as(x)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    # layer, shape of its input, and of bounds per channel
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 4, 3), (3, 1, 1)),
    "conv, strided": (lambda: nn.Conv2d(4, 6, 2, stride=2, groups=2), (4, 4, 4), (4, 1, 1)),
    "conv -> batch norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.1)).eval(),
        (3, 4, 4),
        (3, 1, 1),
    ),
    "transposed": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2), (3, 4), (3, 1)),
    "dense": (lambda: nn.Linear(6, 5), (6,), (6,)),
    "dense on a sequence": (lambda: nn.Linear(6, 5), (4, 6), (6,)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_bounds_per_channel_pixel_and_image(layer: str, bias: bool) -> None:
    torch.manual_seed(4)
    make, shape, channels = LAYERS[layer]
    net = make().double()
    x = torch.rand(2, *shape, dtype=D)
    per_channel = -torch.rand(channels, dtype=D)
    numbers = tuple(per_channel.flatten().tolist())
    bounds: list[tuple[Any, Tensor]] = [
        (-0.5, torch.tensor(-0.5, dtype=D)),
        (per_channel, per_channel),
        (per_channel.flatten(), per_channel),
        (numbers, per_channel),
        (list(numbers), per_channel),
        (per_channel.float().double().unsqueeze(0), per_channel.float().double()),
    ]
    bounds += [(t, t) for t in (-torch.rand(shape, dtype=D), -torch.rand(2, *shape, dtype=D))]
    high = 1 + torch.rand(2, *(1,) * len(shape), dtype=D)
    weights = torch.randn_like(net(x))
    R = net(x) * weights
    for given, low in bounds:
        rule = lrp.ZBox(given, high, EPS, bias=bias)
        with torch.no_grad(), lrp.record(net, x, composite=rule) as tape:
            got = tape.relevance(lambda o: (o * weights).flatten(1).sum(1), rule)
        expected = _box(net, x, R, low, high, bias)
        torch.testing.assert_close(got, expected.detach(), rtol=1e-7, atol=1e-9)


def test_bounds_of_images_serve_several_targets_and_static_calls() -> None:
    net = build(VGGLike)
    x = torch.rand(2, 3, 12, 12, dtype=D)
    low, high = -torch.rand_like(x), 1 + torch.rand(3, 12, 12, dtype=D)
    composite = lrp.EpsilonGammaBox(low, high)
    attribution = lrp.LRP(net, composite, static=True)
    with torch.no_grad():
        one = torch.stack([lrp.LRP(net, composite)(x, t)[1] for t in (0, 3)], 1)
        for _ in range(2):
            torch.testing.assert_close(attribution(x, [0, 3])[1], one)
    same = lrp.EpsilonGammaBox(torch.full_like(x, -1), torch.full((3, 1, 1), 2.0, dtype=D))
    with torch.no_grad():
        torch.testing.assert_close(lrp.LRP(net, same)(x, 1)[1], lrp.LRP(net, lrp.EpsilonGammaBox(-1, 2))(x, 1)[1])


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (torch.zeros(3, 1, 1), torch.zeros(3, 12, 12), "low must be below high"),
        (torch.zeros(3, 1, 1), torch.tensor(float("nan")), "low must be below high"),
        (torch.zeros(3, 1, 1), torch.ones(4, 1, 1), "must broadcast against each other"),
        ((0.0, 0.0), (1.0, 1.0, 1.0), "same length"),
    ],
)
def test_bounds_that_do_not_fit_together_are_refused(low: Any, high: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        lrp.ZBox(low, high)


@pytest.mark.parametrize(
    "low", [torch.zeros(3, 5, 12), torch.zeros(4, 1, 1), (0.0, 0.0), torch.zeros(5), torch.zeros(3, 3, 12, 12)]
)
def test_bounds_that_do_not_fit_the_input_are_refused(low: Any) -> None:
    with pytest.raises(ValueError, match=r"ZBox: low .*input"):
        lrp.LRP(build(VGGLike), lrp.Composite(first=lrp.ZBox(low, 2.0)))(torch.rand(2, 3, 12, 12, dtype=D), 1)


def test_bounds_by_channel_and_by_pixel_are_compared_when_the_layer_is_known() -> None:
    net, x = nn.Conv2d(3, 2, 3).double(), torch.rand(2, 3, 4, 4, dtype=D)
    high = torch.full((3, 4, 4), 0.5, dtype=D)
    with torch.no_grad():
        mixed = lrp.LRP(net, lrp.ZBox((-1.0, -2.0, 0.0), high, EPS))(x, 1)[1]
        low = torch.tensor([-1.0, -2.0, 0.0], dtype=D).view(3, 1, 1)
        torch.testing.assert_close(mixed, lrp.LRP(net, lrp.ZBox(low, high, EPS))(x, 1)[1])
        with pytest.raises(ValueError, match="low must be below high"):
            lrp.LRP(net, lrp.ZBox((-1.0, -2.0, 0.5), high))(x, 1)


def test_box_rules_are_equal_where_their_bounds_are() -> None:
    a, b = (lrp.ZBox(torch.zeros(3, 1, 1), 1.0) for _ in range(2))
    assert (
        a == b and hash(a) == hash(b) and a != lrp.ZBox(torch.zeros(3, 1), 1.0) and lrp.ZBox(0, 1) == lrp.ZBox(0.0, 1.0)
    )
    assert a != lrp.ZBox(torch.full((3, 1, 1), 0.5), 1.0) and a != lrp.ZBox(0.0, 1.0) and "shape (3, 1, 1)" in repr(a)


HIDDEN = {
    "flat": lrp.Flat(EPS),
    "w^2": lrp.WSquare(EPS),
    "box": lrp.ZBox(-1, 4, EPS),
    "box, pixels": lrp.ZBox(-torch.ones(8, 1, 1), 4, EPS),
}
OTHERS = {
    "epsilon": lrp.Epsilon(EPS), "layerwise": lrp.EpsilonLayerwise(EPS), "z+": lrp.ZPlus(EPS), "alpha 2 beta 1": lrp.AlphaBeta(2, 1, EPS),
    "gamma": lrp.Gamma(0.3, EPS), "gradient": lrp.Gradient(),
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("rule", HIDDEN)
def test_hidden_rules_with_gradients_targets_static_and_recomputed(rule: str, other: str) -> None:
    """All forms of a pass give the same heatmap, and the gradient of every parameter is that of the heatmap."""
    net = build(VGGLike)
    x = torch.rand(2, 3, 12, 12, dtype=D)
    composite = lrp.Composite({"features.5": HIDDEN[rule]}, default=OTHERS[other])
    weights = torch.randn_like(x)
    attribution, static = lrp.LRP(net, composite), lrp.LRP(net, composite, static=True)

    def loss(run: lrp.LRP) -> Tensor:
        return (run(x, 1)[1] * weights).sum()

    with torch.no_grad():
        heatmap = attribution(x, 1)[1]
        assert float(heatmap.abs().max()) > 1e-6
        for found in (
            static(x, 1)[1],
            static(x, 1)[1],
            attribution(x, [0, 1])[1][:, 1],
            attribution(x, [1, 0])[1][:, 0],
        ):
            torch.testing.assert_close(found, heatmap)
    names = [name for name, _ in net.named_parameters()]
    parameters = [dict(net.named_parameters())[name] for name in names]
    grads = torch.autograd.grad(loss(attribution), parameters, allow_unused=True)
    again = torch.autograd.grad(loss(lrp.LRP(net, composite, checkpoint=True)), parameters, allow_unused=True)
    for name, p, grad, other_grad in zip(names, parameters, grads, again, strict=True):
        direction = torch.randn_like(p)
        expected = slope(lambda: loss(attribution), p, direction, 1e-7)
        got = 0.0 if grad is None else (grad * direction).sum().item()
        assert abs(got - expected) <= 1e-4 * max(1.0, abs(expected)), f"{name}: {got} against {expected}"
        torch.testing.assert_close(other_grad, grad)


def test_relevance_where_an_activation_is_zero_is_carried_on() -> None:
    """Flat gives relevance to dead units; each hands it on by its preactivation."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    x = torch.randn(8, 4, dtype=D)
    z = net[0](x)
    assert bool((z < 0).any())
    R = net(x)[:, :1].expand(-1, 6) / (6 + EPS)
    expected = x * ((R / (z + 1e-3 * torch.where(z >= 0, 1.0, -1.0))) @ net[0].weight)
    composite = lrp.Composite({"2": lrp.Flat(EPS)}, default=lrp.EpsilonLayerwise(1e-3))
    with torch.no_grad(), lrp.record(net, x, composite=composite, at=["0"]) as tape:
        found = tape.relevance(0, composite, at=["1"])
    torch.testing.assert_close(found["1"], R.detach())
    torch.testing.assert_close(found["input"], expected.detach())


def test_a_rule_of_ones_own_ahead_of_a_hidden_flat_layer() -> None:
    """``g.total()`` is the multiplier wherever the relevance comes from."""

    class Total(lrp.Rule):
        def linear(self, layer: Any, g: Any) -> Tensor:
            R = g.total() * layer.value
            z = layer.preactivation()
            return layer.pull(type(g)(R / (z + 1e-3 * torch.where(z >= 0, 1.0, -1.0))), lambda w: w)

    net, x = build(VGGLike), torch.rand(2, 3, 12, 12, dtype=D)
    with torch.no_grad():
        maps = [
            lrp.LRP(net, lrp.Composite({"features.5": lrp.Flat(EPS), "features.2": rule}))(x, 1)[1]
            for rule in (Total(), lrp.EpsilonLayerwise(1e-3))
        ]
    torch.testing.assert_close(*maps)


class Ahead(nn.Module):
    """A network with something ahead of its first layer."""

    def __init__(self, ahead: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.conv, self.fc, self.ahead = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3, 4), ahead

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(self.ahead(x))).mean((2, 3)))


SEEN_THROUGH: dict[str, Callable[[Tensor], Tensor]] = {
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, size=(5, 7), mode="bilinear", align_corners=False),
    "bicubic, antialiased": lambda x: F.interpolate(x, size=(3, 3), mode="bicubic", antialias=True),
    "upsample": lambda x: nn.Upsample(scale_factor=2, mode="bilinear")(x),
    "average": lambda x: F.avg_pool2d(x, 2),
    "average of a padded image": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 3),
    "maximum": lambda x: F.max_pool2d(x, 2),
    "clamp": lambda x: x.clamp(0.1, 0.9),
    "gamma correction": lambda x: x**2,
    "scaled and shifted": lambda x: F.interpolate((x - 0.1) / 0.5, scale_factor=2),
    "sampled on a grid": lambda x: F.grid_sample(
        x, F.affine_grid(torch.eye(2, 3, dtype=D)[None].repeat(2, 1, 1) * 0.5, [2, 2, 5, 5], align_corners=False), align_corners=False
    ),
    "flipped": lambda x: x.flip(-1).transpose(2, 3),
    "dropout": lambda x: F.dropout(x, 0.3, training=True),
}  # fmt: skip


@pytest.mark.parametrize("rule", [lrp.Flat(1e-9), lrp.ZBox(-3, 3, 1e-9, bias=False), lrp.WSquare(1e-9, bias=False)])
@pytest.mark.parametrize("ahead", SEEN_THROUGH)
def test_what_stands_ahead_of_the_first_layer_is_seen_through(ahead: str, rule: lrp.Rule) -> None:
    """The first layer follows ``first``, and its relevance goes on to the pixels: none is lost, black pixels included."""
    net = Ahead(SEEN_THROUGH[ahead]).double()
    x = torch.rand(2, 2, 6, 6, dtype=D)
    x[:, :, :3] = 0.0
    composite = lrp.Composite(first=rule, default=lrp.ZPlus(1e-9))
    with torch.no_grad():
        torch.manual_seed(0)
        heatmap = lrp.LRP(net, composite)(x, 1)[1]
        torch.manual_seed(0)
        inner = net.ahead(x)
        net.ahead = lambda x: x
        at_layer = lrp.LRP(net, composite)(inner, 1)[1]
    torch.testing.assert_close(heatmap.sum((2, 3)), at_layer.sum((2, 3)))
    if ahead == "nearest":
        torch.testing.assert_close(heatmap, F.avg_pool2d(at_layer, 2) * 4)
    if ahead == "bilinear":
        A, _ = _matrix(lambda v: F.interpolate(v, size=(5, 7), mode="bilinear", align_corners=False), (2, 6, 6))  # type: ignore[arg-type]
        torch.testing.assert_close(heatmap.flatten(1), at_layer.flatten(1) @ A)


OUT_OF_REACH: dict[str, Callable[[Tensor], Tensor]] = {
    "quotient": lambda x: x / x.amax((1, 2, 3), keepdim=True),
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "gate": lambda x: x * torch.sigmoid(x.flip(-1)),
    "sum": lambda x: x + x.roll(1, -1),
}


@pytest.mark.parametrize("ahead", OUT_OF_REACH)
def test_a_first_rule_out_of_reach_is_refused(ahead: str) -> None:
    net, x = Ahead(OUT_OF_REACH[ahead]).double(), torch.rand(2, 2, 6, 6, dtype=D)
    with pytest.raises(
        lrp.UnsupportedOperationError, match=r"conv: first=Flat.* does not reach this layer.*Composite\(\{'conv'"
    ):
        lrp.LRP(net, lrp.Composite(first=lrp.Flat()))(x, 1)
    named = lrp.LRP(net, lrp.Composite({"conv": lrp.Flat()}, default=lrp.ZPlus(1e-9)))(x, 1)[1]
    assert bool(torch.isfinite(named).all()) and float(named.detach().abs().max()) > 0


TRAINED: dict[str, lrp.Composite] = {
    "bounds by image": lrp.Composite(first=lrp.ZBox(-torch.rand(2, 3, 12, 12, dtype=D), 1.5, EPS), default=lrp.ZPlus(EPS)),
    "bounds by pixel, unbiased": lrp.Composite(first=lrp.ZBox(-torch.ones(12, 12, dtype=D), 1.5, EPS, bias=False), default=lrp.ZPlus(EPS)),
    "flat": lrp.EpsilonAlpha2Beta1Flat(EPS, stabilizer=EPS),
    "excitation": lrp.ExcitationBackprop(EPS),
    "deconvnet": lrp.DeconvNet(),
    "guided": lrp.GuidedBackprop(),
    "smooth": lrp.BetaSmooth(2.0),
    "pass": lrp.Composite({"layer1.1.conv1": lrp.Pass(), "bn1": lrp.Pass()}, default=lrp.ZPlus(EPS)),
    "a batch norm alone": lrp.Composite({"layer2.0.bn1": lrp.Gamma(0.3, EPS)}, default=lrp.EpsilonLayerwise(EPS)),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINED)
def test_training_through_a_residual_network_has_exact_gradients(name: str) -> None:
    net, composite = build(Residual), TRAINED[name]
    x = torch.rand(2, 3, 12, 12, dtype=D, requires_grad=True)
    weights = torch.randn(2, 3, 12, 12, dtype=D)

    def loss(**options: bool) -> Tensor:
        return (lrp.LRP(net, composite, **options)(x, 1)[1] * weights).sum()

    wanted = {"x": x, **dict(net.named_parameters())}
    grads = torch.autograd.grad(loss(), list(wanted.values()), allow_unused=True)
    for options in ({"checkpoint": True}, {"static": True}):
        for grad, other in zip(
            grads, torch.autograd.grad(loss(**options), list(wanted.values()), allow_unused=True), strict=True
        ):
            torch.testing.assert_close(other, grad)
    for (key, p), grad in zip(wanted.items(), grads, strict=True):
        direction = torch.randn_like(p)
        expected = slope(loss, p, direction, 1e-7)
        got = 0.0 if grad is None else (grad * direction).sum().item()
        assert abs(got - expected) <= 1e-4 * max(1.0, abs(expected)), f"{key}: {got} against {expected}"
