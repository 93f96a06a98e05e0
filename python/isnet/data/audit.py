"""Looking at every image and mask of a set before training on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal, NamedTuple

import torch

from isnet.data.files import UnreadableFileError
from isnet.data.masked_images import MaskedImages, MaskError, MaskPolicy
from isnet.data.pixels import read_image
from isnet.data.table import TRAIN, DataError, ImageTable

Trouble = Literal["image", "mask"]
_NAMED = 5  # of many images or groups


class Problem(NamedTuple):
    """An image that cannot be used: ``text`` names the file, ``row`` its place in the table."""

    row: int
    trouble: Trouble
    text: str


def audit(
    images: MaskedImages,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda rows: rows,
    rows: Iterable[int] | None = None,
) -> list[Problem]:
    """Reads every image and mask of a set.

    Args:
        images: The set; its own policy and augmentation do not matter here, but which splits need masks does.
        progress: Wraps the indices, to show how far it is.
        rows: Indices of the images to read; None: all.

    Returns:
        What is wrong: images that cannot be read or are constant, and masks that are missing where they are needed, unreadable,
        of another shape or empty.
    """
    problems = []
    for index in progress(range(len(images)) if rows is None else rows):
        record = images.table.records[index]
        try:
            image = read_image(record.image, images.channels)
            if not bool(torch.isfinite(image).all()):
                raise UnreadableFileError(f"{record.image}: pixels are not finite")
            if bool(image.max() == image.min()):
                raise UnreadableFileError(f"{record.image}: every pixel has the same value")
        except UnreadableFileError as error:
            problems.append(Problem(index, "image", str(error)))
            continue
        try:
            images.fit(record, image)
        except MaskError as error:
            problems.append(Problem(index, "mask", str(error)))
    return problems


def review(table: ImageTable) -> tuple[list[str], list[str]]:
    """Looks at splits, classes and groups of a whole set; reads no file.

    Returns:
        What would go wrong in a training on it, and what is worth knowing.
    """
    wrong, worth = [], []
    train = [record.label for record in table.part(TRAIN).records]
    if not train:
        wrong.append(f"no training images; the splits are {', '.join(table.splits)}")
    elif table.multi_label:
        columns = zip(*(label for label in train if isinstance(label, tuple)), strict=True)
        for name, column in zip(table.classes, columns, strict=True):
            if len(set(column)) == 1:
                wrong.append(f"{'every' if column[0] else 'no'} training image has the label {name}")
    else:
        wrong += [f"no training image is of the class {name}" for i, name in enumerate(table.classes) if i not in train]
    if len(table.classes) == 1 and not table.multi_label:
        wrong.append(f"a single class: {table.classes[0]}")
    splits: dict[str, dict[str, None]] = {}
    for record in table.records:
        if record.group:
            splits.setdefault(record.group, {})[record.split] = None
    for split in table.splits[1:] if train else ():
        shared = [group for group, found in splits.items() if TRAIN in found and split in found]
        if shared:
            more = f" and {len(shared) - _NAMED} more" if len(shared) > _NAMED else ""
            worth.append(
                f"groups of both {TRAIN} and {split}: {', '.join(shared[:_NAMED])}{more}; scores there may be too high"
            )
    if table.unread:
        worth.append(f"columns that are not read: {', '.join(table.unread)}")
    return wrong, worth


def apply_policy(table: ImageTable, problems: Iterable[Problem], policy: MaskPolicy) -> ImageTable:
    """The table that training may use.

    Args:
        table: The set that was looked at.
        problems: What :func:`audit` found.
        policy: ``"error"``: any problem raises; ``"skip"``: images with a mask problem are dropped; ``"full"``: they stay,
            marked ``bad_mask``. Unreadable images raise under every policy but ``"skip"``, which drops them.

    Raises:
        DataError: a problem that the policy does not allow; the text lists the first ones.
    """
    problems = list(problems)
    fatal = [p for p in problems if policy == "error" or (policy == "full" and p.trouble == "image")]
    if fatal:
        shown = "; ".join(p.text for p in fatal[:_NAMED])
        more = f"; and {len(fatal) - _NAMED} more" if len(fatal) > _NAMED else ""
        raise DataError(f"{len(fatal)} of {len(table.records)} images cannot be used: {shown}{more}")
    bad = {p.row for p in problems}
    if policy == "full":
        marked = (replace(record, bad_mask=index in bad) for index, record in enumerate(table.records))
        return replace(table, records=tuple(marked))
    kept = tuple(record for index, record in enumerate(table.records) if index not in bad)
    if not kept:
        raise DataError("no image is left: every mask is missing, unreadable, mismatched or empty")
    return replace(table, records=kept)
