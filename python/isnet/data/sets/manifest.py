"""Manifests: a table with a row per image."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from isnet.data.files import FileRef
from isnet.data.findings import Finding, some
from isnet.data.names import (
    TRAIN,
    DataError,
    bit,
    columns_by_name,
    require_distinct,
    require_one_kind,
    sorted_names,
    split_name,
    tidy,
)
from isnet.data.sets.base import ImageSet
from isnet.data.sets.rows import SUFFIXES, Row, Rows, cell_text, read_rows
from isnet.data.table import ImageTable, Record

COLUMNS = ("image", "mask", "label", "source", "split", "group")
_ALIKE = 0.75  # mass and mask, site and split are less similar than that
# What others call them. They are not read: which of them is meant, only the user knows.
_SYNONYMS = {
    "image": "file|filename|file_name|filepath|file_path|path|imagepath|image_path|image_name|img|img_path|image_id|id",
    "label": "class|class_name|classname|target|category|diagnosis|finding|y|labels|label_id|class_id|ground_truth|gt",
    "mask": "segmentation|seg|mask_file|maskpath",
    "split": "subset|fold|partition|set|dataset",
    "group": "patient|patient_id|patientid|subject|subject_id|case|case_id",
    "source": "hospital|site|institution",
}


class Manifest(ImageSet):
    """See :func:`read_manifest`."""

    def takes(self, path: Path) -> bool:
        return path.is_file() and path.suffix.lower() in SUFFIXES

    def read(self, path: Path, masks: Path | None, labels: Sequence[str]) -> ImageTable:
        if masks is not None:
            raise DataError(
                f"masks: a folder of masks is for an image folder, but {path} is none: a manifest names them in its column mask"
            )
        return read_manifest(path, labels)


def read_manifest(path: str | os.PathLike[str], labels: Sequence[str] = ()) -> ImageTable:
    """A table with a row per image: columns ``image``, ``label``, and optionally ``mask``, ``source``, ``split``, ``group``.

    Names of columns are recognised in any case and with spaces around them. Relative files are taken from the table's folder; ``~`` and
    backslashes are understood where no file has that very name.

    Args:
        path: CSV (comma, semicolon, tab or bar; UTF-8, or UTF-16 with its mark) or Parquet (the extra ``tables``).
        labels: Columns with 0/1 numbers of a multi-label set, in place of ``label``. Left out, and without a ``label``, every further
            column is one, if there are at least two and all hold 0 and 1 only. Columns beside these are not read.

    Raises:
        DataError: a missing column, one whose name seems to mean a missing one, an empty cell, a label that is neither 0 nor 1, classes
            whose names hardly differ, or an image with two labels.
    """
    path = Path(path)
    table = read_rows(path, "image")
    by_name = columns_by_name(table.columns, COLUMNS, path)
    if "image" not in by_name:
        raise DataError(f"{path}: no column 'image'; {_instead(table.columns, 'image')}")
    several = _label_columns(path, table, by_name, labels)
    read = {*by_name.values(), *several}
    unread = tuple(name for name in table.columns if name not in read)
    for name in unread:
        meant = _meant(
            name, [known for known in COLUMNS if known not in by_name and not (several and known == "label")]
        )
        if meant:
            raise DataError(
                f"{path}: column {name!r} is not read: if it is meant as {meant!r}, call it so, else rename it"
            )
    records, names = _records(path, table, by_name, several)
    findings = _findings(path, several, names, records, bool(labels))
    return ImageTable(records, names, bool(several), unread, findings=findings)


def _label_columns(path: Path, table: Rows, by_name: dict[str, str], labels: Sequence[str]) -> list[str]:
    """The columns of a multi-label table; none if each image has one class."""
    if labels:
        found = columns_by_name(table.columns, [tidy(name).casefold() for name in labels], path)
        missing = [name for name in labels if tidy(name).casefold() not in found]
        if missing:
            raise DataError(f"{path}: no column {some(missing)}; its columns are {', '.join(table.columns)}")
        if len(set(found.values())) < len(labels):
            raise DataError(f"label: a column is named twice: {', '.join(labels)}")
        return [found[tidy(name).casefold()] for name in labels]
    if "label" in by_name:
        return []
    further = [name for name in table.columns if name not in by_name.values() and tidy(name)]
    absent = [known for known in COLUMNS if known not in by_name]
    meant = [name for name in further if _meant(name, absent) or any(_is_synonym(name, known) for known in absent)]
    unlike = [name for name in further if not all(_is_bit(row.cells[table.columns.index(name)]) for row in table.rows)]
    if len(further) < 2 or meant or unlike:
        why = f"; {unlike[0]!r} holds other values than 0 and 1" if unlike and not meant and len(further) > 1 else ""
        raise DataError(
            f"{path}: no column 'label'; {_instead(further, 'label')}{why}. For several 0/1 labels an image, name their columns (--label)"
        )
    if len(set(further)) < len(further):
        raise DataError(f"{path}: two columns of one name among {', '.join(further)}; remove one or rename it")
    return further


def _records(
    path: Path, table: Rows, by_name: dict[str, str], several: Sequence[str]
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    place = {column: table.columns.index(column) for column in (*by_name.values(), *several)}

    def cell(row: Row, name: str) -> str:
        return (
            cell_text(row.cells[place[by_name[name]]], f"{path}, row {row.number}, {name}") if name in by_name else ""
        )

    if several:
        names = tuple(map(tidy, several))
        require_distinct(names, "labels", path)
        labels: list[int | tuple[int, ...]] = [
            tuple(
                bit(cell_text(row.cells[place[name]], f"{path}, row {row.number}"), f"{path}, row {row.number}, column {name}")
                for name in several
            )
            for row in table.rows
        ]  # fmt: skip
    else:
        require_one_kind([row.cells[place[by_name["label"]]] for row in table.rows], "labels", path)
        texts = [cell(row, "label") for row in table.rows]
        empty = next((row.number for row, text in zip(table.rows, texts, strict=True) if not text), None)
        if empty is not None:
            raise DataError(f"{path}, row {empty}: no label")
        names = sorted_names(texts)
        require_distinct(names, "classes", path)
        index = {name: number for number, name in enumerate(names)}
        labels = [index[text] for text in texts]
    records, rows_of = [], dict[Path, tuple[int, int | tuple[int, ...]]]()
    for row, label in zip(table.rows, labels, strict=True):
        where = f"{path}, row {row.number}"
        if not cell(row, "image"):
            raise DataError(f"{where}: no image")
        image, mask = _file(path.parent, cell(row, "image"), where), cell(row, "mask")
        other, before = rows_of.setdefault(image, (row.number, label))
        if before != label:
            raise DataError(f"{path}, rows {other} and {row.number}: {image} has two different labels; keep one row")
        records.append(
            Record(
                FileRef(image),
                label,
                FileRef(_file(path.parent, mask, where)) if mask else None,
                cell(row, "source"),
                split_name(cell(row, "split") or TRAIN),
                cell(row, "group"),
            )
        )
    require_distinct({record.split for record in records}, "splits", path)
    return tuple(records), names


def _file(folder: Path, name: str, where: str) -> Path:
    """The file that a cell names: as it stands there, else with slashes for backslashes, else below the home folder."""
    try:
        ways = [folder / name]
        if "\\" in name:
            ways.append(folder / name.replace("\\", "/"))
        if name.startswith("~"):
            ways.append(Path(name).expanduser())
        return next((file for file in ways if _stands(file)), ways[0])
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{where}: {name!r:.60} cannot be a file ({getattr(error, 'strerror', None) or error})"
        ) from error


def _stands(file: Path) -> bool:
    """Whether there is such a file; OSError for a name that no file can have."""
    try:
        os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _findings(
    path: Path, several: Sequence[str], names: Sequence[str], records: Sequence[Record], named: bool
) -> tuple[Finding, ...]:
    if not several:
        return ()
    found = [Finding("multi-label", "note", f"{len(names)} labels, each present or absent in an image", tuple(names))]
    if all(sum(record.label) == 1 for record in records if isinstance(record.label, tuple)):
        remedy = "" if named else "If they exclude one another, write one column label with the name of the class"
        found.append(
            Finding("one-hot", "note" if named else "warning", "every image has exactly one of the labels", (), remedy)
        )
    return tuple(found)


def _instead(columns: Iterable[str], wanted: str) -> str:
    """What there is in place of a column."""
    columns = list(columns)
    near = [name for name in columns if _is_synonym(name, wanted) or _meant(name, [wanted])]
    near = near or difflib.get_close_matches(wanted, columns, n=1)
    listed = f"its columns are {', '.join(map(repr, columns))}" if columns else "there are no further columns"
    return f"{listed} ({near[0]}? then call it {wanted})" if near else listed


def _is_bit(value: object) -> bool:
    try:
        bit(cell_text(value, ""), "")
    except DataError:
        return False
    return True


def _is_synonym(name: str, known: str) -> bool:
    plain = re.sub(r"[\s-]+", "_", tidy(name).casefold())
    return plain in _SYNONYMS[known].split("|") or plain == f"{known}s"


def _meant(name: str, missing: Iterable[str]) -> str | None:
    """The missing column that ``name`` seems to stand for: ``spilt``, ``Splits``, ``mask_path``."""
    name = tidy(name).casefold()
    for known in missing:
        alike = difflib.SequenceMatcher(None, name, known).ratio() > _ALIKE
        if alike or sorted(name) == sorted(known) or re.match(rf"{known}[ _-]", name):
            return known
    return None
