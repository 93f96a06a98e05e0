"""Augmentation of images together with their masks, by MONAI's transforms."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


class Augmentation:
    """Random flips, rotations, shifts, zooms and contrast, the geometric ones applied to image and mask alike.

    Args:
        flip: Probability of a mirror image (left and right).
        rotate: Largest rotation, degrees.
        shift: Largest displacement, pixels.
        zoom: Largest relative change of size.
        contrast: Largest relative change of the exponent of a gamma curve, image only.

    Raises:
        ValueError: an argument out of range.
        ModuleNotFoundError: MONAI is not installed.
    """

    def __init__(
        self, flip: float = 0.0, rotate: float = 0.0, shift: float = 0.0, zoom: float = 0.0, contrast: float = 0.0
    ) -> None:
        from monai.transforms import Compose, RandAdjustContrastd, RandAffined, RandFlipd

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
        if flip:
            steps.append(RandFlipd(both, prob=flip, spatial_axis=1))
        if rotate or shift or zoom:
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
        self.steps = Compose(steps)

    def set_random_state(self, seed: int) -> None:
        """Makes the next draws follow from ``seed``."""
        self.steps.set_random_state(seed=seed)

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Image [C, H, W] in [0, 1] and mask [1, H, W], changed alike."""
        result = self.steps({"image": image, "mask": mask})
        image, mask = (
            result[key].as_tensor() if hasattr(result[key], "as_tensor") else result[key] for key in ("image", "mask")
        )
        return image.clamp(0, 1), mask
