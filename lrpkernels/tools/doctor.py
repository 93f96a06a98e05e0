"""``lrpkernels doctor``: every kernel on this machine against float64, the first thing to run on a new GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from .._extension import has_cuda_kernels
from ..testing import CONV_OPS, CPU_OPS, LAYOUTS, OPS, accuracies, samples

_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_CUDA_DTYPES = (*_CPU_DTYPES, torch.float16)


@dataclass(frozen=True)
class Check:
    """One kernel with one dtype on one device.

    Attributes:
        device: "cpu" or "cuda".
        kernel: name of the op in ``torch.ops.lrpkernels``.
        dtype: of storage, as text; "float32 (tf32)" and 16-bit convolutions run on tensor cores.
        samples: how many calls of different shape, layout and number of targets were compared.
        max_error: the largest difference from float64, relative to the largest value of its result.
        worst: the call with the largest error for what its dtype allows.
        passed: whether every call was within the bound.
        failure: the first call that was not, or the error that a call raised; None if all passed.
    """

    device: str
    kernel: str
    dtype: str
    samples: int
    max_error: float
    worst: str
    passed: bool
    failure: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All checks, and one sentence on what was run on CUDA and what was not."""

    checks: tuple[Check, ...]
    cuda: str

    @property
    def passed(self) -> bool:
        """Whether every kernel that ran is right."""
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"passed": self.passed, "cuda": self.cuda, "checks": [asdict(check) for check in self.checks]}


def diagnose(
    namespace: Any = None,
    devices: Sequence[str] | None = None,
    kernels: Sequence[str] = OPS,
    progress: Callable[[str], None] = lambda text: None,
) -> Diagnosis:
    """Runs every kernel that this machine has against float64 references.

    Args:
        namespace: of the ops, ``torch.ops.lrpkernels`` if None.
        devices: "cpu" and "cuda"; None: those available.
        kernels: names of ops; on the CPU those of the fused convolutions are left out, as they have CUDA kernels only.
        progress: called with a line of text ahead of each check.
    """
    ops = torch.ops.lrpkernels if namespace is None else namespace
    runnable = has_cuda_kernels() and torch.cuda.is_available()
    if devices is None:
        devices = ("cpu", "cuda") if runnable else ("cpu",)
    checks = []
    for device in devices:
        dtypes = _CUDA_DTYPES if device == "cuda" or namespace is not None else _CPU_DTYPES
        there = [kernel for kernel in kernels if device == "cuda" or namespace is not None or kernel in CPU_OPS]
        for kernel in there:
            for dtype in dtypes:
                for tensor_cores in (False, True) if kernel in CONV_OPS and device == "cuda" else (False,):
                    if tensor_cores and dtype == torch.float64:
                        continue
                    progress(f"{device} {kernel} {_name(dtype, tensor_cores)}")
                    checks.append(_check(getattr(ops, kernel), kernel, dtype, device, tensor_cores))
    return Diagnosis(tuple(checks), _about_cuda("cuda" in devices))


def _about_cuda(ran: bool) -> str:
    if ran:
        return f"CUDA kernels ran on {torch.cuda.get_device_name()}"
    if not has_cuda_kernels():
        return "CUDA kernels are not built in, so none were run"
    if torch.version.cuda is None:
        return "CUDA kernels are built in but were NOT run: this torch has no CUDA"
    if not torch.cuda.is_available():
        return "CUDA kernels are built in but were NOT run: torch finds no GPU"
    return "CUDA kernels are built in but were NOT run: only the CPU was asked for"


def _name(dtype: torch.dtype, tensor_cores: bool) -> str:
    name = str(dtype).removeprefix("torch.")
    return name + (" (tf32)" if dtype == torch.float32 else " (tensor cores)") if tensor_cores else name


def _calls(kernel: str, dtype: torch.dtype) -> Iterator[tuple[tuple[Any, ...], str]]:
    for layout in LAYOUTS:
        for targets in (1, 3):
            for sample in samples(kernel, dtype, layout, targets):
                yield sample.arguments, f"{sample.label}, {layout}, {targets} target(s)"


def _check(op: Callable[..., Any], kernel: str, dtype: torch.dtype, device: str, tensor_cores: bool) -> Check:
    count, largest, worst, highest, failure = 0, 0.0, "", -1.0, None
    for arguments, label in _calls(kernel, dtype):
        given = (*arguments[:-1], True) if tensor_cores else arguments
        try:
            results = op(*(a.to(device) if isinstance(a, Tensor) else a for a in given))
        except RuntimeError as error:
            failure = failure or f"{label}: {error}"
            break
        count += 1
        plain = torch.bfloat16 if tensor_cores and dtype == torch.float32 else dtype
        for found in accuracies(kernel, arguments, results, plain):
            if found.ratio > highest:
                highest, worst = found.ratio, label
            largest = max(largest, found.error)
            if not found.ratio <= 1 and failure is None:
                failure = f"{label}: {found.ratio:.3g} times the error that {_name(dtype, tensor_cores)} allows"
    return Check(device, kernel, _name(dtype, tensor_cores), count, largest, worst, failure is None, failure)


def table(diagnosis: Diagnosis) -> Any:
    """A rich table of the checks; "shapes" counts calls of different shape, layout and number of targets."""
    result = Table("device", "kernel", "dtype", "shapes", "max error", "verdict")
    for check in diagnosis.checks:
        verdict = "[green]ok[/green]" if check.passed else "[bold red]WRONG[/bold red]"
        row = (check.device, check.kernel, check.dtype, str(check.samples), f"{check.max_error:.1e}", verdict)
        result.add_row(*row)
    return result
