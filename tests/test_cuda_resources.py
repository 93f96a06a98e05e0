"""nvcc's view of the kernels: no spills, docs/kernels.md is current, vectorised kernels use 128-bit accesses. Needs no GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from cuda_on_cpu import CUDA_SOURCES, slow_unless
from cuda_on_cpu import resources as table

pytestmark = pytest.mark.skipif(table.nvcc() is None, reason="nvcc is not installed")

# Quick runs look at the source that compiles fastest.
JOBS = [
    pytest.param(source, architecture, marks=slow_unless((source, architecture) == ("conv_weight", "90")))
    for source in table.sources()
    for architecture in table.ARCHITECTURES
]


def documented() -> tuple[str, dict[tuple[str, str], list[str]]]:
    """nvcc's version, and (source, kernel) -> cells from shared memory on, of docs/kernels.md."""
    text = table.TABLE.read_text()
    version = re.search(r"with nvcc (\S+);", text)
    assert version
    cells = {}
    for section in text.split("\n## csrc/cuda/")[1:]:
        source = section.partition(".cu")[0]
        for name, rest in re.findall(r"^\| `(.+?)` \| (.+) \|$", section, re.MULTILINE):
            cells[source, name] = rest.split(" | ")
    return version[1], cells


@pytest.mark.parametrize(("source", "architecture"), JOBS)
def test_no_spills_and_the_table_is_current(source: str, architecture: str) -> None:
    found = table.compile_resources(source, architecture)  # spills are errors
    assert found and not any(r.local for r in found)
    version, cells = documented()
    assert {name for s, name in cells if s == source} == {r.kernel for r in found}
    if version == table.nvcc_version():
        column = 1 + list(table.ARCHITECTURES).index(architecture)
        assert {r.kernel: table.cell(r) for r in found} == {r.kernel: cells[source, r.kernel][column] for r in found}
        assert all(str(r.shared) in cells[source, r.kernel][0].split("/") for r in found)


def test_every_source_is_documented() -> None:
    assert {source for source, _ in documented()[1]} == set(table.sources())


def test_occupancy() -> None:
    """Against the values of NVIDIA's occupancy calculator."""
    a100, ada = table.ARCHITECTURES["80"], table.ARCHITECTURES["89"]
    assert a100.occupancy(32, 0) == 1.0
    assert a100.occupancy(64, 0) == 0.5
    assert a100.occupancy(65, 0) == 0.375
    assert a100.occupancy(32, 48 * 1024) == 0.375
    assert ada.occupancy(40, 0) == 1.0
    assert ada.occupancy(128, 34 * 1024) == pytest.approx(1 / 3)


def disassembler() -> str | None:
    packaged = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin" / "nvdisasm"
    return str(packaged) if packaged.exists() else shutil.which("nvdisasm")


@pytest.mark.skipif(disassembler() is None, reason="nvdisasm (package nvidia-cuda-nvdisasm) is not installed")
def test_vector_kernels_use_128_bit_accesses(tmp_path: Path) -> None:
    """Every elementwise kernel of more than one element reads and writes 16 bytes at a time; those of one never do."""
    cubin = tmp_path / "pointwise.cubin"
    command = [table.nvcc() or "nvcc", *table.FLAGS, "-arch=sm_90", "-cubin", str(CUDA_SOURCES / "pointwise.cu")]
    subprocess.run([*command, "-o", str(cubin)], check=True, capture_output=True, timeout=600)
    text = subprocess.run([disassembler() or "", str(cubin)], check=True, capture_output=True, text=True).stdout
    mangled, bodies = zip(
        *re.findall(r"^\.text\.(\w+):$(.*?)(?=^\.text\.|\Z)", text, re.MULTILINE | re.DOTALL), strict=True
    )
    names = subprocess.run(["c++filt"], input="\n".join(mangled), check=True, capture_output=True, text=True).stdout
    seen = set()
    for name, function in zip(map(table.short_name, names.splitlines()), bodies, strict=True):
        match = re.match(r"elementwise_kernel<(\d+), ", name)
        if match is None:
            continue
        wide = int(match[1]) > 1
        seen.add(wide)
        # The channel factors of the general layout are single numbers, and the tail is done element by element.
        assert bool(re.search(r"\bLDG\.E\.128", function)) == wide, name
        assert bool(re.search(r"\bSTG\.E\.128", function)) == wide, name
    assert seen == {False, True}
