"""Kinds of image sets: one class in one file for each, entered in one table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from isnet.data.names import DataError
from isnet.data.sets.base import ImageSet
from isnet.data.sets.folder import Folder, read_folder
from isnet.data.sets.manifest import Manifest, read_manifest
from isnet.data.sets.shards import Sample, ShardError, Shards, read_shards
from isnet.data.table import ImageTable

# The first that takes a path reads it.
SETS: dict[str, ImageSet] = {"manifest": Manifest(), "shards": Shards(), "folder": Folder()}


def read_table(
    path: str | os.PathLike[str], masks: str | os.PathLike[str] | None = None, labels: Sequence[str] = ()
) -> ImageTable:
    """Reads a folder, a manifest or shards, whichever ``path`` is.

    Args:
        path: An image folder (:func:`read_folder`), a ``.csv``, ``.tsv`` or ``.parquet`` manifest (:func:`read_manifest`), or
            a ``.tar`` shard or folder of shards (:func:`isnet.data.sets.shards.read_shards`).
        masks: Folder of the masks, for an image folder only.
        labels: Label columns of a multi-label manifest only.

    Raises:
        DataError: nothing usable there, or an argument that does not apply to it.
    """
    path = Path(path)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        told = "does not exist" if missing else f"cannot be opened ({getattr(error, 'strerror', None) or error})"
        raise DataError(f"data: {path} {told}") from error
    for kind in SETS.values():
        if kind.takes(path):
            return kind.read(path, None if masks is None else Path(masks), labels)
    raise DataError(f"data: expected a folder, a .csv, .tsv or .parquet manifest or .tar shards, got {path}")


__all__ = [
    "SETS",
    "ImageSet",
    "Sample",
    "ShardError",
    "read_folder",
    "read_manifest",
    "read_shards",
    "read_table",
]
