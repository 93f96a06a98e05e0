"""Which images there are, their labels and masks: read from folders, manifests or shards."""

from __future__ import annotations

import csv
import difflib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from isnet.data.files import IMAGE_SUFFIXES, FileRef, suffix_of
from isnet.data.shards import read_shards

TRAIN, VALIDATION = "train", "validation"
_SPLIT_NAMES = {TRAIN: TRAIN, "training": TRAIN, VALIDATION: VALIDATION, "val": VALIDATION, "valid": VALIDATION}
_COLUMNS = ("image", "mask", "label", "source", "split", "group")
_MASK_FOLDER = "masks"
_ALIKE = 0.75  # mass and mask, site and split are less similar than that


class DataError(ValueError):
    """Images, labels or masks that cannot be used; the text names the file or row."""


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
    """

    records: tuple[Record, ...]
    classes: tuple[str, ...]
    multi_label: bool = False
    unread: tuple[str, ...] = ()

    def part(self, split: str) -> ImageTable:
        """The images of a split."""
        return replace(self, records=tuple(record for record in self.records if record.split == split))

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, training and validation first."""
        found = dict.fromkeys(record.split for record in self.records)
        return tuple(sorted(found, key=lambda name: (name != TRAIN, name != VALIDATION, name)))


def read_table(
    path: str | os.PathLike[str], masks: str | os.PathLike[str] | None = None, labels: Sequence[str] = ()
) -> ImageTable:
    """Reads a folder, a manifest or shards, whichever ``path`` is.

    Args:
        path: An image folder (:func:`read_folder`), a ``.csv``, ``.tsv`` or ``.parquet`` manifest (:func:`read_manifest`), or
            a ``.tar`` shard or folder of shards (:func:`isnet.data.shards.read_shards`).
        masks: Folder of the masks, for an image folder only.
        labels: Label columns of a multi-label manifest only.

    Raises:
        DataError: nothing usable there, or an argument that does not apply to it.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"data: {path} does not exist")
    manifest = path.is_file() and path.suffix in (".csv", ".tsv", ".parquet")
    shards = path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar")))
    if masks is not None and (manifest or shards):
        own = "a manifest names them in its column mask" if manifest else "shards hold them as KEY.mask.png"
        raise DataError(f"masks: a folder of masks is for an image folder, but {path} is none: {own}")
    if labels and not manifest:
        raise DataError(f"label: columns are those of a manifest, but {path} is none")
    if manifest:
        return read_manifest(path, labels)
    if shards:
        return _from_shards(path)
    if path.is_dir():
        return read_folder(path, masks)
    raise DataError(f"data: expected a folder, a .csv, .tsv or .parquet manifest or .tar shards, got {path}")


def read_folder(root: str | os.PathLike[str], masks: str | os.PathLike[str] | None = None) -> ImageTable:
    """Class folders of images, and a second tree of the same shape with the masks.

    ``root/CLASS/name.png`` or ``root/SPLIT/CLASS/name.png`` (split ``train``, ``validation`` or any name of a test set), either
    also below ``root/images``; masks at ``masks/...`` under the same names, any readable suffix. Splits are sources, too. Hidden files and
    folders (``.ipynb_checkpoints``, macOS's ``._name.png``) are left out.

    Args:
        root: Folder of the images.
        masks: Folder of the masks; by default ``root/masks`` if there is one.

    Raises:
        DataError: no images, or mixed depths.
    """
    root = Path(root)
    images = root / "images" if (root / "images").is_dir() else root
    mask_root = Path(masks) if masks is not None else root / _MASK_FOLDER
    if masks is not None and not mask_root.is_dir():
        raise DataError(f"masks: {mask_root} is no folder")
    files = [path for path in _image_files(images) if mask_root not in path.parents]
    depths = {len(path.relative_to(images).parts) for path in files}
    if depths not in ({2}, {3}):
        found = f"images at depths {sorted(depths)}" if files else "no images"
        raise DataError(f"data: expected {images}/CLASS/IMAGE or {images}/SPLIT/CLASS/IMAGE, found {found}")
    by_stem: dict[tuple[str, ...], FileRef] = {}
    if mask_root.is_dir():
        for path in _image_files(mask_root):
            by_stem[_key(path.relative_to(mask_root))] = FileRef(path)
    classes = tuple(sorted({path.parent.name for path in files}))
    records = []
    for path in files:
        parts = path.relative_to(images)
        split = _split(parts.parts[0]) if len(parts.parts) == 3 else TRAIN
        source = parts.parts[0] if len(parts.parts) == 3 else ""
        label = classes.index(path.parent.name)
        records.append(Record(FileRef(path), label, by_stem.get(_key(parts)), source, split))
    return ImageTable(tuple(records), classes)


def _image_files(root: Path) -> list[Path]:
    """Those below ``root``, sorted, without hidden ones."""
    found = (path for path in root.rglob("*") if suffix_of(path.name) in IMAGE_SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def read_manifest(path: str | os.PathLike[str], labels: Sequence[str] = ()) -> ImageTable:
    """A table with a row per image: columns ``image``, ``label``, and optionally ``mask``, ``source``, ``split``, ``group``.

    Args:
        path: CSV, TSV or Parquet (the latter needs pandas and pyarrow). Relative files are taken from its folder.
        labels: Columns with 0/1 numbers of a multi-label set, in place of ``label``; by default every further column if there
            is no ``label``. Further columns are not read.

    Raises:
        DataError: a missing column, one whose name seems to mean a missing one, an empty cell or a label that is neither 0 nor 1.
    """
    path = Path(path)
    rows = _rows(path)
    if not rows:
        raise DataError(f"{path}: no rows")
    columns = list(rows[0])
    if "image" not in columns:
        near = difflib.get_close_matches("image", columns, n=1)
        raise DataError(
            f"{path}: no column 'image'; its columns are {', '.join(columns)}{f' ({near[0]}?)' if near else ''}"
        )
    several = list(labels) or ([] if "label" in columns else [name for name in columns if name not in _COLUMNS])
    missing = [name for name in several or ["label"] if name not in columns]
    if missing or not (several or "label" in columns):
        raise DataError(f"{path}: no column {', '.join(missing) or 'label'}; its columns are {', '.join(columns)}")
    unread = tuple(name for name in columns if name not in (*_COLUMNS, *several))
    for name in unread:
        meant = _meant(
            name, [known for known in _COLUMNS if known not in columns and not (several and known == "label")]
        )
        if meant:
            raise DataError(
                f"{path}: column {name!r} is not read: if it is meant as {meant!r}, call it so, else rename it"
            )
    names = tuple(several) if several else _class_names(rows, path)
    records = []
    for number, row in enumerate(rows, start=2):
        where = f"{path}, row {number}"
        if not row["image"]:
            raise DataError(f"{where}: no image")
        label = tuple(_bit(row[name], f"{where}, column {name}") for name in several) or names.index(row["label"])
        mask = row.get("mask")
        records.append(
            Record(
                FileRef(path.parent / row["image"]),
                label,
                FileRef(path.parent / mask) if mask else None,
                row.get("source", ""),
                _split(row.get("split") or TRAIN),
                row.get("group", ""),
            )
        )
    return ImageTable(tuple(records), names, bool(several), unread)


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


def _from_shards(path: Path) -> ImageTable:
    samples = read_shards(path)
    labels = [sample.label for sample in samples]
    several = [isinstance(label, (list, tuple)) for label in labels]
    if any(several) and not all(several):
        raise DataError(f"{path}: some samples have one label and some several")
    if all(several):
        lengths = {len(label) for label in labels}
        if len(lengths) != 1:
            raise DataError(f"{path}: samples have {sorted(lengths)} labels")
        names: tuple[str, ...] = tuple(str(index) for index in range(lengths.pop()))
        numbers: list[Any] = [tuple(_bit(str(v), f"{path}") for v in label) for label in labels]
    else:
        names = _sorted_names({str(label) for label in labels})
        numbers = [names.index(str(label)) for label in labels]
    records = tuple(
        Record(sample.image, number, sample.mask, sample.source, _split(sample.split or TRAIN), sample.group)
        for sample, number in zip(samples, numbers, strict=True)
    )
    return ImageTable(records, names, multi_label=all(several))


def _rows(path: Path) -> list[Mapping[str, str]]:
    if path.suffix == ".parquet":
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise DataError(f"{path}: Parquet needs the extra tables: pip install pandas pyarrow ({error})") from error
        frame = pandas.read_parquet(path)
        return [
            {key: "" if pandas.isna(value) else str(value) for key, value in row.items()}
            for row in frame.to_dict("records")
        ]
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", restkey="", restval="")
        return [{key: str(value).strip() for key, value in row.items() if key} for row in reader]


def _meant(name: str, missing: Iterable[str]) -> str | None:
    """The missing column that ``name`` seems to stand for: ``spilt``, ``Split``, ``mask_path``."""
    name = name.lower()
    for known in missing:
        alike = difflib.SequenceMatcher(None, name, known).ratio() > _ALIKE
        if alike or sorted(name) == sorted(known) or re.match(rf"{known}[ _-]", name):
            return known
    return None


def _class_names(rows: Iterable[Mapping[str, str]], path: Path) -> tuple[str, ...]:
    empty = next((number for number, row in enumerate(rows, start=2) if not row["label"]), None)
    if empty is not None:
        raise DataError(f"{path}, row {empty}: no label")
    return _sorted_names({row["label"] for row in rows})


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    """Numbers in their own order, other names alphabetically."""
    return tuple(sorted(names, key=lambda name: (0, int(name), "") if name.isdigit() else (1, 0, name)))


def _bit(text: str, where: str) -> int:
    try:
        value = float(json.loads(text.lower()))
    except (ValueError, TypeError):
        value = float("nan")
    if value not in (0.0, 1.0):
        raise DataError(f"{where}: a label must be 0 or 1, got {text!r}")
    return int(value)


def _split(name: str) -> str:
    return _SPLIT_NAMES.get(name.lower(), name)


def _key(path: Path) -> tuple[str, ...]:
    return (*path.parts[:-1], path.name[: -len(suffix_of(path.name))].removesuffix("_mask"))
