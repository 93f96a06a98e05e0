"""Registers, shared memory and theoretical occupancy of every kernel, from nvcc.

``PYTHONPATH=tests python -m cuda_on_cpu.resources`` writes docs/kernels.md. Needs nvcc, no GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .build import CUDA_SOURCES, ROOT

TABLE = ROOT / "docs" / "kernels.md"
THREADS = 256  # of every block, kThreads in memory.cuh
FLAGS = ("-std=c++17", "-O3", "-Xptxas", "-v,-warn-spills", "-Werror", "all-warnings")


class Limits(NamedTuple):
    """Limits of one multiprocessor (CUDA C++ Programming Guide, table of technical specifications per compute capability)."""

    threads: int
    blocks: int
    shared: int  # bytes

    def occupancy(self, registers: int, shared: int) -> float:
        """Share of the multiprocessor's threads that can be resident, for blocks of THREADS."""
        per_warp = -(-registers * 32 // 256) * 256  # allocated in units of 256
        by_registers = 65536 // per_warp // (THREADS // 32)
        by_shared = self.shared // (-(-shared // 128) * 128 + 1024)  # the system takes 1 KiB per block
        return min(by_registers, by_shared, self.blocks, self.threads // THREADS) * THREADS / self.threads


ARCHITECTURES = {
    "80": Limits(2048, 32, 164 * 1024),
    "86": Limits(1536, 16, 100 * 1024),
    "89": Limits(1536, 24, 100 * 1024),
    "90": Limits(2048, 32, 228 * 1024),
    "100": Limits(2048, 32, 228 * 1024),
    "120": Limits(1536, 24, 100 * 1024),
}


class Resources(NamedTuple):
    """The resources of one kernel on one architecture."""

    source: str
    kernel: str
    architecture: str
    registers: int
    shared: int
    local: int  # bytes of stack and spills


def nvcc() -> str | None:
    """The compiler, or None."""
    return shutil.which("nvcc")


def nvcc_version() -> str:
    """The version, such as "13.0"."""
    text = subprocess.run([nvcc() or "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    assert found, text
    return found[1]


def short_name(demangled: str) -> str:
    """A kernel's name without namespaces and parameters."""
    name = re.sub(
        r"\(anonymous namespace\)::|lrpkernels::|cuda::|\(bool\)|\(int\)", "", demangled.removeprefix("void ")
    )
    depth = 0
    for i, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            name = name[:i]
            break
    return name.replace("__nv_bfloat16", "bfloat16").replace("__half", "float16").replace("> >", ">>")


def compile_resources(source: str, architecture: str) -> list[Resources]:
    """Compiles csrc/cuda/<source>.cu for one architecture; warnings and spills are errors.

    Raises:
        RuntimeError: the compiler refuses; the text is its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc() or "nvcc", *FLAGS, "-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
        command += ["-c", str(CUDA_SOURCES / f"{source}.cu"), "-o", str(Path(folder) / "out.o")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    text = subprocess.run(["c++filt"], input=result.stderr, capture_output=True, text=True, check=True).stdout
    pattern = (
        r"Compiling entry function '(?P<name>.*)' for 'sm_\d+\w*'\n.*Function properties for.*\n"
        r"\s*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
        r".*Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?"
    )
    return [
        Resources(
            source,
            short_name(m["name"]),
            architecture,
            int(m["registers"]),
            int(m["shared"] or 0),
            int(m["stack"]) + int(m["stores"]) + int(m["loads"]),
        )
        for m in re.finditer(pattern, text)
    ]


def rows(resources: Iterable[Resources]) -> dict[tuple[str, str], str]:
    """(source, kernel) -> its line of the table; architectures in the order of ARCHITECTURES."""
    grouped: dict[tuple[str, str], dict[str, Resources]] = {}
    for r in resources:
        grouped.setdefault((r.source, r.kernel), {})[r.architecture] = r
    lines = {}
    for key, by_architecture in sorted(grouped.items()):
        cells = [cell(by_architecture[a]) for a in ARCHITECTURES if a in by_architecture]
        shared = "/".join(map(str, sorted({r.shared for r in by_architecture.values()})))
        lines[key] = f"| `{key[1]}` | {shared} | {' | '.join(cells)} |"
    return lines


def cell(r: Resources) -> str:
    """A cell of the table: registers and occupancy."""
    return f"{r.registers}, {ARCHITECTURES[r.architecture].occupancy(r.registers, r.shared):.0%}"


def sources() -> list[str]:
    """The stems of all .cu files."""
    return sorted(path.stem for path in CUDA_SOURCES.glob("*.cu"))


def render(resources: Iterable[Resources], version: str) -> str:
    """The text of docs/kernels.md."""
    text = f"""# Kernels

Generated by `PYTHONPATH=tests python -m cuda_on_cpu.resources` with nvcc {version}; `tests/test_cuda_resources.py` checks
that it is current. Each cell: registers per thread, and the share of a multiprocessor's threads that can be resident with
them and the static shared memory of a block (bytes; more than one figure where architectures differ), for blocks of
{THREADS} threads. No kernel spills or uses local memory.
"""
    lines = rows(resources)
    heads = " | ".join(f"sm_{a}" for a in ARCHITECTURES)
    for source in sorted({key[0] for key in lines}):
        text += f"\n## csrc/cuda/{source}.cu\n\n| kernel | shared | {heads} |\n|---|---|{'---|' * len(ARCHITECTURES)}\n"
        text += "".join(f"{line}\n" for key, line in lines.items() if key[0] == source)
    return text


def everything() -> list[Resources]:
    """The resources of all sources and architectures."""
    jobs = [(source, architecture) for source in sources() for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        return [r for found in pool.map(lambda job: compile_resources(*job), jobs) for r in found]


if __name__ == "__main__":
    TABLE.write_text(render(everything(), nvcc_version()))
