"""Augmentation of images together with their masks: flips and shifts by whole pixels here, the rest by MONAI's transforms; your own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isnet.data.table import DataError

JointTransform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def joint_transform(transform: Callable[..., Any]) -> JointTransform:
    """A transform of images and masks together, called as its library expects, according to the package of its class.

    - ``torchvision`` (v2): with ``tv_tensors.Image`` and ``tv_tensors.Mask``; a plain mask would stay unchanged.
    - ``monai`` (dictionary transforms): with ``{"image": image, "mask": mask}``.
    - ``albumentations``: with the keywords ``image`` [H, W, C] and ``mask`` [H, W], numpy arrays.
    - Anything else: with (image, mask).

    Args:
        transform: Yours.

    Returns:
        From image [C, H, W] and mask [1, H, W] to both.

    Raises:
        DataError: when called, if anything but an image and a mask of one size comes back.
    """
    packages = {base.__module__.partition(".")[0] for base in type(transform).__mro__}
    call = next((call for name, call in _CALLS.items() if name in packages), _plainly)

    def apply(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        result = call(transform, image, mask)
        if isinstance(result, (tuple, list)) and [isinstance(part, Tensor) for part in result] == [True, True]:
            changed, moved = (
                part.as_subclass(Tensor) for part in result
            )  # the libraries have tensor classes of their own
            if moved.shape[:1] == (1,) and changed.shape == (len(image), *moved.shape[1:]):
                return changed, moved
        parts = result if isinstance(result, (tuple, list)) else [result]
        got = ", ".join(str(list(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in parts)
        raise DataError(f"transform: expected image [{len(image)}, H, W] and mask [1, H, W] of one size, got {got}")

    return apply


def _plainly(transform: Any, image: Tensor, mask: Tensor) -> Any:
    return transform(image, mask)


def _torchvision(transform: Any, image: Tensor, mask: Tensor) -> Any:
    from torchvision import tv_tensors

    return transform(tv_tensors.Image(image), tv_tensors.Mask(mask))


def _monai(transform: Any, image: Tensor, mask: Tensor) -> Any:
    result = transform({"image": image, "mask": mask})
    return result["image"], result["mask"]


def _albumentations(transform: Any, image: Tensor, mask: Tensor) -> Any:
    result = transform(image=np.ascontiguousarray(image.movedim(0, -1)), mask=mask[0].numpy())
    changed, moved = result["image"], result["mask"]
    if not isinstance(changed, Tensor):  # as its ToTensorV2 makes
        changed = torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.atleast_3d(changed), -1, 0)))
    return changed, torch.as_tensor(np.ascontiguousarray(moved))[None]


_CALLS = {"torchvision": _torchvision, "monai": _monai, "albumentations": _albumentations}


# What each strength may be at most.
STRENGTHS: Mapping[str, float] = {"flip": 1, "rotate": 180, "shift": math.inf, "zoom": 0.9, "contrast": 0.9}


def check_strengths(strengths: Mapping[str, Any]) -> None:
    """Checks the arguments of an :class:`Augmentation`.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """
    for name, value in strengths.items():
        if name not in STRENGTHS:
            raise ValueError(f"expected {', '.join(STRENGTHS)}, got {name!r}")
        # Texts and booleans can come from the command line.
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= STRENGTHS[name]:
            raise ValueError(f"{name}: expected a number in [0, {STRENGTHS[name]}], got {value!r}")


class Augmentation:
    """Random flips, rotations, shifts, zooms and contrast, the geometric ones applied to image and mask alike.

    Args:
        flip: Probability of a mirror image (left and right).
        rotate: Largest rotation, degrees.
        shift: Largest displacement, pixels; in whole pixels, unless there are rotations or zooms as well. What moves in from outside is 0.
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

        check_strengths({"flip": flip, "rotate": rotate, "shift": shift, "zoom": zoom, "contrast": contrast})
        both = ["image", "mask"]
        steps: list[Any] = []
        # For small images MONAI's bookkeeping takes longer than their training step: what needs no resampling is done without MONAI.
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
        """Seeds the next draws of MONAI's transforms; flips and whole-pixel shifts draw from PyTorch's generator."""
        if self.steps is not None:
            self.steps.set_random_state(seed=seed)

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Image [C, H, W] in [0, 1] and mask [1, H, W], both changed in the same way."""
        if self.flip and float(torch.rand(())) < self.flip:
            image, mask = image.flip(-1), mask.flip(-1)
        if self.whole_pixels:
            down, right = torch.randint(-self.whole_pixels, self.whole_pixels + 1, (2,)).tolist()
            image, mask = (F.pad(part, (right, -right, down, -down)) for part in (image, mask))
        if self.steps is None:
            return image, mask
        image, mask = joint_transform(self.steps)(image, mask)
        return image.clamp(0, 1), mask
