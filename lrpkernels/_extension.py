"""Loads the compiled part of the package, which registers the ops in ``torch.ops.lrpkernels``."""

from __future__ import annotations

from typing import Any

import torch

try:
    from lrpkernels._C import build_info as _compiled_build_info
except ImportError as error:
    raise ImportError(
        "lrpkernels is not built for this Python and torch; build it in its source folder with: "
        f"pip install --no-build-isolation -e .  ({error})"
    ) from error

from lrpkernels import _fake  # noqa: F401  (gives the ops their shape functions)


class _Ops:
    """The ops of ``torch.ops.lrpkernels``, each by its only overload, which spares the search for it at every call."""

    def __getattr__(self, name: str) -> Any:
        overload = getattr(torch.ops.lrpkernels, name).default
        setattr(self, name, overload)
        return overload


ops = _Ops()


def build_info() -> dict[str, Any]:
    """What the compiled part is made of.

    Returns:
        version, compiler, cxx_flags, torch (built against), cuda (bool), cuda_reason, nvcc (version or ""),
        cuda_architectures (as in TORCH_CUDA_ARCH_LIST, or "") and cpu_capability ("avx512", "avx2" or "default", chosen
        for this machine).
    """
    return dict(_compiled_build_info())


def has_cuda_kernels() -> bool:
    """Whether CUDA kernels were built in; says nothing about a GPU being present."""
    return bool(build_info()["cuda"])
