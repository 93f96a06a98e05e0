"""The ops of :mod:`.heatmap_sums` on CPU tensors, by PyTorch.

The heatmap loss itself takes PyTorch's functions on the CPU, which share work with the layers around them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _extension  # noqa: F401  (the ops must exist before they are given implementations)


def heatmap_scores_formula(r: Tensor, mask: Tensor, kept: int, decay: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Foreground, signed foreground, pooled background, and the positions by rank (equal values by position, -1 for zeros)."""
    m = mask.unsqueeze(1)
    background = r.abs() * (1 - m)
    ranked, order = background.sort(dim=-1, descending=True, stable=True)
    order = torch.where(ranked[..., :kept] > 0, order[..., :kept], -1).int()
    pooled = background.mean(-1)
    if kept > 0:
        pooled = (ranked[..., :kept] * _weights(r, kept, decay)).sum(-1)
    return (r.abs() * m).sum((2, 3)), (r * m).sum((2, 3)), pooled, order


def _weights(r: Tensor, kept: int, decay: float) -> Tensor:
    """Of the first ranks, over the sum of all."""
    weights = decay ** torch.arange(r.shape[-1], dtype=torch.float64, device=r.device)
    return (weights / weights.sum())[:kept].to(r.dtype)


def _wide(*tensors: Any) -> Any:
    """The tensors in the arithmetic dtype of the first, None as it is."""
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return [None if t is None else t.to(dtype) for t in tensors]


@torch.library.impl("lrpkernels::heatmap_scores", "CPU")
def _heatmap_scores(heatmap: Tensor, mask: Tensor, kept: int, decay: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r, m = _wide(heatmap, mask)
    found = heatmap_scores_formula(r, m, kept, decay)
    foreground, signed, background, order = (score.contiguous() for score in found)
    return foreground, signed, background, order


@torch.library.impl("lrpkernels::heatmap_scores_backward", "CPU")
def _heatmap_scores_backward(
    heatmap: Tensor,
    mask: Tensor,
    order: Tensor,
    grad_foreground: Tensor,
    grad_signed_foreground: Tensor,
    grad_background: Tensor,
    decay: float,
) -> Tensor:
    r, m = _wide(heatmap, mask)
    m, kept, sign = m.unsqueeze(1), order.shape[-1], r.sign()
    if kept == 0:
        spread = torch.full_like(r, 1 / r.shape[-1])
    else:  # a rank without a position goes to a place behind the last, which is cut off
        places = torch.where(order < 0, r.shape[-1], order).long()
        weights = _weights(r, kept, decay).expand(places.shape)
        spread = r.new_zeros((*r.shape[:-1], r.shape[-1] + 1)).scatter(-1, places, weights)[..., :-1]
    foreground = sign * grad_foreground[..., None, None] + grad_signed_foreground[..., None, None]
    result = m * foreground + (1 - m) * sign * grad_background.unsqueeze(-1) * spread
    return result.to(heatmap.dtype).contiguous()
