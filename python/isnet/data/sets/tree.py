"""The files of a folder, links followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from isnet.data.findings import Finding, counted, some
from isnet.data.names import DataError

_DEEPEST = 12  # levels; no layout needs as many
_LINKED = 4  # levels down to which links to folders are followed: folders full of links to each other would never end
_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx")  # of file managers, left out like hidden files


@dataclass
class Tree:
    """What a folder holds.

    Attributes:
        root: The folder.
        files: Its files at every level, sorted, relative to it.
        folders: Likewise its folders.
        broken: Links without a target, and what is neither file nor folder.
        loops: Links to a folder that they stand in, or more than 4 levels deep.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)

    def findings(self) -> Iterator[Finding]:
        """What was not followed."""
        if self.broken:
            names = tuple(str(self.root / path) for path in self.broken)
            yield Finding(
                "broken-links",
                "warning",
                f"{counted(len(names), 'link')} without a target, or no ordinary files, left out",
                names,
            )
        if self.loops:
            names = tuple(str(self.root / path) for path in self.loops)
            yield Finding(
                "link-loops",
                "note",
                f"{counted(len(names), 'link')} not followed: back into a folder around it, or too deep",
                names,
            )


def read_tree(root: Path, without: Path | None = None) -> Tree:
    """Reads a folder with all folders below it; hidden files, and those that file managers leave behind, count as absent.

    Links are followed, also to the same folder from several places, but never back into a folder that is being read.

    Args:
        root: The folder.
        without: A folder below it that is left out.

    Raises:
        DataError: a folder that may not be listed: what it holds cannot be told.
    """
    tree = Tree(root)
    apart = None if without is None else _identity(without)
    _read(tree, Path(), {_identity(root)}, apart)
    for paths in (tree.files, tree.folders, tree.broken, tree.loops):
        paths.sort()
    return tree


def _read(tree: Tree, below: Path, around: set[tuple[int, int]], apart: tuple[int, int] | None) -> None:
    """Adds a folder: ``around`` are it and those that it stands in."""
    try:
        entries = list(os.scandir(tree.root / below))
    except OSError as error:
        raise DataError(f"data: the folder {tree.root / below} cannot be listed ({error.strerror})") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name.casefold() in _LITTER:
            continue
        path = below / entry.name
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
            identity = _identity(tree.root / path) if is_folder else (0, 0)
        except OSError:  # a link to itself
            is_folder = is_file = False
        if is_file:
            tree.files.append(path)
        elif not is_folder:
            tree.broken.append(path)
        elif identity in around or (entry.is_symlink() and len(path.parts) > _LINKED):
            tree.loops.append(path)
        elif identity != apart:
            if len(path.parts) > _DEEPEST:
                raise DataError(f"data: folders more than {_DEEPEST} levels deep in {tree.root}: {some([path])}")
            tree.folders.append(path)
            _read(tree, path, {*around, identity}, apart)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
