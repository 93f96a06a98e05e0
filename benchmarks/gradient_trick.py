"""The common denominator: LRP through plain autograd, with a modified ReLU derivative and PyTorch's generic double backward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import isnet

EPS = 1e-2


class _ModifiedReLU(torch.autograd.Function):
    relevance = False

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        u = z.clamp(min=0)
        ctx.save_for_backward(u)
        return u

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad * (u / (u + EPS)) if _ModifiedReLU.relevance else grad * (u > 0)


class _ReLU(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return _ModifiedReLU.apply(z)


def _swap(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, _ReLU())
        else:
            _swap(child)


class _Stabilized(torch.autograd.Function):
    """Identity whose backward pass multiplies by z / (z + eps sgn z): the epsilon rule of the layer that made z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.clone()  # networks add to it in place, which fails on a view

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return grad * (z / (z + EPS * torch.where(z < 0, -1.0, 1.0))) if _ModifiedReLU.relevance else grad


def autograd_heatmap(net: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and input times the modified gradient of the labels' logits, through which PyTorch can differentiate again."""
    image = x.detach().requires_grad_()
    logits = net(image)
    _ModifiedReLU.relevance = True
    try:
        score = logits.gather(1, labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, image, create_graph=True)
    finally:
        _ModifiedReLU.relevance = False
    return logits, gradient * x


def modified_relus(model: nn.Module) -> nn.Module:
    """A copy with the stabilizer at the ReLUs: epsilon in the form of LRP-Flex."""
    net = copy.deepcopy(model)
    _swap(net)
    return net


def stabilized_layers(model: nn.Module) -> nn.Module:
    """A copy with epsilon layer by layer: the stabilizer behind dense layers, batch norms and convolutions with a bias.

    Convolutions without one are assumed to be followed by a batch norm, with which they form one layer.
    """
    net = copy.deepcopy(model)
    for module in net.modules():
        alone = isinstance(module, nn.Conv2d) and module.bias is not None
        if alone or isinstance(module, (nn.BatchNorm2d, nn.Linear)):
            module.register_forward_hook(lambda module, inputs, output: _Stabilized.apply(output))
        elif isinstance(module, nn.ReLU):
            module.inplace = False
    return net


def gradient_trick_step(
    model: nn.Module, x: Tensor, labels: Tensor, masks: Tensor, criterion: isnet.ISNetLoss
) -> Callable[[], Tensor]:
    """A training step on a copy of ``model`` whose heatmap is input times the modified gradient of eta (no z^B rule)."""
    net = modified_relus(model)

    def step() -> Tensor:
        net.zero_grad()
        image = x.detach().requires_grad_()
        logits = net(image)
        _ModifiedReLU.relevance = True
        (gradient,) = torch.autograd.grad(isnet.selective_score(logits).sum(), image, create_graph=True)
        _ModifiedReLU.relevance = False
        out = isnet.ISNetOutput(logits, {"input": (gradient * x).unsqueeze(1)})
        loss = criterion(out, labels, masks).total
        loss.backward()
        return loss

    return step
