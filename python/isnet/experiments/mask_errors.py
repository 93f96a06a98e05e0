"""Masks that are wrong in known ways: grown, shrunk, moved, missing, or made by a segmenter that saw a part of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from isnet._seeds import stream_seed

Kind = Literal["exact", "grown", "shrunk", "moved", "missing", "segmenter"]
Policy = Literal["full", "skip"]


class MaskError(NamedTuple):
    """How masks are wrong.

    Attributes:
        kind: ``"grown"``, ``"shrunk"`` and ``"moved"`` by ``amount`` pixels, ``"missing"``: ``amount`` % of the images have none,
            ``"segmenter"``: ``amount`` % of the images have exact ones, the rest those of a segmenter that was trained on these.
        amount: See there.
        policy: The effect of a missing mask: the whole image is foreground, or the image is left out (the option ``mask_policy``).
    """

    kind: Kind = "exact"
    amount: int = 0
    policy: Policy = "full"


# By the names of the settings, in the order of the tables.
ERRORS: Mapping[str, MaskError] = {
    "exact": MaskError(),
    **{f"grown by {n}": MaskError("grown", n) for n in (1, 2, 4)},
    **{f"shrunk by {n}": MaskError("shrunk", n) for n in (1, 2)},
    **{f"moved by {n}": MaskError("moved", n) for n in (1, 2, 4)},
    **{f"{n} % missing, whole image": MaskError("missing", n) for n in (10, 25, 50)},
    **{f"{n} % missing, left out": MaskError("missing", n, "skip") for n in (10, 25, 50)},
    **{f"segmenter from {n} %": MaskError("segmenter", n) for n in (10, 25)},
}


def altered(masks: Tensor, error: MaskError, seed: int, *, scale: float = 1.0) -> Tensor:
    """Masks with an error of form.

    Args:
        masks: [N, 1, H, W] of 0 and 1.
        error: ``"grown"`` and ``"shrunk"`` act on a square neighbourhood; a mask is not shrunk further than something is left of it.
            ``"moved"``: by the amount along each axis, in one of the four diagonal directions, drawn for each mask. Other kinds change
            nothing.
        seed: Of the draws.
        scale: Pixels of these masks to a pixel of the error.
    """
    pixels = round(scale * error.amount)
    if error.kind == "grown":
        return F.max_pool2d(masks, 2 * pixels + 1, 1, pixels)
    if error.kind == "shrunk":
        for _ in range(pixels):  # pixels outside the image count as foreground
            less = -F.max_pool2d(-masks, 3, 1, 1)
            masks = torch.where(less.flatten(1).any(1)[:, None, None, None], less, masks)
        return masks
    if error.kind == "moved":
        generator = torch.Generator().manual_seed(stream_seed(seed, "moved masks"))
        ways = torch.randint(2, (len(masks), 2), generator=generator) * 2 * pixels
        around, (height, width) = F.pad(masks, (pixels,) * 4), masks.shape[2:]
        return torch.stack(
            [one[:, y : y + height, x : x + width] for one, (y, x) in zip(around, ways.tolist(), strict=True)]
        )
    return masks


def without_masks(count: int, error: MaskError, seed: int) -> Tensor:
    """Which of ``count`` images have no mask of their own, bool [count]: a part for ``"missing"``, all but a part for ``"segmenter"``."""
    share = {"missing": error.amount, "segmenter": 100 - error.amount}.get(error.kind, 0)
    generator = torch.Generator().manual_seed(stream_seed(seed, "images without masks"))
    # One order for all shares: those without a mask at 10 % are without one at 25 %, too.
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=generator)[: round(count * share / 100)]] = True
    return chosen


def dice(masks: Tensor, truth: Tensor) -> float:
    """Mean Dice coefficient of masks [N, 1, H, W] of 0 and 1; two empty ones agree."""
    both = (masks * truth).flatten(1).sum(1)
    either = (masks + truth).flatten(1).sum(1)
    return float(torch.where(either > 0, 2 * both / either.clamp(min=1), torch.ones_like(either)).mean())
