"""Loads the compiled part of the package and holds the ops it registers, as one object that can be switched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

NAMESPACE = "lrpkernels"  # of the ops, in torch.ops


def _why_not(error: ImportError, folder: Path, torch_version: str) -> str:
    """Why the compiled part does not load, in one line with the remedy.

    Args:
        error: of the import.
        folder: the package's.
        torch_version: of the torch in use.
    """
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    built = sorted(path.name for path in folder.glob("_C.*.so"))
    if not built:
        return f"lrpkernels is not built: in the folder of its sources, pip install -e . ({error})"
    if isinstance(error, ModuleNotFoundError):
        return f"lrpkernels was built for another Python ({', '.join(built)}) than this {python}: install it again here"
    return (
        f"lrpkernels' compiled part does not load beside torch {torch_version}: it needs torch >= 2.11 on the processor it was built "
        f"for ({' '.join(str(error).split())})"
    )


try:
    from lrpkernels._C import build_info as _compiled_build_info
except ImportError as error:
    raise ImportError(_why_not(error, Path(__file__).parent, torch.__version__)) from error


def build_info() -> dict[str, Any]:
    """The build configuration of the compiled part.

    Returns:
        version, compiler, cxx_flags, torch (built against), cuda (bool), cuda_reason, nvcc (version or ""),
        cuda_architectures (as in TORCH_CUDA_ARCH_LIST, or "") and cpu_capability ("avx512", "avx2" or "default", chosen
        for this machine).
    """
    return dict(_compiled_build_info())


def has_cuda_kernels() -> bool:
    """Whether CUDA kernels were built in; says nothing about a GPU being present."""
    return bool(build_info()["cuda"])


class Backend(NamedTuple):
    """Where the ops come from.

    Attributes:
        namespace: in ``torch.ops``.
        fused_device: the device type whose tensors have kernels that replace PyTorch's own convolutions, or None.
        capturing: an emulated CUDA graph is being captured.
    """

    namespace: str
    fused_device: str | None
    capturing: bool = False


class _Ops:
    """The ops of a backend, each as its only overload, which saves looking it up at every call.

    Assigning :attr:`backend` switches all users of the ops at once (:func:`lrpkernels.testing.emulated_cuda` does).
    """

    backend: Backend
    fused_device: str | None
    capturing: bool

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "backend":
            self.__dict__.clear()
            self.__dict__.update(fused_device=value.fused_device, capturing=value.capturing)
        self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        overload = getattr(getattr(torch.ops, self.backend.namespace), name).default
        self.__dict__[name] = overload
        return overload

    def are_fused_for(self, tensor: torch.Tensor) -> bool:
        """Whether this tensor's device has kernels that replace PyTorch's own (CUDA, or its emulation)."""
        return self.fused_device is not None and tensor.device.type == self.fused_device

    def lack(self, tensor: torch.Tensor) -> bool:
        """Whether there are no kernels for this tensor's dtype on its device: float16 on the CPU."""
        return tensor.dtype is torch.float16 and tensor.device.type == "cpu" and not self.are_fused_for(tensor)


ops = _Ops(Backend(NAMESPACE, "cuda" if has_cuda_kernels() else None))
