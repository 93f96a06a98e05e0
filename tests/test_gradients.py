"""gradcheck of every differentiable relevance op, and the refusal of second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from lrpkernels import functional as F
from lrpkernels.functional import POSITIVE, ConvGeometry, ConvWeight, Scaled

GEOMETRY = ConvGeometry((2, 1), (1, 0), (1, 2), False, (0, 0), 2)
TRANSPOSED = ConvGeometry((2, 2), (1, 1), (1, 1), True, (1, 1), 1)
SAME = ConvGeometry((1, 1), (1, 1), (1, 1), False, (0, 0), 1)


def _pull(g: Tensor, w: Tensor, input: Tensor, geometry: ConvGeometry = GEOMETRY, **factors: Any) -> Tensor:
    return F.conv_pull(Scaled(g, **factors, eps=0.1), ConvWeight(w), input, geometry)


def _active(*shape: int) -> Tensor:
    """A ReLU output away from zero: some units off, the others clearly on (the ratio has a kink at 0)."""
    u = torch.rand(*shape, dtype=torch.float64) + 0.2
    return torch.where(torch.rand(*shape) < 0.4, torch.zeros_like(u), u)


def _r(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def _on(u: Tensor, multiplier: int = 1) -> Callable[[Tensor], Tensor]:
    """Perturb only active units: u enters as active * free, so that gradcheck stays off the kink."""
    return lambda free: u * (1 + free)


def _cases() -> dict[str, tuple[Callable[..., Any], tuple[Tensor | None, ...]]]:
    torch.manual_seed(0)
    u = _active(2, 4, 3, 3)
    free = torch.zeros_like(u).requires_grad_()
    k = _r(4)
    w = _r(4, 2, 3, 2)
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    uc = _active(2, 4, 3, 3)
    freec = torch.zeros_like(uc).requires_grad_()
    wt = _r(3, 4, 3, 3)
    xt = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    indices = torch.nn.functional.max_pool2d(x, 3, 2, 1, return_indices=True)[1]
    pool = ((3, 3), (2, 2), (1, 1), (1, 1), False)
    d = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    d = (d + torch.sign(d) * 0.3).requires_grad_()
    low = torch.rand(4, dtype=torch.float64)
    average = lambda v: torch.nn.functional.avg_pool2d(v, 2)
    return {
        "epsilon_scale": (lambda g, f: F.epsilon_scale(g, _on(u)(f), epsilon=0.1), (_r(2, 4, 3, 3), free)),
        "epsilon_scale-all": (
            lambda g, a, f, s: F.epsilon_scale(g, _on(u)(f), s, addend=a, epsilon=0.1),
            (_r(6, 4, 3, 3), _r(6, 4, 3, 3), free, k),
        ),
        "epsilon_scale-scale-only": (lambda g, s: F.epsilon_scale(g, None, s), (_r(2, 4), k)),
        "ratio": (lambda g, v, e: F.ratio(g, v, e, epsilon=0.1), (_r(4, 4, 3, 3), _r(2, 4, 3, 3), d)),
        "conv_pull": (
            lambda g, a, f, s, w: _pull(g, w, x, addend=a, output=_on(uc)(f), scale=s),
            (_r(4, 4, 3, 3), _r(4, 4, 3, 3), freec, k, w),
        ),
        "conv_pull-plain": (lambda g, w: _pull(g, w, x), (_r(2, 4, 3, 3), w)),
        "conv_pull-ratio": (
            lambda g, v, e, w: _pull(g, w, x, value=v, denominator=e),
            (_r(4, 4, 3, 3), _r(2, 4, 3, 3), d, w),
        ),
        "conv_pull-transposed": (lambda g, w: _pull(g, w, xt, TRANSPOSED), (_r(2, 4, 4, 4), wt)),
        "conv_pull_by_sign": (
            lambda g, w: F.conv_pull_by_sign(Scaled(g), ConvWeight(w), ConvWeight(2 * w), x, GEOMETRY),
            (_r(4, 4, 3, 3), w),
        ),
        "conv_pull_sum": (
            lambda g, h, w: F.conv_pull_sum((g, h), (ConvWeight(w), ConvWeight(-w)), x[:, :2], SAME),
            (_r(2, 3, 6, 5), _r(2, 3, 6, 5), _r(3, 2, 3, 3)),
        ),
        "conv_box": (
            lambda g, v, e, w, p: F.conv_box(Scaled(g, value=v, denominator=e, eps=0.1), w, p, None, low, GEOMETRY),
            (_r(4, 4, 3, 3), _r(2, 4, 3, 3), d, w, _r(2, 4, 6, 5)),
        ),
        "conv_weight": (
            lambda w, k: F.conv_weight(w, k, POSITIVE, SAME, torch.float64).weight,
            (_r(3, 2, 3, 3), _r(3, 1, 1, 1)),
        ),
        "conv_apply": (
            lambda a, w, b: F.conv_apply(a, ConvWeight(w), b, SAME),
            (_r(1, 2, 3, 3), _r(3, 2, 3, 3), _r(3)),
        ),
        "conv_apply-known": (
            lambda a, w, b: F.conv_apply(a, ConvWeight(w), b, SAME, torch.nn.functional.conv2d(a, w, b, padding=1)),
            (_r(1, 2, 3, 3), _r(3, 2, 3, 3), _r(3)),
        ),
        "positive_weight": (lambda w, k: F.positive_weight(w, k), (_r(3, 2, 3, 3), _r(3, 1, 1, 1))),
        "positive_weight-plain": (F.positive_weight, (_r(3, 2, 3, 3),)),
        "positive_weight-rows": (F.positive_weight, (_r(4, 2, 3), _r(4, 2, 1))),
        "max_pool_winner": (lambda g: F.max_pool_winner(g, indices, x, pool), (_r(4, 4, 3, 3),)),
        "uncat": (lambda g: F.uncat(g, 1, [(1, 2), (4, 1)]), (_r(2, 6, 3),)),
        "average_pull": (
            lambda g: F.average_pull(g, average, torch.Size((1, 3, 4, 4)), ((2, 2), (2, 2), (0, 0), True, None)),
            (_r(2, 3, 2, 2),),
        ),
        "average_pull-by derivative": (
            lambda g: F.average_pull(g, average, torch.Size((1, 3, 4, 4)), None),
            (_r(2, 3, 2, 2),),
        ),
    }


@pytest.mark.parametrize("name", _cases())
def test_gradcheck(name: str) -> None:
    function, inputs = _cases()[name]
    if name == "conv_apply-known":  # its value is constant by design: compare with the convolution it stands for
        grad = torch.randn_like(function(*inputs))
        ours = torch.autograd.grad(function(*inputs), inputs, grad)
        theirs = torch.autograd.grad(torch.nn.functional.conv2d(*inputs, padding=1), inputs, grad)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
        return
    assert gradcheck(function, inputs, check_undefined_grad=False, nondet_tol=0.0)


@pytest.mark.parametrize("name", _cases())
def test_second_derivatives_raise(name: str) -> None:
    function, inputs = _cases()[name]
    out = function(*inputs)
    score = sum(o.square().sum() for o in (out if isinstance(out, tuple) else (out,)))
    grads = torch.autograd.grad(score, inputs, create_graph=True)
    loss = sum(g.square().sum() for g in grads)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(loss, inputs, allow_unused=True)


@pytest.mark.parametrize("name", ["average_pull", "average_pull-by derivative"])
def test_the_pull_of_an_average_is_its_adjoint(name: str) -> None:
    function, _ = _cases()[name]
    g, v = _r(2, 3, 2, 2), _r(2, 3, 4, 4)
    left = (function(g) * v).sum()
    right = (g * torch.nn.functional.avg_pool2d(v, 2)).sum()
    torch.testing.assert_close(left, right)
