"""What the data of a run were when it began, so that a change shows when it goes on."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from isnet._files import read_json, write_text
from isnet.config import ImagesConfig, RunConfig
from isnet.data.files import FileRef
from isnet.data.table import Record
from isnet.runs.data import load_table
from isnet.runs.folder import CONFIG_NAME, DATA_NAME
from isnet.training.checkpoints import CheckpointError
from isnet.training.distributed import current_world

_NAMED = 3  # images in an error
_THREADS = 4  # hashing releases the interpreter


def contents(config: RunConfig) -> dict[str, str] | None:
    """Image -> hash of its bytes, its mask's, and what is said of it; None for data that are no images of the user's.

    Images are named as they lie in the data. Processes that train together share the work: all of them must call this.
    """
    data = config.data
    if not isinstance(data, ImagesConfig) or not os.path.exists(data.path):
        return None  # data sets that were handed over ready made
    world, table = current_world(), load_table(data)
    root = Path(data.path) if os.path.isdir(data.path) else Path(data.path).parent
    rows = range(world.rank, len(table.records), world.size)
    digest = functools.partial(_digest, classes=table.classes)
    with ThreadPoolExecutor(_THREADS) as pool:
        ours = list(zip(rows, pool.map(digest, (table.records[row] for row in rows)), strict=True))
    found: dict[str, str] = {}
    for row, digested in sorted(pair for part in world.gather(ours) for pair in part):
        name, number = image_name(table.records[row].image, root), 1
        while name in found:  # listed more than once
            number += 1
            name = f"{image_name(table.records[row].image, root)} ({number})"
        found[name] = digested
    return found


def require_same_data(folder: Path, config: RunConfig, found: Mapping[str, str] | None) -> None:
    """Compares the data of a run that is to go on with those that it began with.

    Raises:
        CheckpointError: they have changed; the text says how.
        ValueError: the note on them is damaged.
    """
    world, path = current_world(), folder / DATA_NAME
    if found is None or not world.from_main((folder / CONFIG_NAME).exists()):
        return
    if not world.from_main(path.exists()):
        warnings.warn(
            f"{path} is missing: whether the data have changed since the run began cannot be told", stacklevel=2
        )
        return
    before = read_json(path)
    if not isinstance(before, dict) or not all(isinstance(value, str) for value in before.values()):
        raise ValueError(f"{path}: expected images with hashes")
    changes = {
        "added": [name for name in found if name not in before],
        "removed": [name for name in before if name not in found],
        "changed": [name for name in found if found[name] != before.get(name, found[name])],
    }
    told = [f"{len(names)} {what} ({_some(names)})" for what, names in changes.items() if names]
    if told:
        raise CheckpointError(
            f"{folder}: the images of {getattr(config.data, 'path', '')} have changed since the run began: {', '.join(told)}; "
            "put them back, or train in a new folder"
        )


def note_data(folder: Path, found: Mapping[str, str] | None) -> None:
    """Keeps what the data are."""
    if found is not None and current_world().is_main:
        write_text(folder / DATA_NAME, json.dumps(found, indent=0) + "\n")


def _digest(record: Record, classes: tuple[str, ...]) -> str:
    said = (classes, record.label, record.source, record.split, record.group, record.bad_mask)
    found = hashlib.blake2b(repr(said).encode(), digest_size=16)
    for file in (record.image, record.mask):
        found.update(b"|" if file is None else hashlib.blake2b(_bytes(file)).digest())
    return found.hexdigest()


def _bytes(file: FileRef) -> bytes:
    try:
        return file.read()
    except OSError:
        return b"unreadable"  # a mask policy may allow it


def image_name(file: FileRef, root: Path) -> str:
    """What an image is called in the note: by where it lies in its set."""
    relative = os.path.relpath(file.path, root)
    return f"{relative}:{file.name or file.offset}" if file.offset is not None else relative


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
