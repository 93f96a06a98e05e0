"""Names of classes, splits and columns: the same name in other spellings is recognised, or refused."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

TRAIN, VALIDATION = "train", "validation"
_SPLIT_NAMES = {
    TRAIN: TRAIN,
    "training": TRAIN,
    VALIDATION: VALIDATION,
    "val": VALIDATION,
    "valid": VALIDATION,
}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")
_TEST_NAMES = ("test", "testing")


class DataError(ValueError):
    """Images, labels or masks that cannot be used; the text names the file or row."""


def tidy(name: str) -> str:
    """The name in Unicode's composed form (NFC), without spaces around it."""
    return unicodedata.normalize("NFC", name).strip()


def split_name(name: str) -> str:
    """The name of a split under one of its usual spellings."""
    name = tidy(name)
    return _SPLIT_NAMES.get(name.casefold(), name)


def is_split_name(name: str) -> bool:
    """Whether this is a usual name of a split."""
    return split_name(name) in (TRAIN, VALIDATION) or tidy(name).casefold() in _TEST_NAMES


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Whole numbers in their own order, other names alphabetically."""

    def place(name: str) -> tuple[int, int, str]:
        return (0, int(name), name) if name.isascii() and name.isdigit() and len(name) < 100 else (1, 0, name)

    return tuple(sorted(set(names), key=place))


def require_distinct(names: Iterable[str], what: str, where: object) -> None:
    """Refuses names that a reader would take for one: they differ in case, in spaces or unseen characters, or are the same number.

    Single letters may differ in case.

    Args:
        names: Of classes, say.
        what: What they are called in the text.
        where: File or folder.

    Raises:
        DataError: two such names, or one that is no text (bytes of a file name that are no UTF-8).
    """
    known: dict[str, str] = {}
    for name in sorted_names(names):
        if any(unicodedata.category(char) == "Cs" for char in name):
            raise DataError(f"{where}: {what} {name!r}: its name is no valid UTF-8; rename it")
        other = known.setdefault(_alike(name), name)
        if other != name:
            raise DataError(
                f"{where}: {what} {other!r} and {name!r} differ only in case, spaces, unseen characters or the way of writing a "
                f"number: give them one spelling if they are the same, else clearly different names"
            )


def _alike(name: str) -> str:
    text = unicodedata.normalize("NFKC", name)
    text = "".join(char for char in text if unicodedata.category(char) not in ("Cf", "Cc"))
    text = " ".join(text.split())
    if _NUMBER.fullmatch(text) and abs(float(text)) < 2**53:
        return f"number {float(text)!r}"
    return text if len(text) == 1 else text.casefold()


def bit(text: str, where: str) -> int:
    """0 or 1 from a text; DataError names ``where``."""
    try:
        value = float(json.loads(text.lower()))
    except (ValueError, TypeError, RecursionError):
        value = float("nan")
    if value not in (0.0, 1.0):
        raise DataError(f"{where}: a label must be 0 or 1, got {text!r}")
    return int(value)


def text_of(value: Any, where: str) -> str:
    """The text that a number, a truth value or a text of a typed file (JSON, Parquet) stands for; ``""`` for none.

    Whole numbers have no point: 1.0 is ``"1"``.

    Raises:
        DataError: a list, an object, bytes or another value that names nothing.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"{where}: expected a text or a finite number, got {value}")
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, str | int):
        return tidy(str(value))
    raise DataError(f"{where}: expected a text or a number, got {value!r:.60} of type {type(value).__name__}")


def require_one_kind(values: Sequence[Any], what: str, where: object) -> None:
    """Refuses truth values among numbers or texts.

    Raises:
        DataError: a mixture.
    """
    logical = {isinstance(value, bool) for value in values if value is not None}
    if len(logical) > 1:
        raise DataError(f"{where}: {what}: some are true or false, others numbers or texts; use one kind")


def columns_by_name(found: Sequence[str], known: Sequence[str], where: object) -> dict[str, str]:
    """Known columns by the names that they are found under: case and spaces do not matter, the exact name comes first.

    Args:
        found: Columns of a file, or keys of an object.
        known: Names to recognise.
        where: File, for the text of an error.

    Raises:
        DataError: one column stands there twice.
    """
    by_name: dict[str, str] = {}
    for column in found:
        name = tidy(column).casefold()
        if name not in known:
            continue
        if name in by_name:
            raise DataError(
                f"{where}: two columns {name!r} ({by_name[name]!r} and {column!r}); remove one or rename it"
            )
        by_name[name] = column
    return by_name
