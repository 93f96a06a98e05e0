"""Calls that go round PyTorch's public functions: overloads of ATen and its inner names."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from ..layers.registry import record_of
from .writes import writes_to

# ATen has these under the same name and with the same leading arguments; of the others, names in `torch` and `Tensor` are the same call.
_FUNCTIONAL = frozenset({
    "silu", "gelu", "mish", "hardswish", "hardtanh", "leaky_relu", "relu6", "hardsigmoid", "softplus", "softshrink", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "linear", "max_pool2d", "max_pool3d",
})  # fmt: skip
_INNER: dict[Any, Any] = {
    inner: getattr(F, name)
    for name in _FUNCTIONAL
    if (inner := getattr(torch._C._nn, name, None)) is not None and inner is not getattr(F, name)
}


@lru_cache(4096)
def public(func: Any) -> tuple[Any, Any, tuple[int, ...]]:
    """The public PyTorch function that an overload of ATen, or an inner name of one, is; anything else stands for itself.

    Returns:
        The function, what records it (None: nothing), and the places of the arguments that it writes to.
    """
    if isinstance(func, (OpOverload, OpOverloadPacket)):
        func = _public(func)
    func = _INNER.get(func, func)
    return func, record_of(func), writes_to(func)


def _public(func: OpOverload | OpOverloadPacket) -> Any:
    qualified = func._schema.name if isinstance(func, OpOverload) else func._qualified_op_name
    namespace, _, name = qualified.partition("::")
    if namespace == "aten":
        owners: tuple[Any, ...] = (torch, Tensor, F) if name in _FUNCTIONAL else (torch, Tensor)
        for candidate in (getattr(owner, name, None) for owner in owners):
            if candidate is not None and record_of(candidate) is not None:
                return candidate
    return func
