"""Checks of splits, classes and groups; they read no file."""

from __future__ import annotations

from collections.abc import Iterator

from isnet.data.checks.seen import Seen, gives_away
from isnet.data.findings import Finding, counted, some
from isnet.data.names import TRAIN

_FEW = 10  # training images of a class
_UNEVEN = 10.0  # times as many images
_MISSING = ("nan", "none", "null", "na", "n/a", "<na>", "nat")  # what programs write for nothing
_JOINTS = ("|", ";", ",", "+", "/", "&")  # between several labels in one cell
_PERSONS = ("patient", "subject", "case")


def classes_in_training(seen: Seen) -> Iterator[Finding]:
    """Nothing to learn, or nothing to learn a class from."""
    table = seen.table
    train = [record.label for record in seen.train]
    if not train:
        splits = ", ".join(table.splits)
        remedy = f"One split must be called {TRAIN}; a folder is read as SPLIT/CLASS/IMAGE or CLASS/IMAGE"
        yield Finding("no-training-images", "error", f"no training images; the splits are {splits}", (), remedy)
    elif table.multi_label:
        columns = zip(*(label for label in train if isinstance(label, tuple)), strict=True)
        for name, column in zip(table.classes, columns, strict=True):
            if len(set(column)) == 1:
                text = f"{'every' if column[0] else 'no'} training image has the label {name}"
                yield Finding("label-without-variety", "error", text)
    else:
        present = set(train)
        for index, name in enumerate(table.classes):
            if index not in present:
                yield Finding("class-not-in-training", "error", f"no training image is of the class {name}")
    if len(table.classes) == 1 and not table.multi_label:
        yield Finding("single-class", "error", f"a single class: {table.classes[0]}")


def classes_in_tests(seen: Seen) -> Iterator[Finding]:
    """A split that lacks a class: its scores say nothing of it."""
    for split in seen.table.splits:
        if split == TRAIN:
            continue
        counts = seen.counts(seen.table.part(split).records)
        absent = tuple(name for name in seen.table.classes if not counts[name])
        if absent:
            text = f"the split {split} has no image of {len(absent)} of {len(seen.table.classes)} classes"
            yield Finding("class-not-in-split", "warning", text, absent)


def small_classes(seen: Seen) -> Iterator[Finding]:
    """Classes with few training images."""
    counts = seen.counts(seen.train)
    few = tuple(f"{name} ({counts[name]})" for name in seen.table.classes if 0 < counts[name] < _FEW)
    if few:
        yield Finding("small-classes", "warning", f"classes with fewer than {_FEW} training images", few)


def imbalance(seen: Seen) -> Iterator[Finding]:
    """A class with many times the images of another."""
    counts = {name: count for name, count in seen.counts(seen.train).items() if count}
    if seen.table.multi_label or len(counts) < 2:
        return
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    ratio = counts[most] / counts[least]
    if ratio >= _UNEVEN:
        text = f"{most} has {ratio:.0f} times the training images of {least} ({counts[most]} and {counts[least]})"
        remedy = "Look at balanced accuracy and AUC rather than accuracy"
        yield Finding("imbalance", "warning", text, (), remedy)


def groups_across_splits(seen: Seen) -> Iterator[Finding]:
    """Patients, say, who are trained on and tested with."""
    splits: dict[str, dict[str, None]] = {}
    for record in seen.table.records:
        if record.group:
            splits.setdefault(record.group, {})[record.split] = None
    for split in seen.table.splits if seen.train else ():
        shared = tuple(group for group, found in splits.items() if {TRAIN, split} <= found.keys())
        if shared and split != TRAIN:
            text = f"{counted(len(shared), 'group')} in both {TRAIN} and {split}"
            yield Finding("groups-across-splits", "warning", text, shared, "Scores there may be too high")


def sources_and_classes(seen: Seen) -> Iterator[Finding]:
    """Training images whose source tells their class: a shortcut."""
    told = gives_away([(record.source, record.label) for record in seen.train])
    if told and not seen.table.multi_label:
        text = f"the source alone tells the class of {100 * told[0]:.0f} % of the training images (largest class {100 * told[1]:.0f} %)"
        yield Finding("source-tells-class", "warning", text, (), "Whatever marks a source is a shortcut")


def alike_missing(seen: Seen) -> Iterator[Finding]:
    """Classes, sources and groups that look like a program's word for nothing."""
    for what, names in (
        ("class", set(seen.table.classes)),
        ("source", {record.source for record in seen.table.records}),
        ("group", {record.group for record in seen.table.records}),
    ):
        found = tuple(sorted(name for name in names if name.casefold() in _MISSING))
        if found:
            text = f"a {what} is called {some(found)}: is that a missing value?"
            yield Finding("missing-value", "warning", text, (), "Leave the cell empty, or the row out")


def joined_labels(seen: Seen) -> Iterator[Finding]:
    """Classes such as ``edema|mass`` beside ``edema``: several labels in one cell."""
    classes = set(seen.table.classes)
    joined = tuple(
        name
        for name in seen.table.classes
        for parts in ([part.strip() for part in name.split(mark)] for mark in _JOINTS)
        if len(parts) > 1 and all(parts) and classes & set(parts)
    )
    if joined:
        remedy = "If these are several labels of an image, write a column of 0 and 1 for each, and name them (--label)"
        yield Finding("joined-labels", "warning", f"{counted(len(joined), 'class')} joined of others", joined, remedy)


def unread_columns(seen: Seen) -> Iterator[Finding]:
    """Columns of a manifest that say nothing to this program."""
    unread = seen.table.unread
    if unread:
        person = [name for name in unread if name.casefold().startswith(_PERSONS)]
        grouped = any(record.group for record in seen.table.records)
        remedy = f"If {person[0]} tells whose image it is, call it group" if person and not grouped else ""
        yield Finding("unread-columns", "note", f"columns that are not read: {some(map(repr, unread), 12)}", (), remedy)
