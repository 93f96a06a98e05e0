"""The sums that the heatmap loss is made of."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._extension import ops
from .autograd import call, first_order
from .layout import wide

NEGLIGIBLE = 1e-12  # ranks of smaller weight are left out


def kept_ranks(length: int, decay: float) -> int:
    """How many ranks of a weighted rank pooling over ``length`` numbers count, 0 < decay < 1: those whose weight exceeds 1e-12."""
    return min(length, math.ceil(math.log(NEGLIGIBLE) / math.log(decay)) + 1)


def has_heatmap_kernels(tensor: Tensor) -> bool:
    """Whether :func:`heatmap_scores` is one kernel on this tensor's device; elsewhere it is composed of PyTorch's functions."""
    return ops.are_fused_for(tensor)


class HeatmapScores(NamedTuple):
    """What :func:`heatmap_scores` returns.

    Attributes:
        foreground: sum of |R| in the foreground, (B, M).
        signed_foreground: sum of R in the foreground, (B, M).
        background: |R| in the background, pooled by weighted rank, (B, M, C).
    """

    foreground: Tensor
    signed_foreground: Tensor
    background: Tensor


class _HeatmapScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heatmap: Tensor, mask: Tensor, decay: float) -> tuple[Tensor, Tensor, Tensor]:
        length = heatmap.shape[-1]
        kept = 0 if decay == 1 else 1 if decay == 0 else kept_ranks(length, decay)
        foreground, signed, background, order = ops.heatmap_scores(heatmap, mask, kept, decay)
        ctx.save_for_backward(heatmap, mask, order)
        ctx.decay = decay
        return foreground, signed, background

    @staticmethod
    @first_order
    def backward(ctx: Any, foreground: Tensor, signed: Tensor, background: Tensor) -> Any:
        return ops.heatmap_scores_backward(*ctx.saved_tensors, foreground, signed, background, ctx.decay), None, None


def heatmap_scores(heatmap: Tensor, mask: Tensor, *, decay: float) -> HeatmapScores:
    r"""Foreground and pooled background of heatmaps, in one pass over them and a partial selection of the largest.

    With A = |R| and the mask m: foreground = sum A m, signed foreground = sum R m, background = the mean of A (1 - m) over positions in
    descending order with weights decay^rank (global weighted rank pooling).

    Args:
        heatmap: R, (B, M, C, N), M maps per image and N positions; any floating dtype.
        mask: m of 0 and 1, (B, 1 or C, N), dtype of heatmap.
        decay: d in [0, 1]; 0 is the maximum, 1 the mean.

    Returns:
        Float32 tensors, float64 for float64.

    Gradients: heatmap; first order only.

    Raises:
        RuntimeError: a shape, dtype or device does not fit, no position, or decay outside [0, 1].

    Source: Bassi et al., Nature Communications 15:291, 2024; arXiv 1809.08264 (pooling); docs/method.md section 3.
    """
    if not 0.0 <= decay <= 1.0:
        raise RuntimeError(f"heatmap_scores: decay must lie in [0, 1], got {decay}")
    return HeatmapScores(*call(_HeatmapScores, heatmap, mask, float(decay)))


# -- on CPU tensors, by PyTorch -----------------------------------------------------------------------------------------------------


def _weights(ranks: int, length: int, decay: float, like: Tensor) -> Tensor:
    """The weights of the first ranks, divided by the sum of all."""
    weights = decay ** torch.arange(length, dtype=torch.float64, device=like.device)
    return (weights / weights.sum())[:ranks].to(like.dtype)


def heatmap_scores_formula(r: Tensor, mask: Tensor, kept: int, decay: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Foreground, signed foreground, pooled background, and the positions by rank (equal values by position, -1 for zeros)."""
    m = mask.unsqueeze(1)
    background = r.abs() * (1 - m)
    ranked, order = background.sort(dim=-1, descending=True, stable=True)
    order = torch.where(ranked[..., :kept] > 0, order[..., :kept], -1).int()
    pooled = background.mean(-1)
    if kept > 0:
        pooled = (ranked[..., :kept] * _weights(kept, r.shape[-1], decay, r)).sum(-1)
    return (r.abs() * m).sum((2, 3)), (r * m).sum((2, 3)), pooled, order


def _check(op: str, heatmap: Tensor, mask: Tensor, kept: int, decay: float) -> None:
    """Raise RuntimeError unless the arguments fit each other; the kernels' host side checks the same."""
    torch._check(heatmap.dim() == 4, lambda: f"{op}: heatmap must have shape [B, M, C, N], got {list(heatmap.shape)}")
    b, _, c, n = heatmap.shape
    torch._check(
        mask.dim() == 3 and tuple(mask.shape) in ((b, 1, n), (b, c, n)),
        lambda: (
            f"{op}: mask must have shape [B, 1 or C, N] beside [B, M, C, N] = {list(heatmap.shape)}, got {list(mask.shape)}"
        ),
    )
    torch._check(mask.dtype == heatmap.dtype, lambda: f"{op}: mask must have dtype {heatmap.dtype}, got {mask.dtype}")
    torch._check(n > 0, lambda: f"{op}: heatmap must have 1 to 2^30 - 1 positions, got {n}")
    torch._check(0 <= kept <= n, lambda: f"{op}: kept must be 0 to {n}, got {kept}")
    torch._check(0.0 <= decay <= 1.0, lambda: f"{op}: decay must lie in [0, 1], got {decay}")


