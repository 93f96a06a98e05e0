"""The foreground warm-up: epochs in which the background is noise, so that only the foreground can be learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def replace_background(
    images: Tensor,
    masks: Tensor,
    generator: torch.Generator,
    low: Any = 0.0,
    high: Any = 1.0,
    *,
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """Replaces everything outside the foreground by uniform noise, of another amplitude in each image.

    Args:
        images: [B, C, H, W] in [low, high].
        masks: [B, 1, H, W], 1 = foreground.
        generator: CPU generator of the draws.
        low: Lower end of the pixel range, a number or one per channel.
        high: Upper end.
        first: Where these images stand in a batch of which other processes hold the rest.
        total: Size of that batch; None = ``images`` is all of it.
    """
    total = len(images) if total is None else total
    noise = torch.rand(total, *images.shape[1:], generator=generator)
    noise = (noise * torch.rand(total, 1, 1, 1, generator=generator))[first : first + len(images)]
    low, high = (torch.as_tensor(end, dtype=noise.dtype).reshape(-1, 1, 1) for end in (low, high))
    return torch.where(masks > 0, images, (low + (high - low) * noise).to(images))
