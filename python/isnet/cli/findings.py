"""How the findings of a data check are shown: as text of 80 columns, and as JSON."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from isnet._text import Screen, visible
from isnet.data import Facts, Finding, ImageTable, describe
from isnet.data.checks import Seen, statistics
from isnet.data.findings import SEVERITIES, counted

SCHEMA = 1
_WIDTH = 80
_NAMED = 5  # examples of a finding
_ROWS = 40  # of a table
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def verdict(findings: Sequence[Finding]) -> str:
    """``"error"``, ``"warning"`` or ``"ok"``."""
    worst = min((SEVERITIES.index(finding.severity) for finding in findings), default=len(SEVERITIES))
    return "error" if worst == 0 else "warning" if worst == 1 else "ok"


def to_json(
    data: object, table: ImageTable, facts: Sequence[Facts], findings: Sequence[Finding], seconds: float
) -> dict[str, Any]:
    """The whole check, in the form that docs/data.md describes."""
    return {
        "schema": SCHEMA,
        "data": str(data),
        "verdict": verdict(findings),
        "images": len(table.records),
        "usable": _usable(facts),
        "seconds": round(seconds, 3),
        "classes": list(table.classes),
        "multi_label": table.multi_label,
        "splits": [
            {"split": split, "source": source, "images": images, "classes": classes}
            for split, source, images, classes in describe(table)
        ],
        "findings": [finding.to_json() for finding in findings],
        "statistics": statistics(Seen(table, facts)),
    }


def show(data: object, table: ImageTable, facts: Sequence[Facts], findings: Sequence[Finding], seconds: float) -> None:
    """Prints the verdict, the findings with their first examples, and tables of splits and classes."""
    screen = Screen()
    counts = Counter(finding.severity for finding in findings)
    told = ", ".join(counted(counts[severity], severity) for severity in SEVERITIES if counts[severity])
    advice = {
        "error": "Mend the errors before you train.",
        "warning": "It can be trained on; look at the warnings first.",
        "ok": "It can be trained on.",
    }[verdict(findings)]
    screen.print(f"{data}: {told or 'nothing found'}. {advice}", soft_wrap=True)
    screen.print(f"{_usable(facts)} of {len(table.records)} images can be used as they are.", soft_wrap=True)
    for finding in findings:
        remedy = f". {finding.remedy}" if finding.remedy else ""
        line = Text(f"\n{finding.severity}", style=_COLOURS[finding.severity])
        screen.print(line + Text(f" {finding.code}: {visible(finding.text + remedy)}.", style=""), soft_wrap=True)
        for example in finding.examples[:_NAMED]:
            screen.print(f"  {example}", soft_wrap=True)
        if len(finding.examples) > _NAMED:
            screen.print(f"  and {len(finding.examples) - _NAMED} more (--json FILE has all)", soft_wrap=True)
    narrow = Screen(width=min(screen.width, _WIDTH))
    narrow.print()
    narrow.print(_table(("split", "source", "images", "groups"), _split_rows(table)))
    narrow.print()
    narrow.print(_table(_COLUMNS, map(_class_row, statistics(Seen(table, facts)))))
    rate = f" ({len(facts) / seconds:.0f} images/s)" if seconds > 0 else ""
    narrow.print("fore, border: foreground among all and among the outermost pixels of the masks;")
    narrow.print("medians (lowest to highest). mean: of the pixels in [0, 1].")
    narrow.print(f"Read in {seconds:.1f} s{rate}.")


_COLUMNS = ("split", "class", "images", "masks", "fore %", "border %", "mean", "height x width")


def _usable(facts: Sequence[Facts]) -> int:
    return sum(seen.problem is None for seen in facts)


def _split_rows(table: ImageTable) -> Iterable[tuple[str, ...]]:
    for split, source, images, _ in describe(table):
        groups = {record.group for record in table.part(split).records if record.source == source and record.group}
        yield split, source or "-", str(images), str(len(groups) or "-")


def _class_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["split"],
        row["class"],
        str(row["images"]),
        str(row["masks"]),
        _percent(row["foreground"]),
        _percent(row["border"]),
        "-" if row["brightness"] is None else f"{row['brightness']['median']:.2f}",
        "-" if row["height"] is None else f"{_range(row['height'])} x {_range(row['width'])}",
    )


def _percent(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    low, middle, high = (f"{100 * found[name]:.0f}" for name in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low}-{high})"


def _range(found: Mapping[str, float]) -> str:
    low, high = int(found["min"]), int(found["max"])
    return f"{low}" if low == high else f"{low}-{high}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """At most 40 rows; names are folded, never cut."""
    rows = list(rows)
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows[:_ROWS]:
        table.add_row(*row)
    if len(rows) > _ROWS:
        table.add_row(f"and {len(rows) - _ROWS} more")
    return table


def require_file(path: Path, option: str, formats: Collection[str] | None = None) -> None:
    """Refuses a path that cannot become a file.

    Raises:
        ValueError: it is a folder, below a file, or of another format than these.
    """
    if path.is_dir() or any(parent.exists() and not parent.is_dir() for parent in path.parents):
        raise ValueError(f"{option}: {path} is a folder or below a file; name a file")
    suffix = path.suffix.removeprefix(".").lower()
    if formats is not None and suffix and suffix not in formats:
        raise ValueError(f"{option}: expected a file of the format {', '.join(sorted(formats))}, got {path}")


def is_stdout(path: str | os.PathLike[str] | None) -> bool:
    """Whether the JSON goes to standard output."""
    return path is not None and str(path) == "-"
