"""The configuration of this installation: versions, compiler, CUDA kernels, threads."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass

import torch

from lrpkernels._extension import build_info
from lrpkernels._version import __version__


@dataclass(frozen=True)
class Config:
    """An installation of lrpkernels; ``str()`` gives a readable table.

    Attributes:
        version: of lrpkernels.
        python: version of the interpreter.
        torch: version in use.
        torch_built: version that lrpkernels was built against.
        torch_cuda: CUDA version of torch, None for a CPU-only torch.
        compiler: C++ compiler of the build.
        cxx_flags: its flags.
        cpu_capability: widest vector instructions in use: "avx512", "avx2" or "default".
        cuda_kernels: whether CUDA kernels are built in.
        cuda_reason: why they are, or are not.
        nvcc: version of the CUDA compiler, "" without CUDA kernels.
        cuda_architectures: targets of the CUDA kernels, "" without.
        gpu: name of the first GPU that torch can use, None without.
        threads: number of CPU threads that torch uses inside an operation.
    """

    version: str
    python: str
    torch: str
    torch_built: str
    torch_cuda: str | None
    compiler: str
    cxx_flags: str
    cpu_capability: str
    cuda_kernels: bool
    cuda_reason: str
    nvcc: str
    cuda_architectures: str
    gpu: str | None
    threads: int

    def __str__(self) -> str:
        rows = {
            "lrpkernels": f"{self.version}, Python {self.python}",
            "torch": f"{self.torch}, CUDA {self.torch_cuda or 'none'} (built against {self.torch_built})",
            "CPU kernels": f"{self.compiler}, {self.cpu_capability}, {self.threads} threads",
            "compiler flags": self.cxx_flags,
            "CUDA kernels": f"{'yes' if self.cuda_kernels else 'no'} ({self.cuda_reason})",
            "architectures": self.cuda_architectures or "none",
            "GPU": self.gpu or "none",
        }
        return "\n".join(f"{name:<15}{value}" for name, value in rows.items())

    __repr__ = __str__

    def as_dict(self) -> dict[str, object]:
        """The attributes, ready for JSON."""
        return dataclasses.asdict(self)


def show_config() -> Config:
    """Reports the configuration of this installation.

    Returns:
        The configuration; printing it, or leaving it at an interactive prompt, shows a table.
    """
    build = build_info()
    return Config(
        version=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        torch_built=build["torch"],
        torch_cuda=torch.version.cuda,
        compiler=build["compiler"],
        cxx_flags=build["cxx_flags"],
        cpu_capability=build["cpu_capability"],
        cuda_kernels=build["cuda"],
        cuda_reason=build["cuda_reason"],
        nvcc=build["nvcc"],
        cuda_architectures=build["cuda_architectures"],
        gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        threads=torch.get_num_threads(),
    )
