"""A network with trained weights: EfficientNet-Lite0 on photographs. Its answers are right, its relevance is exact and conserved."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from reference import _RELEVANCE, flex_heatmap, relevance_mode
from torch import Tensor, nn

import lrpkernels as lrp
from benchmarks.library_networks import without_constants

EXAMPLE = Path(__file__).parent.parent / "examples" / "pretrained.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrained", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network(example: ModuleType) -> nn.Module:
    return example.load_model().double()


@pytest.fixture(scope="module")
def cat(example: ModuleType) -> Tensor:
    return example.load_photograph("cat").double()


class _FlexReLU6(torch.autograd.Function):
    """min(max(z, 0), 6); in the relevance pass u / (z + eps) in place of the derivative, so that saturated units pass relevance on."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.clamp(0, 6)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        if not _RELEVANCE["on"]:
            return grad * ((z > 0) & (z < 6))
        u = z.clamp(0, 6)
        return grad * torch.where(z > 0, u / (z.clamp(min=0) + _RELEVANCE["epsilon"]), 0)


class FlexReLU6(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return _FlexReLU6.apply(z)


def reference_of(network: nn.Module) -> nn.Module:
    """A copy whose activations carry the epsilon rule through plain autograd."""
    slow = copy.deepcopy(network)
    for module in list(slow.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, FlexReLU6())
    return slow


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("cat", {281, 282, 283, 284, 285}),  # the domestic cats
        ("coffee", {504, 925, 967, 968}),  # mug, consomme, espresso, cup
        ("rocket", {657, 744, 812}),  # missile, projectile, space shuttle
        ("motorcycle", {665, 670}),  # moped, motor scooter: ImageNet has no motorcycle
    ],
)
def test_photographs_are_recognised_while_they_are_explained(
    name: str, right: set[int], example: ModuleType, network: nn.Module
) -> None:
    image = example.load_photograph(name).double()
    with torch.no_grad():
        logits, heatmap = lrp.LRP(network, lrp.EpsilonPlusFlat())(image)
        assert torch.allclose(logits, network(image), rtol=1e-9, atol=1e-9)
    assert int(logits.argmax()) in right
    assert float(logits.softmax(1)[0, sorted(right)].sum()) > 0.2
    assert bool(torch.isfinite(heatmap).all()) and heatmap.shape == image.shape


def test_heatmap_and_gradients_equal_double_backward(network: nn.Module, cat: Tensor) -> None:
    image, slow = cat[:, :, 48:144, 48:144], reference_of(network)
    _, expected = flex_heatmap(slow, image, lambda logits: logits[:, 285].sum(), 1e-2)
    _, heatmap = lrp.LRP(network, lrp.Epsilon(1e-2))(image, 285)
    scale = float(expected.detach().abs().max())
    assert float((heatmap - expected).detach().abs().max()) <= 1e-9 * scale
    slow_parameters, parameters = list(slow.parameters()), list(network.parameters())
    wanted = torch.autograd.grad(expected.div(scale).square().sum(), slow_parameters, allow_unused=True)
    found = torch.autograd.grad(heatmap.div(scale).square().sum(), parameters, allow_unused=True)
    largest = max(float(g.abs().max()) for g in wanted if g is not None)
    for ours, theirs in zip(found, wanted, strict=True):
        difference = (0 if ours is None else ours) - (torch.zeros(()) if theirs is None else theirs)
        assert float(difference.abs().max()) <= 1e-8 * largest


def test_relevance_and_what_constants_absorb_sum_to_the_logit(network: nn.Module, cat: Tensor) -> None:
    """Epsilon's promise with biases: a logit is the pixels' relevance and each constant times its multiplier, the latter by autograd."""
    eps = 1e-9
    with torch.no_grad():
        logits, heatmap = lrp.LRP(network, lrp.Epsilon(eps))(cat, 285)
    slow = reference_of(network)
    logit = slow(cat)[0, 285]
    norms = [module for module in slow.modules() if isinstance(module, nn.BatchNorm2d)]
    last = next(module for module in slow.modules() if isinstance(module, nn.Linear))
    with relevance_mode(eps):
        multipliers = torch.autograd.grad(logit, [last.bias, *(norm.bias for norm in norms)])
    absorbed = float((multipliers[0] * last.bias.detach()).sum())
    for norm, multiplier in zip(norms, multipliers[1:], strict=True):
        shift = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
        absorbed += float((multiplier * shift.detach()).sum())
    assert abs(absorbed) > 0.1 * float(logits[0, 285])  # what the pixels alone would miss
    assert abs(float(heatmap.sum()) + absorbed - float(logits[0, 285])) <= 1e-5 * float(heatmap.abs().sum())


# Without constants the signals die away, so that the smallest stabilizer counts. z+ shares nothing out where all contributions are
# negative, as before this network's linear bottlenecks: it promises less. Of alpha-beta and of z+ for sums the same holds twice over.
RULES = {
    "epsilon": (lrp.Epsilon(1e-10), 1e-5),
    "epsilon, layer form": (lrp.EpsilonLayerwise(1e-10), 1e-5),
    "epsilon, gamma": (lrp.EpsilonGammaBox(-0.992, 1.0, 1e-10, stabilizer=1e-10), 1e-2),
    "epsilon, z+, flat": (lrp.EpsilonPlusFlat(1e-10, stabilizer=1e-10), 2e-2),
}


@pytest.mark.parametrize("name", RULES)
def test_without_constants_trained_weights_conserve_relevance(name: str, network: nn.Module, cat: Tensor) -> None:
    composite, tolerance = RULES[name]
    bare = without_constants(copy.deepcopy(network))
    with torch.no_grad():
        logits, heatmap = lrp.LRP(bare, composite)(cat, 285)
    assert abs(float(heatmap.sum()) - float(logits[0, 285])) <= tolerance * float(heatmap.abs().sum())
