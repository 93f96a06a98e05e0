"""Dense layers: V^T s, and which library multiplies."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .autograd import call, first_order
from .late import Late

_FEW_PRODUCTS = 1 << 20  # where calls cost more than arithmetic


def product(x: Tensor, y: Tensor) -> Tensor:
    """x y of two matrices, not differentiable: by oneDNN where ATen's library is slow, else as ATen does.

    ATen multiplies by MKL, which on AMD's processors leaves out the registers of 512 bits: half the speed.
    """
    plain = x.dtype == torch.float32 == y.dtype and x.device.type == "cpu" == y.device.type
    if plain and x.numel() * y.shape[1] >= _FEW_PRODUCTS and prefers_onednn():
        return torch.ops.mkldnn._linear_pointwise.default(_dense(x), _dense(y).t(), None, "none", [], "")
    return x @ y


def _dense(matrix: Tensor) -> Tensor:
    """The matrix as one that lies in memory by rows or by columns: a gradient may be a view of a single number."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


@cache
def prefers_onednn() -> bool:
    """Whether oneDNN multiplies matrices faster than ATen's library: on AMD's processors with AVX-512."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
    if not wide or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


class _DensePull(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, weight: Tensor, read: Tensor | None = None, made: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(s, weight)
        return product(_rows(s), weight).view(*s.shape[:-1], weight.shape[1])

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        s, weight = ctx.saved_tensors
        rows, need = _rows(grad), ctx.needs_input_grad
        grad_s = product(rows, weight.t()).view(s.shape) if need[0] else None
        late = (grad, s) if any(need[2:]) else (None, None)
        return grad_s, product(_rows(s).t(), rows) if need[1] else None, *late


def _rows(t: Tensor) -> Tensor:
    return t.reshape(-1, t.shape[-1])


def dense_weight_gradient(s: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """The gradient of <s, W input> for W, (C_out, C_in), whose numbers are not read; not differentiable."""
    return product(_rows(s).t(), _rows(input))


def dense_pull(s: Tensor, weight: Tensor, late: Late | None = None) -> Tensor:
    """V^T s of a dense layer.

    Args:
        s: at the layer's output, (T*B, ..., C_out).
        weight: V, (C_out, C_in), dtype of s.
        late: takes the weight's gradient (:func:`lrpkernels.functional.late.late_weight`), which gets none here.

    Returns:
        (T*B, ..., C_in).

    Gradients: s, weight; first order only.
    """
    return call(_DensePull, s, weight) if late is None else call(_DensePull, s, weight.detach(), *late)
