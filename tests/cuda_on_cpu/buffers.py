"""Memory for kernels: storage types, alignment, guards, and comparison with a float64 reference."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
_GUARD = 0 if os.environ.get("SHIM_SANITIZER") else 64  # bytes; AddressSanitizer has its own, exact ones
_GUARD_BYTE = 0xA5


@dataclass(frozen=True)
class Dtype:
    """A storage type: its code in types.h, numpy's type of its bits, its rounding unit and that of the arithmetic."""

    name: str
    code: int
    storage: type
    unit: float
    arithmetic: type
    smallest: float  # positive

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return np.dtype(self.storage).itemsize

    @property
    def arithmetic_unit(self) -> float:
        """Rounding unit of the arithmetic."""
        return float(np.finfo(self.arithmetic).eps) / 2

    def encode(self, values: NDArray) -> NDArray:
        """Rounded to nearest even, as `storage`."""
        if self.name != "bfloat16":
            return values.astype(self.storage)
        bits = values.astype(np.float32).view(np.uint32)
        rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)

    def decode(self, stored: NDArray) -> Float64:
        """The stored values in float64."""
        if self.name != "bfloat16":
            return stored.astype(np.float64)
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


INT64 = Dtype("int64", -1, np.int64, 0.0, np.float64, 0.0)
INT32 = Dtype("int32", -1, np.int32, 0.0, np.float64, 0.0)
DTYPES = {
    d.name: d
    for d in (
        Dtype("float32", 0, np.float32, 2.0**-24, np.float32, 2.0**-149),
        Dtype("float64", 1, np.float64, 2.0**-53, np.float64, 2.0**-1074),
        Dtype("float16", 2, np.float16, 2.0**-11, np.float32, 2.0**-24),
        Dtype("bfloat16", 3, np.uint16, 2.0**-8, np.float32, 2.0**-133),
    )
}


class Buffer:
    """Elements of one dtype at a chosen distance from a 64-byte boundary, with guard bytes on both sides.

    Args:
        values: its content, rounded to the dtype; or a shape: then NaN, as memory that a kernel must fill.
        dtype: the storage type.
        shift: distance of the first element from the boundary, in elements.
    """

    def __init__(self, values: NDArray | tuple[int, ...], dtype: Dtype, shift: int = 0) -> None:
        if isinstance(values, tuple):
            values = np.full(values, np.nan) if np.issubdtype(dtype.storage, np.floating) else np.full(values, -7)
            if dtype.name == "bfloat16":
                values = np.full(values.shape, np.nan)
        self.dtype, self.shape = dtype, values.shape
        size = values.size * dtype.size
        start = _GUARD + shift * dtype.size
        memory = np.full(start + size + _GUARD + 64, _GUARD_BYTE, np.uint8)
        lead = -memory.ctypes.data % 64
        if _GUARD == 0:  # malloc aligns to 16 bytes, which is all that kernels need
            memory, lead = np.full(start + size, _GUARD_BYTE, np.uint8), 0
        self._memory, self._begin, self._end = memory, lead + start, lead + start + size
        self._elements()[...] = dtype.encode(values).reshape(-1)

    def _elements(self) -> NDArray:
        return self._memory[self._begin : self._end].view(self.dtype.storage)

    @property
    def pointer(self) -> int:
        """Address of the first element."""
        return self._memory.ctypes.data + self._begin

    def read(self) -> Float64:
        """The elements in float64, after a check that nothing was written around them."""
        around = np.concatenate([self._memory[: self._begin], self._memory[self._end :]])
        assert (around == _GUARD_BYTE).all(), "a kernel wrote outside its buffer"
        return self.dtype.decode(self._elements()).reshape(self.shape)


def arranged(x: NDArray, channels_last: bool) -> NDArray:
    """[images, channels, ...] in memory order."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if channels_last else x


def restored(buffer: Buffer, shape: tuple[int, ...], channels_last: bool) -> Float64:
    """The inverse of `arranged`, for a buffer; `shape` is that of [images, channels, ...]."""
    stored = buffer.read().reshape((shape[0], *shape[2:], shape[1]) if channels_last else shape)
    return np.moveaxis(stored, -1, 1) if channels_last else stored


def assert_close(
    got: Float64, expected: Float64, dtype: Dtype, magnitude: Float64 | float | None = None, operations: int = 8
) -> None:
    """Raises unless got is expected, up to the rounding of the storage type and of the arithmetic.

    Args:
        got: what a kernel computed.
        expected: the float64 reference.
        dtype: of the kernel.
        operations: arithmetic roundings that may add up.
        magnitude: sum of the absolute terms where they cancel; default |expected|.
    """
    assert got.shape == expected.shape, f"shape {got.shape}, expected {expected.shape}"
    if dtype.name == "float16":
        expected = np.where(np.abs(expected) < 65520, expected, np.copysign(np.inf, expected))
    size = np.abs(expected) if magnitude is None else np.broadcast_to(magnitude, expected.shape)
    with np.errstate(invalid="ignore"):
        bound = dtype.unit * np.abs(expected) + operations * dtype.arithmetic_unit * size + dtype.smallest
        wrong = ~(np.abs(got - expected) <= bound)
    same = np.isclose(got, expected, rtol=0, atol=0, equal_nan=True)  # infinities and NaN
    wrong &= ~same
    if wrong.any():
        at = tuple(int(i[0]) for i in np.nonzero(wrong))
        raise AssertionError(
            f"{dtype.name}: {wrong.sum()} of {wrong.size} elements differ, first at {at}: "
            f"got {got[at]!r}, expected {expected[at]!r}"
        )
