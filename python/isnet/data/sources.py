"""Images that a trained network is asked about: files, patterns, folders of any kind, manifests, shards; with or without labels."""

from __future__ import annotations

import glob
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from isnet.data.files import FileRef, suffix_of
from isnet.data.findings import Finding, counted, some
from isnet.data.names import DataError, columns_by_name, tidy
from isnet.data.readers import image_suffixes
from isnet.data.sets import read_table
from isnet.data.sets.folder import images_below, is_image
from isnet.data.sets.manifest import COLUMNS, bits, cell, records_of
from isnet.data.sets.pairs import pair
from isnet.data.sets.rows import SUFFIXES, read_rows
from isnet.data.table import ImageTable, Record

UNKNOWN = -1  # the label of an image whose class is not known


@dataclass(frozen=True)
class Sources:
    """Images to ask about, in the order of the sources.

    Attributes:
        records: One per image; a label is a class index, 0/1 numbers, or :data:`UNKNOWN`.
        unknown: Class names that the sources have and the network does not; their images have no label.
        notes: What was left out, a line each.
    """

    records: tuple[Record, ...]
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _Found(NamedTuple):
    records: Sequence[Record]
    unknown: Sequence[str] = ()
    findings: Sequence[Finding] = ()


def read_sources(
    places: Iterable[str | os.PathLike[str]],
    classes: Sequence[str],
    *,
    multi_label: bool = False,
    masks: str | os.PathLike[str] | None = None,
) -> Sources:
    """Lists the images of files, patterns (``scans/*.png``), folders, manifests and tar shards; decodes none.

    What is an image in a folder, or under a pattern, its content decides, where its suffix says nothing
    (:func:`isnet.data.readers.kind_of`).

    Args:
        places: The sources. A file of any suffix counts as an image, unless it is a manifest or a shard.
        classes: Of the network. Labels of folders, manifests and shards are matched by name.
        multi_label: Whether the network has one decision per label.
        masks: Folder of the masks; images have theirs under the same name there (:func:`isnet.data.sets.pairs.pair`). Sets have their
            own otherwise.

    Raises:
        DataError: a source that does not exist or holds no image, or masks that are none.
    """
    mask_root = None if masks is None else Path(masks)
    if mask_root is not None and not mask_root.is_dir():
        raise DataError(f"masks: {mask_root} is no folder")
    records, unknown, notes = list[Record](), dict[str, None](), dict[str, None]()
    for place in places:
        paths, left = _matches(os.fspath(place))
        if left:
            notes[f"{counted(len(left), 'file')} of {place} left out, no images: {some(left)}"] = None
        for path in paths:
            found = _read(path, tuple(classes), multi_label, mask_root)
            records += found.records
            unknown |= dict.fromkeys(found.unknown)
            notes |= dict.fromkeys(finding.line for finding in found.findings)
    if not records:
        raise DataError("SOURCE: name at least one image, folder, manifest or shard")
    if mask_root is not None:
        records = _with_masks(records, mask_root)
        _require_one_image_each(records, mask_root)
        if not any(record.mask for record in records):
            notes[f"no image has a mask in {mask_root}: a mask has the name of its image"] = None
    return Sources(tuple(records), tuple(unknown), tuple(notes))


def _matches(place: str) -> tuple[list[Path], list[Path]]:
    """A path, or those that a pattern stands for, in the order of their names; and what matches, but is no source."""
    path = Path(place)
    try:
        if place and path.exists():
            return [path], []
    except (OSError, ValueError) as error:
        raise DataError(
            f"SOURCE: {place!r:.80} cannot be a file ({getattr(error, 'strerror', None) or error})"
        ) from error
    if not glob.has_magic(place):
        raise DataError(f"SOURCE: {place or 'an empty text'} does not exist")
    found = sorted(Path(match) for match in glob.glob(place, recursive=True))
    kept = [path for path in found if path.is_dir() or path.suffix.lower() in (*SUFFIXES, ".tar") or is_image(path)]
    if not kept:
        what = f"{len(found)} files, none of which is an image" if found else "nothing"
        raise DataError(f"SOURCE: {place} matches {what}")
    return kept, [path for path in found if path not in set(kept)]


def _read(path: Path, classes: tuple[str, ...], multi_label: bool, masks: Path | None) -> _Found:
    suffix = path.suffix.lower()
    if suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        table = _labelled_shards(path) or _unlabelled_shards(path)
        return _Found(*_renamed(table, classes, multi_label))
    if path.is_dir():
        return _folder(path, classes, multi_label, masks)
    if suffix in SUFFIXES:
        return _manifest(path, classes, multi_label)
    return _Found([Record(FileRef(path), UNKNOWN, split="")])


