"""Selective: the log-odds of the least likely class."""

from __future__ import annotations

import torch
from torch import Tensor

from isnet.variants.base import Explained, Variant


class Selective(Variant):
    """eta = log(p_c + e) - log(1 - p_c + e) of the class with the lowest logit, e = 1e-2: one map per image.

    Source: arXiv 2401.08409 (Selective ISNet); docs/method.md section 2.
    """

    def explained(self, logits: Tensor, place: tuple[int, int] | None = None) -> list[Explained]:
        return [Explained(selective_score, self.epsilon())]


def selective_score(logits: Tensor, e: float = 1e-2) -> Tensor:
    """eta = log(p_c + e) - log(1 - p_c + e), p = softmax(logits), c the class with the lowest logit.

    Args:
        logits: [B, K]; half precision is computed in float32.
        e: stabilizer of both logarithms; 0 is the exact log-odds.

    Returns:
        [B], float32 or float64.

    Raises:
        ValueError: fewer than two classes, for which eta is constant.
    """
    if logits.shape[1] < 2:
        raise ValueError(
            f"the Selective ISNet weighs a class against others and needs at least 2, the model has {logits.shape[1]}; "
            'variant "original" explains a single logit'
        )
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    lowest = logits.argmin(1, keepdim=True)
    if e == 0:
        others = logits.masked_fill(torch.zeros_like(logits, dtype=torch.bool).scatter_(1, lowest, True), -torch.inf)
        return logits.gather(1, lowest)[:, 0] - others.logsumexp(1)
    p = logits.softmax(1).gather(1, lowest)[:, 0]
    return torch.log(p + e) - torch.log(1 - p + e)
