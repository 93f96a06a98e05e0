"""The IDX file format of MNIST: a big-endian header (type, rank, sizes), then the values."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

_UINT8 = 0x08


class CorruptDataError(ValueError):
    """A data file does not hold what its name promises. The file is named in the message and left where it is."""


def decode_idx(content: bytes, name: str) -> npt.NDArray[np.uint8]:
    """Reads one IDX array of unsigned bytes.

    Args:
        content: The whole file, uncompressed.
        name: What to call the file in error messages.

    Returns:
        Array of the header's shape, read-only.

    Raises:
        CorruptDataError: the header is not one of an unsigned-byte IDX file, or the length does not match it.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UINT8 or content[3] == 0:
        raise CorruptDataError(f"{name}: expected an IDX file of unsigned bytes, got a header {content[:4]!r}")
    rank = content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise CorruptDataError(f"{name}: truncated inside the header, {len(content)} bytes of {start}")
    shape = struct.unpack(f">{rank}I", content[4:start])
    expected = start + math.prod(shape)
    if len(content) != expected:
        state = "truncated" if len(content) < expected else "too long"
        raise CorruptDataError(f"{name}: {state}, {len(content)} bytes where its header {list(shape)} needs {expected}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def encode_idx(values: npt.NDArray[np.uint8]) -> bytes:
    """The IDX file of ``values``, an array of unsigned bytes of any shape."""
    if values.dtype != np.uint8:
        raise TypeError(f"values: expected dtype uint8, got {values.dtype}")
    header = bytes([0, 0, _UINT8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + np.ascontiguousarray(values).tobytes()


def read_maybe_compressed(path: Path) -> bytes:
    """The bytes of ``path``, decompressed when its name ends in ``.gz``.

    Raises:
        CorruptDataError: a compressed file that cannot be decompressed to its end.
    """
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise CorruptDataError(f"{path}: not a whole gzip file ({error})") from error
