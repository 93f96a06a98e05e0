"""Foreground masks beside heatmaps: their shape, their values, their size."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

EmptyMask = Literal["error", "skip"]


def with_channel(masks: Tensor, shape: torch.Size) -> Tensor:
    """[B, 1 or C, H, W] for heatmaps of ``shape`` [B, M, C, h, w]; ValueError if the masks do not fit them."""
    spatial = len(shape) - 3
    if masks.dim() == 1 + spatial:
        masks = masks.unsqueeze(1)
    if masks.dim() != 2 + spatial or masks.shape[0] != shape[0]:
        sizes = ", ".join("DHW"[-spatial:]) if 1 <= spatial <= 3 else "..."
        raise ValueError(f"masks must have shape [B, 1, {sizes}] with B = {shape[0]}, got {tuple(masks.shape)}")
    return masks


def check_values(masks: Tensor, empty_mask: EmptyMask) -> None:
    """ValueError for values other than 0 and 1 and, unless skipped, for images without foreground. One synchronisation on a GPU.

    Skipped while a CUDA graph is captured, when waiting is not allowed.
    """
    if masks.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    binary = ((masks == 0) | (masks == 1)).all()
    filled = (masks != 0).flatten(1).any(1)
    if bool(binary & filled.all() if empty_mask == "error" else binary):
        return
    if not bool(binary):
        low, high = float(masks.min()), float(masks.max())
        raise ValueError(f"masks must hold 0 (background) and 1 (foreground) only, got values in [{low:g}, {high:g}]")
    image = filled.tolist().index(False)
    raise ValueError(f'masks: image {image} of the batch has no foreground; mend its mask or set empty_mask="skip"')


def fit_masks(mask: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The masks [B, 1, 1 or C, h, w] at the size of heatmaps [B, M, C, h, w]: average pooling, then every non-zero is foreground."""
    channels, size = shape[2], tuple(shape[3:])
    mask = mask.to(dtype)
    if mask.shape[1] not in (
        1,
        channels,
    ):  # a mask per image channel, beside a hidden layer's heatmap: foreground in any
        mask = mask.amax(1, keepdim=True)
    if tuple(mask.shape[2:]) != size:
        pool: Any = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(size)]
        mask = (pool(mask, size) != 0).to(dtype)
    return mask.unsqueeze(1)
