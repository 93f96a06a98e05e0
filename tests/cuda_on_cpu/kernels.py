"""The C interface of csrc/cuda/launchers.h, with the types of csrc/common/types.h, for ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping
from ctypes import c_bool, c_double, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

from .buffers import Buffer, Dtype
from .build import FLOAT_ONLY, compile_kernels

MAX_GRID_X = 2147483647


class Extent(ctypes.Structure):
    """LrpExtent."""

    _fields_ = [(name, c_int64) for name in ("numel", "targets", "channels", "inner")]


class Pool(ctypes.Structure):
    """LrpPool."""

    _fields_ = [
        *((name, c_int64) for name in ("targets", "batch", "channels")),
        *((name, c_int64 * 3) for name in ("input", "output", "kernel", "stride", "padding", "dilation")),
        ("divisor_override", c_int64),
        *((name, c_int32) for name in ("count_include_pad", "adaptive", "channels_last")),
    ]


class Conv(ctypes.Structure):
    """LrpConv."""

    _fields_ = [
        *((name, c_int64) for name in ("targets", "batch", "channels_in", "channels_out", "groups")),
        *((name, c_int64 * 2) for name in ("input", "output", "kernel", "stride", "padding", "dilation")),
        *((name, c_int32) for name in ("channels_last", "tensor_cores")),
    ]


class ConvScale(ctypes.Structure):
    """LrpConvScale."""

    _fields_ = [
        *((name, c_void_p) for name in ("addend", "output", "scale", "value", "denominator")),
        ("epsilon", c_double),
    ]


class ConvResult(ctypes.Structure):
    """LrpConvResult."""

    _fields_ = [(name, c_void_p) for name in ("input", "low", "high")]


class Heatmap(ctypes.Structure):
    """LrpHeatmap."""

    _fields_ = [
        *((name, c_int64) for name in ("images", "maps", "channels", "positions", "mask_channels", "kept")),
        ("decay", c_double),
    ]


class Norm(ctypes.Structure):
    """LrpNorm."""

    _fields_ = [("extent", Extent), ("row", c_int64), ("epsilon", c_double), ("centred", c_int32)]


class Epsilon(ctypes.Structure):
    """LrpEpsilon; a plain number stands for one without stabilizers per image."""

    _fields_ = [("value", c_double), ("per_image", c_void_p), ("image", c_int64)]

    @classmethod
    def from_param(cls, value: Any) -> Epsilon:
        return value if isinstance(value, cls) else cls(value, None, 1)


class Counts(ctypes.Structure):
    """Global memory traffic since `Kernels.configure`.

    Bytes requested by lanes, 32-byte sectors per warp access, different sectors per block and per launch.
    """

    _fields_ = [(name, c_int64) for name in ("bytes", "sectors", "block_sectors", "launch_sectors", "launches")]


class Operations(ctypes.Structure):
    """float32 arithmetic since the last call: additions, subtractions and multiplications; divisions."""

    _fields_ = [(name, c_int64) for name in ("simple", "divisions")]


_POINTER, _EXTENT, _REAL, _DTYPE = c_void_p, Extent, c_double, c_int

# Launcher -> argument types. A result is an error code, or bytes of a workspace.
SIGNATURES: Mapping[str, tuple[Any, list[Any]]] = {
    "lrp_epsilon_scale": (c_int, [_DTYPE, *[_POINTER] * 5, _EXTENT, Epsilon, _POINTER]),
    "lrp_epsilon_scale_backward_workspace": (c_int64, [_DTYPE, _EXTENT]),
    "lrp_epsilon_scale_backward": (c_int, [_DTYPE, *[_POINTER] * 9, _EXTENT, Epsilon, _POINTER]),
    "lrp_ratio": (c_int, [_DTYPE, *[_POINTER] * 4, _EXTENT, Epsilon, _POINTER]),
    "lrp_ratio_backward": (c_int, [_DTYPE, *[_POINTER] * 7, _EXTENT, Epsilon, _POINTER]),
    "lrp_conv_workspace": (c_int64, [_DTYPE, Conv, c_int, c_int]),
    "lrp_conv_relevance": (
        c_int,
        [_DTYPE, _POINTER, ConvScale, _POINTER, c_int, ConvResult, _POINTER, _POINTER, Conv, _POINTER],
    ),
    "lrp_conv": (c_int, [_DTYPE, _POINTER, _POINTER, c_int, _POINTER, _POINTER, Conv, _POINTER]),
    "lrp_conv_weight_gradient_workspace": (c_int64, [_DTYPE, Conv]),
    "lrp_conv_weight_gradient": (c_int, [_DTYPE, _POINTER, ConvScale, *[_POINTER] * 3, Conv, _POINTER]),
    "lrp_heatmap_scores_workspace": (c_int64, [Heatmap]),
    "lrp_heatmap_scores": (c_int, [_DTYPE, *[_POINTER] * 7, Heatmap, _POINTER]),
    "lrp_heatmap_scores_backward": (c_int, [_DTYPE, *[_POINTER] * 7, Heatmap, _POINTER]),
    "lrp_sample_norm": (c_int, [_DTYPE, *[_POINTER] * 4, Norm, _POINTER]),
    "lrp_sample_norm_backward_workspace": (c_int64, [_DTYPE, Norm, c_bool]),
    "lrp_sample_norm_backward": (c_int, [_DTYPE, *[_POINTER] * 8, Norm, _POINTER]),
    "lrp_sum_zplus": (c_int, [_DTYPE, *[_POINTER] * 5, _EXTENT, _REAL, _POINTER]),
    "lrp_sum_zplus_backward": (c_int, [_DTYPE, *[_POINTER] * 8, _EXTENT, _REAL, _POINTER]),
    "lrp_affine": (c_int, [_DTYPE, _REAL, _REAL, *[_POINTER] * 6, _EXTENT, _REAL, _POINTER]),
    "lrp_affine_backward_workspace": (c_int64, [_DTYPE, _EXTENT]),
    "lrp_affine_backward": (c_int, [_DTYPE, _REAL, _REAL, *[_POINTER] * 12, _EXTENT, _REAL, _POINTER]),
    "lrp_max_pool_winner": (c_int, [_DTYPE, *[_POINTER] * 3, Pool, _POINTER]),
    "lrp_max_pool_winner_backward": (c_int, [_DTYPE, *[_POINTER] * 3, Pool, _POINTER]),
    "lrp_average_pool": (c_int, [_DTYPE, *[_POINTER] * 2, Pool, _POINTER]),
    "lrp_average_pool_transpose": (c_int, [_DTYPE, *[_POINTER] * 2, Pool, _POINTER]),
}


class Kernels:
    """One compiled .cu file. Launchers are attributes without the `lrp_` prefix; they raise on an error code."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.shim_configure.argtypes = [c_int, c_int64, c_int]
        self._library.shim_configure.restype = None
        self._library.shim_counts.argtypes = [ctypes.POINTER(Counts)]
        self._library.shim_counts.restype = None

    def configure(self, order: int = 0, max_grid_x: int = MAX_GRID_X, count: bool = False) -> None:
        """Thread order (0 ascending, 1 descending, else the seed of a random one), grid limit, counting; resets the counts."""
        self._library.shim_configure(order, max_grid_x, count)

    def counts(self) -> Counts:
        """The traffic since `configure`."""
        result = Counts()
        self._library.shim_counts(ctypes.byref(result))
        return result

    def operations(self) -> Operations:
        """The arithmetic since the last call; for libraries that count it."""
        result = Operations()
        self._library.shim_operations(ctypes.byref(result))
        return result

    def __getattr__(self, name: str) -> Any:
        result_type, argument_types = SIGNATURES[f"lrp_{name}"]
        function = getattr(self._library, f"lrp_{name}")
        function.restype, function.argtypes = result_type, argument_types

        @functools.wraps(function)
        def call(*arguments: Any) -> int:
            if argument_types[-1] is c_void_p and len(arguments) == len(argument_types) - 1:
                arguments = (*arguments, None)  # the stream
            result = function(*(_plain(a) for a in arguments))
            if result_type is c_int and result != 0:
                raise RuntimeError(f"lrp_{name}: CUDA error {result}")
            return result

        setattr(self, name, call)
        return call


def _plain(argument: Any) -> Any:
    if isinstance(argument, Buffer):
        return argument.pointer
    if isinstance(argument, Dtype):
        return argument.code
    return argument


@functools.cache
def load(name: str) -> Kernels:
    """csrc/cuda/<name>.cu, built with the sanitizer of this process (SHIM_SANITIZER), or the library that SHIM_LIBRARY names.

    With SHIM_FLOAT_ONLY only for float32.
    """
    if library := os.environ.get("SHIM_LIBRARY"):
        return Kernels(Path(library))
    patches = [FLOAT_ONLY] if os.environ.get("SHIM_FLOAT_ONLY") else []
    return Kernels(compile_kernels(name, os.environ.get("SHIM_SANITIZER"), patches))


@functools.cache
def load_counted(name: str, float_only: bool = False) -> Kernels:
    """csrc/cuda/<name>.cu with its float32 arithmetic counted, for all dtypes or for float32 alone."""
    return Kernels(compile_kernels(name, patches=[FLOAT_ONLY] if float_only else [], counted=True))
