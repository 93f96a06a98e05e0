"""Augmentation of images together with their masks: flips and shifts by whole pixels here, the rest by MONAI's transforms."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Augmentation:
    """Random flips, rotations, shifts, zooms and contrast, the geometric ones applied to image and mask alike.

    Args:
        flip: Probability of a mirror image (left and right).
        rotate: Largest rotation, degrees.
        shift: Largest displacement, pixels; in whole pixels, unless there are rotations or zooms as well. What moves in is 0.
        zoom: Largest relative change of size.
        contrast: Largest relative change of the exponent of a gamma curve, image only.

    Raises:
        ValueError: an argument out of range.
        ModuleNotFoundError: MONAI is not installed.
    """

    def __init__(
        self, flip: float = 0.0, rotate: float = 0.0, shift: float = 0.0, zoom: float = 0.0, contrast: float = 0.0
    ) -> None:
        from monai.transforms import Compose, RandAdjustContrastd, RandAffined

        limits = {
            "flip": (flip, 1),
            "rotate": (rotate, 180),
            "shift": (shift, math.inf),
            "zoom": (zoom, 0.9),
            "contrast": (contrast, 0.9),
        }
        for name, (value, most) in limits.items():
            if not 0 <= value <= most:
                raise ValueError(f"{name}: expected a number in [0, {most}], got {value}")
        both = ["image", "mask"]
        steps: list[Any] = []
        # For small images MONAI's bookkeeping takes longer than their training step: what needs no resampling is done without it.
        self.flip, self.whole_pixels = flip, 0 if rotate or zoom else round(shift)
        if rotate or zoom:
            steps.append(
                RandAffined(
                    both,
                    prob=1.0,
                    rotate_range=math.radians(rotate),
                    translate_range=(shift, shift),
                    scale_range=(zoom, zoom),
                    mode=("bilinear", "nearest"),
                    padding_mode="zeros",
                )
            )
        if contrast:
            steps.append(RandAdjustContrastd("image", prob=1.0, gamma=(1 - contrast, 1 + contrast)))
        self.steps = Compose(steps) if steps else None

    def set_random_state(self, seed: int) -> None:
        """Makes the next draws of MONAI's transforms follow from ``seed``; flips and whole-pixel shifts draw from PyTorch's generator."""
        if self.steps is not None:
            self.steps.set_random_state(seed=seed)

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Image [C, H, W] in [0, 1] and mask [1, H, W], changed alike."""
        if self.flip and float(torch.rand(())) < self.flip:
            image, mask = image.flip(-1), mask.flip(-1)
        if self.whole_pixels:
            down, right = torch.randint(-self.whole_pixels, self.whole_pixels + 1, (2,)).tolist()
            image, mask = (F.pad(part, (right, -right, down, -down)) for part in (image, mask))
        if self.steps is None:
            return image, mask
        result = self.steps({"image": image, "mask": mask})
        image, mask = (
            result[key].as_tensor() if hasattr(result[key], "as_tensor") else result[key] for key in ("image", "mask")
        )
        return image.clamp(0, 1), mask
