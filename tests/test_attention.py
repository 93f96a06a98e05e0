"""Relevance through attention in one operation: against products and a softmax written out under autograd."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lrpkernels.functional import attention_pull, attention_weights

SHARES = ((0.25, 0.25, 0.5), (0.0, 0.0, 1.0), (0.3, 0.1, 0.0), (1.0, 0.0, 0.5))


def _written_out(g: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, shares: tuple) -> tuple:
    """The multipliers as autograd derives them, T targets one after the other."""
    p = attention_weights(q, k, mask, scale)
    g = g.unflatten(0, (-1, q.shape[0]))
    g_p = g @ v.transpose(-2, -1)
    s = scale * p * (g_p - (p * g_p).sum(-1, keepdim=True))
    parts = (shares[0] * (s @ k), shares[1] * (s.transpose(-2, -1) @ q), shares[2] * (p.transpose(-2, -1) @ g))
    return tuple(part.flatten(0, 1) for part in parts)


def _operands(leading: tuple[int, ...], targets: int = 1, rows: int = 5, keys: int = 7) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(rows, 4), (keys, 4), (keys, 3)]
    q, k, v = (torch.randn(*leading, *shape, dtype=torch.float64) for shape in shapes)
    g = torch.randn(targets * leading[0], *leading[1:], rows, 3, dtype=torch.float64)
    return [t.requires_grad_() for t in (g, q, k, v)]


def _mask(kind: str | None) -> Tensor | None:
    if kind is None:
        return None
    keep = torch.ones(5, 7, dtype=torch.bool).tril(1)
    keep[2] = False  # a row that sees nothing
    if kind == "bool":
        return keep
    added = torch.randn(5, 7, dtype=torch.float64) if kind == "shared" else torch.randn(2, 1, 5, 7, dtype=torch.float64)
    return added.requires_grad_()


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("mask", [None, "bool", "shared", "by image"])
@pytest.mark.parametrize("targets", [1, 3])
def test_values_and_gradients_are_those_of_autograd(shares: tuple, mask: str | None, targets: int) -> None:
    operands, m = _operands((2, 3), targets), _mask(mask)
    found = attention_pull(*operands, m, scale=0.7, shares=shares)
    wanted = _written_out(*operands, m, 0.7, shares)
    for part, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.zeros_like(reference) if part is None else part, reference)
    pairs = [(part, reference) for part, reference in zip(found, wanted, strict=True) if part is not None]
    cotangents = [torch.randn_like(part) for part, _ in pairs]
    live = [*operands, *([m] if m is not None and m.requires_grad else [])]
    ours, theirs = (
        torch.autograd.grad([pair[i] for pair in pairs], live, cotangents, allow_unused=True, materialize_grads=True)
        for i in (0, 1)
    )
    for gradient, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize(("leading", "targets"), [((4,), 1), ((4,), 2), ((2, 3, 2), 2), ((1, 1), 1)])
def test_any_number_of_leading_dimensions_and_layouts(leading: tuple[int, ...], targets: int) -> None:
    operands = [t.detach().transpose(-2, -1).contiguous().transpose(-2, -1) for t in _operands(leading, targets)]
    found = attention_pull(*operands, None, scale=0.5, shares=SHARES[0])
    for part, reference in zip(found, _written_out(*operands, None, 0.5, SHARES[0]), strict=True):
        torch.testing.assert_close(part, reference)


def test_gradients_by_finite_differences() -> None:
    operands, mask = _operands((1, 2)), _mask("shared")
    assert torch.autograd.gradcheck(
        lambda *t: attention_pull(*t, scale=1 / math.sqrt(4), shares=SHARES[0]), (*operands, mask)
    )


@pytest.mark.parametrize("unused", list(itertools.combinations(range(3), 2)))
def test_a_loss_may_read_one_part_alone(unused: tuple[int, int]) -> None:
    (read,) = {0, 1, 2} - set(unused)
    operands = _operands((2,))
    parts = (f(*operands) for f in (_one_op, lambda *t: _written_out(*t, None, 0.5, SHARES[0])))
    ours, theirs = (
        torch.autograd.grad(part[read].square().sum(), operands, allow_unused=True, materialize_grads=True)
        for part in parts
    )
    for gradient, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, reference)


def _one_op(*operands: Tensor) -> tuple:
    return attention_pull(*operands, None, scale=0.5, shares=SHARES[0])


def test_a_second_derivative_is_refused() -> None:
    operands = _operands((2,))
    (grad,) = torch.autograd.grad(_one_op(*operands)[0].square().sum(), operands[1], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(grad.sum(), operands[1])


def test_infinite_scores_of_rows_that_see_nothing_hand_nothing_on() -> None:
    operands, mask = _operands((2, 3)), _mask("bool")
    found = attention_pull(*operands, mask, scale=1.0, shares=SHARES[0])
    gradients = torch.autograd.grad(sum(part.square().sum() for part in found if part is not None), operands)
    assert all(bool(t.isfinite().all()) for t in (*found, *gradients) if t is not None)
    assert not found[0].detach()[:, :, 2].any() and not gradients[0][:, :, 2].any()
