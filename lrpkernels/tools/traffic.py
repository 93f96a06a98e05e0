"""Bytes that PyTorch's operations move, counted from the sizes of their tensors: each input and output once."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_NO_TRAFFIC = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "detach", "alias",
}  # fmt: skip
_WRITES_ONLY = {"zero_", "fill_", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}


class Traffic(TorchDispatchMode):
    """While active, adds up the bytes of every operation. A lower bound: some kernels go over their data twice."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.total += moved(func, tensors((args, kwargs)), tensors(out))
        return out


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def moved(func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Bytes of the tensors of one operation; 0 for views and for memory that is only taken."""
    name = func._schema.name.split("::")[1]
    if func.is_view or name in _NO_TRAFFIC:
        return 0
    return sum(map(size, outputs if name in _WRITES_ONLY else [*inputs, *outputs]))


def size(tensor: Tensor) -> int:
    """Bytes of its elements in memory; what is only expanded counts once."""
    numel = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numel *= length if stride or length == 0 else 1
    return numel * tensor.element_size()
