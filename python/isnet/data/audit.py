"""Looking at every image and mask of a set before training on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from isnet.data.facts import Problem, Progress, examine
from isnet.data.masked_images import MaskedImages, MaskPolicy
from isnet.data.names import DataError
from isnet.data.table import ImageTable

_NAMED = 5  # of many images


def audit(
    images: MaskedImages, progress: Progress = lambda rows: rows, rows: Iterable[int] | None = None
) -> list[Problem]:
    """Reads every image and mask of a set; see :func:`isnet.data.examine`.

    Returns:
        What is wrong: images that cannot be read or are constant, and masks that are missing where they are needed, unreadable,
        of another shape or empty.
    """
    return [facts.problem for facts in examine(images, progress, rows) if facts.problem is not None]


def apply_policy(table: ImageTable, problems: Iterable[Problem], policy: MaskPolicy) -> ImageTable:
    """The table that training may use.

    Args:
        table: The set that was looked at.
        problems: What :func:`audit` found.
        policy: ``"error"``: any problem raises; ``"skip"``: images with a mask problem are dropped; ``"full"``: they stay,
            marked ``bad_mask``. Unreadable images raise under every policy but ``"skip"``, which drops them.

    Raises:
        DataError: a problem that the policy does not allow; the text lists the first ones.
    """
    problems = list(problems)
    fatal = [p for p in problems if policy == "error" or (policy == "full" and p.trouble == "image")]
    if fatal:
        shown = "; ".join(p.text for p in fatal[:_NAMED])
        more = f"; and {len(fatal) - _NAMED} more" if len(fatal) > _NAMED else ""
        raise DataError(f"{len(fatal)} of {len(table.records)} images cannot be used: {shown}{more}")
    bad = {p.row for p in problems}
    if policy == "full":
        marked = (replace(record, bad_mask=index in bad) for index, record in enumerate(table.records))
        return replace(table, records=tuple(marked))
    kept = tuple(record for index, record in enumerate(table.records) if index not in bad)
    if not kept:
        raise DataError("no image is left: every mask is missing, unreadable, mismatched or empty")
    return replace(table, records=kept)
