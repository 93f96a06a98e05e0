"""The slow, independent reference: LRP-Flex through plain autograd and double backward, in float64.

Nothing here comes from lrpkernels: ReLU (and, in training mode, batch norm) modules are replaced by ones with a modified derivative,
the heatmap is input times the modified gradient, and parameter gradients come from PyTorch's generic double backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_RELEVANCE = {"on": False, "epsilon": 1e-2}


@contextmanager
def relevance_mode(epsilon: float) -> Iterator[None]:
    """While active, derivatives taken are the relevance pass's; outside they are the ordinary ones."""
    _RELEVANCE.update(on=True, epsilon=epsilon)
    try:
        yield
    finally:
        _RELEVANCE["on"] = False


class _FlexReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        if not _RELEVANCE["on"]:
            return grad * (z > 0)
        u = torch.where(z > 0, z, torch.zeros_like(z))
        return grad * (u / (u + _RELEVANCE["epsilon"]))


class FlexReLU(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return _FlexReLU.apply(z)


class _FrozenBatchNorm(torch.autograd.Function):
    """Batch statistics in the forward pass; constants in the relevance pass, differentiated in the ordinary one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, gamma, beta)
        ctx.eps = eps
        return F.batch_norm(x, None, None, gamma, beta, True, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gamma, beta = ctx.saved_tensors
        if _RELEVANCE["on"]:
            dims = [d for d in range(x.dim()) if d != 1]
            deviation = (x.detach().var(dims, unbiased=False) + ctx.eps).sqrt()
            factor = (gamma / deviation).view(-1, *(1,) * (x.dim() - 2))
            return grad * factor, None, None, None
        with torch.enable_grad():
            copies = [t.detach().requires_grad_() for t in (x, gamma, beta)]
            out = F.batch_norm(copies[0], None, None, copies[1], copies[2], True, 0.0, ctx.eps)
        return (*torch.autograd.grad(out, copies, grad), None)


class FrozenBatchNorm(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return _FrozenBatchNorm.apply(x, self.weight, self.bias, self.eps)


def freeze_batch_norms(net: nn.Module) -> None:
    for name, child in net.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            setattr(net, name, FrozenBatchNorm(child))
        else:
            freeze_batch_norms(child)


def flex_heatmap(net: nn.Module, x: Tensor, seed: Callable[[Tensor], Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    """Logits and heatmap R = x * dq/dx; ``seed`` maps logits to the scalar q that is explained. Keeps the graph."""
    x = x.detach().requires_grad_()
    logits = net(x)
    q = seed(logits)
    with relevance_mode(epsilon):
        (gradient,) = torch.autograd.grad(q, x, create_graph=True)
    return logits, gradient * x.detach()
