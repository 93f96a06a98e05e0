"""Image folders: a folder per class, and the masks in a second tree of the same shape."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from isnet.data.files import FileRef, suffix_of
from isnet.data.readers import image_suffixes
from isnet.data.sets.base import ImageSet
from isnet.data.table import TRAIN, DataError, ImageTable, Record, split_name

_MASK_FOLDER = "masks"


class Folder(ImageSet):
    """See :func:`read_folder`."""

    def takes(self, path: Path) -> bool:
        return path.is_dir()

    def read(self, path: Path, masks: Path | None, labels: Sequence[str]) -> ImageTable:
        if labels:
            raise DataError(f"label: columns are those of a manifest, but {path} is none")
        return read_folder(path, masks)


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
        split = split_name(parts.parts[0]) if len(parts.parts) == 3 else TRAIN
        source = parts.parts[0] if len(parts.parts) == 3 else ""
        label = classes.index(path.parent.name)
        records.append(Record(FileRef(path), label, by_stem.get(_key(parts)), source, split))
    return ImageTable(tuple(records), classes)


def _image_files(root: Path) -> list[Path]:
    """Those below ``root``, sorted, without hidden ones."""
    suffixes = image_suffixes()
    found = (path for path in root.rglob("*") if suffix_of(path.name) in suffixes and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def _key(path: Path) -> tuple[str, ...]:
    return (*path.parts[:-1], path.name[: -len(suffix_of(path.name))].removesuffix("_mask"))
