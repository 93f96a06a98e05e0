"""Image folders: a folder per class, and masks under the same names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from isnet.data.files import FileRef, suffix_of
from isnet.data.findings import Finding, counted, some
from isnet.data.names import TRAIN, DataError, is_split_name, require_distinct, split_name, tidy
from isnet.data.readers import image_suffixes, kind_of
from isnet.data.sets.base import ImageSet
from isnet.data.sets.pairs import MASK_ENDING, Place, pair, stem
from isnet.data.sets.tree import Tree, read_tree
from isnet.data.table import ImageTable, Record

_IMAGES, _MASKS = "images", "masks"  # folders that stand for what they hold and are no class


class Folder(ImageSet):
    """See :func:`read_folder`."""

    def takes(self, path: Path) -> bool:
        return path.is_dir()

    def read(self, path: Path, masks: Path | None, labels: Sequence[str]) -> ImageTable:
        if labels:
            raise DataError(f"label: columns are those of a manifest, but {path} is none")
        return read_folder(path, masks)


def read_folder(root: str | os.PathLike[str], masks: str | os.PathLike[str] | None = None) -> ImageTable:
    """Class folders of images, and their masks under the same names.

    ``root/CLASS/name.png`` or ``root/SPLIT/CLASS/name.png`` (split ``train``, ``validation`` or any name of a test set), with one folder
    ``images`` anywhere on the way; masks likewise with a folder ``masks``: ``root/masks/CLASS``, ``root/CLASS/masks``, ... Without any,
    ``name_mask.png`` beside ``name.png`` is its mask. :func:`isnet.data.sets.pairs.pair` says how names are compared. Splits are
    sources, too. Links are followed; hidden files and folders are left out, and so are files that are no images, which ``findings`` tells.

    Args:
        root: Folder of the images.
        masks: Folder of the masks; by default those in folders called ``masks``.

    Raises:
        DataError: no images, mixed depths, an ambiguous mask, classes or splits whose names hardly differ, a folder that cannot be listed.
    """
    root = Path(root)
    mask_root = None if masks is None else Path(masks)
    if mask_root is not None and not mask_root.is_dir():
        raise DataError(f"masks: {mask_root} is no folder")
    if mask_root is not None and mask_root.resolve() == root.resolve():
        raise DataError(f"masks: {mask_root} is the folder of the images")
    tree = read_tree(root, without=mask_root)
    places = {path: _place(path) for path in tree.files}
    found, other = _images(tree, [path for path in tree.files if not _has(path, _MASKS)])
    pictures = {root / path: places[path] for path in found}
    _require_depth(root, pictures)
    findings = [*tree.findings(), *_empty_folders(tree, found, len(next(iter(pictures.values()))))]
    if mask_root is not None:
        below = read_tree(mask_root, without=root)
        mask_files, more = _images(below, below.files)
        findings += below.findings()
        of_masks = {mask_root / path: _place(path) for path in mask_files}
    else:
        mask_files, more = _images(tree, [path for path in tree.files if _has(path, _MASKS)])
        of_masks = {root / path: places[path] for path in mask_files}
        if not any(path.name.casefold() == _MASKS for path in tree.folders):
            of_masks = _beside(pictures)
            if of_masks:
                text = f"{counted(len(of_masks), 'file')} NAME{MASK_ENDING} beside NAME, read as its mask"
                findings.append(Finding("masks-beside-images", "note", text, tuple(map(str, of_masks))))
            pictures = {path: place for path, place in pictures.items() if path not in of_masks}
    findings += _left_out([root / path for path in other] + [(mask_root or root) / path for path in more])
    pairs, lonely = pair(pictures, of_masks)
    if lonely:
        text = f"{len(lonely)} of {len(of_masks)} masks without an image"
        remedy = "A mask has the name of its image, and lies in folders of the same names; no class can be called masks"
        findings.append(Finding("masks-without-image", "warning", text, tuple(map(str, lonely)), remedy))
    return ImageTable(*_records(root, pictures, pairs), findings=tuple(findings))


def _records(
    root: Path, pictures: Mapping[Path, Place], pairs: Mapping[Path, Path]
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    classes = tuple(sorted({tidy(place[-2]) for place in pictures.values()}))
    require_distinct(classes, "classes", root)
    if {len(place) for place in pictures.values()} == {2} and all(map(is_split_name, classes)):
        raise DataError(
            f"data: {root}: {some(classes)} are splits, but hold images and no class folders: SPLIT/CLASS/IMAGE"
        )
    splits = {split_name(place[0]) for place in pictures.values() if len(place) == 3}
    require_distinct(splits, "splits", root)
    index = {name: number for number, name in enumerate(classes)}
    records = []
    for path, place in pictures.items():
        source = place[0] if len(place) == 3 else ""
        mask = pairs.get(path)
        split = split_name(source) if source else TRAIN
        records.append(
            Record(FileRef(path), index[tidy(place[-2])], None if mask is None else FileRef(mask), source, split)
        )
    return tuple(records), classes


def _place(path: Path) -> Place:
    """(SPLIT, CLASS, NAME): without the folders called images and masks."""
    *folders, name = path.parts
    return (*(part for part in folders if part.casefold() not in (_IMAGES, _MASKS)), name)


def _has(path: Path, folder: str) -> bool:
    """Whether a folder of this name, in any case, is on the way to a file."""
    return any(part.casefold() == folder for part in path.parts[:-1])


def _images(tree: Tree, files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The images among files of a tree, and what is none: by suffix, and by content where that says nothing."""
    suffixes = image_suffixes()
    are = [suffix_of(path.name) in suffixes or kind_of(FileRef(tree.root / path)) is not None for path in files]
    return (
        [path for path, is_image in zip(files, are, strict=True) if is_image],
        [path for path, is_image in zip(files, are, strict=True) if not is_image],
    )


