"""Relevance through attention in one operation, softmax(Q K^T scale + mask) V, by matrix products on whole heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .autograd import call, first_order

_softmax_gradient = torch.ops.aten._softmax_backward_data.default


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(Q K^T scale + mask), (..., L, S); differentiable.

    Args:
        q: Q, (..., L, E).
        k: K, (..., S, E).
        mask: broadcastable to (..., L, S): added, or bool: False hides. Rows that see nothing (padding) are zeros, not NaN, and hand
            nothing on. None: no mask.
        scale: of the scores.
    """
    scores = q @ k.transpose(-2, -1) * scale
    if mask is None:
        return scores.softmax(-1)
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
    empty = scores.isneginf().all(-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)


class _AttentionPull(torch.autograd.Function):
    """P: the weights; D(x) = P (x - sum(P x)): the derivative of the softmax, which is symmetric.

    G_V = c P^T G,  S = D(G V^T),  G_Q = a S K,  G_K = b S^T Q.
    """

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        shares: tuple[float, float, float],
    ) -> tuple[Tensor | None, ...]:
        p = attention_weights(q, k, mask, scale)
        targets = g.shape[0] // q.shape[0]
        q3, k3, v3, p3 = (_of_targets(t, targets) for t in (q, k, v, p))
        g3 = g.reshape(-1, q.shape[-2], v.shape[-1])
        g_p = g3 @ v3.mT
        ctx.save_for_backward(g3, q3, k3, v3, p3, g_p, mask)
        ctx.scale, ctx.shares, ctx.targets, ctx.shapes = scale, shares, targets, [t.shape for t in (g, q, k, v, p)]
        a, b, c = shares
        parts: list[Tensor | None] = [None, None, None if c == 0 else _product(p3.mT, g3, c)]
        if a or b:
            s = _softmax_gradient(g_p, p3, -1, p3.dtype)
            parts[:2] = _product(s, k3, a * scale), _product(s.mT, q3, b * scale)
        return tuple(
            None if part is None else part.view(targets * t.shape[0], *t.shape[1:])
            for part, t in zip(parts, (q, k, v), strict=True)
        )

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        g, q, k, v, p, g_p, mask = ctx.saved_tensors
        scale, need = ctx.scale, ctx.needs_input_grad
        t_q, t_k, t_v = (None if t is None else t.reshape(like.shape) for t, like in zip(grads, (q, k, v), strict=True))
        a, b, c = (share * factor for share, factor in zip(ctx.shares, (scale, scale, 1.0), strict=True))
        d_g = d_q = d_k = d_v = d_p = None
        if t_v is not None:
            d_g, d_p = _product(p, t_v, c), _product(g, t_v.mT, c)
        if t_q is not None and t_k is not None:
            d_s = _product(t_q, k.mT, a).baddbmm_(q, t_k.mT, alpha=b)
            s, h = (_softmax_gradient(x, p, -1, p.dtype) for x in (g_p, d_s))  # d_s at G V^T is h
            d_g = h @ v if d_g is None else d_g.baddbmm_(h, v)
            d_q, d_k, d_v = _product(s, t_k, b), _product(s.mT, t_q, a), h.mT @ g
            # S = P (x - sum(P x)) reads P twice.
            x_sum, d_sum = ((p * x).sum(-1, keepdim=True) for x in (g_p, d_s))
            at_p = (g_p - x_sum).mul_(d_s).addcmul_(g_p, d_sum, value=-1)
            d_p = at_p if d_p is None else d_p.add_(at_p)
        d_mask = None
        if d_p is not None:
            d_scores = _softmax_gradient(d_p, p, -1, p.dtype)
            d_q = _added(d_q, d_scores, k, scale)
            d_k = _added(d_k, d_scores.mT, q, scale)
            if need[4]:
                whole = d_scores.view(ctx.targets, *ctx.shapes[4])
                d_mask = whole.sum(0).sum_to_size(mask.shape).to(mask.dtype)
        d_values = (
            None if d is None else d.view(ctx.targets, *shape).sum(0) if ctx.targets > 1 else d.view(shape)
            for d, shape in zip((d_q, d_k, d_v), ctx.shapes[1:4], strict=True)
        )
        return None if d_g is None else d_g.view(ctx.shapes[0]), *d_values, d_mask, None, None


