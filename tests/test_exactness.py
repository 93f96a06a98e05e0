"""The product's first promise: heatmaps and the gradients of a loss on them are exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import NETWORKS, build
from reference import FlexReLU, flex_heatmap, freeze_batch_norms
from torch import Tensor, nn

import lrpkernels as lrp

EPS = 1e-2
LABELS = torch.tensor([0, 3, 1, 4])


def _label_logit(logits: Tensor) -> Tensor:
    return logits.gather(1, LABELS[:, None])[:, 0]


def _eta_of_lowest(logits: Tensor) -> Tensor:
    p = logits.softmax(1).gather(1, logits.argmin(1, keepdim=True))[:, 0]
    return torch.log(p + 1e-2) - torch.log(1 - p + 1e-2)


def _pair(kind: type[nn.Module], training: bool) -> tuple[nn.Module, nn.Module]:
    """The network and its slow reference, same weights; in training mode with frozen batch statistics and no dropout."""
    net, slow = build(kind), build(kind, FlexReLU)
    if training:
        for n in (net, slow):
            n.train()
            for module in n.modules():
                if isinstance(module, nn.Dropout):
                    module.eval()
        freeze_batch_norms(slow)
    return net, slow


def _loss(logits: Tensor, heatmap: Tensor, weights: Tensor) -> Tensor:
    return (heatmap * weights).sum() + heatmap.square().sum() + nn.functional.cross_entropy(logits, LABELS)


@pytest.mark.parametrize("score", [_label_logit, _eta_of_lowest], ids=["logit", "eta"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NETWORKS)
def test_heatmap_and_gradients_equal_double_backward(
    name: str, training: bool, score: Callable[[Tensor], Tensor]
) -> None:
    net, slow = _pair(NETWORKS[name], training)
    torch.manual_seed(1)
    x, weights = torch.rand(4, 3, 12, 12, dtype=torch.float64), torch.randn(4, 3, 12, 12, dtype=torch.float64)

    logits, heatmap = lrp.LRP(net, lrp.Epsilon(EPS))(x, score)
    slow_logits, slow_heatmap = flex_heatmap(slow, x, lambda o: score(o).sum(), EPS)
    torch.testing.assert_close(logits, slow_logits, rtol=1e-12, atol=1e-14)
    heatmap_error = (heatmap - slow_heatmap).detach().abs().max()
    assert float(heatmap_error) <= 1e-10 * float(slow_heatmap.detach().abs().max())

    _loss(logits, heatmap, weights).backward()
    _loss(slow_logits, slow_heatmap, weights).backward()
    expected = {n: p.grad for n, p in slow.named_parameters()}
    scale = max(float(g.abs().max()) for g in expected.values())
    assert scale > 1e-3
    for parameter_name, parameter in net.named_parameters():
        error = float((parameter.grad - expected[parameter_name]).abs().max())
        reference = float(expected[parameter_name].abs().max())
        # A bias ahead of a training-mode batch norm has gradient zero up to rounding: such are held to the largest gradient's scale.
        assert error <= 1e-10 * max(reference, 1e-3 * scale), f"{parameter_name}: {error} against {reference}"


class _BiasedConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("score", [lambda o: o[:, 1], _eta_of_lowest], ids=["constant-start", "logit-dependent-start"])
def test_heatmap_loss_gradient_equals_finite_differences_in_every_weight(score: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(3)
    net = _BiasedConvNet().double()
    for p in net.parameters():
        p.data += 0.2 * torch.randn_like(p)
    before = dict(net.named_parameters())
    x = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    attribution = lrp.LRP(net, lrp.Epsilon(EPS))

    def loss() -> Tensor:
        heatmap = attribution(x, score)[1]
        return heatmap.square().sum() + heatmap.sum()

    loss().backward()
    step = 1e-6
    # The last bias does not reach a heatmap that starts from a constant: no gradient at all, which must be zero.
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in net.named_parameters()}
    largest = max(float(g.abs().max()) for g in grads.values())
    for name, p in net.named_parameters():
        flat = p.data.view(-1)
        for index in range(flat.numel()):
            original = float(flat[index])
            with torch.no_grad():
                flat[index] = original + step
                up = loss().item()
                flat[index] = original - step
                down = loss().item()
                flat[index] = original
            difference = (up - down) / (2 * step)
            assert abs(float(grads[name].view(-1)[index]) - difference) <= 1e-6 * max(1.0, largest), f"{name}[{index}]"
    assert {n: id(p) for n, p in net.named_parameters()} == {n: id(p) for n, p in before.items()}


def _without_biases(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if getattr(module, "bias", None) is not None and isinstance(module.bias, Tensor):
            module.bias.data.zero_()
        if hasattr(module, "running_mean"):
            module.running_mean.zero_()
    return net


@pytest.mark.parametrize("name", NETWORKS)
def test_without_biases_and_with_tiny_eps_the_heatmap_sums_to_the_logit(name: str) -> None:
    net = _without_biases(build(NETWORKS[name]))
    x = torch.rand(4, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        logits, heatmap = lrp.LRP(net, lrp.Epsilon(1e-14))(x, 2)
    torch.testing.assert_close(heatmap.sum((1, 2, 3)), logits[:, 2], rtol=1e-8, atol=1e-10)


def test_biases_break_conservation_which_shows_that_the_test_above_can_fail() -> None:
    net = build(NETWORKS["vgg"])
    with torch.no_grad():
        logits, heatmap = lrp.LRP(net, lrp.Epsilon(1e-14))(torch.rand(4, 3, 12, 12, dtype=torch.float64), 2)
    assert float((heatmap.sum((1, 2, 3)) - logits[:, 2]).abs().min()) > 1e-4
