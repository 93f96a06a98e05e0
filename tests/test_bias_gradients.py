"""Gradients of heatmaps reach every parameter exactly; with ``detach_bias`` they leave biases in denominators out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from functions import Wrapped, random
from torch import Tensor, nn

import lrpkernels as lrp


def _parametrised(norm: bool) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(2, 3, 3, padding=1)]
    layers += [nn.BatchNorm2d(3)] if norm else []
    layers += [
        nn.ReLU(),
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.Tanh(),
        nn.Linear(5, 3),
    ]
    torch.manual_seed(1)
    net = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[operator]
                module.running_var.uniform_(0.5, 2.0)  # type: ignore[operator]
    return net


BIASED = {
    "z+": lrp.ZPlus(1e-2),
    "alpha-beta": lrp.AlphaBeta(2.0, 1.0, 1e-2),
    "gamma": lrp.Gamma(0.25, 1e-2),
    "layer form": lrp.EpsilonLayerwise(1e-2),
    "without bias": lrp.EpsilonLayerwise(1e-2, bias=False),
    "z^B": lrp.Epsilon(1e-2, first=lrp.ZBox(-3.0, 3.0)),
    "z^B, no bias": lrp.Epsilon(1e-2, first=lrp.ZBox(-3.0, 3.0, bias=False)),
    "w^2": lrp.ZPlus(1e-2, first=lrp.WSquare()),
}


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("name", BIASED)
def test_gradients_reach_every_parameter_exactly(name: str, norm: bool) -> None:
    net, x, weighing = _parametrised(norm), random(2, 2, 4, 4, seed=26), random(2, 2, 4, 4, seed=27)
    attribution = lrp.LRP(net, BIASED[name])

    def loss() -> Tensor:
        return (attribution(x, 1)[1] * weighing).sum()

    parameters = dict(net.named_parameters())
    gradients = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
    for (label, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(28))
        ends = []
        with torch.no_grad():
            for step in (1e-6, -2e-6, 1e-6):
                parameter.add_(direction, alpha=step)
                ends.append(float(loss()))
        found = 0.0 if gradient is None else float((gradient * direction).sum())
        assert found == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-6), label


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("rule", [lrp.ZPlus, lrp.EpsilonLayerwise])
def test_detached_biases_get_what_flows_through_activations_alone(rule: type[lrp.Rule], detach: bool) -> None:
    """Two dense layers, written out: with ``detach_bias`` the biases in the denominators are constants."""
    x, weights = random(4, 6, seed=29).abs(), [random(5, 6, seed=30), random(3, 5, seed=31)]
    biases = [random(5, seed=32), random(3, seed=33)]
    parameters = [p.requires_grad_() for p in (*weights, *biases)]

    def net(x: Tensor) -> Tensor:
        return F.linear(torch.relu(F.linear(x, weights[0], biases[0])), weights[1], biases[1])

    def part(w: Tensor) -> Tensor:
        return w.clamp(min=0) if rule is lrp.ZPlus else w

    hidden = torch.relu(F.linear(x, weights[0], biases[0]))
    relevance = net(x) * torch.tensor([0.0, 1.0, 0.0])
    for a, w, b in ((hidden, weights[1], biases[1]), (x, weights[0], biases[0])):
        d = F.linear(a, part(w), part(b.detach() if detach else b))
        relevance = a * ((relevance / (d + 1e-2 * torch.where(d >= 0, 1, -1))) @ part(w))
    heatmap = lrp.LRP(Wrapped(net), rule(1e-2, detach_bias=detach))(x, 1)[1]  # type: ignore[call-arg]
    torch.testing.assert_close(heatmap, relevance)
    expected = torch.autograd.grad(relevance.square().sum(), parameters, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(heatmap.square().sum(), parameters), expected)
