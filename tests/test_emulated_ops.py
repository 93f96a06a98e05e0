"""The CUDA registrations and kernels together, as torch ops on CPU tensors: csrc/cuda compiled under the CPU shim."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
import torch
from cuda_on_cpu.build import compile_kernels, only_one
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.cpp_extension import include_paths, library_paths

from lrpkernels.testing import CONV_OPS, LAYOUTS, OPS, SUM_MARGIN, SUMMING_OPS, error_ratio, reference, samples

ROOT = Path(__file__).parent.parent
SHAPES = [(2, 3, 5, 7), (4, 17), (2, 3, 2, 5, 3), (1, 37, 2, 5), (0, 3, 4, 4)]


def load_emulated_ops() -> None:
    """Schemas and registrations over the libraries of test_cuda_*.py, as the ops torch.ops.lrpkernels_emulated; compiled once."""
    if hasattr(torch.ops.lrpkernels_emulated, "epsilon_scale"):
        return
    kernels = [compile_kernels(path.stem) for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
    sources = [ROOT / "csrc" / "library.cpp", ROOT / "csrc" / "cuda" / "register.cpp"]
    flags = ["-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-std=c++20", "-DNDEBUG", "-DLRP_EMULATED_CUDA"]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{ROOT / 'tests' / 'cuda_on_cpu'}"]
    state = hashlib.sha256(repr((torch.__version__, flags, [path.name for path in kernels])).encode())
    for path in (*sources, *sorted((ROOT / "csrc" / "common").glob("*.h"))):
        state.update(path.read_bytes())
    library = kernels[0].with_name(f"ops-{state.hexdigest()[:20]}.so")
    with only_one(library):
        if not library.exists():
            flags += [f"-I{path}" for path in include_paths()]
            links = [f"-L{path}" for path in library_paths()] + ["-ltorch_cpu", "-lc10", "-Wl,-rpath,$ORIGIN"]
            links += [f"-L{library.parent}", "-Wl,--no-as-needed", *(f"-l:{path.name}" for path in kernels)]
            part = library.with_suffix(f".{os.getpid()}")
            command = [os.environ.get("CXX", "g++"), *flags, "-x", "c++", *map(str, sources), "-o", str(part)]
            subprocess.run([*command, "-x", "none", *links], check=True, timeout=600)
            part.replace(library)
    torch.ops.load_library(str(library))


@pytest.fixture(scope="module", autouse=True)
def emulated_ops() -> None:
    load_emulated_ops()


ALLOWED = {op: SUM_MARGIN if op in SUMMING_OPS else 1.0 for op in OPS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_agree_with_float64(op: str, dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        for sample in samples(op, dtype, layout, targets=2, shapes=SHAPES):
            actual = getattr(torch.ops.lrpkernels_emulated, op)(*sample.arguments)
            exact, plain = reference(op, sample.arguments), reference(op, sample.arguments, dtype)
            actual = actual if isinstance(actual, tuple) else (actual,)
            for i, (a, p, e) in enumerate(zip(actual, plain, exact, strict=True)):
                assert error_ratio(a, p, e) <= ALLOWED[op], f"{layout} {sample.label}, result {i}"


@pytest.mark.parametrize("op", OPS)
def test_results_have_the_form_of_the_shape_functions(op: str) -> None:
    for layout in ("contiguous", "channels_last", "strided"):
        for sample in samples(op, torch.float32, layout, targets=2, shapes=SHAPES):
            real = getattr(torch.ops.lrpkernels_emulated, op)(*sample.arguments)
            with FakeTensorMode() as mode:
                arguments = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in sample.arguments]
                fake = getattr(torch.ops.lrpkernels, op)(*arguments)
            for r, f in zip(*((x if isinstance(x, tuple) else (x,)) for x in (real, fake)), strict=True):
                assert r.shape == f.shape and r.dtype == f.dtype, sample.label
                if r.numel() > 0:
                    significant = [d for d in range(r.dim()) if r.shape[d] > 1]
                    assert [r.stride(d) for d in significant] == [f.stride(d) for d in significant], sample.label


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", CONV_OPS)
def test_tensor_cores_are_as_close_as_their_inputs_allow(op: str, dtype: torch.dtype) -> None:
    rounded = 2**-11 if dtype != torch.bfloat16 else 2**-8  # tf32 and float16 keep 10 bits, bfloat16 keeps 7
    for layout in ("contiguous", "channels_last"):
        for sample in samples(op, dtype, layout, targets=2):
            actual = getattr(torch.ops.lrpkernels_emulated, op)(*sample.arguments[:-1], True)
            (exact,) = reference(op, sample.arguments)
            if exact.numel() > 0:
                error = (actual.double() - exact).abs().max()
                assert error <= 4 * rounded * exact.abs().max(), f"{layout} {sample.label}"
