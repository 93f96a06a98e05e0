"""The rows of a manifest's file: CSV in its dialects, and Parquet."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from isnet.data.findings import some
from isnet.data.names import DataError, text_of, tidy

SUFFIXES = (".csv", ".tsv", ".parquet")
_DELIMITERS = (",", "\t", ";", "|")
_LONGEST = 2**31 - 1  # characters of a cell; the csv module's own limit is 131,072
_EXCEL = re.compile(r'^"?sep=.?"?(\r\n|\r|\n)')  # a first line by which Excel tells itself the delimiter
_MARKS = (  # of an encoding, at the beginning of a file
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


class Row(NamedTuple):
    """A row: its number in the file, the header being 1, and its cells."""

    number: int
    cells: Sequence[Any]


class Rows(NamedTuple):
    """What a file holds: the names of its columns as they stand there, and its rows."""

    columns: tuple[str, ...]
    rows: list[Row]


def read_rows(path: Path, known: str) -> Rows:
    """Reads a table.

    A CSV may be separated by commas, semicolons, tabs or bars, whichever gives a column ``known``; its encoding is UTF-8, or what a
    byte-order mark says. Empty rows are left out.

    Args:
        path: Of a CSV (``.csv``, ``.tsv``) or Parquet file.
        known: A column that it must have.

    Raises:
        DataError: the file cannot be read as a table; the text names the row.
    """
    rows = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path, known)
    if not rows.rows:
        raise DataError(f"{path}: no rows")
    return rows


def _csv(path: Path, known: str) -> Rows:
    text = _EXCEL.sub("\n", _text(path), count=1)  # the delimiter is found all the same
    limit = csv.field_size_limit(_LONGEST)
    try:
        headers = {mark: _header(text, mark) for mark in _DELIMITERS}
        fitting = [mark for mark, names in headers.items() if known in [tidy(name).casefold() for name in names]]
        # Without that column the error lists what the mark in most places separates.
        delimiter = fitting[0] if fitting else max(headers, key=lambda mark: len(headers[mark]))
        found = list(_numbered(path, text, delimiter))
    finally:
        csv.field_size_limit(limit)
    if not found:
        raise DataError(f"{path}: no rows")
    header = tuple(found[0].cells)
    rows = []
    for number, cells in found[1:]:
        if any(cell.strip() for cell in cells[len(header) :]) or len(cells) < len(header):
            raise DataError(f"{path}, row {number}: {len(cells)} cells, but the header has {len(header)}")
        rows.append(Row(number, cells[: len(header)]))
    return Rows(header, rows)


def _header(text: str, delimiter: str) -> list[str]:
    """The first row that is not empty, taken as separated by this."""
    with contextlib.suppress(csv.Error):
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if any(cell.strip() for cell in cells):
                return cells
    return []


def _numbered(path: Path, text: str, delimiter: str) -> Iterator[Row]:
    """The rows that are not empty, each with the line that it begins in."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, row {number}: {error}; is a quote not closed?") from error
        if any(cell.strip() for cell in cells):
            yield Row(number, cells)


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        row = raw[: error.start].count(b"\n") + 1
        found = f"byte {raw[error.start]:#04x}" if error.start < len(raw) else "its end"
        raise DataError(f"{path}, row {row}: no {encoding} text ({found}); save the table as UTF-8") from error
    if "\0" in text:
        row = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{path}, row {row}: a NUL character; save the table as UTF-8")
    return text


def _parquet(path: Path) -> Rows:
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise DataError(f"{path}: Parquet needs the extra tables: pip install pandas pyarrow ({error})") from error
    try:
        frame = pandas.read_parquet(path)
    except ModuleNotFoundError as error:
        raise DataError(f"{path}: Parquet needs the extra tables: pip install pandas pyarrow ({error})") from error
    except Exception as error:  # broken files raise errors of every kind
        raise DataError(f"{path}: cannot be read as Parquet ({type(error).__name__}: {error})") from error
    twice = [str(name) for name, count in Counter(map(str, frame.columns)).items() if count > 1]
    if twice:
        raise DataError(f"{path}: two columns {some(twice)}; remove one or rename it")
    # An index with a name is a column that somebody chose.
    frame = frame.reset_index() if any(name is not None for name in frame.index.names) else frame
    columns = [[_value(value) for value in frame[name]] for name in frame.columns]
    rows = [Row(number, cells) for number, cells in enumerate(zip(*columns, strict=True), start=2)]
    return Rows(tuple(map(str, frame.columns)), [row for row in rows if any(cell is not None for cell in row.cells)])


def _value(value: Any) -> Any:
    """The value as Python has it; None for a missing one."""
    import pandas

    value = (
        value.item()
        if hasattr(value, "item") and getattr(value, "size", 1) == 1 and getattr(value, "ndim", 0) == 0
        else value
    )
    missing = pandas.isna(value)
    return None if isinstance(missing, bool) and missing else value


def cell_text(value: Any, where: str) -> str:
    """The text of a cell, without spaces around it.

    Raises:
        DataError: a cell of several lines (a quote that was not closed), or one that names nothing.
    """
    text = text_of(value, where)
    if "\n" in text or "\r" in text:
        raise DataError(f"{where}: a cell of several lines, {text!r:.60}; is a quote not closed?")
    return text
