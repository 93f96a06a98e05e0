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


def gradient_trick_step(
    model: nn.Module, x: Tensor, labels: Tensor, masks: Tensor, criterion: isnet.ISNetLoss
) -> Callable[[], Tensor]:
    """A training step on a copy of ``model`` whose heatmap is input times the modified gradient of eta (no z^B rule)."""
    net = copy.deepcopy(model)
    _swap(net)

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
