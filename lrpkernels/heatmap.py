"""Heatmaps made ready to look at or to compare with a mask."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def sum_channels(relevance: Tensor) -> Tensor:
    """Relevance per pixel: the signed sum over channels.

    Args:
        relevance: (..., C, H, W).

    Returns:
        (..., H, W).

    Raises:
        ValueError: fewer than three dimensions.
    """
    if relevance.dim() < 3:
        raise ValueError(f"relevance must have shape (..., C, H, W), got {tuple(relevance.shape)}")
    return relevance.sum(-3)


def normalize(relevance: Tensor, by: Literal["max", "sum", "mean"] = "max", dims: int = 3) -> Tensor:
    """Signed relevance divided by a positive number per map, so that maps of different scores can be compared.

    Args:
        relevance: (..., C, H, W), or (..., H, W) with ``dims=2``.
        by: "max": the largest magnitude becomes 1; "sum": the magnitudes sum to 1; "mean": their mean becomes 1.
        dims: how many trailing dimensions make one map.

    Returns:
        The same shape; a map of zeros stays zero.

    Raises:
        ValueError: another ``by``, or fewer dimensions than ``dims``.
    """
    if not 1 <= dims <= relevance.dim():
        raise ValueError(f"dims must lie between 1 and {relevance.dim()}, got {dims}")
    axes = tuple(range(-dims, 0))
    magnitude = relevance.abs()
    if by == "max":
        scale = magnitude.amax(axes, keepdim=True)
    elif by == "sum":
        scale = magnitude.sum(axes, keepdim=True)
    elif by == "mean":
        scale = magnitude.mean(axes, keepdim=True)
    else:
        raise ValueError(f'by must be "max", "sum" or "mean", got {by!r}')
    return relevance / torch.where(scale > 0, scale, torch.ones_like(scale))


def background_share(relevance: Tensor, mask: Tensor) -> Tensor:
    """The share of absolute relevance outside a foreground mask.

    Args:
        relevance: (B, ..., H, W).
        mask: (B, 1, H, W) or broadcastable to relevance, 1 = foreground.

    Returns:
        (B,), in [0, 1]; 0 where there is no relevance at all.

    Raises:
        ValueError: shapes that do not broadcast.
    """
    magnitude = relevance.abs()
    if mask.dim() < relevance.dim():
        mask = mask.view(mask.shape[0], *(1,) * (relevance.dim() - mask.dim()), *mask.shape[1:])
    try:
        outside = magnitude * (1 - mask.to(magnitude.dtype))
    except RuntimeError as error:
        raise ValueError(
            f"mask: shape {tuple(mask.shape)} does not fit relevance of shape {tuple(relevance.shape)}"
        ) from error
    total = magnitude.flatten(1).sum(1)
    return outside.flatten(1).sum(1) / torch.where(total > 0, total, torch.ones_like(total))
