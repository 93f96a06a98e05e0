"""What may be wrong with a set of images: each check is one function, entered in one table.

``isnet data check`` shows all that they find, and ``isnet train`` warns by the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from isnet.data.checks.contents import aspect_ratios, brightness, colour, duplicates, sizes
from isnet.data.checks.labels import (
    alike_missing,
    classes_in_tests,
    classes_in_training,
    groups_across_splits,
    imbalance,
    joined_labels,
    small_classes,
    sources_and_classes,
    unread_columns,
)
from isnet.data.checks.masks import mask_is_image, mask_readings, same_masks, suspect_masks, unmasked_tests
from isnet.data.checks.seen import Seen
from isnet.data.checks.statistics import statistics
from isnet.data.facts import Facts, Problem
from isnet.data.findings import SEVERITIES, Finding, counted
from isnet.data.table import ImageTable

Check = Callable[[Seen], Iterator[Finding]]

# They read no file.
TABLE_CHECKS: tuple[Check, ...] = (
    classes_in_training,
    classes_in_tests,
    small_classes,
    imbalance,
    groups_across_splits,
    sources_and_classes,
    alike_missing,
    joined_labels,
    mask_is_image,
    unread_columns,
)
# They look at what was noted about each image when it was read.
FACT_CHECKS: tuple[Check, ...] = (
    duplicates,
    suspect_masks,
    mask_readings,
    same_masks,
    unmasked_tests,
    brightness,
    colour,
    sizes,
    aspect_ratios,
)


def check(table: ImageTable, facts: Sequence[Facts] | None = None) -> list[Finding]:
    """What is wrong with a set, or worth knowing, the worst first; images that cannot be used are not listed.

    Args:
        table: The set.
        facts: What :func:`isnet.data.examine` noted about its images; None: only the table is looked at.
    """
    seen = Seen(table, () if facts is None else facts)
    found = list(table.findings)
    for one in TABLE_CHECKS if facts is None else (*TABLE_CHECKS, *FACT_CHECKS):
        found += one(seen)
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def unusable(problems: Iterable[Problem]) -> list[Finding]:
    """Images and masks that cannot be used, as findings."""
    problems = list(problems)
    found = []
    for trouble, code, what in (
        ("image", "unusable-images", "image"),
        ("mask", "unusable-masks", "mask"),
    ):
        texts = tuple(problem.text for problem in problems if problem.trouble == trouble)
        if texts:
            remedy = "Mend or remove them, or train with --mask-policy skip"
            found.append(Finding(code, "error", f"{counted(len(texts), what)} missing or unusable", texts, remedy))
    return found


__all__ = ["FACT_CHECKS", "TABLE_CHECKS", "Check", "Seen", "check", "statistics", "unusable"]
