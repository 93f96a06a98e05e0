"""What to build: CPU kernels always, CUDA kernels where torch has CUDA and a fitting nvcc is found.

Used by setup.py before the package exists, so it imports neither torch nor the rest of the package. The decisions are
pure functions of what was found; `find_toolkit` and `supported_architectures` look at the machine.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
MINIMUM_TORCH = (2, 11)
MINIMUM_SETUPTOOLS = 77  # the first that reads license = "BSD-3-Clause" (PEP 639)
INSTALL_HINT = "install torch >= 2.11 first and repeat; where the build still does not see it (uv, build), add --no-build-isolation"


class BuildError(Exception):
    """The build cannot continue; the text is one line for the user."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: the folder that holds bin/nvcc and include/cuda_runtime.h, and nvcc's version such as "13.0"."""

    home: Path
    version: str


@dataclass(frozen=True)
class CudaDecision:
    """Whether CUDA kernels are built, why, and against which cudart ("cudart" or "cudart_static")."""

    build: bool
    reason: str
    toolkit: Toolkit | None = None
    runtime_library: str = "cudart_static"


def parse_mode(environment: Mapping[str, str]) -> str:
    """LRPKERNELS_CUDA as "auto", "0" or "1"."""
    mode = environment.get("LRPKERNELS_CUDA", "auto").strip().lower() or "auto"
    if mode not in ("auto", "0", "1"):
        raise BuildError(f"LRPKERNELS_CUDA must be auto, 0 or 1, got {mode!r}")
    return mode


def major(version: str) -> int:
    """The first number of a version text."""
    return int(version.split(".")[0])


def check_torch_version(version: str) -> None:
    """Refuses a torch older than `MINIMUM_TORCH`."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < MINIMUM_TORCH:
        raise BuildError(f"torch {version} is too old: {INSTALL_HINT}")


def check_setuptools_version(version: str) -> None:
    """Refuses a setuptools that cannot read pyproject.toml."""
    found = re.match(r"\d+", version)
    if found is None or int(found[0]) < MINIMUM_SETUPTOOLS:
        raise BuildError(
            f"setuptools {version} is too old: pip install 'setuptools>={MINIMUM_SETUPTOOLS}', or leave out --no-build-isolation"
        )


def pybind11_headers(torch_include: Path) -> str:
    """The folder of pybind11's headers: of the package pybind11, else of the copy that torch carries."""
    if importlib.util.find_spec("pybind11") is not None:
        return str(importlib.import_module("pybind11").get_include())
    if not (torch_include / "pybind11" / "pybind11.h").is_file():
        raise BuildError("pybind11 is not installed: pip install pybind11, or leave out --no-build-isolation")
    return str(torch_include)


def check_build_tools(environment: Mapping[str, str], include: str) -> None:
    """Refuses a machine that cannot compile an extension, before anything is fetched or built.

    Args:
        environment: the process environment; CXX names the compiler, as for torch's own extensions.
        include: the folder that holds Python.h.

    Raises:
        BuildError: no C++ compiler, none that knows C++20, or no headers of Python; one line with the remedy.
    """
    command = shlex.split(environment.get("CXX", "")) or ["c++"]
    if shutil.which(command[0], path=environment.get("PATH")) is None:
        raise BuildError(
            f"no C++ compiler ({command[0]} is not on PATH): install g++ (Debian: apt install g++; conda: conda install gxx), or set CXX"
        )
    if not (Path(include) / "Python.h").is_file():
        raise BuildError(
            f"Python's headers are missing ({include}/Python.h): install them (Debian: apt install python3-dev)"
        )
    source = "#include <concepts>\ntemplate <std::integral T> T f(T x) { return x; }\nint main() { return f(0); }\n"
    try:
        done = subprocess.run(
            [*command, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"],
            input=source,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=dict(environment),
        )
        failure = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0]
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    if failure:
        raise BuildError(f"{command[0]} cannot compile C++20 ({failure}): install gcc >= 11 or clang >= 14, or set CXX")


def local_version(toolkit: Toolkit) -> str:
    """What a CUDA build adds to the version, as torch's wheels do: "+cu130"."""
    return "+cu" + toolkit.version.replace(".", "")


