"""NIfTI."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from typing import Any

import numpy as np

from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.readers.base import HEAD, Picture, Pixels, Place, Reader, check_size

_GZIP = b"\x1f\x8b"
_EXTENSIONS = 2**24  # bytes of header and extensions
_ONE, _TWO = b"n+1\0", b"n+2\0"  # marks of the versions
_PAIR = (b"ni1\0", b"ni2\0")  # marks of a header whose numbers are in another file


class NIfTI(Reader):
    """A two-dimensional image, in the orientation nearest to right, anterior, superior (nibabel's ``as_closest_canonical``)."""

    suffixes = (".nii", ".nii.gz")
    extra = "nifti"

    def recognises(self, head: bytes) -> bool:
        head = _inflated(head)
        return head[344:348] in (_ONE, _PAIR[0]) or head[4:8] in (_TWO, _PAIR[1])

    def read(self, file: FileRef, *, scaled: bool) -> Picture:
        from nibabel.arrayproxy import ArrayProxy

        header = _header(file)
        shape = header.get_data_shape()
        start = max(int(header.get_data_offset()), header.single_vox_offset)  # some programs write 0
        if start > _EXTENSIONS:
            raise UnreadableFileError(f"{file}: its numbers begin at byte {start}, expected {_EXTENSIONS} at most")
        count = start + math.prod(shape) * header.get_data_dtype().itemsize
        raw = file.read()
        if raw.startswith(_GZIP):
            # No more than the header tells; one byte beyond it, so that a stream that ends there is checked.
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
                raw = stream.read(count + 1)
        slope, intercept = header.get_slope_inter()
        scaling = (1.0 if slope is None else slope, 0.0 if intercept is None else intercept)
        pixels = np.asarray(ArrayProxy(io.BytesIO(raw), (shape, header.get_data_dtype(), start, *scaling)))
        largest = None
        if pixels.dtype.names:  # RGB and RGBA
            pixels, largest = np.stack([pixels[name] for name in pixels.dtype.names], -1), 255.0
        if pixels.dtype.kind not in "buif":
            raise UnreadableFileError(f"{file}: expected real numbers, got {pixels.dtype}")
        pixels, _, _ = _canonical(pixels.reshape(*_spatial(shape), *pixels.shape[len(shape) :]), header)
        pixels = np.squeeze(pixels, _thin(pixels.shape[:3])).swapaxes(0, 1)  # NIfTI's first axis is x
        if pixels.ndim == 2:
            return Picture(pixels)
        alpha = pixels[..., 3] / np.float32(255) if pixels.shape[-1] == 4 else None
        return Picture(pixels[..., :3], largest, alpha)

    def place(self, file: FileRef) -> Place | None:
        header = _header(file)
        if not _tells_place(header):
            return None
        shape = _spatial(header.get_data_shape())
        dummy, affine, turned = _canonical(np.broadcast_to(False, shape), header)
        x, y = (axis for axis in range(3) if axis != _thin(dummy.shape))
        ends = affine[:3, x] * (dummy.shape[x] - 1), affine[:3, y] * (dummy.shape[y] - 1)
        corners = affine[:3, 3] + np.stack([np.zeros(3), *ends])
        return Place(corners, float(min(np.linalg.norm(affine[:3, axis]) for axis in (x, y))), turned)


def _inflated(head: bytes) -> bytes:
    if not head.startswith(_GZIP):
        return head
    try:
        return zlib.decompressobj(wbits=31).decompress(head, HEAD)
    except zlib.error:
        return b""


def _header(file: FileRef) -> Any:
    """The header of a file that can be read: two-dimensional and not too large."""
    import nibabel

    head = _inflated(file.head(HEAD))
    if _PAIR[0] == head[344:348] or _PAIR[1] == head[4:8]:
        raise UnreadableFileError(f"{file}: its numbers are in another file (.img); convert the pair to one .nii file")
    if not (head[344:348] == _ONE or head[4:8] == _TWO):
        raise UnreadableFileError(f"{file}: no NIfTI header (ANALYZE and other forms are to be converted)")
    kind = nibabel.Nifti2Header if head[4:8] == _TWO else nibabel.Nifti1Header
    header = kind.from_fileobj(io.BytesIO(head), check=False)
    shape = header.get_data_shape()
    sides = [side for side in shape if side != 1]
    if len(sides) > 2 or len(shape) < 2:
        raise UnreadableFileError(
            f"{file}: expected a two-dimensional image, got shape {tuple(map(int, shape))}; save one slice as a file of its own"
        )
    width, height = (*sides, 1, 1)[:2]
    check_size(file, int(height), int(width), header.get_data_dtype().itemsize)
    return header


def _spatial(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The three spatial axes; further ones have a single entry, or take the place of one of them that has."""
    first = [int(side) for side in shape[:3]] + [1] * (3 - len(shape[:3]))
    for side in shape[3:]:
        if side != 1:
            first[2 if first[2] == 1 else first.index(1)] = int(side)
    return first[0], first[1], first[2]


def _thin(shape: tuple[int, ...]) -> int:
    """The axis without extent; the last of them, so that a single row or column stays an image."""
    return max(axis for axis in range(3) if shape[axis] == 1)


def _tells_place(header: Any) -> bool:
    return int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0


def _canonical(pixels: Pixels, header: Any) -> tuple[Pixels, Pixels, bool]:
    """[X, Y, Z, ...] and the affine in the closest canonical orientation, and whether that is another one than the stored one."""
    import nibabel
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    affine = np.asarray(header.get_best_affine(), float)
    if not _tells_place(header):
        return pixels, affine, False
    thin = _thin(pixels.shape[:3])
    if not affine[:3, thin].any():  # no thickness
        affine[:3, thin] = np.cross(affine[:3, thin - 2], affine[:3, thin - 1])
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * sides.prod():
        raise ValueError("its affine has no inverse")
    orientation = io_orientation(affine)
    turned = not np.array_equal(orientation, nibabel.orientations.axcodes2ornt("RAS"))
    moved = affine @ inv_ornt_aff(orientation, pixels.shape[:3])
    return apply_orientation(pixels, orientation), moved, turned