def _require_depth(root: Path, pictures: Mapping[Path, Place]) -> None:
    depths = {len(place): path for path, place in pictures.items()}
    if set(depths) not in ({2}, {3}):
        below = {depth: path.relative_to(root) for depth, path in sorted(depths.items())}
        found = (
            "images at depths " + ", ".join(f"{depth} ({path})" for depth, path in below.items())
            if below
            else "no images"
        )
        raise DataError(f"data: expected {root}/CLASS/IMAGE or {root}/SPLIT/CLASS/IMAGE, found {found}")


def _beside(pictures: Mapping[Path, Place]) -> dict[Path, Place]:
    """The files called NAME_mask where NAME stands in the same folder."""
    stems = {(*place[:-1], stem(place[-1])) for place in pictures.values()}
    return {
        path: place
        for path, place in pictures.items()
        if (name := stem(place[-1])).endswith(MASK_ENDING) and (*place[:-1], name.removesuffix(MASK_ENDING)) in stems
    }


def _empty_folders(tree: Tree, images: Sequence[Path], depth: int) -> Iterator[Finding]:
    """Class folders without images; ``depth``: folders and name of an image."""
    used = {parent for path in images for parent in path.parents}
    empty = [
        str(tree.root / path)
        for path in tree.folders
        if path not in used and not _has(path / "x", _MASKS) and len(_place(path / "x")) == depth
        and path.name.casefold() != _IMAGES
    ]  # fmt: skip
    if empty:
        yield Finding("empty-folders", "warning", f"{counted(len(empty), 'class folder')} without images", tuple(empty))


def _left_out(files: Sequence[Path]) -> Iterator[Finding]:
    """Files that are no images, by suffix."""
    if files:
        kinds = Counter(suffix_of(path.name) or "no suffix" for path in files)
        text = f"{counted(len(files), 'file')} left out, no images ({some((f'{n} {kind}' for kind, n in kinds.most_common()), 5)})"
        yield Finding("files-left-out", "note", text, tuple(map(str, files)))
