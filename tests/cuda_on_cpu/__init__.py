"""The CUDA kernels on the CPU: csrc/cuda/*.cu compiled with g++ against cuda_shim.h, called through ctypes.

Nothing here imports torch, so that the same tests run under AddressSanitizer and ThreadSanitizer.
"""

import os

from .buffers import DTYPES, INT32, INT64, Buffer, Dtype, arranged, assert_close, restored
from .build import CUDA_SOURCES, ROOT, SANITIZERS, compile_kernels, sanitizer_environment
from .kernels import Conv, ConvResult, ConvScale, Counts, Extent, Heatmap, Kernels, Pool, load

__all__ = [
    "CUDA_SOURCES",
    "DTYPES",
    "INT32",
    "INT64",
    "ROOT",
    "SANITIZERS",
    "SLOW",
    "Buffer",
    "Conv",
    "ConvResult",
    "ConvScale",
    "Counts",
    "Dtype",
    "Extent",
    "Heatmap",
    "Kernels",
    "Pool",
    "arranged",
    "assert_close",
    "compile_kernels",
    "load",
    "restored",
    "sanitizer_environment",
]

# LRPKERNELS_SLOW_TESTS=1: the whole product of shapes, dtypes and orders, every mutant, every family under the sanitizers.
SLOW = os.environ.get("LRPKERNELS_SLOW_TESTS") == "1"
