"""Heatmaps of a trained classifier to look at, whatever it was trained with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.engine.training_mode import evaluation_mode


def heatmaps(
    model: nn.Module,
    images: Tensor,
    *,
    target: Any = None,
    eps: float = 1e-2,
    input_range: tuple[Any, Any] | None = (0.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Logits and LRP heatmaps of images, in evaluation mode and without gradients.

    Args:
        model: The classifier.
        images: [B, C, H, W].
        target: What is explained, as for :class:`lrpkernels.LRP`; None = the predicted class.
        eps: Stabiliser of the epsilon rule.
        input_range: Pixel range of the z^B rule at the input, numbers or one per channel; None applies the epsilon rule there, too.

    Returns:
        logits [B, K] and heatmap [B, C, H, W] (or [B, T, C, H, W], for T targets).
    """
    first = None if input_range is None else lrp.ZBox(*input_range, eps=eps)
    with evaluation_mode(model), torch.no_grad():
        return lrp.LRP(model, composite=lrp.Epsilon(eps=eps, first=first))(images, target=target)
