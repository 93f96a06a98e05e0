"""python -m cuda_on_cpu.run_misuse NUMBER [THREADS]: runs one kernel of misuse.cu and prints its error code and results."""

from __future__ import annotations

import ctypes
import os
import sys

import numpy as np

from .build import compile_kernels

if __name__ == "__main__":
    library = ctypes.CDLL(str(compile_kernels("misuse", os.environ.get("SHIM_SANITIZER"))))
    memory = np.zeros(256, np.float32)
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else 32
    code = library.run_misuse(int(sys.argv[1]), ctypes.c_void_p(memory.ctypes.data), threads)
    print(code, *memory[:32])
