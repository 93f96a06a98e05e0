"""The CUDA kernels on the CPU: csrc/cuda/*.cu compiled with g++ against cuda_shim.h, called through ctypes.

Nothing here imports torch, so that the same tests run under AddressSanitizer and ThreadSanitizer.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import pytest

from .buffers import DTYPES, INT32, INT64, Buffer, Dtype, arranged, assert_close, restored
from .build import CUDA_SOURCES, FLOAT_ONLY, ROOT, SANITIZERS, compile_kernels, sanitizer_environment
from .kernels import (
    Conv,
    ConvResult,
    ConvScale,
    Counts,
    Epsilon,
    Extent,
    Heatmap,
    Kernels,
    Norm,
    Operations,
    Pool,
    load,
    load_counted,
)

__all__ = [
    "CUDA_SOURCES",
    "DTYPES",
    "FLOAT_ONLY",
    "INT32",
    "INT64",
    "ORDERS",
    "ROOT",
    "SANITIZERS",
    "Buffer",
    "Conv",
    "ConvResult",
    "ConvScale",
    "Counts",
    "Dtype",
    "Epsilon",
    "Extent",
    "Heatmap",
    "Kernels",
    "Norm",
    "Operations",
    "Pool",
    "arranged",
    "assert_close",
    "compile_kernels",
    "load",
    "load_counted",
    "restored",
    "runs",
    "sanitizer_environment",
    "slow_unless",
    "taken",
    "thin_runs",
]

CaseT = TypeVar("CaseT")

ORDERS = (0, 1, 5)  # in which threads run: ascending, descending, random
_SHARE = os.environ.get("SHIM_SHARE")  # overrides the share that a test sets


def slow_unless(quick: bool) -> Any:
    """Marks of a parameter set that the quick runs leave out (``pytest -m slow``, ``make test-slow``)."""
    return () if quick else pytest.mark.slow


def runs() -> list[Any]:
    """(dtype, order): quick runs take every dtype in ascending order and float32 in the others."""
    return [
        pytest.param(dtype, order, id=f"{name}-{order}", marks=slow_unless(order == 0 or name == "float32"))
        for name, dtype in DTYPES.items()
        for order in ORDERS
    ]


def thin_runs() -> list[Any]:
    """(dtype, order, share): as :func:`runs`, but only float32 in ascending order with all cases; slow ones take all (see :func:`taken`).

    One in five, a number that shares no factor with those of weight sets, scales, layouts and alignments: all of them come up.
    """
    found = []
    for name, dtype in DTYPES.items():
        for order in ORDERS:
            whole = order == 0 and name == "float32"
            if order == 0 or name == "float32":
                found.append(pytest.param(dtype, order, 1 if whole else 5, id=f"{name}-{order}"))
            if not whole:
                found.append(pytest.param(dtype, order, 1, id=f"{name}-{order}-all", marks=pytest.mark.slow))
    return found


def taken(cases: Iterable[CaseT], order: int, share: int) -> Iterator[tuple[int, CaseT]]:
    """One case in ``share``, or in SHIM_SHARE, with its number; different ones in other orders."""
    share = int(_SHARE or share)
    return ((number, case) for number, case in enumerate(cases) if number % share == order % share)
