"""The sums that the heatmap loss is made of, where the device has our kernels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._extension import ops
from ._autograd import call, first_order

NEGLIGIBLE = 1e-12  # ranks of smaller weight are left out


def kept_ranks(length: int, decay: float) -> int:
    """How many ranks of a weighted rank pooling over ``length`` numbers count, 0 < decay < 1: those whose weight exceeds 1e-12."""
    return min(length, math.ceil(math.log(NEGLIGIBLE) / math.log(decay)) + 1)


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
    return HeatmapScores(*call(_HeatmapScores, heatmap, mask, float(decay)))
