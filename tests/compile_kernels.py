"""Compiles every CUDA kernel for every architecture and refuses warnings, register spills and local memory.

    python tests/compile_kernels.py [--require-nvcc] [--all]

Needs nvcc and no GPU. Prints, per file and architecture, the number of kernels and the most registers; --all prints every
kernel. Without nvcc it says so and succeeds, unless --require-nvcc is given. The kernels are those of csrc/cuda/*.cu, the
architectures those of the build (TORCH_CUDA_ARCH_LIST, or the default list as far as nvcc supports it).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lrpkernels import _build_config as build

SOURCES = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
FLAGS = ("-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xptxas", "-v,-warn-spills", "-Werror", "all-warnings")


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel; sizes in bytes per thread."""

    name: str
    architecture: str
    registers: int
    local: int
    spills: int


def gencode(architectures: str) -> list[str]:
    """nvcc's flags for a list as in TORCH_CUDA_ARCH_LIST, such as "8.0;9.0+PTX"."""
    flags = []
    for architecture in re.split(r"[;,\s]+", architectures.strip()):
        number = architecture.removesuffix("+PTX").replace(".", "")
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if architecture.endswith("+PTX"):
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def parse(report: str) -> Iterator[Kernel]:
    """The kernels in the output of ptxas -v."""
    entry = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'.*?"
        r"(?P<frame>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    for found in entry.finditer(report):
        spills = int(found["stores"]) + int(found["loads"])
        yield Kernel(found["name"], found["architecture"], int(found["registers"]), int(found["frame"]), spills)


def compile_file(nvcc: Path, source: Path, architectures: str) -> list[Kernel]:
    """Compiles one file for all architectures.

    Raises:
        RuntimeError: nvcc refuses it; the text is what nvcc printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [str(nvcc), *FLAGS, *gencode(architectures), "-c", str(source), "-o", str(Path(folder) / "kernels.o")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = done.stdout + done.stderr
    if done.returncode != 0:
        raise RuntimeError(f"{source.name} does not compile:\n{report}")
    kernels = list(parse(report))
    if not kernels:
        raise RuntimeError(f"{source.name}: nvcc reports no kernel:\n{report}")
    return kernels


def demangle(names: list[str]) -> list[str]:
    """C++ names as in the source, unchanged where c++filt is missing."""
    try:
        done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return names
    return done.stdout.splitlines()


def main(arguments: list[str] | None = None) -> int:
    """Compiles everything; the result is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--require-nvcc", action="store_true", help="fail where there is no nvcc")
    parser.add_argument("--all", action="store_true", help="print every kernel")
    options = parser.parse_args(arguments)
    toolkit, missing = build.find_toolkit(os.environ)
    if toolkit is None:
        print(f"kernels: not compiled, {missing}")
        return 1 if options.require_nvcc else 0
    architectures = build.choose_architectures(os.environ, build.supported_architectures(toolkit))
    print(f"kernels: nvcc {toolkit.version} at {toolkit.home}, architectures {architectures}")
    bad = 0
    nvcc = toolkit.home / "bin" / "nvcc"
    sources = sorted(SOURCES.glob("*.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Those that take longest first.
        by_size = sorted(sources, key=lambda source: source.name.startswith("conv"), reverse=True)
        running = {source: pool.submit(compile_file, nvcc, source, architectures) for source in by_size}
    for source in sources:
        try:
            kernels = running[source].result()
        except RuntimeError as error:
            print(error)
            bad += 1
            continue
        for architecture in sorted({kernel.architecture for kernel in kernels}, key=lambda name: (len(name), name)):
            group = [kernel for kernel in kernels if kernel.architecture == architecture]
            most = max(kernel.registers for kernel in group)
            print(f"  {source.name:<20}{architecture:<8}{len(group):>4} kernels, at most {most} registers")
        for kernel, name in zip(kernels, demangle([kernel.name for kernel in kernels]), strict=True):
            wrong = kernel.spills > 0 or kernel.local > 0
            bad += wrong
            if wrong or options.all:
                memory = f"{kernel.spills} bytes spilled, {kernel.local} bytes of local memory"
                verdict = "BAD" if wrong else "   "
                print(f"  {verdict} {kernel.architecture} {kernel.registers:>3} registers, {memory}: {name}")
    print("kernels: " + (f"{bad} findings" if bad else "no warnings, no spills, no local memory"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