def _of_targets(t: Tensor, targets: int) -> Tensor:
    """(B, ..., L, E) as (targets * B * ..., L, E), contiguous."""
    whole = t.reshape(-1, *t.shape[-2:])
    return whole.repeat(targets, 1, 1) if targets > 1 else whole


def _product(x: Tensor, y: Tensor, factor: float) -> Tensor:
    return torch.baddbmm(x.new_empty(()), x, y, beta=0, alpha=factor)


def _added(total: Tensor | None, x: Tensor, y: Tensor, factor: float) -> Tensor:
    return _product(x, y, factor) if total is None else total.baddbmm_(x, y, alpha=factor)


def attention_pull(
    multiplier: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: float,
    shares: tuple[float, float, float],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    r"""The multipliers at Q, K and V of attention O = P V, P = softmax(Q K^T scale + mask), each with its share of the relevance.

    a, b and c times the vector-Jacobian products: G_V = c P^T G, G_Q = a scale S K, G_K = b scale S^T Q with S = D(G V^T), D the
    derivative of the softmax.

    Args:
        multiplier: G at the output, (T*B, ..., L, E_v), T targets of one batch, target-major.
        query, key: Q (B, ..., L, E) and K (B, ..., S, E), dtype of multiplier.
        value: V, (B, ..., S, E_v).
        mask: as :func:`attention_weights` takes it.
        scale: of the scores.
        shares: a, b and c.

    Returns:
        (T*B, ...) for Q, K and V; None for V where c is 0, for Q and K where a and b are 0.

    Gradients: multiplier, query, key, value, mask; first order only. Backward takes ten matrix products.
    Deterministic: as the vendor's matrix products.

    Source: Achtibat et al. 2024 (AttnLRP), arXiv 2402.05602, Propositions 3.1 and 3.3.
    """
    found: tuple[Tensor | None, Tensor | None, Tensor | None] = call(
        _AttentionPull, multiplier, query, key, value, mask, scale, shares
    )
    return found


class _SoftmaxPull(torch.autograd.Function):
    """D(g) = P (g - sum(P g)), which reads P twice."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, p: Tensor, dim: int) -> Tensor:
        targets = g.shape[0] // p.shape[0]
        repeated = p.repeat(targets, *(1,) * (p.dim() - 1)) if targets > 1 else p
        ctx.save_for_backward(g, p)
        ctx.dim = dim
        return _softmax_gradient(g, repeated, dim, p.dtype)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        g, p = ctx.saved_tensors
        targets, dim = g.shape[0] // p.shape[0], ctx.dim
        repeated = p.repeat(targets, *(1,) * (p.dim() - 1)) if targets > 1 else p
        grad_g = _softmax_gradient(grad, repeated, dim, p.dtype) if ctx.needs_input_grad[0] else None
        grad_p = None
        if ctx.needs_input_grad[1]:
            sums = [(repeated * t).sum(dim, keepdim=True) for t in (g, grad)]
            grad_p = (g - sums[0]).mul_(grad).addcmul_(g, sums[1], value=-1)
            grad_p = grad_p.unflatten(0, (targets, -1)).sum(0) if targets > 1 else grad_p
        return grad_g, grad_p, None


def softmax_pull(multiplier: Tensor, weights: Tensor, dim: int) -> Tensor:
    """The vector-Jacobian product of a softmax, P (G - sum(P G)).

    Args:
        multiplier: G at the weights, (T*B, ...), T targets of one batch, target-major, dtype of weights.
        weights: P, (B, ...).
        dim: along which they sum to 1; not the first.

    Gradients: multiplier, weights; first order only.

    Source: Achtibat et al. 2024 (AttnLRP), arXiv 2402.05602, Proposition 3.1.
    """
    found: Tensor = call(_SoftmaxPull, multiplier, weights, dim)
    return found