def _folder(root: Path, classes: tuple[str, ...], multi_label: bool, masks: Path | None) -> _Found:
    """A tree of class folders, or any other tree of images, whose masks lie in a tree of the same shape (``root/masks``)."""
    try:
        table = read_table(root, masks)
        if not multi_label and set(table.classes) & set(classes):
            return _Found(*_renamed(table, classes, multi_label), table.findings)
    except DataError:  # no tree of classes
        pass
    found = images_below(root, masks)
    if not found.images:
        raise DataError(f"SOURCE: {root} holds no image ({', '.join(sorted(image_suffixes()))})")
    records = [
        Record(FileRef(path), UNKNOWN, FileRef(found.masks[path]) if path in found.masks else None, split="")
        for path in found.images
    ]
    return _Found(records, (), found.findings)


def _with_masks(records: Sequence[Record], root: Path) -> list[Record]:
    """Gives single files their masks, which have the same name and, below ``root``, lie in folders of the same names."""
    single = list(
        dict.fromkeys(r.image.path for r in records if r.mask is None and not r.image.name and r.label == UNKNOWN)
    )
    masks = {path: path.relative_to(root).parts for path in images_below(root).images} if single else {}
    found = dict[Path, Path]()
    for depth in sorted({len(place) for place in masks.values()}, reverse=True):
        free = {path: path.absolute().parts[-depth:] for path in single if path not in found}
        found |= pair(free, {path: place for path, place in masks.items() if len(place) == depth})[0]
    return [
        replace(record, mask=FileRef(found[record.image.path]))
        if record.mask is None and not record.image.name and record.image.path in found
        else record
        for record in records
    ]


def _require_one_image_each(records: Sequence[Record], root: Path) -> None:
    """Refuses a mask below ``root`` that two images of different sources would get."""
    image_of = dict[Path, Path]()
    for record in records:
        if record.mask is not None and record.mask.path.is_relative_to(root):
            other = image_of.setdefault(record.mask.path, record.image.path)
            if other != record.image.path:
                raise DataError(
                    f"{record.mask}: the mask of two images ({other}, {record.image}); ask about one folder at a time"
                )


def _manifest(path: Path, classes: tuple[str, ...], multi_label: bool) -> _Found:
    """A manifest's images, with their labels where it tells them, by the names of the network's classes."""
    table = read_rows(path, "image")
    by_name = columns_by_name(table.columns, COLUMNS, path)
    if "image" not in by_name:
        raise DataError(f"{path}: no column 'image'; its columns are {', '.join(table.columns)}")
    labels: list[int | tuple[int, ...]] = [UNKNOWN] * len(table.rows)
    unknown = dict[str, None]()
    if multi_label:
        columns = columns_by_name(table.columns, [tidy(name).casefold() for name in classes], path)
        if len(columns) == len(classes):
            ordered = [columns[tidy(name).casefold()] for name in classes]
            labels = [bits(path, table, row, ordered) for row in table.rows]
    elif "label" in by_name:
        texts = [cell(path, table, row, by_name, "label") for row in table.rows]
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers.get(text, UNKNOWN) for text in texts]
        unknown = dict.fromkeys(text for text in texts if text and text not in numbers)
    return _Found(list(records_of(path, table, by_name, labels, split="")), list(unknown))


def _labelled_shards(path: Path) -> ImageTable | None:
    """Shards whose samples have labels; None if they have not."""
    try:
        return read_table(path)
    except DataError as error:
        if "label" not in str(error).removeprefix(str(path)):
            raise
        return None


def _unlabelled_shards(path: Path) -> ImageTable:
    shards = sorted(path.glob("[!.]*.tar")) if path.is_dir() else [path]
    return ImageTable(tuple(record for shard in shards for record in _members(shard)), ())


def _members(shard: Path) -> Iterator[Record]:
    """The images of an uncompressed tar file, each with its mask, if it has one."""
    images, masks = dict[str, FileRef](), dict[str, FileRef]()
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            if member.isfile() and not name.startswith(".") and suffix_of(name) in image_suffixes():
                stem, _, kind = name.partition(".")
                kept = masks if kind.lower().startswith("mask.") else images
                kept[f"{folder}/{stem}"] = FileRef(shard, member.offset_data, member.size, member.name)
    return (Record(image, UNKNOWN, masks.get(key), split="") for key, image in images.items())


def _renamed(table: ImageTable, classes: tuple[str, ...], multi_label: bool) -> tuple[list[Record], tuple[str, ...]]:
    """The records with the network's class numbers, and the classes that it does not have."""
    if table.multi_label != multi_label or not table.classes:
        return [replace(record, label=UNKNOWN) for record in table.records], ()
    return list(relabelled(table, classes)), tuple(name for name in table.classes if name not in classes)


def relabelled(table: ImageTable, classes: Sequence[str]) -> Iterator[Record]:
    """The records of a table with labels as a network with these classes numbers them; :data:`UNKNOWN` for others' classes."""
    numbers = {name: index for index, name in enumerate(classes)}
    for record in table.records:
        if isinstance(record.label, int):
            label: int | tuple[int, ...] = numbers.get(table.classes[record.label], UNKNOWN)
        else:
            known = dict(zip(table.classes, record.label, strict=True))
            label = tuple(known.get(name, 0) for name in classes) if set(classes) <= known.keys() else UNKNOWN
        yield replace(record, label=label)
