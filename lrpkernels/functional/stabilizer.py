"""Stabilizers: one number, or a tensor with one for each image of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

Stabilizer = float | Tensor


def stabilizer(eps: Stabilizer, value: Tensor) -> tuple[float, Tensor | None]:
    """A stabilizer as ops take it: a number, and maybe one for each image in its place.

    Args:
        eps: a number, or (B,), any floating dtype and device.
        value: the forward value that it stabilizes, (B, ...).

    Raises:
        ValueError: another number of stabilizers than images.
    """
    if not isinstance(eps, Tensor):
        return eps, None
    if eps.shape != value.shape[:1]:
        batch = value.shape[0] if value.dim() else 0
        raise ValueError(
            f"eps: {eps.numel()} stabilizers beside a value of shape {list(value.shape)}, whose first dimension must be the batch: give "
            f"one number, or a tensor of shape [{batch}]"
        )
    return 0.0, eps.to(value.device, torch.float64 if value.dtype == torch.float64 else torch.float32)


def check_epsilons(op: str, epsilons: Tensor | None, value: Tensor) -> None:
    """For shape functions: raise RuntimeError unless there is one stabilizer for each image of a forward value."""
    if epsilons is not None:
        torch._check(
            epsilons.shape == value.shape[:1],
            lambda: f"{op}: epsilons must have shape [B] = {list(value.shape[:1])}, got {list(epsilons.shape)}",
        )
