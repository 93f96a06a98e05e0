"""Which convolution kernel runs where: the vendor's convolution with our elementwise kernels around it, or our fused CUDA kernel.

``LRPKERNELS_CONV`` says which: ``vendor``, the default (docs/gpu.md has the figures behind it), ``fused``, or ``auto``: the first use of
a shape runs both on the real tensors, compares their results and their times, and keeps the faster.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .layout import is_capturing

Mode = Literal["auto", "fused", "vendor"]
Route = Literal["fused", "vendor"]
Timer = Callable[[Callable[[], object], torch.device], float]

# Largest accepted difference of the two paths, relative to the vendor's largest absolute value. Both round sums of up to some
# thousand products in their own order; tf32 keeps 10 bits of each factor.
_TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
_TF32_TOLERANCE = 1e-2
_REPEATS = 5


class FusedKernelWarning(UserWarning):
    """A fused kernel's result differed from that of the vendor's convolution, or failed; the vendor's is used for that shape."""


@dataclass(frozen=True)
class Choice:
    """What was found for one shape.

    Attributes:
        path: the one in use.
        fused_ms, vendor_ms: measured milliseconds, None where a path was not timed.
        error: largest difference of the results over the vendor's largest absolute value; None if the fused kernel failed.
    """

    path: Route
    fused_ms: float | None = None
    vendor_ms: float | None = None
    error: float | None = None


def elapsed(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call, the best of five: by CUDA events on a GPU, by the clock elsewhere."""
    times = []
    for _ in range(_REPEATS):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
    return min(times)


def relative_error(fused: Tensor, vendor: Tensor) -> float:
    """Largest difference over the vendor's largest absolute value; infinite where only one of them is NaN or infinite."""
    if fused.shape != vendor.shape:
        return float("inf")
    a, b = fused.double(), vendor.double()
    finite = b.isfinite()
    if not torch.equal(finite, a.isfinite()):
        return float("inf")
    a, b = a[finite], b[finite]
    if a.numel() == 0:
        return 0.0
    return float((a - b).abs().max() / b.abs().max().clamp(min=torch.finfo(torch.float64).tiny))


class Tuner:
    """Chooses between two ways to compute the same tensor, once per key.

    Args:
        mode: "auto", "fused" or "vendor"; None: what ``LRPKERNELS_CONV`` says, else "vendor".
        timer: milliseconds of a call on a device.

    Raises:
        ValueError: mode is none of the three.
    """

    def __init__(self, mode: Mode | None = None, timer: Timer = elapsed) -> None:
        chosen = mode or os.environ.get("LRPKERNELS_CONV", "").strip().lower() or "vendor"
        if chosen not in ("auto", "fused", "vendor"):
            raise ValueError(f"LRPKERNELS_CONV must be auto, fused or vendor, got {chosen!r}")
        self.mode = chosen
        self.timer = timer
        self.choices: dict[tuple[Any, ...], Choice] = {}
        self._warned: set[str] = set()

    def run(
        self, key: tuple[Any, ...], like: Tensor, fused: Callable[[], Tensor], vendor: Callable[[], Tensor]
    ) -> tuple[Tensor, Route]:
        """The result for ``key``, and the path that gave it.

        Under "auto" unknown keys are tuned, except under graph capture (vendor, nothing remembered) and under
        ``torch.use_deterministic_algorithms`` (vendor always, so that timings cannot change a result from run to run).

        Args:
            key: all that the choice may depend on, printable.
            like: a tensor of the call's dtype and device.
            fused, vendor: the two ways.
        """
        if self.mode != "auto":
            return (fused(), "fused") if self.mode == "fused" else (vendor(), "vendor")
        if torch.are_deterministic_algorithms_enabled():
            return vendor(), "vendor"
        choice = self.choices.get(key)
        if choice is not None:
            return (fused(), "fused") if choice.path == "fused" else (vendor(), "vendor")
        if is_capturing(like.device):
            return vendor(), "vendor"
        return self._tune(key, like, fused, vendor)

    def _tune(
        self, key: tuple[Any, ...], like: Tensor, fused: Callable[[], Tensor], vendor: Callable[[], Tensor]
    ) -> tuple[Tensor, Route]:
        expected = vendor()
        try:
            ours = fused()
        except RuntimeError as error:
            self._refuse(key, like, Choice("vendor"), f"failed: {error}")
            return expected, "vendor"
        difference = relative_error(ours, expected)
        if not difference <= tolerance(like.dtype, like.device):
            found = Choice("vendor", error=difference)
            self._refuse(key, like, found, f"differs from the vendor's result by {difference:.2g} of its largest value")
            return expected, "vendor"
        fused_ms, vendor_ms = self.timer(fused, like.device), self.timer(vendor, like.device)
        choice = Choice("fused" if fused_ms < vendor_ms else "vendor", fused_ms, vendor_ms, difference)
        self.choices[key] = choice
        return (ours if choice.path == "fused" else expected), choice.path

    def _refuse(self, key: tuple[Any, ...], like: Tensor, choice: Choice, reason: str) -> None:
        self.choices[key] = choice
        text = describe(key, like.device)
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(
                f"lrpkernels: the fused kernel for {text} {reason}; using the vendor's convolution there. "
                "`lrpkernels doctor` checks all kernels",
                FusedKernelWarning,
                stacklevel=2,
            )


def describe(key: tuple[Any, ...], device: torch.device) -> str:
    """A key as text, with the name of the device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}: " + " ".join(str(tuple(part) if isinstance(part, torch.Size) else part) for part in key)


def tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """The largest accepted relative difference of the two paths."""
    if dtype == torch.float32 and device.type == "cuda" and (allows_tf32() or torch.backends.cudnn.allow_tf32):
        return _TF32_TOLERANCE
    return _TOLERANCES[dtype]


def allows_tf32() -> bool:
    """Whether float32 products may be computed in tf32."""
    return bool(torch.backends.cuda.matmul.allow_tf32)


current = Tuner()
