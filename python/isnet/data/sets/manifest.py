"""Manifests: a table with a row per image."""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from isnet.data.files import FileRef
from isnet.data.sets.base import ImageSet
from isnet.data.table import TRAIN, DataError, ImageTable, Record, bit, sorted_names, split_name

_COLUMNS = ("image", "mask", "label", "source", "split", "group")
_SUFFIXES = (".csv", ".tsv", ".parquet")
_ALIKE = 0.75  # mass and mask, site and split are less similar than that


class Manifest(ImageSet):
    """See :func:`read_manifest`."""

    def takes(self, path: Path) -> bool:
        return path.is_file() and path.suffix in _SUFFIXES

    def read(self, path: Path, masks: Path | None, labels: Sequence[str]) -> ImageTable:
        if masks is not None:
            raise DataError(
                f"masks: a folder of masks is for an image folder, but {path} is none: a manifest names them in its column mask"
            )
        return read_manifest(path, labels)


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
        label = tuple(bit(row[name], f"{where}, column {name}") for name in several) or names.index(row["label"])
        mask = row.get("mask")
        records.append(
            Record(
                FileRef(path.parent / row["image"]),
                label,
                FileRef(path.parent / mask) if mask else None,
                row.get("source", ""),
                split_name(row.get("split") or TRAIN),
                row.get("group", ""),
            )
        )
    return ImageTable(tuple(records), names, bool(several), unread)


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
    return sorted_names({row["label"] for row in rows})
