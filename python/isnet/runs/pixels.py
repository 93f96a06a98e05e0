"""How a run sees images: the same from a file, an array or a data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from isnet.config import ImagesConfig, RunConfig
from isnet.data import DataError, FileRef, ImageTable, MaskedImages, MaskError, Record, UnreadableFileError
from isnet.runs.data import image_set

_LUMA = (0.299, 0.587, 0.114)
_FULL = {torch.uint8: 255, torch.uint16: 65535, torch.bool: 1}


def images_config(config: RunConfig) -> ImagesConfig:
    """The run's way from a file to the network, whatever data it was trained on.

    Raises:
        ValueError: the run's data have a range of pixels that files do not have.
    """
    data = config.data
    if isinstance(data, ImagesConfig):
        return replace(data, augment={}, mask_policy="error")
    channels, *size = data.image_shape
    if data.pixel_range != (0.0, 1.0):
        raise ValueError(f"data: images of files have pixels in [0, 1], those of this run in {data.pixel_range}")
    return ImagesConfig(
        size=(size[0], size[1]), channels=cast(Any, channels), classes=data.classes, multi_label=data.multi_label
    )


def record_set(config: ImagesConfig, records: Sequence[Record]) -> MaskedImages:
    """A data set of these images; where a mask is missing, it is empty. Labels may be unknown: they are not to be looked at."""
    label: Any = (0,) * len(config.classes) if config.multi_label else 0
    table = ImageTable(tuple(replace(r, label=label) for r in records), config.classes, config.multi_label)
    return image_set(config, table, need_masks=())


class Cases(Dataset[tuple[Tensor | None, Tensor | None, str]]):
    """Images whose files may be broken: (image [C, H, W], mask [1, H, W], what is wrong).

    The image is None if it cannot be read; the mask is None if there is none, or none of use.
    """

    def __init__(self, config: ImagesConfig, records: Sequence[Record]) -> None:
        self.masked = record_set(config, records)
        bare = replace(config, segmenter=None)
        self.bare = record_set(bare, [replace(record, mask=None) for record in records])
        self.has_mask = set(self.masked.masked)

    def __len__(self) -> int:
        return len(self.bare)

    def __getitem__(self, index: int) -> tuple[Tensor | None, Tensor | None, str]:
        trouble = ""
        try:
            if index in self.has_mask:
                try:
                    image, _, mask = self.masked[index]
                    return image, mask, trouble
                except (MaskError, DataError) as error:
                    trouble = _line(error)
            return self.bare[index][0], None, trouble
        except UnreadableFileError as error:
            return None, None, _line(error)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def preprocess(config: ImagesConfig, image: Any) -> Tensor:
    """The image as the network gets it.

    Args:
        config: Of the run.
        image: A file; a NumPy array or PIL image [H, W] or [H, W, C]; a tensor [H, W] or [C, H, W]. C is 1, 3, or 4 (its last, alpha, is
            dropped). Whole numbers of 8 or 16 bits are divided by their largest value; floating-point numbers lie in [0, 1] already.

    Returns:
        float32 [1, channels, height, width].

    Raises:
        UnreadableFileError: the file cannot be read.
        ValueError: an array of another shape or type, or numbers outside [0, 1] or not finite.
    """
    if isinstance(image, str | os.PathLike):
        return record_set(config, [Record(FileRef(Path(image)), 0)])[0][0][None]
    pixels = _pixels(image)
    if len(pixels) == 1 and config.channels == 3:
        pixels = pixels.expand(3, -1, -1).contiguous()
    elif len(pixels) == 3 and config.channels == 1:
        pixels = (pixels * torch.tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True)
    record = Record(FileRef(Path("array")), 0)
    images = record_set(config, [record])
    fitted = images.fit(record, pixels)[0]
    if images.mean is not None and images.std is not None:
        fitted = (fitted - images.mean) / images.std
    return fitted.contiguous()[None]


def _pixels(image: Any) -> Tensor:
    """float32 [1 or 3, H, W] in [0, 1]."""
    last = not isinstance(image, Tensor)  # where the channels stand
    if last:
        array = np.array(image)  # a copy: PIL's memory cannot be written
        if array.dtype.kind not in "biuf":
            raise ValueError(
                f"image: expected a file, an array of numbers, a PIL image or a tensor, got {type(image).__name__}"
            )
        if array.dtype == np.int32 and array.size and array.min() >= 0 and array.max() < 2**16:
            array = array.astype(np.uint16)  # PIL's mode I
        image = torch.from_numpy(array)
    pixels = image.detach().cpu()
    if pixels.dim() == 2:
        pixels = pixels[None]
    elif pixels.dim() == 3:
        pixels = pixels.movedim(-1, 0) if last else pixels
    if pixels.dim() != 3 or len(pixels) not in (1, 3, 4) or not pixels.numel():
        form = "[H, W] or [H, W, C]" if last else "[H, W] or [C, H, W]"
        raise ValueError(f"image: expected {form} with C of 1, 3 or 4, got shape {list(image.shape)}")
    pixels = pixels[:3] if len(pixels) == 4 else pixels
    if pixels.dtype in _FULL:
        return pixels.float() / _FULL[pixels.dtype]
    if not pixels.is_floating_point():
        raise ValueError(
            f"image: expected 8- or 16-bit numbers, or floating-point numbers in [0, 1], got {pixels.dtype}"
        )
    pixels = pixels.float()
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # NaN, too
        raise ValueError(
            f"image: floating-point pixels must lie in [0, 1], as files have them; got [{low:g}, {high:g}]"
        )
    return pixels
