"""Results of several runs on one GPU as those of one."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
Results = dict[str, Any]


def merged(first: Results, *others: Results) -> Results:
    """One run's results with those of later runs on the same card put in their places.

    A stage that a later run finished has its rows alone; of one that it began, groups of rows (of one network and precision) replace
    the same groups; one that it dropped stays as it was.

    Raises:
        ValueError: the runs differ in card or torch.
    """
    for later in others:
        cards = [
            {(row["gpu"], row["torch"]) for row in found["rows"] if row["what"] == "config"} for found in (first, later)
        ]
        if cards[0] != cards[1]:
            raise ValueError(f"results: expected runs on one card with one torch, got {sorted(set.union(*cards))}")
        ran = {entry["name"]: entry for entry in later["stages"] if entry["state"] != "dropped"}
        new = [row for row in later["rows"] if row["stage"] in ran]
        groups = {_group(row) for row in new}
        kept = [
            row
            for row in first["rows"]
            if row["stage"] not in ran or (ran[row["stage"]]["state"] == "out of time" and _group(row) not in groups)
        ]
        stages = [ran.pop(entry["name"], entry) for entry in first["stages"]]
        first = {**later, "stages": [*stages, *ran.values()], "rows": [*kept, *new]}
    return first


def _group(row: Row) -> tuple[Any, ...]:
    return tuple(
        row.get(name) for name in ("stage", "what", "network", "precision", "op", "layer", "dtype", "composite")
    )
