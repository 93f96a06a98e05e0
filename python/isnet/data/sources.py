"""Images that a trained network is asked about: files, patterns, folders of any kind, manifests, shards; with or without labels."""

from __future__ import annotations

import csv
import glob
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from isnet.data.files import FileRef, suffix_of
from isnet.data.readers import image_suffixes
from isnet.data.sets import read_table
from isnet.data.table import DataError, ImageTable, Record

_MANIFESTS = (".csv", ".tsv", ".parquet")
UNKNOWN = -1  # the label of an image whose class is not known
_NAMED = 5


@dataclass(frozen=True)
class Sources:
    """Images to ask about, in the order of the sources.

    Attributes:
        records: One per image; a label is a class index, 0/1 numbers, or :data:`UNKNOWN`.
        unknown: Class names that the sources have and the network does not; their images have no label.
    """

    records: tuple[Record, ...]
    unknown: tuple[str, ...] = ()


def read_sources(
    places: Iterable[str | os.PathLike[str]],
    classes: Sequence[str],
    *,
    multi_label: bool = False,
    masks: str | os.PathLike[str] | None = None,
) -> Sources:
    """Lists the images of files, patterns (``scans/*.png``), folders, manifests and tar shards; opens none.

    Args:
        places: The sources. A file of any suffix counts as an image, unless it is a manifest or a shard.
        classes: Of the network. Labels of folders, manifests and shards are matched by name.
        multi_label: Whether the network has one decision per label.
        masks: Folder of the masks; images have theirs under the same name there. Sets have their own otherwise.

    Raises:
        DataError: a source that does not exist or holds no image, or masks that are none.
    """
    if masks is not None and not Path(masks).is_dir():
        raise DataError(f"masks: {masks} is no folder")
    records, unknown = list[Record](), dict[str, None]()
    for place in places:
        for path in _matches(os.fspath(place)):
            found, others = _read(path, tuple(classes), multi_label, None if masks is None else Path(masks))
            records += found
            unknown |= dict.fromkeys(others)
    if not records:
        raise DataError("SOURCE: name at least one image, folder, manifest or shard")
    return Sources(tuple(records), tuple(unknown))


def _matches(place: str) -> list[Path]:
    """A path, or those that a pattern stands for, in the order of their names."""
    path = Path(place)
    if place and path.exists():
        return [path]
    if not glob.has_magic(place):
        raise DataError(f"SOURCE: {place or 'an empty text'} does not exist")
    found = sorted(Path(match) for match in glob.glob(place, recursive=True))
    kept = [p for p in found if p.is_dir() or suffix_of(p.name) in (*image_suffixes(), *_MANIFESTS, ".tar")]
    if not kept:
        what = f"{len(found)} files, none of which is an image" if found else "nothing"
        raise DataError(f"SOURCE: {place} matches {what}")
    return kept


def _read(
    path: Path, classes: tuple[str, ...], multi_label: bool, masks: Path | None
) -> tuple[list[Record], tuple[str, ...]]:
    if path.is_dir() and not any(path.glob("*.tar")):
        return _folder(path, classes, multi_label, masks)
    suffix = path.suffix.lower()
    if path.is_dir() or suffix == ".tar":
        table = _table(path, masks, ()) or _unlabelled_shards(path)
    elif suffix in _MANIFESTS:
        columns = _columns(path)
        labels = [name for name in classes if name in columns] if multi_label and "label" not in columns else []
        table = _manifest(path, columns, masks, labels)
    else:
        return [Record(FileRef(path), UNKNOWN, _mask_in(masks, Path(path.name)), split="")], ()
    return _renamed(table, classes, multi_label)


def _folder(
    root: Path, classes: tuple[str, ...], multi_label: bool, masks: Path | None
) -> tuple[list[Record], tuple[str, ...]]:
    """A tree of class folders, or any other tree of images, whose masks lie in a tree of the same shape (``root/masks``)."""
    try:
        table = read_table(root, masks)
        if not multi_label and set(table.classes) & set(classes):
            return _renamed(table, classes, multi_label)
    except DataError:  # no tree of classes
        pass
    images = root / "images" if (root / "images").is_dir() else root
    own = root / "masks"
    mask_root = masks if masks is not None else own if own.is_dir() else None
    suffixes = image_suffixes()
    found = sorted(p for p in images.rglob("*") if suffix_of(p.name) in suffixes and p.is_file())
    kept = [
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(images).parts) and own not in path.parents
    ]
    if not kept:
        raise DataError(f"SOURCE: {root} holds no image ({', '.join(sorted(suffixes))})")
    by_stem = _MaskFolder(mask_root)
    return [Record(FileRef(p), UNKNOWN, by_stem.of(p.relative_to(images)), split="") for p in kept], ()


class _MaskFolder:
    """Finds masks by the names of their images."""

    def __init__(self, root: Path | None) -> None:
        self.by_stem: dict[tuple[str, ...], FileRef] = {}
        if root is not None:
            for path in sorted(root.rglob("*")):
                if path.is_file() and suffix_of(path.name) in image_suffixes():
                    self.by_stem[_stem(path.relative_to(root))] = FileRef(path)

    def of(self, image: Path) -> FileRef | None:
        return self.by_stem.get(_stem(image))


def _stem(path: Path) -> tuple[str, ...]:
    return (*path.parts[:-1], path.name.removesuffix(_end(path.name)).removesuffix("_mask"))


def _end(name: str) -> str:
    length = len(suffix_of(name))
    return name[-length:] if length else ""


def _mask_in(masks: Path | None, image: Path) -> FileRef | None:
    if masks is None:
        return None
    stem = _stem(image)[-1]
    found = sorted(p for p in masks.glob(f"{glob.escape(stem)}*") if _stem(Path(p.name))[-1] == stem and p.is_file())
    return FileRef(found[0]) if found else None


def _table(path: Path, masks: Path | None, labels: Sequence[str]) -> ImageTable | None:
    """The set in ``path``; None for one without labels."""
    try:
        return read_table(path, masks, labels)
    except ValueError as error:
        if "label" not in str(error):
            raise
        return None


def _columns(path: Path) -> list[str]:
    """The names of a manifest's columns."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        return list(pyarrow.parquet.read_schema(path).names)
    with path.open(newline="", encoding="utf-8-sig") as file:
        return next(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","), [])


def _manifest(path: Path, columns: Sequence[str], masks: Path | None, labels: Sequence[str]) -> ImageTable:
    """A manifest with labels, or one that only names images and, optionally, masks and splits."""
    if labels or "label" in columns:
        table = _table(path, masks, labels)
        if table is not None:
            return table
    if "image" not in columns:
        raise DataError(f"{path}: no column 'image'; its columns are {', '.join(columns) or 'none'}")
    if path.suffix.lower() == ".parquet":
        import pandas

        frame = pandas.read_parquet(path, columns=[c for c in ("image", "mask", "split", "source") if c in columns])
        rows = [{k: "" if pandas.isna(v) else str(v) for k, v in row.items()} for row in frame.to_dict("records")]
    else:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", restval="")
            rows = [{k: str(v).strip() for k, v in row.items() if k} for row in reader]
    empty = next((number for number, row in enumerate(rows, start=2) if not row["image"]), None)
    if empty is not None:
        raise DataError(f"{path}, row {empty}: no image")
    return ImageTable(
        tuple(
            Record(
                FileRef(path.parent / row["image"]),
                UNKNOWN,
                FileRef(path.parent / row["mask"]) if row.get("mask") else None,
                row.get("source", ""),
                row.get("split", ""),
            )
            for row in rows
        ),
        (),
    )


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
