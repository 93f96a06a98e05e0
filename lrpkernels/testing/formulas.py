"""Formulas of the elementwise ops in plain PyTorch, in the dtype of their arguments."""

from __future__ import annotations

import torch
from torch import Tensor


def stretched(value: Tensor, like: Tensor) -> Tensor:
    """Forward values [B, ...] repeated for every target of ``like`` [T * B, ...]."""
    targets = like.shape[0] // value.shape[0] if value.shape[0] else 1
    return value.repeat(targets, *[1] * (value.dim() - 1))


def _per_image(epsilons: Tensor, like: Tensor) -> Tensor:
    """[B], shaped to be broadcast against [B, ...]."""
    return epsilons.view(-1, *[1] * (like.dim() - 1))


def epsilon_scale_reference(
    multiplier: Tensor,
    addend: Tensor | None,
    output: Tensor | None,
    scale: Tensor | None,
    epsilon: float,
    epsilons: Tensor | None = None,
) -> Tensor:
    """The formula of ``epsilon_scale`` in the dtype of its arguments."""
    result = multiplier if addend is None else multiplier + addend
    if output is not None:
        eps = epsilon if epsilons is None else _per_image(epsilons, output)
        ratio = torch.where(output <= 0, 0.0, output / (output + eps))  # NaN stays NaN
        result = result * stretched(ratio, multiplier)
    if scale is not None:
        result = result * scale.to(result.dtype).view(1, -1, *[1] * (multiplier.dim() - 2))
    return result


def ratio_reference(
    multiplier: Tensor, value: Tensor, denominator: Tensor, epsilon: float, epsilons: Tensor | None = None
) -> Tensor:
    """The formula of ``ratio`` in the dtype of its arguments."""
    eps = epsilon if epsilons is None else _per_image(epsilons, denominator)
    sign = torch.where(denominator < 0, -1.0, 1.0).to(denominator.dtype)
    return multiplier * stretched(value / (denominator + eps * sign), multiplier)