def decide_cuda(mode: str, toolkit: Toolkit | None, torch_cuda: str | None, missing: str = "") -> CudaDecision:
    """Decides whether to build the CUDA kernels.

    Args:
        mode: "auto", "0" or "1" (`parse_mode`).
        toolkit: what `find_toolkit` found, or None.
        torch_cuda: `torch.version.cuda`, None for a CPU-only torch.
        missing: why there is no toolkit, for the text.

    Raises:
        BuildError: mode "1" and no toolkit, or one whose major version is not that of torch.
    """
    if mode == "0":
        return CudaDecision(False, "LRPKERNELS_CUDA=0")
    if toolkit is None:
        reason = missing or "no nvcc found"
        if mode == "1":
            raise BuildError(f"LRPKERNELS_CUDA=1, but {reason}; set CUDA_HOME to a CUDA toolkit")
        return CudaDecision(False, reason)
    found = f"nvcc {toolkit.version} at {toolkit.home}"
    if torch_cuda is None:
        if mode == "auto":
            return CudaDecision(False, f"torch is CPU-only; LRPKERNELS_CUDA=1 builds them all the same, with {found}")
        return CudaDecision(True, f"{found}; torch is CPU-only, cudart is linked statically", toolkit)
    if major(torch_cuda) != major(toolkit.version):
        reason = f"{found} does not fit torch's CUDA {torch_cuda} (the major versions differ)"
        if mode == "1":
            raise BuildError(f"LRPKERNELS_CUDA=1, but {reason}")
        return CudaDecision(False, reason)
    return CudaDecision(True, f"{found}, torch has CUDA {torch_cuda}", toolkit, "cudart")


def choose_architectures(environment: Mapping[str, str], supported: Sequence[str]) -> str:
    """TORCH_CUDA_ARCH_LIST as given, else those of `DEFAULT_ARCHITECTURES` that nvcc supports, with PTX of the newest.

    Args:
        environment: the process environment.
        supported: what nvcc can compile for, such as ("8.0", "9.0"); empty when unknown.
    """
    given = environment.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if given:
        return given
    chosen = [arch for arch in DEFAULT_ARCHITECTURES if not supported or arch in supported]
    if not chosen:
        raise BuildError(f"nvcc supports none of {', '.join(DEFAULT_ARCHITECTURES)}; set TORCH_CUDA_ARCH_LIST")
    return ";".join(chosen) + "+PTX"


def is_toolkit(home: Path) -> bool:
    """Whether the folder holds what a build needs."""
    return (home / "bin" / "nvcc").is_file() and (home / "include" / "cuda_runtime.h").is_file()


def toolkit_of_nvcc(nvcc: str) -> Path | None:
    """The toolkit folder of an nvcc on PATH, which may be a link or a wrapper script far from the toolkit."""
    home = Path(nvcc).resolve().parent.parent
    if is_toolkit(home):
        return home
    # A dry run prints the toolkit's folder as TOP.
    output = _run([nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null"])
    top = re.search(r"^#\$ TOP=(.+)$", output, re.MULTILINE)
    home = Path(top[1].strip()).resolve() if top else home
    return home if is_toolkit(home) else None


def find_toolkit(environment: Mapping[str, str]) -> tuple[Toolkit | None, str]:
    """The CUDA toolkit to build with: CUDA_HOME (or CUDA_PATH) if set, else nvcc on PATH, else /usr/local/cuda.

    Returns:
        The toolkit and "", or None and why there is none.
    """
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environment.get(name):
            home = Path(environment[name])
            if not is_toolkit(home):
                return None, f"{name}={home} holds no bin/nvcc with include/cuda_runtime.h"
            return _toolkit(home)
    nvcc = shutil.which("nvcc", path=environment.get("PATH"))
    found = toolkit_of_nvcc(nvcc) if nvcc else None
    home = found or Path("/usr/local/cuda")
    if not is_toolkit(home):
        return None, f"{nvcc} belongs to no complete toolkit" if nvcc else "no nvcc found"
    return _toolkit(home)


def _toolkit(home: Path) -> tuple[Toolkit | None, str]:
    version = re.search(r"release (\d+\.\d+)", _run([str(home / "bin" / "nvcc"), "--version"]))
    if version is None:
        return None, f"{home / 'bin' / 'nvcc'} does not run"
    return Toolkit(home, version[1]), ""


def supported_architectures(toolkit: Toolkit) -> list[str]:
    """What nvcc can compile for, as "9.0"; empty when it does not say."""
    listed = re.findall(r"compute_(\d+)(\d)\b", _run([str(toolkit.home / "bin" / "nvcc"), "--list-gpu-arch"]))
    return [f"{whole}.{part}" for whole, part in listed]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
