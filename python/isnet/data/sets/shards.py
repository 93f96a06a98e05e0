"""WebDataset shards: uncompressed tar files whose members of one stem are one sample.

``000123.png`` (the image), ``000123.mask.png``, and either ``000123.cls`` (a class) or ``000123.json`` (``label`` and, optionally,
``source``, ``split``, ``group``). The members' positions are noted once, so that any sample can be read at any time: training keeps its
exact order and resumes exactly, which a stream could not.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from isnet.data.files import FileRef, suffix_of
from isnet.data.readers import image_suffixes
from isnet.data.sets.base import ImageSet
from isnet.data.table import TRAIN, DataError, ImageTable, Record, bit, sorted_names, split_name


class Sample(NamedTuple):
    """One sample of a shard; ``label`` is a class name or number, or a list of 0/1 numbers."""

    image: FileRef
    mask: FileRef | None
    label: Any
    source: str
    split: str
    group: str


class ShardError(ValueError):
    """A shard that is broken or incomplete; the text names it and the sample."""


class Shards(ImageSet):
    """A ``.tar`` file, or a folder of them; see :func:`read_shards`."""

    def takes(self, path: Path) -> bool:
        return path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar")))

    def read(self, path: Path, masks: Path | None, labels: Sequence[str]) -> ImageTable:
        if masks is not None:
            raise DataError(
                f"masks: a folder of masks is for an image folder, but {path} is none: shards hold them as KEY.mask.png"
            )
        if labels:
            raise DataError(f"label: columns are those of a manifest, but {path} is none")
        return _table(path)


def read_shards(path: Path) -> list[Sample]:
    """The samples of a ``.tar`` file or of all such files of a folder, in the order of their names.

    Raises:
        ShardError: a file is not a plain tar archive, or a sample lacks its image or label.
    """
    shards = sorted(path.glob("[!.]*.tar")) if path.is_dir() else [path]
    samples = [sample for shard in shards for sample in _samples(shard)]
    if not samples:
        raise ShardError(f"{path}: no samples")
    return samples


def _samples(shard: Path) -> list[Sample]:
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if member.isfile() and not name.startswith("."):  # macOS adds ._name
                    stem, _, kind = name.partition(".")
                    found.setdefault(f"{folder}/{stem}" if folder else stem, {})[kind.lower()] = member
    except tarfile.TarError as error:
        raise ShardError(f"{shard}: no uncompressed tar file ({error})") from error
    return [_sample(shard, key, members) for key, members in found.items()]


def _sample(shard: Path, key: str, members: dict[str, tarfile.TarInfo]) -> Sample:
    def reference(kind: str) -> FileRef:
        member = members[kind]
        return FileRef(shard, member.offset_data, member.size, member.name)

    image = next((kind for kind in members if f".{kind}" in image_suffixes()), None)
    mask = next((kind for kind in members if kind.startswith("mask.") and suffix_of(kind) in image_suffixes()), None)
    if image is None:
        raise ShardError(f"{shard}: sample {key} has no image among {', '.join(sorted(members))}")
    try:
        values = json.loads(reference("json").read()) if "json" in members else {}
        if not isinstance(values, dict):
            raise ValueError(f".json: expected an object with label, source, split, group, got {type(values).__name__}")
        label = reference("cls").read().decode().strip() if "cls" in members else values.get("label")
    except ValueError as error:
        raise ShardError(f"{shard}: sample {key}: {error}") from error
    if label is None or label == "":
        raise ShardError(f"{shard}: sample {key} has neither .cls nor a label in .json")
    texts = (str(values.get(name, "")) for name in ("source", "split", "group"))
    return Sample(reference(image), None if mask is None else reference(mask), label, *texts)


def _table(path: Path) -> ImageTable:
    samples = read_shards(path)
    labels = [sample.label for sample in samples]
    several = [isinstance(label, (list, tuple)) for label in labels]
    if any(several) and not all(several):
        raise DataError(f"{path}: some samples have one label and some several")
    if all(several):
        lengths = {len(label) for label in labels}
        if len(lengths) != 1:
            raise DataError(f"{path}: samples have {sorted(lengths)} labels")
        names: tuple[str, ...] = tuple(str(index) for index in range(lengths.pop()))
        numbers: list[Any] = [tuple(bit(str(v), f"{path}") for v in label) for label in labels]
    else:
        names = sorted_names({str(label) for label in labels})
        numbers = [names.index(str(label)) for label in labels]
    records = tuple(
        Record(sample.image, number, sample.mask, sample.source, split_name(sample.split or TRAIN), sample.group)
        for sample, number in zip(samples, numbers, strict=True)
    )
    return ImageTable(records, names, multi_label=all(several))
