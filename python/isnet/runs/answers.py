"""A network's answers as a table: one row per image, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from isnet.data.sources import UNKNOWN

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets run


def columns(classes: Sequence[str], picture: bool = False) -> list[str]:
    """The names of the columns."""
    chances = [f"probability_{name}" for name in classes]
    pictures = ["picture"] if picture else []
    return ["image", "answer", *chances, "background_share", "label", "split", *pictures, "error"]


def probabilities(logits: Tensor, multi_label: bool) -> Tensor:
    """float64 [..., K]: of each class; of each label on its own, if there are several."""
    return logits.double().sigmoid() if multi_label else logits.double().softmax(-1)


def named(label: Any, classes: Sequence[str]) -> str:
    """The name of a class, or of the labels that an image has; empty for an unknown one.

    Args:
        label: A class index, 0/1 numbers, or :data:`UNKNOWN`.
        classes: All names.
    """
    if isinstance(label, Sequence):
        return ", ".join(name for name, value in zip(classes, label, strict=True) if value) or "none"
    return "" if label == UNKNOWN else classes[label]


def answered(chances: Tensor, classes: Sequence[str], multi_label: bool) -> str:
    """The name of the likeliest class, or of all labels above 0.5."""
    return named((chances > 0.5).tolist() if multi_label else int(chances.argmax()), classes)


def answer_row(
    image: str,
    logits: Tensor | None,
    classes: Sequence[str],
    *,
    multi_label: bool = False,
    share: float = math.nan,
    label: Any = UNKNOWN,
    split: str = "",
    error: str = "",
    picture: str = "",
) -> dict[str, str]:
    """A row.

    Args:
        image: Its name.
        logits: [K], or None: there is no answer.
        classes: Their names.
        multi_label: Whether each label is decided on its own.
        share: Of the relevance in the background, in [0, 1]; NaN: not known.
        label: What is true.
        split: The image's part of its set.
        error: What is wrong.
        picture: Name of the picture.
    """
    row = {"image": image, "label": named(label, classes), "split": split, "error": error, "picture": picture}
    if logits is None:
        return row
    if not bool(logits.isfinite().all()):
        row["error"] = "; ".join(filter(None, [error, "the network's answer is not finite"]))
        return row
    chances = probabilities(logits, multi_label)
    row["answer"] = answered(chances, classes, multi_label)
    row |= {f"probability_{name}": f"{value:.7g}" for name, value in zip(classes, chances.tolist(), strict=True)}
    return row if math.isnan(share) else {**row, "background_share": f"{share:.6g}"}


def to_csv(rows: Iterable[Mapping[str, str]], names: Sequence[str], *, header: bool) -> str:
    """Rows as CSV with Unix line ends.

    A text that a spreadsheet would run as a formula gets an apostrophe before it, a relative path ``./``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow([_harmless(name) for name in names])
    for row in rows:
        writer.writerow([_harmless(row.get(name, ""), path=name == "image") for name in names])
    # Names that are no UTF-8 come from the system with surrogates.
    return text.getvalue().encode("utf-8", "backslashreplace").decode()


def _harmless(value: str, path: bool = False) -> str:
    if not value.startswith(_FORMULA) or _is_number(value):
        return value
    return f"./{value}" if path else f"'{value}"


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value)) and value == value.strip()
    except ValueError:
        return False
