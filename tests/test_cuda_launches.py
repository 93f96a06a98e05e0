"""The launchers as nvcc compiles them for the host, on a runtime that checks launches and runs none (cuda_on_cpu/fake_runtime.cpp)."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cuda_on_cpu import CUDA_SOURCES, DTYPES, Extent, Norm
from cuda_on_cpu import resources as table
from cuda_on_cpu.kernels import SIGNATURES

pytestmark = pytest.mark.skipif(table.nvcc() is None, reason="nvcc is not installed")

STREAM = 0x51AEA4
P = 0x1000  # a pointer that nothing follows; aligned to 16 bytes
TYPES = {
    "float32": "f",
    "float64": "d",
    "float16": "6__half",
    "bfloat16": "13__nv_bfloat16",
}  # as a kernel's mangled name has them


class Launch(ctypes.Structure):
    """As in fake_runtime.cpp."""

    _fields_ = [
        ("kernel", ctypes.c_char * 512),
        *((name, ctypes.c_uint * 3) for name in ("grid", "block")),
        ("shared", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
    ]


class Call(NamedTuple):
    """A launcher, its arguments between dtype and stream, the elements that it makes, and how many launches it takes."""

    launcher: str
    arguments: Callable[[int], list[Any]]
    launches: int


def _extent(images: int) -> Extent:
    return Extent(images * 8 * 15, 3, 8, 15)


def _norm(images: int) -> Norm:
    return Norm(Extent(images * 8 * 16, 3, 8, 16), 32, 1e-5, True)


CALLS = {
    "pointwise": [
        Call("lrp_epsilon_scale", lambda n: [P, P, P, P, P, _extent(n), 0.01], 1),
        Call("lrp_epsilon_scale_backward", lambda n: [*[P] * 9, _extent(n), 0.01], 2),
        Call("lrp_ratio", lambda n: [*[P] * 4, _extent(n), 0.01], 1),
        Call("lrp_ratio_backward", lambda n: [*[P] * 7, _extent(n), 0.01], 1),
    ],
    "sample_norm": [
        Call("lrp_sample_norm", lambda n: [*[P] * 4, _norm(n)], 1),
        Call("lrp_sample_norm_backward", lambda n: [*[P] * 8, _norm(n)], 3),
    ],
}


@pytest.fixture(scope="module", params=CALLS)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, ctypes.CDLL]]:
    folder = tmp_path_factory.mktemp("launches")
    nvcc = [str(table.nvcc()), "-std=c++20", "--expt-relaxed-constexpr", "-gencode", "arch=compute_90,code=compute_90"]
    host = ["-O1", "-Xcompiler", "-fPIC", "-cudart", "none", "-c", str(CUDA_SOURCES / f"{request.param}.cu")]
    subprocess.run([*nvcc, *host, "-o", str(folder / "kernels.o")], check=True, capture_output=True)
    runtime = Path(__file__).parent / "cuda_on_cpu" / "fake_runtime.cpp"
    link = [
        os.environ.get("CXX", "g++"),
        "-O1",
        "-shared",
        "-fPIC",
        "-std=c++17",
        str(runtime),
        str(folder / "kernels.o"),
    ]
    subprocess.run([*link, "-Wl,-z,defs", "-o", str(folder / "launches.so")], check=True, capture_output=True)
    yield request.param, ctypes.CDLL(str(folder / "launches.so"))


def _launch(library: ctypes.CDLL, call: Call, dtype: str, images: int) -> tuple[int, list[Launch]]:
    """The launcher's result and what it launched."""
    function = getattr(library, call.launcher)
    function.restype, function.argtypes = SIGNATURES[call.launcher]
    result = function(DTYPES[dtype].code, *call.arguments(images), STREAM)
    room = (Launch * 16)()
    library.fake_launches.restype, library.fake_launches.argtypes = ctypes.c_int64, [ctypes.c_void_p, ctypes.c_int64]
    return result, list(room[: library.fake_launches(room, len(room))])


def test_every_launch_is_valid_and_goes_to_the_stream(compiled: tuple[str, ctypes.CDLL]) -> None:
    name, library = compiled
    for call in CALLS[name]:
        for dtype, mangled in TYPES.items():
            found = {}
            for images in (1, 2, 400):
                result, launches = _launch(library, call, dtype, images)
                assert (result, len(launches)) == (0, call.launches), (call.launcher, dtype, images)
                for launch in launches:
                    assert launch.stream == STREAM and launch.kernel.startswith(b"_Z")
                assert mangled in launches[0].kernel.decode(), launches[0].kernel
                found[images] = launches[0].grid[0] * launches[0].grid[1] * launches[0].grid[2]
            assert found[1] <= found[2] < found[400], (call.launcher, found)


def test_empty_tensors_launch_nothing(compiled: tuple[str, ctypes.CDLL]) -> None:
    name, library = compiled
    for call in CALLS[name]:
        if call.launches == 1:  # a reduction writes its zeros
            assert _launch(library, call, "float32", 0) == (0, [])


def test_the_runtime_s_error_is_the_launcher_s_result(compiled: tuple[str, ctypes.CDLL]) -> None:
    name, library = compiled
    for call in CALLS[name]:
        library.fake_error(700)
        result, _ = _launch(library, call, "bfloat16", 2)
        library.fake_error(0)
        assert result == 700, call.launcher
        assert _launch(library, call, "bfloat16", 2)[0] == 0, call.launcher
