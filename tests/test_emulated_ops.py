"""The CUDA registrations and kernels together, as torch ops on CPU tensors: csrc/cuda compiled under the CPU shim."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_on_cpu.build import compile_kernels, only_one
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.cpp_extension import include_paths, library_paths

from lrpkernels.testing import CONV_OPS, LAYOUTS, OPS, accuracies, reference, samples

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_agree_with_float64(op: str, dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        for sample in samples(op, dtype, layout, targets=2, shapes=SHAPES):
            actual = getattr(torch.ops.lrpkernels_emulated, op)(*sample.arguments)
            for i, accuracy in enumerate(accuracies(op, sample.arguments, actual)):
                assert accuracy.ratio <= 1, f"{layout} {sample.label}, result {i}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("op", ["epsilon_scale_backward", "ratio_backward"])
def test_long_sums_and_numbers_beyond_the_dtype(op: str, dtype: torch.dtype) -> None:
    """Of 17,030 terms that cancel; in float16 some quotients overflow."""
    for sample in samples(op, dtype, "channels_last", targets=3, shapes=[(1, 2, 131, 130)]):
        results = getattr(torch.ops.lrpkernels_emulated, op)(*sample.arguments)
        assert max(accuracy.ratio for accuracy in accuracies(op, sample.arguments, results)) <= 1, sample.label


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


def declared(*sizes: int) -> torch.Tensor:
    """A tensor of one element that says it has these sizes."""
    return torch.ones(()).expand(sizes)


def op_calls() -> dict[str, tuple[Callable[[Any], object], str]]:
    one, none, wide = [1, 1], (None,) * 5, [2**28, 2**28]
    weight = "weight must have fewer than 2^31 elements"
    g, x = declared(1, 2**16, 1, 1), declared(1, 2**15, 1, 1)
    window = ([1, 1], [0, 0], [1, 1])
    return {
        "relevance": (
            lambda o: o.conv_relevance(
                g, *none, declared(2**16, 2**15, 1, 1), 0, None, None, None, one, *window, 1, 0.1, False
            ),
            "conv_relevance: " + weight,
        ),
        "apply": (
            lambda o: o.conv_apply(x, declared(2**16, 2**15, 1, 1), 0, *window, 1, False),
            "conv_apply: " + weight,
        ),
        "a kernel larger than any": (
            lambda o: o.conv_apply(declared(1, 1, 1, 1), declared(1, 1, 2**31, 1), 0, *window, 1, False),
            "conv_apply: kernel_size must be 2 numbers >= 1 and < 2^30, got [2147483648, 1]",
        ),
        "weight gradient": (
            lambda o: o.conv_weight_gradient(
                declared(1, 1, 1, 1), *none, declared(1, 1, 2, 2), wide, one, [2**27 - 1] * 2, one, 1, 0.1, False
            ),
            "conv_weight_gradient: " + weight,
        ),
        "plane": (
            lambda o: o.max_pool_winner(
                declared(2, 3, 1, 1, 1),
                torch.zeros(2, 3, 1, 1, 1).long(),
                [2**29] * 3,
                *([1] * 3, [1] * 3),
                [0] * 3,
                [1] * 3,
            ),
            "max_pool_winner: a plane, padding included, and its windows must have fewer than 2^30 positions, got input [",
        ),
        "windows": (
            lambda o: o.max_pool_winner_backward(
                declared(2, 3, 4), torch.zeros(2, 3, 1).long(), [2**20], [1], [0], [2**20]
            ),
            "max_pool_winner_backward: a plane, padding included, and its windows must have fewer than 2^30 positions",
        ),
    }


@pytest.mark.parametrize("name", op_calls())
def test_ops_refuse_in_one_line(name: str) -> None:
    call, text = op_calls()[name]
    with pytest.raises(RuntimeError) as raised:
        call(torch.ops.lrpkernels_emulated)
    assert str(raised.value).splitlines()[0].startswith(text)
    assert "\n" not in str(raised.value).strip()


def test_a_launch_that_no_grid_holds_says_so() -> None:
    stride = [2**16, 2**16]
    g, weight = torch.ones(1, 8, 1, 1), torch.ones(8, 8, 1, 1)
    with pytest.raises(RuntimeError, match="conv_relevance failed with CUDA error 1: the sizes exceed what"):
        torch.ops.lrpkernels_emulated.conv_relevance(
            g, *(None,) * 5, weight, 0, None, None, None, [1, 1], stride, [0, 0], [1, 1], 1, 0.1, False
        )
