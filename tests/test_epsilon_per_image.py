"""A stabilizer for each image: the heatmaps and gradients of each image by itself, on every backend."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functions import random, slope
from networks import NETWORKS, build
from test_emulated_ops import load_emulated_ops
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.functional import epsilon_scale, ratio
from lrpkernels.testing import emulated_cuda

EPS = torch.tensor([1e-6, 0.01, 0.3], dtype=torch.float64)
X = torch.rand(3, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
FORMS: dict[str, Callable[[Any], lrp.Rule]] = {
    "flex": lrp.Epsilon,
    "layerwise": lrp.EpsilonLayerwise,
    "layerwise without bias": lambda eps: lrp.EpsilonLayerwise(eps, bias=False),
}
BACKENDS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "cpu": nullcontext,
    "emulated": emulated_cuda,
    "emulated, vendor": lambda: emulated_cuda("vendor"),
}


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    load_emulated_ops()


def _weighted(heatmap: Tensor) -> Tensor:
    """A loss whose gradient differs from element to element."""
    return (
        (heatmap * torch.linspace(-1, 2, heatmap[0].numel(), dtype=heatmap.dtype).view(heatmap.shape[1:]))
        .square()
        .sum()
    )


def _together(net: nn.Module, rule: lrp.Rule, x: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    """Heatmaps, and the gradient of a loss on them, as a vector."""
    net.zero_grad()
    heatmap = lrp.LRP(net, rule)(x, target)[1]
    _weighted(heatmap).backward()
    return heatmap.detach(), torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def _one_by_one(net: nn.Module, make: Callable[[Any], lrp.Rule], x: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    found = [_together(net, make(float(eps)), x[i : i + 1], target) for i, eps in enumerate(EPS)]
    return torch.cat([heatmap for heatmap, _ in found]), sum((gradient for _, gradient in found), torch.zeros(()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_batch_equals_its_images_one_by_one(name: str, form: str, backend: str) -> None:
    net = build(NETWORKS[name]).eval()
    targets: list[Any] = [1, [0, 2]] if backend == "cpu" else [[0, 2]]
    for target in targets:
        for x in (X, X.contiguous(memory_format=torch.channels_last)):
            expected = _one_by_one(net, FORMS[form], x, target)
            with BACKENDS[backend]():
                found = _together(net, FORMS[form](EPS), x, target)
            for ours, theirs in zip(found, expected, strict=True):
                assert float((ours - theirs).abs().max()) <= 1e-9 * float(theirs.abs().max())


@pytest.mark.parametrize("form", FORMS)
def test_equal_stabilizers_give_the_numbers_of_one(form: str) -> None:
    net = build(NETWORKS["residual"]).eval().float()
    one, each = (lrp.LRP(net, FORMS[form](eps))(X.float(), [0, 1])[1] for eps in (0.25, torch.full((3,), 0.25)))
    torch.testing.assert_close(each, one, rtol=1e-6, atol=1e-9)


def test_image_sizes_that_no_vector_divides() -> None:
    """Vectors cross the border of images; with and without scales, addends and targets, over all layouts of a batch."""
    eps = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for shape in ((5, 3, 7, 5), (5, 131), (5, 1, 1, 1), (5, 2, 33)):
        u, k = random(*shape, seed=1).relu(), random(shape[1], seed=2)
        g, g2 = random(10, *shape[1:], seed=3), random(10, *shape[1:], seed=4)
        e = eps.view(-1, *(1,) * (len(shape) - 1))
        m = (u / (u + e)).repeat(2, *(1,) * (len(shape) - 1))
        channels = k.view(1, -1, *(1,) * (len(shape) - 2))
        for backend in BACKENDS.values():
            with backend():
                torch.testing.assert_close(epsilon_scale(g, u, epsilon=eps), g * m)
                torch.testing.assert_close(epsilon_scale(g, u, k, addend=g2, epsilon=eps), (g + g2) * m * channels)
                torch.testing.assert_close(epsilon_scale(g, None, k, epsilon=eps), g * channels)
                z = random(*shape, seed=5)
                stable = z + e * torch.where(z >= 0, 1.0, -1.0)
                expected = g * (u / stable).repeat(2, *(1,) * (len(shape) - 1))
                torch.testing.assert_close(ratio(g, u, z, epsilon=eps), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    g, a, v = (random(4, 3, 5, seed=i).requires_grad_() for i in range(3))
    away, k = 0.3 + random(2, 3, 5, seed=4).abs(), random(3, seed=5).requires_grad_()
    u = (away * torch.where(random(2, 3, 5, seed=6) > 0, 1.0, -1.0)).requires_grad_()
    eps = torch.tensor([0.05, 0.7], dtype=torch.float64)
    with BACKENDS[backend]():
        assert torch.autograd.gradcheck(
            lambda *t: epsilon_scale(t[0], t[1], t[2], addend=t[3], epsilon=eps), (g, u, k, a)
        )
        assert torch.autograd.gradcheck(lambda *t: ratio(*t, epsilon=eps), (g, v[:2].detach().requires_grad_(), u))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_a_network_against_differences(form: str) -> None:
    net = build(NETWORKS["dense"]).eval()
    rule = FORMS[form](torch.tensor([0.05, 0.3, 1.0]))  # any floating dtype

    def loss() -> Tensor:
        return _weighted(lrp.LRP(net, rule)(X, 1)[1])

    net.zero_grad()
    loss().backward()
    weights = [p for p in net.parameters() if p.dim() > 1 and p.grad is not None]
    assert len(weights) > 3
    for i, weight in enumerate(weights):
        direction = random(*weight.shape, seed=i)
        assert weight.grad is not None
        expected = slope(loss, weight, direction)
        assert abs(float((weight.grad * direction).sum()) - expected) <= 1e-4 * abs(expected) + 1e-9


@pytest.mark.parametrize("checkpoint", [False, True])
def test_static_calls_know_a_step_whatever_its_stabilizers(checkpoint: bool) -> None:
    net = build(NETWORKS["residual"]).train()
    fixed, calls, results = copy.deepcopy(net), lrp.StaticCalls(), {}
    for seed in range(3):
        eps = torch.rand(3, generator=torch.Generator().manual_seed(seed))
        for key, model, static in (("plain", net, None), ("static", fixed, calls)):
            model.zero_grad()
            rule = lrp.Epsilon(eps)
            with lrp.record(model, X, composite=rule, at=["layer1.1"], static=static, checkpoint=checkpoint) as tape:
                maps = tape.relevance(torch.tensor([0, 1, 2]), rule, at=["layer1.1"], release=True)
            sum(m.square().sum() for m in maps.values()).backward()  # type: ignore[union-attr]
            results[key] = [*maps.values(), *(p.grad for p in model.parameters() if p.grad is not None)]
        assert all(torch.equal(a, b) for a, b in zip(results["plain"], results["static"], strict=True))
    assert len(calls._traces) == 1


def test_other_activations_and_batch_norms_that_stand_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GELU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.AvgPool2d(2), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, 5), nn.Sigmoid(), nn.Linear(5, 3),
    ).double().eval()  # fmt: skip
    for make in FORMS.values():
        for ours, theirs in zip(_together(net, make(EPS), X, 1), _one_by_one(net, make, X, 1), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (
            torch.rand(3, 1),
            "eps must be a number, or a floating tensor of shape [B] that requires no gradient, got torch.float32 of",
        ),
        (torch.tensor(0.1), "eps must be a number, or a floating tensor of shape [B]"),
        (torch.ones(3, dtype=torch.int64), "eps must be a number, or a floating tensor of shape [B]"),
        (torch.rand(3, requires_grad=True), "of shape [3], which requires a gradient"),
        (torch.tensor([0.1, -0.1, 0.1]), "eps must hold finite numbers >= 0, got [0.1"),
        (torch.tensor([0.1, float("nan"), 0.1]), "eps must hold finite numbers >= 0, got [0.1"),
        ([0.1, 0.2, 0.3], "eps must be a finite number >= 0, got [0.1, 0.2, 0.3]"),
    ],
)
def test_what_is_no_stabilizer_is_refused(make: Callable[[Any], lrp.Rule], eps: Any, text: str) -> None:
    with pytest.raises(ValueError) as raised:
        make(eps)
    assert text in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_another_number_than_images_is_refused(make: Callable[[Any], lrp.Rule], count: int) -> None:
    net = build(NETWORKS["vgg"]).eval()
    for target in (1, [0, 1]):
        with pytest.raises(ValueError, match=rf"eps: {count} stabilizers beside a value of shape \[3, ") as raised:
            lrp.LRP(net, make(torch.rand(count)))(X, target)
        assert "\n" not in str(raised.value) and "a tensor of shape [3]" in str(raised.value)


def test_sequences_ahead_of_the_batch_are_refused() -> None:
    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.fc(x.transpose(0, 1))).mean(0))

    with pytest.raises(ValueError, match="whose first dimension must be the batch"):
        lrp.LRP(SequenceFirst(), lrp.Epsilon(torch.rand(3)))(torch.rand(3, 7, 4), 0)


def test_rules_compare_by_their_tensor() -> None:
    eps = torch.rand(3)
    for make in FORMS.values():
        assert make(eps) == make(eps) and hash(make(eps)) == hash(make(eps))
        assert make(eps) != make(eps.clone()) and make(eps) != make(0.1) and make(0.1) == make(0.1)
        assert replace(make(eps), eps=0.2) == make(0.2)
    assert lrp.Epsilon(0.1) != lrp.EpsilonLayerwise(0.1)
