"""Global weighted rank pooling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lrpkernels.functional import kept_ranks


def gwrp(x: Tensor, decay: float) -> Tensor:
    """Weighted mean over the last dimension, sorted in descending order, with weights ``decay ** rank``.

    Only the terms whose weight exceeds 1e-12 are selected, so that no full sort is needed for ``decay`` < 1; the weights of all terms
    count in the denominator.

    Args:
        x: [..., N], float32 or float64; half-precision tensors are computed in float32.
        decay: d in [0, 1]; 0 is the maximum, 1 the mean.

    Returns:
        [...], float32 or float64.

    Raises:
        ValueError: ``decay`` outside [0, 1], or no element to pool.

    Source: Qiu, arXiv 1809.08264 (global weighted rank pooling); docs/method.md section 3.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must lie in [0, 1], got {decay!r}")
    length = x.shape[-1]
    if length == 0:
        raise ValueError(f"x: no element to pool, its shape is {tuple(x.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    if decay == 1:
        return x.mean(-1)
    if decay == 0:
        return x.amax(-1)
    kept = kept_ranks(length, decay)
    top = x.topk(kept, dim=-1, sorted=True).values
    # From log d: in float32 a d close to 1 would lose the digits of 1 - d, which the far ranks depend on.
    log_decay = math.log(decay)
    weights = torch.exp(torch.arange(kept, dtype=x.dtype, device=x.device) * log_decay)
    return (top * weights).sum(-1) * (math.expm1(log_decay) / math.expm1(length * log_decay))
