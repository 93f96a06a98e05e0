"""Images with labels and foreground masks, in the form that the training loop takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from isnet._seeds import seeded, stream_seed
from isnet.data.augmentation import joint_transform
from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.mask_reading import MaskReading, MaskValues
from isnet.data.pixels import check_places, mask_reading, read_image, read_mask
from isnet.data.table import DataError, ImageTable, Record

Example = tuple[Tensor, Tensor, Tensor]  # image [C, H, W], label [] or labels [K], mask [1, H, W]
MaskPolicy = Literal["error", "skip", "full"]
Resize = Literal["stretch", "pad"]
Segmenter = Callable[[Tensor], Tensor]


class MaskError(ValueError):
    """A foreground mask that is missing, unreadable, of another shape than its image, or empty; the text names the file."""


class MaskedImages(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """The images of a table, read on demand.

    Args:
        table: The images.
        size: (height, width) to which they are resized; an int: square.
        channels: 1 or 3.
        mask_policy: The effect of a missing, unreadable, mismatched or empty mask: ``"error"``; ``"full"``: the whole image counts as
            foreground; ``"skip"`` is settled beforehand by :func:`isnet.data.audit`, which drops such images.
        need_masks: Splits whose images must have masks; None: all. Elsewhere a missing mask comes out as one without foreground.
        foreground_values: Which values of the masks are foreground: numbers, or texts as ``"1"``, ``"128-255"``, ``"#ff0000"``; by default
            what :func:`isnet.data.read_mask` finds.
        void: A number of the masks that stands for void, as 255 often does, and is background.
        resize_masks: Whether a mask of another size than its image, but of its shape, is brought to the image's size (nearest pixel).
        segmenter: Makes the mask of an image that has none: from [C, H, W] in [0, 1], before resizing, to [1, H, W] or [H, W],
            foreground where it is > 0.5.
        resize: ``"stretch"`` to the size, or ``"pad"`` with zeros to keep the aspect ratio.
        mean, std: Per channel; pixels become (x - mean) / std at the very end.
        transform: Augmentation of image [C, H, W] in [0, 1] and mask [1, H, W] together, after resizing: :class:`Augmentation`, a
            transform of torchvision (v2), MONAI (dictionary keys image, mask) or albumentations, or any callable from (image, mask) to
            both; see :func:`joint_transform`. Its draws follow from seed, epoch and image alone, as far as they come from global
            generators (PyTorch, NumPy, Python), or it has ``set_random_state(seed=)`` or ``set_random_seed(seed)``.
        seed: Of the augmentation.

    Attributes:
        labels: int64 [N], or float32 [N, K] for a multi-label table.
        sources: Where each image comes from.
        groups: Its group (for example a patient), ``""``: alone.
        masked: Indices of the images that have masks, or a segmenter to make them, and none that was found unusable.

    Raises:
        DataError: a table without images, or another argument out of range.
    """

    def __init__(
        self,
        table: ImageTable,
        size: int | tuple[int, int],
        *,
        channels: int = 1,
        mask_policy: MaskPolicy = "error",
        need_masks: Collection[str] | None = None,
        foreground_values: Collection[float | str] = (),
        void: int | None = None,
        resize_masks: bool = False,
        segmenter: Segmenter | None = None,
        resize: Resize = "stretch",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        transform: Callable[..., Any] | None = None,
        seed: int = 0,
    ) -> None:
        if not table.records:
            raise DataError("table: expected at least one image")
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        if min(self.size) < 1:
            raise DataError(f"size: expected a positive number or (height, width), got {size!r}")
        for name, value, choices in (("mask_policy", mask_policy, MaskPolicy), ("resize", resize, Resize)):
            if value not in get_args(choices):
                raise DataError(f"{name}: expected one of {', '.join(get_args(choices))}, got {value!r}")
        if (mean is None) != (std is None) or any(len(v) != channels for v in (mean, std) if v is not None):
            raise DataError(f"mean, std: expected both, with {channels} numbers each, got {mean!r} and {std!r}")
        self.table, self.channels, self.mask_policy, self.segmenter = table, channels, mask_policy, segmenter
        self.resize, self.transform, self.seed, self.epoch = resize, transform, seed, 0
        self.mean = None if mean is None else torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = None if std is None else torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self.need_masks, self.resize_masks = need_masks, resize_masks
        self.foreground_values, self.void = foreground_values, void
        try:
            MaskValues.of(foreground_values, void)
        except ValueError as error:
            raise DataError(str(error)) from error
        self.sources = [record.source for record in table.records]
        self.groups = [record.group for record in table.records]
        self.masked = [index for index, record in enumerate(table.records) if not self._lacks_mask(record)]
        labels = [record.label for record in table.records]
        self.labels = torch.tensor(labels, dtype=torch.float32 if table.multi_label else torch.int64)

    @property
    def contents(self) -> list[FileRef]:
        """What the set shows, to compare it with others: the images' files, by absolute path."""
        return [replace(record.image, path=record.image.path.resolve()) for record in self.table.records]

    def __len__(self) -> int:
        return len(self.table.records)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the draws of the augmentation.

        :func:`isnet.training.fit` and :mod:`isnet.lightning` call it; a loop of your own must, before it asks a loader for the epoch's
        first batch. Persistent workers do not notice it.
        """
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """(image [channels, H, W], label [] or [K], mask [1, H, W]).

        Raises:
            UnreadableFileError: the image cannot be read.
            MaskError: the mask cannot be used and ``mask_policy`` is not ``"full"``.
        """
        record = self.table.records[index]
        image = read_image(record.image, self.channels)
        try:
            image, mask = self.fit(record, image)
        except MaskError:
            if self.mask_policy != "full":
                raise
            image = self._fit(image, torch.ones_like(image[:1]))[0]
            mask = torch.ones_like(image[:1])
        if self.transform is not None:
            image, mask = self._augment(image, mask, index)
        if self.mean is not None and self.std is not None:
            image = (image - self.mean) / self.std
        return image.contiguous(), self.labels[index], mask.contiguous()

    def fit(self, record: Record, image: Tensor) -> tuple[Tensor, Tensor]:
        """An image as read, and its mask, both at the size of the set.

        Raises:
            MaskError: the mask cannot be used.
            DataError: the segmenter fails.
        """
        if self._lacks_mask(record) and self.need_masks is not None and record.split not in self.need_masks:
            return self._fit(image, torch.zeros_like(image[:1]))
        image, mask = self._fit(image, self._mask(record, image))
        if not bool(mask.any()):
            raise MaskError(f"{_mask_name(record)}: no foreground{self._why_empty(record)}")
        return image, mask

    def _lacks_mask(self, record: Record) -> bool:
        """Whether there is no usable mask and nothing to make one."""
        return record.bad_mask or (record.mask is None and self.segmenter is None)

    def _mask(self, record: Record, image: Tensor) -> Tensor:
        if record.mask is None:
            if self.segmenter is None:
                raise MaskError(f"{record.image}: no mask")
            try:
                mask = torch.as_tensor(self.segmenter(image)).detach().float().cpu()
            except Exception as error:  # it is not ours: errors of every kind; no mask policy allows them
                name = getattr(self.segmenter, "__qualname__", type(self.segmenter).__qualname__)
                raise DataError(
                    f"{record.image}: the segmenter {name} failed ({type(error).__name__}: {error})"
                ) from error
            mask = (mask[None] if mask.dim() == 2 else mask) > 0.5
            if mask.shape != image[:1].shape:
                raise MaskError(
                    f"{record.image}: the segmenter gave a mask of shape {list(mask.shape)} for an image of {list(image.shape)}"
                )
            return mask.float()
        try:
            mask = read_mask(record.mask, self.foreground_values, self.void)
            check_places(record.image, record.mask)
        except UnreadableFileError as error:
            raise MaskError(str(error)) from error
        return mask if mask.shape[1:] == image.shape[1:] else self._resized(record, mask, image)

    def _resized(self, record: Record, mask: Tensor, image: Tensor) -> Tensor:
        """The mask at the size of its image.

        Raises:
            MaskError: it is not allowed, or the sides have other proportions, by more than 1 % and more than a pixel.
        """
        sizes = f"a mask of {_sides(mask)} pixels for an image of {_sides(image)} pixels ({record.image})"
        (rows, columns), (height, width) = mask.shape[1:], image.shape[1:]
        if abs(rows - height * columns / width) > max(1, 0.01 * rows):
            raise MaskError(f"{record.mask}: {sizes}; the proportions differ, so that it cannot be resized")
        if not self.resize_masks:
            raise MaskError(f"{record.mask}: {sizes}; --resize-masks (resize_masks=True) brings it to that size")
        return F.interpolate(mask[None], (height, width), mode="nearest-exact")[0]

    def reading(self, record: Record) -> MaskReading | None:
        """How the mask of an image is read; None if there is no file of one. See :func:`isnet.data.mask_reading`.

        Raises:
            MaskError: it cannot be read.
        """
        if record.mask is None:
            return None
        try:
            return mask_reading(record.mask, self.foreground_values, self.void)
        except UnreadableFileError as error:
            raise MaskError(str(error)) from error

    def _why_empty(self, record: Record) -> str:
        """The values of a mask that has no foreground, as the end of a sentence."""
        found = None if record.mask is None else self.reading(record)
        return f" ({found})" if found is not None and found.found else ""

    def _fit(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Both at the size of the set; a pixel is foreground if at least half of it was."""
        height, width = image.shape[1:]
        if self.resize == "pad":
            scale = min(self.size[0] / height, self.size[1] / width)
            inner = (max(1, round(height * scale)), max(1, round(width * scale)))
        else:
            inner = (self.size[0], self.size[1])
        if inner != (height, width):
            image = F.interpolate(image[None], inner, mode="bilinear", antialias=True, align_corners=False)[0].clamp(
                0, 1
            )
            shrunk = F.interpolate(mask[None], inner, mode="bilinear", antialias=True, align_corners=False)[0]
            mask = (shrunk >= 0.5).float()
        rows, columns = self.size[0] - inner[0], self.size[1] - inner[1]
        if rows or columns:
            around = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
            image, mask = F.pad(image, around), F.pad(mask, around)
        return image, mask

    def _augment(self, image: Tensor, mask: Tensor, index: int) -> tuple[Tensor, Tensor]:
        assert self.transform is not None
        seed = stream_seed(self.seed, "augmentation", self.epoch, index)
        with seeded(seed):
            if hasattr(self.transform, "set_random_state"):  # MONAI
                self.transform.set_random_state(seed=seed % 2**32)
            elif hasattr(self.transform, "set_random_seed"):  # albumentations
                self.transform.set_random_seed(seed % 2**32)
            changed, moved = joint_transform(self.transform)(image, mask)
        moved = (moved > 0.5).to(mask)
        # A foreground that has left the picture teaches nothing: the image stays as it was.
        return (changed, moved) if bool(moved.any()) or not bool(mask.any()) else (image, mask)


def _mask_name(record: Record) -> FileRef:
    return record.image if record.mask is None else record.mask


def _sides(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape[1:])


def pixel_range(mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple[Any, Any]:
    """The range of pixels of [0, 1] after (x - mean) / std: numbers, or one per channel."""
    if mean is None or std is None:
        return 0.0, 1.0
    return tuple(-m / s for m, s in zip(mean, std, strict=True)), tuple(
        (1 - m) / s for m, s in zip(mean, std, strict=True)
    )
