"""The foreground warm-up: epochs in which the background is replaced at random, so that only the foreground can be learned."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

WarmupBackground = Literal["noise", "smooth", "swap"]
WARMUP_BACKGROUNDS: tuple[str, ...] = get_args(WarmupBackground)


def replace_background(
    images: Tensor,
    masks: Tensor,
    generator: torch.Generator,
    low: Any = 0.0,
    high: Any = 1.0,
    *,
    kind: WarmupBackground = "noise",
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """Replaces everything outside the foreground, by noise of random amplitude per image or by the background of another one.

    Args:
        images: [B, C, H, W] in [low, high].
        masks: [B, 1, H, W], 1 = foreground.
        generator: CPU generator of the draws.
        low: Lower end of the pixel range, a number or one per channel.
        high: Upper end.
        kind: ``"noise"``: uniform white noise from ``low`` upwards; ``"smooth"``: :func:`smooth_noise`; ``"swap"``:
            :func:`swapped_backgrounds`, without a draw.
        first: The position of these images in a batch of which other processes hold the rest.
        total: Size of that batch; None = ``images`` is all of it.

    Returns:
        [B, C, H, W], the foreground as in ``images``, the rest in [low, high].

    Raises:
        ValueError: an unknown kind, or a single image whose background is to be swapped.
    """
    if kind not in WARMUP_BACKGROUNDS:
        raise ValueError(f"kind: expected one of {', '.join(WARMUP_BACKGROUNDS)}, got {kind!r}")
    if kind == "swap":
        return torch.where(masks > 0, images, swapped_backgrounds(images, masks))
    total = len(images) if total is None else total
    rows = slice(first, first + len(images))
    if kind == "smooth":
        noise = smooth_noise((total, *images.shape[1:]), generator, rows)
    else:
        noise = torch.rand(total, *images.shape[1:], generator=generator)
        noise = (noise * torch.rand(total, 1, 1, 1, generator=generator))[rows]
    low, high = (torch.as_tensor(end, dtype=noise.dtype).reshape(-1, 1, 1) for end in (low, high))
    return torch.where(masks > 0, images, (low + (high - low) * noise).to(images))


def swapped_backgrounds(images: Tensor, masks: Tensor) -> Tensor:
    """The background of each image's neighbour: the first two exchange their backgrounds, the next two, and so on.

    The neighbour's foreground is filled with the mean of its background. In batches of random order the backgrounds are then those of
    random other images and uninformative about the class. The last of an odd number takes the first one's. (In a batch of several parts
    each part swaps by itself: the same as the whole if the parts have even sizes.)

    Args:
        images: [B, C, H, W].
        masks: [B, 1, H, W], 1 = foreground.

    Returns:
        [B, C, H, W].

    Raises:
        ValueError: fewer than two images.

    Source: Xiao, Engstrom, Ilyas, Madry, Noise or Signal, ICLR 2021 ("Mixed-Rand"; there the hole is filled by tiles of the background).
    """
    if len(images) < 2:
        raise ValueError(f"images: backgrounds can be swapped among two or more at a time, got {len(images)}")
    background = (masks <= 0).to(images)
    area = background.sum((2, 3), keepdim=True)
    mean = (images * background).sum((2, 3), keepdim=True) / area.clamp(min=1)
    # Without any background of its own: the mean of the image.
    mean = torch.where(area > 0, mean, images.mean((2, 3), keepdim=True))
    neighbours = torch.arange(len(images), device=images.device) ^ 1
    neighbours[neighbours >= len(images)] = 0
    return torch.where(masks > 0, mean, images)[neighbours]


def smooth_noise(shape: tuple[int, ...], generator: torch.Generator, rows: slice = slice(None)) -> Tensor:
    """Noise of several scales: grids of 2, 4, 8, ... points a side, to one every two pixels at most, each with an amplitude of its own.

    The scales are equally strong on average, as in natural images, whose power falls with the square of the frequency. A finer grid would
    be white noise.

    Args:
        shape: (N, C, H, W) of the batch that is drawn.
        generator: CPU generator of the draws.
        rows: The images wanted; the draws are those of the whole batch.

    Returns:
        float32 [rows, C, H, W] in [0, 1]: per image and channel a grey level, uniform in [0, 1], plus the sum over the scales of uniform
        noise in [-a/2, a/2], bilinear between the grid's points, a uniform in [0, 1] per image and scale; clipped.

    Source: Field 1987 (the spectrum of natural images); the recipe is ours.
    """
    count, channels, *size = shape
    noise = torch.rand(count, channels, 1, 1, generator=generator)[rows].expand(-1, -1, *size).clone()
    side = 2
    while side == 2 or 2 * side <= max(size):
        grid = [min(side, length) for length in size]
        cells = torch.rand(count, channels, *grid, generator=generator)[rows] - 0.5
        amplitude = torch.rand(count, 1, 1, 1, generator=generator)[rows]
        noise += F.interpolate(amplitude * cells, size, mode="bilinear", align_corners=True)
        side *= 2
    return noise.clamp_(0, 1)
