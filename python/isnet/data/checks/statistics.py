"""Figures of each class in each split."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from isnet.data.checks.seen import Seen
from isnet.data.facts import Facts


def statistics(seen: Seen) -> list[dict[str, Any]]:
    """Foreground share, border contact, brightness and sizes of each class (or label) in each split, for tables and JSON.

    Returns:
        One entry per split and class: ``split``, ``class``, ``images``, ``masks``, and, each as ``{"min", "median", "max"}`` or None,
        ``foreground`` (share of the mask's pixels), ``border`` (share of the outermost pixels that are foreground), ``brightness`` (mean
        pixel, in [0, 1]), ``height`` and ``width`` (pixels of the file).
    """
    members: dict[tuple[str, str], list[Facts]] = {}
    for facts in seen.facts:
        record = seen.record(facts)
        for name in seen.names(record.label):
            members.setdefault((record.split, name), []).append(facts)
    rows = []
    for split in seen.table.splits:
        for name in seen.table.classes:
            found = members.get((split, name), [])
            rows.append(
                {
                    "split": split,
                    "class": name,
                    "images": len(found),
                    "masks": sum(facts.mask is not None for facts in found),
                    "foreground": _spread(found, lambda facts: facts.mask and facts.mask.foreground),
                    "border": _spread(found, lambda facts: facts.mask and facts.mask.border),
                    "brightness": _spread(found, lambda facts: facts.mean),
                    "height": _spread(found, lambda facts: facts.size and facts.size[0]),
                    "width": _spread(found, lambda facts: facts.size and facts.size[1]),
                }
            )
    return rows


def _spread(found: Sequence[Facts], value: Callable[[Facts], Any]) -> dict[str, float] | None:
    values = [number for facts in found if (number := value(facts)) is not None and not math.isnan(number)]
    return {"min": min(values), "median": median(values), "max": max(values)} if values else None
