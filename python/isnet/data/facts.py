"""What is noted about each image and mask while they are read once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from isnet.data.files import UnreadableFileError
from isnet.data.mask_reading import MaskReading
from isnet.data.masked_images import MaskedImages, MaskError
from isnet.data.pixels import read_image

Trouble = Literal["image", "mask"]
Progress = Callable[[Iterable[int]], Iterable[int]]
DARK, LIGHT = 0.02, 0.98  # pixels of [0, 1] beyond these show nothing
_WORTH = 200  # images from which on further processes pay
_MOST = 2  # of these processes


class Problem(NamedTuple):
    """An image that cannot be used: ``text`` names the file, ``row`` its place in the table."""

    row: int
    trouble: Trouble
    text: str


class MaskFacts(NamedTuple):
    """What is noted about a mask, at the size for the network.

    Attributes:
        foreground: Share of its pixels, in (0, 1].
        border: Share of the outermost pixels that are foreground.
        center: Share of the middle (half of each side) that is foreground.
        content: Digest of its pixels.
        reading: How its file was read; None: a segmenter made it.
    """

    foreground: float
    border: float
    center: float
    content: str
    reading: MaskReading | None = None


class Facts(NamedTuple):
    """What is noted about an image.

    Attributes:
        row: Its place in the table.
        problem: Why it cannot be used, if so.
        size: (height, width) of the file; None: it cannot be read.
        content: Digest of the decoded pixels and their shape; ``""``: it cannot be read.
        mean: Of the pixels, in [0, 1].
        dark, light: Shares of the pixels at most 0.02, and at least 0.98.
        colour: Whether its channels differ; None where only one was read.
        mask: None if there is no usable one.
    """

    row: int
    problem: Problem | None
    size: tuple[int, int] | None = None
    content: str = ""
    mean: float = float("nan")
    dark: float = float("nan")
    light: float = float("nan")
    colour: bool | None = None
    mask: MaskFacts | None = None


def examine(
    images: MaskedImages,
    progress: Progress = lambda rows: rows,
    rows: Iterable[int] | None = None,
    workers: int | None = None,
) -> list[Facts]:
    """Reads every image and mask of a set, once.

    Args:
        images: The set; its own policy and augmentation do not matter here, but which splits need masks does.
        progress: Wraps the indices, to show how far it is.
        rows: Indices of the images to read; None: all.
        workers: Processes that read, at most as many as there are processors; 0: this one. None: two, if the set is large.

    Returns:
        What was seen, in the order of the rows.
    """
    places = list(range(len(images)) if rows is None else rows)
    wanted = (_MOST if len(places) >= _WORTH else 0) if workers is None else workers
    workers = min(wanted, _processors())
    if workers < 2 or multiprocessing.current_process().daemon:
        with torch.no_grad():
            return [_examined(images, row) for row in progress(places)]
    loader = DataLoader(
        _Rows(images, places),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else the processes' seeds are drawn from the global one
    )
    found: Iterator[Facts] = iter(loader)
    return [next(found) for _ in progress(places)]


class _Rows(Dataset[Facts]):
    """The facts of these images, for the processes of a loader."""

    def __init__(self, images: MaskedImages, rows: Sequence[int]) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Facts:
        with torch.no_grad():
            return _examined(self.images, self.rows[index])


def _as_it_is(value: Any) -> Any:
    return value


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _examined(images: MaskedImages, row: int) -> Facts:
    record = images.table.records[row]
    try:
        image = read_image(record.image, images.channels)
        if not bool(torch.isfinite(image).all()):
            raise UnreadableFileError(f"{record.image}: pixels are not finite")
        if bool(image.max() == image.min()):
            raise UnreadableFileError(f"{record.image}: every pixel has the same value")
    except UnreadableFileError as error:
        return Facts(row, Problem(row, "image", str(error)))
    colour = bool((image[1:] != image[:1]).any()) if len(image) > 1 else None
    shown = image if colour else image[:1]
    facts = Facts(
        row,
        None,
        (int(image.shape[1]), int(image.shape[2])),
        _digest(shown),
        float(shown.mean()),
        float((shown <= DARK).float().mean()),
        float((shown >= LIGHT).float().mean()),
        colour,
    )
    try:
        _, mask = images.fit(record, image)
        if not bool(mask.any()):
            return facts
        return facts._replace(mask=_mask_facts(mask[0], images.reading(record)))
    except MaskError as error:
        return facts._replace(problem=Problem(row, "mask", str(error)))


def _mask_facts(mask: Tensor, reading: MaskReading | None) -> MaskFacts:
    height, width = mask.shape
    frame = torch.cat([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    middle = mask[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return MaskFacts(float(mask.mean()), float(frame.mean()), float(middle.mean()), _digest(mask.bool()), reading)


def _digest(tensor: Tensor) -> str:
    numbers = tensor.contiguous().numpy()
    return hashlib.blake2b(numbers.data, digest_size=16, person=repr(numbers.shape).encode()[:16]).hexdigest()
