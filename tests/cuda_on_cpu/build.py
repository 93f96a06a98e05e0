"""Compiles a .cu file with g++ under the shim; the result is kept in build/cuda_on_cpu under the hash of all it depends on."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHIM = Path(__file__).resolve().parent
CUDA_SOURCES = ROOT / "csrc" / "cuda"
CACHE = ROOT / "build" / "cuda_on_cpu"

# Undefined behaviour is checked in the address build: both stop at the first finding.
SANITIZERS: Mapping[str, tuple[str, ...]] = {
    "address": ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-O1", "-fsanitize=thread"),
}
# A patch: float32 only, which compiles in a third of the time.
FLOAT_ONLY = (
    "cuda/memory.cuh",
    """    case kFloat64:
      return body(double{});
    case kFloat16:
      return body(__half{});
    case kBFloat16:
      return body(__nv_bfloat16{});
""",
    "    default:\n      break;\n",
)
_FLAGS = (
    "-std=c++17",
    "-g1",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
)


@functools.cache
def _compiler() -> tuple[str, str]:
    """The compiler and its version text."""
    compiler = os.environ.get("CXX", "g++")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    return compiler, version.splitlines()[0]


def _headers(sources: Path) -> list[Path]:
    """Everything a .cu file may include."""
    return sorted([*sources.rglob("*.h"), *sources.rglob("*.cuh"), *SHIM.glob("*.h")])


@contextlib.contextmanager
def only_one(library: Path) -> Iterator[None]:
    """Parallel test processes need the same libraries: one compiles, the others wait."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compile_kernels(
    name: str, sanitizer: str | None = None, patches: Sequence[tuple[str, str, str]] = (), counted: bool = False
) -> Path:
    """A shared library of csrc/cuda/<name>.cu with the shim inside.

    Args:
        name: the stem of the .cu file; "misuse" is the one beside the shim.
        sanitizer: None, "address" or "thread".
        patches: (path below csrc, text, replacement) applied to a copy of the sources; each text must occur exactly once.
        counted: float32 arithmetic is counted (counted.h).

    Raises:
        ValueError: a patch does not apply exactly once.
        RuntimeError: the compiler refuses the source; the text is its output.
    """
    sources = ROOT / "csrc"
    compiler, version = _compiler()
    flags = (
        *_FLAGS,
        *(SANITIZERS[sanitizer] if sanitizer else ("-O1",)),
        *(("-include", "counted.h", "-Wno-class-memaccess", "-Wno-maybe-uninitialized") if counted else ()),
    )
    source = SHIM / "misuse.cu" if name == "misuse" else sources / "cuda" / f"{name}.cu"
    digest = hashlib.sha256(repr((name, flags, version, tuple(patches))).encode())
    for path in (source, *_headers(sources)):
        digest.update(path.read_bytes())
    library = CACHE / f"{name}-{digest.hexdigest()[:20]}.so"
    if library.exists():
        return library
    with only_one(library), tempfile.TemporaryDirectory(dir=CACHE) as folder:
        if library.exists():
            return library
        if patches:
            copy = Path(folder) / "csrc"
            for part in ("cuda", "common"):
                shutil.copytree(sources / part, copy / part)
            for relative, text, replacement in patches:
                path = copy / relative
                original = path.read_text()
                if original.count(text) != 1:
                    raise ValueError(
                        f"{relative}: {text!r} must occur exactly once, occurs {original.count(text)} times"
                    )
                path.write_text(original.replace(text, replacement))
            source = copy / "cuda" / source.name
        built = Path(folder) / library.name
        command = [compiler, *flags, f"-I{SHIM}", f"-I{CUDA_SOURCES}", "-x", "c++", str(source), "-o", str(built)]
        # The compiler must not inherit a preloaded sanitizer runtime, under which it crawls or hangs.
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
        os.replace(built, library)  # atomic
    return library


def sanitizer_environment(sanitizer: str) -> dict[str, str]:
    """The environment in which a Python process may load a library built with this sanitizer."""
    compiler, _ = _compiler()
    runtime = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    found = subprocess.run(
        [compiler, f"-print-file-name={runtime}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {
        **os.environ,
        "LD_PRELOAD": str(Path(found).resolve()),
        "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:report_signal_unsafe=0",
        "SHIM_SANITIZER": sanitizer,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
