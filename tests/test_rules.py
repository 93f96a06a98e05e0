"""Every rule on every linear layer against dense matrix algebra in float64, with gradients by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from functions import slope
from torch import Tensor, nn

import lrpkernels as lrp

EPS = 1e-3
Formula = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _layers() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    return {
        "linear": (nn.Linear(6, 5), (6,)),
        "linear-nobias": (nn.Linear(6, 5, bias=False), (6,)),
        "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 7)),
        "conv2d": (nn.Conv2d(3, 4, 3, padding=1), (3, 5, 4)),
        "conv2d-strided-grouped": (
            nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2), groups=2),
            (4, 6, 5),
        ),
        "conv2d-depthwise": (nn.Conv2d(3, 6, 3, padding="same", groups=3, bias=False), (3, 4, 4)),
        "conv3d": (nn.Conv3d(2, 3, 2), (2, 3, 3, 3)),
        "conv_transpose1d": (nn.ConvTranspose1d(3, 4, 3, stride=2), (3, 4)),
        "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 3, 3)),
        "conv-bn": (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)), (3, 4, 4)),
        "bn": (nn.BatchNorm2d(3), (3, 3, 3)),
        "linear-bn": (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), (6,)),
    }


def _sgn(z: Tensor) -> Tensor:
    return torch.where(z >= 0, 1.0, -1.0).to(z)


# Each formula gets a (B, J), W (K, J), b (K,), z = W a + b (B, K) and R (B, K), and returns R at the input (B, J).


def _epsilon(a: Tensor, W: Tensor, b: Tensor, z: Tensor, R: Tensor) -> Tensor:
    return a * ((R / (z + EPS * _sgn(z))) @ W)


def _zero(a: Tensor, W: Tensor, b: Tensor, z: Tensor, R: Tensor) -> Tensor:
    # LRP-Flex has no stabilizer at a layer without ReLU; z = 0 here means that every input is 0.
    return a * (torch.where(z == 0, 0.0, R / z) @ W)


def _alpha_beta(alpha: float, beta: float, with_bias: bool = True) -> Formula:
    def formula(a: Tensor, W: Tensor, b: Tensor, z: Tensor, R: Tensor) -> Tensor:
        contributions = a[:, None, :] * W[None]
        b = b if with_bias else torch.zeros_like(b)
        up = contributions.clamp(min=0)
        down = contributions.clamp(max=0)
        du = up.sum(2) + b.clamp(min=0)
        dd = down.sum(2) + b.clamp(max=0)
        total = alpha * (up * (R / (du + EPS))[:, :, None]).sum(1)
        return total - beta * (down * (R / (dd + EPS * _sgn(dd)))[:, :, None]).sum(1)

    return formula


def _gamma(gamma: float) -> Formula:
    def formula(a: Tensor, W: Tensor, b: Tensor, z: Tensor, R: Tensor) -> Tensor:
        result = torch.zeros_like(a)
        for sign in (1, -1):
            favoured = lambda t: (sign * t).clamp(min=0) * sign  # noqa: B023
            contributions = a[:, None, :] * W[None]
            contributions = contributions + gamma * favoured(contributions)
            d = contributions.sum(2) + b + gamma * favoured(b)
            s = torch.where(z * sign > 0, R / (d + EPS * _sgn(d)), 0.0)
            result = result + (contributions * s[:, :, None]).sum(1)
        return result

    return formula


def _wsquare(a: Tensor, W: Tensor, b: Tensor, z: Tensor, R: Tensor) -> Tensor:
    return (R / (W.square().sum(1) + b.square() + EPS)) @ W.square()


def _zbox(low: float, high: float) -> Formula:
    def formula(a: Tensor, W: Tensor, b: Tensor, z: Tensor, R: Tensor) -> Tensor:
        Wp, Wn, bp, bn = W.clamp(min=0), W.clamp(max=0), b.clamp(min=0), b.clamp(max=0)
        z = z - low * (Wp.sum(1) + bp) - high * (Wn.sum(1) + bn)
        s = R / (z + EPS * _sgn(z))
        return a * (s @ W) - low * (s @ Wp) - high * (s @ Wn)

    return formula


def _flat(a: Tensor, W: Tensor, b: Tensor, z: Tensor, R: Tensor) -> Tensor:
    seen = (W != 0).to(W)
    return (R / (seen.sum(1) + EPS)) @ seen


RULES: dict[str, tuple[lrp.Rule, Formula]] = {
    "Epsilon": (lrp.Epsilon(EPS), _zero),
    "EpsilonLayerwise": (lrp.EpsilonLayerwise(EPS), _epsilon),
    "ZPlus": (lrp.ZPlus(EPS), _alpha_beta(1, 0)),
    "ZPlus-nobias": (lrp.ZPlus(EPS, bias=False), _alpha_beta(1, 0, with_bias=False)),
    "AlphaBeta": (lrp.AlphaBeta(2, 1, EPS), _alpha_beta(2, 1)),
    "Gamma": (lrp.Gamma(0.3, EPS), _gamma(0.3)),
    "ZBox": (lrp.ZBox(-1.5, 2.0, EPS), _zbox(-1.5, 2.0)),
    "WSquare": (lrp.WSquare(EPS), _wsquare),
    "Flat": (lrp.Flat(EPS), _flat),
}


def _prepare(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(11)
    layer, shape = _layers()[name]
    layer = layer.double().eval()
    for module in layer.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.normal_()
            module.bias.data.normal_()
    return layer, shape


@pytest.mark.parametrize("inputs", ["signed", "non-negative"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", _layers())
def test_rule_equals_matrix_algebra(layer: str, rule: str, inputs: str) -> None:
    module, shape = _prepare(layer)
    chosen, formula = RULES[rule]
    x = torch.randn(3, *shape, dtype=torch.float64)
    head = nn.ReLU() if inputs == "non-negative" else nn.Identity()
    model = nn.Sequential(head, module)
    a = head(x)
    zero = module(torch.zeros(1, *shape, dtype=torch.float64)).flatten().detach()
    W = torch.autograd.functional.jacobian(
        lambda v: module(v.view(1, *shape)).flatten(), torch.zeros(a[0].numel(), dtype=a.dtype)
    )
    z = module(a).flatten(1).detach()
    weights = torch.randn_like(z)
    expected = formula(a.flatten(1), W, zero, z, z * weights).view_as(x)
    explained = lrp.Composite({"1": chosen, "1.*": chosen}, default=lrp.Epsilon(0.0))
    with torch.no_grad():
        out, _ = lrp.LRP(model)(x, lambda o: o.flatten(1).sum(1))
        with lrp.record(model, x) as tape:
            heatmap = tape.relevance(lambda o: (o.flatten(1) * weights).sum(1), explained)
    torch.testing.assert_close(out, module(a))
    if inputs == "non-negative" and not chosen.yields_relevance:  # a ReLU leaves R itself unchanged
        expected = expected * (x > 0)
    torch.testing.assert_close(heatmap, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", ["linear", "conv2d-strided-grouped", "conv-bn", "conv_transpose2d", "bn"])
def test_heatmap_gradients_equal_finite_differences(layer: str, rule: str) -> None:
    module, shape = _prepare(layer)
    chosen, _ = RULES[rule]
    x = torch.randn(2, *shape, dtype=torch.float64)
    features = module(x).flatten(1).shape[1]
    head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(features, 3)).double()
    model = nn.Sequential(module, head)
    composite = lrp.Composite({"0": chosen, "0.*": chosen}, default=lrp.Epsilon(1e-1))
    weights = torch.randn_like(x)
    # Biases are constants of the relevance pass by definition; only weights are compared.
    names = [n for n, p in module.named_parameters() if "bias" not in n]
    parameters = [dict(module.named_parameters())[n] for n in names]

    def loss() -> Tensor:
        return (lrp.LRP(model, composite)(x, 1)[1] * weights).sum()

    grads = torch.autograd.grad(loss(), parameters, allow_unused=True)
    for parameter, grad in zip(parameters, grads, strict=True):
        direction = torch.randn_like(parameter)
        expected = slope(loss, parameter, direction)
        got = 0.0 if grad is None else (grad * direction).sum().item()
        assert abs(got - expected) <= 1e-5 * max(1.0, abs(expected)), f"{got} against {expected}"


def test_zplus_sums_and_averages_share_positive_parts() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    torch.manual_seed(2)
    net = Sum().double()
    x = torch.randn(3, 4, dtype=torch.float64)
    with lrp.record(net, x) as tape:
        maps = tape.relevance(2, lrp.ZPlus(EPS), at=["a", "b"])
    u, v = net.a(x), net.b(x)
    R = (u + v)[:, 2]
    d = u[:, 2].clamp(min=0) + v[:, 2].clamp(min=0) + EPS
    torch.testing.assert_close(maps["a"][:, 2], u[:, 2].clamp(min=0) * R / d)
    torch.testing.assert_close(maps["b"][:, 2], v[:, 2].clamp(min=0) * R / d)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: lrp.AlphaBeta(2, 2), "alpha - beta must be 1"),
        (lambda: lrp.ZPlus(-1), "eps"),
        (lambda: lrp.Gamma(-0.1), "gamma"),
        (lambda: lrp.ZBox(1, 1), "low must be below high"),
        (lambda: lrp.WSquare(float("inf")), "eps"),
    ],
)
def test_parameters_are_checked(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


def test_the_most_specific_selector_wins() -> None:
    net, x = _Named(), torch.rand(1, 1, 5, 5)
    exact, glob, longer, by_function, by_type = (lrp.ZPlus(e) for e in (1.0, 2.0, 3.0, 4.0, 5.0))
    composite = lrp.Composite(
        {
            "body.0": exact,
            "bo*": glob,
            "body.*": longer,
            (lambda name, module: name == "stem.0"): by_function,
            nn.Conv2d: by_type,
        },
        default=lrp.Norm(),
    )
    table = lrp.LRP(net, composite).explain(x)
    rules = {line.split()[0]: line for line in table.splitlines()}
    assert "ZPlus(eps=1.0" in rules["body.0"]
    assert "ZPlus(eps=3.0" in rules["body.2"]
    assert "ZPlus(eps=4.0" in rules["stem.0"]
    assert "Norm" in rules["fc"]
    assert "conv -> relu" in rules["stem.0"]
    first = lrp.Composite({nn.Conv2d: by_type}, first=lrp.ZBox(0, 1))
    assert "ZBox" in lrp.LRP(net, first).explain(x).splitlines()[1]
    with pytest.raises(TypeError, match="selector"):
        lrp.Composite({3: lrp.ZPlus()})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="rule"):
        lrp.Composite({"fc": "zplus"})  # type: ignore[dict-item]
