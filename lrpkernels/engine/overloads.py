"""Calls that go round PyTorch's public functions: overloads of ATen and its inner names."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from ..layers.registry import record_of

# ATen has these under the same name and with the same leading arguments; of the others, names in `torch` and `Tensor` are the same call.
_FUNCTIONAL = frozenset({
    "silu", "gelu", "mish", "hardswish", "hardtanh", "leaky_relu", "relu6", "hardsigmoid", "softplus", "softshrink", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "linear", "max_pool2d", "max_pool3d",
})  # fmt: skip
_OVERLOADS = (OpOverload, OpOverloadPacket)
_PUBLIC: dict[Any, Any] = {
    inner: getattr(F, name)
    for name in _FUNCTIONAL
    if (inner := getattr(torch._C._nn, name, None)) is not None and inner is not getattr(F, name)
}


def public(func: Any) -> Any:
    """The public PyTorch function that an overload of ATen, or an inner name of one, is; anything else stands for itself."""
    found = _PUBLIC.get(func)
    if found is None:
        if type(func) not in _OVERLOADS:
            return func
        found = _PUBLIC[func] = _public(func)
    return found


def _public(func: OpOverload | OpOverloadPacket) -> Any:
    qualified = func._schema.name if isinstance(func, OpOverload) else func._qualified_op_name
    namespace, _, name = qualified.partition("::")
    if namespace == "aten":
        owners: tuple[Any, ...] = (torch, Tensor, F) if name in _FUNCTIONAL else (torch, Tensor)
        for candidate in (getattr(owner, name, None) for owner in owners):
            if candidate is not None and record_of(candidate) is not None:
                return candidate
    return func
