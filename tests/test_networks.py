"""The field's networks as they are imported: they run, agree with the reference or conserve relevance, and train through a heatmap."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from reference import FlexReLU, flex_heatmap
from torch import Tensor, nn

import lrpkernels as lrp
from benchmarks.library_networks import NETWORKS, build, without_constants
from lrpkernels.engine.target import select_logits

EPS = 1e-2


def _logits(output: object) -> Tensor:
    return select_logits(output, None)


def _swap(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, FlexReLU())
        else:
            _swap(child)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_runs_unchanged_without_any_fallback(name: str) -> None:
    model, x = build(name)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="lrpkernels")
        expected = _logits(model(x))
        output, heatmap = lrp.LRP(model)(x, 1)
    torch.testing.assert_close(_logits(output), expected, rtol=1e-9, atol=1e-12)
    assert heatmap.shape == x.shape and bool(torch.isfinite(heatmap).all())
    assert float(heatmap.abs().sum()) > 0


@pytest.mark.parametrize("name", [n for n, network in NETWORKS.items() if network.relu_only])
def test_heatmap_and_gradients_equal_double_backward(name: str) -> None:
    model, x = build(name)
    slow = copy.deepcopy(model)
    _swap(slow)
    _, heatmap = lrp.LRP(model, lrp.Epsilon(EPS))(x, 1)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = slow

        def forward(self, x: Tensor) -> Tensor:
            return _logits(self.model(x))

    _, expected = flex_heatmap(Logits(), x, lambda o: o[:, 1].sum(), EPS)
    scale = float(expected.detach().abs().max())
    assert float((heatmap - expected).detach().abs().max()) <= 1e-10 * scale
    heatmap.div(scale).square().sum().backward()
    expected.div(scale).square().sum().backward()
    grads = {n: p.grad for n, p in slow.named_parameters()}
    largest = max(float(g.abs().max()) for g in grads.values() if g is not None)
    for parameter_name, parameter in model.named_parameters():
        reference = grads[parameter_name]
        if reference is None:
            assert parameter.grad is None or not parameter.grad.any(), parameter_name
        else:
            assert float((parameter.grad - reference).abs().max()) <= 1e-9 * largest, parameter_name


@pytest.mark.parametrize("name", [n for n, network in NETWORKS.items() if network.conserves])
def test_without_constants_the_heatmap_sums_to_the_logit(name: str) -> None:
    model, x = build(name)
    without_constants(model)
    with torch.no_grad():
        output, heatmap = lrp.LRP(model, lrp.Epsilon(1e-12))(x, 1)
    logits = _logits(output)[:, 1]
    error = (heatmap.flatten(1).sum(1) - logits).abs() / heatmap.abs().flatten(1).sum(1)
    assert float(error.max()) <= 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_one_step_down_the_gradient_lowers_a_heatmap_loss(name: str) -> None:
    model, x = build(name)

    def loss() -> Tensor:
        heatmap = lrp.LRP(model, lrp.Epsilon(EPS))(x, 1)[1]
        return heatmap.abs().sum()

    before = loss()
    before.backward()
    squared = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    assert 0 < squared < float("inf")
    for promised in (1e-5, 1e-6):  # deep nets with random weights bend too much for the longer step
        step = promised * before.item() / squared
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= step * p.grad
            after = loss()
            for p in model.parameters():
                if p.grad is not None:
                    p += step * p.grad
        fallen = (before - after).item() / (promised * before.item())
        if fallen > 0.5:
            break
    assert fallen > 0.5, f"the loss fell by {fallen:.2f} of what its gradient promised"
