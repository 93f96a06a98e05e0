"""Which images there are, their labels and masks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from isnet.data.files import FileRef
from isnet.data.findings import Finding
from isnet.data.names import TRAIN, VALIDATION, DataError


@dataclass(frozen=True)
class Record:
    """One image.

    Attributes:
        image: Its file.
        label: Class index, or 0/1 numbers, one per label.
        mask: The file of its foreground mask, or None.
        source: Where it comes from (for example a hospital); scores are broken down by it.
        split: ``"train"``, ``"validation"``, or the name of a test set.
        group: Images of one group (for example a patient) stay together when a validation part is split off; empty: alone.
        bad_mask: Whether its mask was found unusable (mask policy ``"full"``): the whole image is foreground in training, and
            scores that need masks leave it out.
    """

    image: FileRef
    label: int | tuple[int, ...]
    mask: FileRef | None = None
    source: str = ""
    split: str = TRAIN
    group: str = ""
    bad_mask: bool = False


@dataclass(frozen=True)
class ImageTable:
    """The images of a data set.

    Attributes:
        records: One per image.
        classes: The names of the classes, or of the labels.
        multi_label: Whether each image has one decision per label instead of one class.
        unread: Columns of a manifest that are not read.
        findings: What was seen while the set was read: files left out, masks without an image, empty folders, ...
    """

    records: tuple[Record, ...]
    classes: tuple[str, ...]
    multi_label: bool = False
    unread: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(default=(), compare=False)

    def part(self, split: str) -> ImageTable:
        """The images of a split."""
        return replace(self, records=tuple(record for record in self.records if record.split == split))

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, training and validation first."""
        found = dict.fromkeys(record.split for record in self.records)
        return tuple(sorted(found, key=lambda name: (name != TRAIN, name != VALIDATION, name)))


def with_validation(table: ImageTable, share: float, seed: int = 0) -> ImageTable:
    """Moves a share of the training images to the validation split, if the set has none of its own.

    Groups stay together; the shares of the classes (of several labels: of their combinations) are kept as well as single draws allow.
    Classes and combinations too rare to give an image of their own give some together. The last group of a class, or of a label, stays
    in training.

    Args:
        table: The set.
        share: Of the training images, in [0, 1).
        seed: Of the choice.

    Raises:
        DataError: ``share`` out of range.
    """
    if not 0 <= share < 1:
        raise DataError(f"validation: expected a share in [0, 1), got {share}")
    if share == 0 or VALIDATION in table.splits:
        return table
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(table.records):
        if record.split == TRAIN:
            groups.setdefault(f"group {record.group}" if record.group else f"image {index}", []).append(index)
    by_label: dict[Any, list[list[int]]] = {}
    for members in groups.values():
        by_label.setdefault(table.records[members[0]].label, []).append(members)
    draw = _Draw(table, groups.values())
    generator = torch.Generator().manual_seed(seed)
    owed, spared = 0.0, list[list[int]]()
    for _, parts in sorted(by_label.items()):
        wanted = share * sum(map(len, parts))
        left = draw.take(parts, wanted, generator)
        spared += [members for members in parts if members[0] not in draw.chosen]
        owed += left if left == wanted else 0.0  # a class that gave something has given its share
    missing = share * sum(map(len, groups.values())) - len(draw.chosen)
    draw.take(spared, min(owed, missing), generator, overshoot=2.0)
    moved = (replace(r, split=VALIDATION) if i in draw.chosen else r for i, r in enumerate(table.records))
    return replace(table, records=tuple(moved))


class _Draw:
    """Draws groups of training images for validation, but never the last one of a class, or of either value of a label."""

    def __init__(self, table: ImageTable, groups: Iterable[Sequence[int]]) -> None:
        self.table, self.chosen = table, set[int]()
        self.left = Counter(name for group in groups for name in self._names(group))

    def _names(self, group: Sequence[int]) -> set[Any]:
        labels = [self.table.records[index].label for index in group]
        return {name for label in labels for name in (enumerate(label) if isinstance(label, tuple) else [label])}

    def take(
        self, groups: Sequence[Sequence[int]], wanted: float, generator: torch.Generator, overshoot: float = math.inf
    ) -> float:
        """Takes groups in random order until this many images are chosen, none of more than ``overshoot`` times what is missing.

        Returns:
            How many images are still missing.
        """
        for place in torch.randperm(len(groups), generator=generator).tolist():
            if wanted < 0.5:
                break
            group = groups[place]
            names = self._names(group)
            if len(group) <= overshoot * wanted and all(self.left[name] > 1 for name in names):
                self.left.subtract(names)
                self.chosen.update(group)
                wanted -= len(group)
        return wanted


def describe(table: ImageTable) -> list[tuple[str, str, int, dict[str, int]]]:
    """(split, source, images, images per class) of each split and source, for tables."""
    rows = []
    for split in table.splits:
        part = table.part(split).records
        for source in sorted({record.source for record in part}):
            members = [record for record in part if record.source == source]
            counts: Counter[str] = Counter()
            for record in members:
                present = (
                    [record.label] if isinstance(record.label, int) else [i for i, v in enumerate(record.label) if v]
                )
                counts.update(table.classes[i] for i in present)
            rows.append((split, source, len(members), {name: counts[name] for name in table.classes}))
    return rows