def _check_backward(heatmap: Tensor, mask: Tensor, order: Tensor, *rest: Any) -> None:
    op = "heatmap_scores_backward"
    torch._check(order.dim() == 4, lambda: f"{op}: order must have shape [B, M, C, kept], got {list(order.shape)}")
    _check(op, heatmap, mask, order.shape[-1], rest[-1])
    torch._check(
        order.shape[:3] == heatmap.shape[:3],
        lambda: (
            f"{op}: order must have shape [B, M, C, kept] beside [B, M, C, N] = {list(heatmap.shape)}, got {list(order.shape)}"
        ),
    )
    torch._check(order.dtype == torch.int32, lambda: f"{op}: order must have dtype int32, got {order.dtype}")
    names = ("grad_foreground", "grad_signed_foreground", "grad_background")
    for name, grad, leading in zip(names, rest, (2, 2, 3), strict=False):
        expected = list(heatmap.shape[:leading])
        torch._check(
            list(grad.shape) == expected,
            lambda name=name, grad=grad, expected=expected: (
                f"{op}: {name} must have shape {expected}, got {list(grad.shape)}"
            ),
        )


def _check_ranks(order: Tensor, length: int) -> None:
    """Each position may stand once among the ranks of a row; -1 stands for none."""
    op, ranks = "heatmap_scores_backward", order.sort(-1).values
    if bool((ranks < -1).any() or (ranks >= length).any()):
        raise RuntimeError(
            f"{op}: order must hold positions below {length} or -1, got {int(ranks.min())} to {int(ranks.max())}"
        )
    if bool(((ranks[..., 1:] == ranks[..., :-1]) & (ranks[..., 1:] >= 0)).any()):
        raise RuntimeError(f"{op}: order must name each position of a row once, got one at several ranks")


@torch.library.impl("lrpkernels::heatmap_scores", "CPU")
def _scores(heatmap: Tensor, mask: Tensor, kept: int, decay: float) -> tuple[Tensor, ...]:
    _check("heatmap_scores", heatmap, mask, kept, decay)
    return tuple(score.contiguous() for score in heatmap_scores_formula(wide(heatmap), wide(mask), kept, decay))


@torch.library.impl("lrpkernels::heatmap_scores_backward", "CPU")
def _scores_backward(heatmap: Tensor, mask: Tensor, order: Tensor, *rest: Any) -> Tensor:
    _check_backward(heatmap, mask, order, *rest)
    _check_ranks(order, heatmap.shape[-1])
    grad_foreground, grad_signed_foreground, grad_background, decay = rest
    r, m = wide(heatmap), wide(mask).unsqueeze(1)
    length, kept, sign = r.shape[-1], order.shape[-1], r.sign()
    if kept == 0:
        spread = torch.full_like(r, 1 / length)
    else:  # a rank without a position goes to a place behind the last, which is cut off
        places = torch.where(order < 0, length, order).long()
        weights = _weights(kept, length, decay, r).expand(places.shape)
        spread = r.new_zeros((*r.shape[:-1], length + 1)).scatter(-1, places, weights)[..., :-1]
    foreground = sign * grad_foreground[..., None, None] + grad_signed_foreground[..., None, None]
    result = m * foreground + (1 - m) * sign * grad_background.unsqueeze(-1) * spread
    return result.to(heatmap.dtype).contiguous()


# -- shape functions ----------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("lrpkernels::heatmap_scores")
def _heatmap_scores(heatmap: Tensor, mask: Tensor, kept: int, decay: float) -> tuple[Tensor, ...]:
    _check("heatmap_scores", heatmap, mask, kept, decay)
    dtype = torch.float64 if heatmap.dtype == torch.float64 else torch.float32
    maps, rows = heatmap.shape[:2], heatmap.shape[:3]
    order = heatmap.new_empty((*rows, kept), dtype=torch.int32)
    return *(heatmap.new_empty(shape, dtype=dtype) for shape in (maps, maps, rows)), order


@torch.library.register_fake("lrpkernels::heatmap_scores_backward")
def _heatmap_scores_backward(heatmap: Tensor, mask: Tensor, order: Tensor, *rest: Any) -> Tensor:
    _check_backward(heatmap, mask, order, *rest)
    return heatmap.new_empty(heatmap.shape)
