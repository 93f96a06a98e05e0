"""WebDataset shards: uncompressed tar files whose members of one stem are one sample.

``000123.png`` (the image), ``000123.mask.png``, and either ``000123.cls`` (a class) or ``000123.json`` (``label`` and, optionally,
``source``, ``split``, ``group``). The members' positions are noted once, so that any sample can be read at any time: training keeps its
exact order and resumes exactly, which a stream could not.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from isnet.data.files import FileRef, suffix_of
from isnet.data.findings import Finding, counted, some
from isnet.data.names import (
    TRAIN,
    DataError,
    bit,
    columns_by_name,
    require_distinct,
    require_one_kind,
    sorted_names,
    split_name,
    text_of,
    tidy,
)
from isnet.data.readers import image_suffixes
from isnet.data.sets.base import ImageSet
from isnet.data.table import ImageTable, Record

_KEYS = ("label", "source", "split", "group")
_SUFFIX = ".tar"


class Sample(NamedTuple):
    """One sample of a shard; ``label`` is a class name or number, or a list of 0/1 numbers."""

    image: FileRef
    mask: FileRef | None
    label: Any
    source: str
    split: str
    group: str


class ShardError(DataError):
    """A shard that is broken or incomplete; the text names it and the sample."""


class Shards(ImageSet):
    """A ``.tar`` file, or a folder of them; see :func:`read_shards`."""

    def takes(self, path: Path) -> bool:
        return bool(_shards(path))

    def read(self, path: Path, masks: Path | None, labels: Sequence[str]) -> ImageTable:
        if masks is not None:
            raise DataError(
                f"masks: a folder of masks is for an image folder, but {path} is none: shards hold them as KEY.mask.png"
            )
        if labels:
            raise DataError(f"label: columns are those of a manifest, but {path} is none")
        return _table(path)


def read_shards(path: Path) -> tuple[list[Sample], list[str]]:
    """The samples of a ``.tar`` file or of all such files of a folder, in the order of their names, and the members that are not read.

    Raises:
        ShardError: a file is not a plain tar archive, or a sample lacks its image or label, or has two.
    """
    samples, unread = [], list[str]()
    for shard in _shards(path):
        found, rest = _members(shard)
        unread += [f"{shard}:{name}" for name in rest]
        samples += [_sample(shard, key, members, unread) for key, members in found.items()]
    if not samples:
        raise ShardError(f"{path}: no samples")
    return samples, unread


def _shards(path: Path) -> list[Path]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [
        file for file in files if file.suffix.lower() == _SUFFIX and not file.name.startswith(".") and file.is_file()
    ]


def _members(shard: Path) -> tuple[dict[str, dict[str, tarfile.TarInfo]], list[str]]:
    """The members by sample and ending, and the names of those that are no plain files."""
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    other = []
    try:
        size = shard.stat().st_size
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if member.isdir() or name.startswith("."):  # macOS adds ._name
                    continue
                if not member.isreg() or member.issparse():
                    other.append(member.name)
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"it ends inside {member.name}")
                stem, _, kind = name.partition(".")
                members = found.setdefault(f"{folder}/{stem}" if folder else stem, {})
                if kind.lower() in members:
                    raise ShardError(f"{shard}: two members {member.name}; leave one")
                members[kind.lower()] = member
    except ShardError:
        raise
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise ShardError(f"{shard}: no uncompressed tar file ({error})") from error
    return found, other


def _sample(shard: Path, key: str, members: dict[str, tarfile.TarInfo], unread: list[str]) -> Sample:
    where = f"{shard}: sample {key}"

    def reference(kind: str) -> FileRef:
        member = members[kind]
        return FileRef(shard, member.offset_data, member.size, member.name)

    suffixes = image_suffixes()
    images = [kind for kind in members if f".{kind}" in suffixes]
    masks = [kind for kind in members if kind.startswith("mask.") and suffix_of(kind) in suffixes]
    for what, kinds in (("images", images), ("masks", masks)):
        if len(kinds) > 1:
            raise ShardError(f"{where} has {len(kinds)} {what}, {', '.join(sorted(kinds))}; leave one")
    if not images:
        raise ShardError(f"{where} has no image among {', '.join(sorted(members))}")
    unread += [members[kind].name for kind in members if kind not in (*images, *masks, "cls", "json")]
    try:
        values = json.loads(reference("json").read(), object_pairs_hook=_once) if "json" in members else {}
        if not isinstance(values, dict):
            raise ValueError(f".json: expected an object with label, source, split, group, got {type(values).__name__}")
        keys = columns_by_name(list(values), _KEYS, where)
        given = {name: values[keys[name]] if name in keys else None for name in _KEYS}
        label = given["label"]
        if "cls" in members:
            label = tidy(reference("cls").read().decode("utf-8-sig"))
            if given["label"] is not None and text_of(given["label"], f"{where}, label") != label:
                raise ValueError(f".cls says {label!r}, and .json {given['label']!r}; leave one")
        texts = [text_of(given[name], f"{where}, {name}") for name in _KEYS[1:]]
    except RecursionError as error:
        raise ShardError(f"{where}: .json: nested too deeply") from error
    except DataError:
        raise
    except (ValueError, OSError) as error:
        raise ShardError(f"{where}: {error}") from error
    if label is None or label == "":
        rest = f"; its .json has {', '.join(map(repr, values))}" if values else ""
        raise ShardError(f"{where} has neither .cls nor a label in .json{rest}")
    return Sample(reference(images[0]), reference(masks[0]) if masks else None, label, *texts)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ."""
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f".json: {twice[0]!r} stands there twice")
    return dict(pairs)


def _table(path: Path) -> ImageTable:
    samples, unread = read_shards(path)
    names, labels, several = _labels(path, samples)
    splits = [split_name(sample.split or TRAIN) for sample in samples]
    require_distinct(splits, "splits", path)
    records = tuple(
        Record(sample.image, label, sample.mask, sample.source, split, sample.group)
        for sample, label, split in zip(samples, labels, splits, strict=True)
    )
    findings = []
    if several:
        findings.append(
            Finding("multi-label", "note", f"{len(names)} labels, each present or absent in an image", names)
        )
    if unread:
        kinds = Counter(suffix_of(name) or "no suffix" for name in unread)
        text = (
            f"{counted(len(unread), 'member')} not read ({some((f'{n} {kind}' for kind, n in kinds.most_common()), 5)})"
        )
        findings.append(Finding("files-left-out", "note", text, tuple(unread)))
    rest = [file for file in path.iterdir() if not file.name.startswith(".")] if path.is_dir() else []
    rest = sorted(set(rest) - set(_shards(path)))
    if rest:
        text = f"{counted(len(rest), 'file')} or folders beside the shards, not read"
        findings.append(Finding("beside-shards", "warning", text, tuple(map(str, rest))))
    return ImageTable(records, names, several, findings=tuple(findings))


def _labels(path: Path, samples: Sequence[Sample]) -> tuple[tuple[str, ...], list[Any], bool]:
    """The names of the classes or labels, what each sample has, and whether that is several."""
    labels = [sample.label for sample in samples]
    several = {isinstance(label, list) for label in labels}
    if len(several) > 1:
        raise DataError(f"{path}: some samples have one label and some several")
    if several == {True}:
        lengths = {len(label) for label in labels}
        if len(lengths) != 1 or lengths == {0}:
            raise DataError(
                f"{path}: samples have {', '.join(map(str, sorted(lengths)))} labels; expected as many in each"
            )
        names = tuple(str(index) for index in range(lengths.pop()))
        bits = [
            tuple(bit(text_of(value, f"{sample.image}"), f"{sample.image}") for value in sample.label)
            for sample in samples
        ]
        return names, bits, True
    require_one_kind(labels, "labels", path)
    texts = [text_of(sample.label, f"{sample.image}, label") for sample in samples]
    if "" in texts:
        raise DataError(f"{samples[texts.index('')].image}: no label")
    names = sorted_names(texts)
    require_distinct(names, "classes", path)
    index = {name: number for number, name in enumerate(names)}
    return names, [index[text] for text in texts], False
