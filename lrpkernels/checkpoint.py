"""Tape checkpointing: less memory for a training step through heatmaps, at the price of making some forward values twice.

PyTorch saves the input of every batch norm for its backward. Where that input is a convolution's output, it can be made again from the
convolution's own input, which is saved anyway; where it is a concatenation, from its parts, which a DenseNet's concatenations share.
The relevance pass through a layer whose rule saves more than the multiplier is run again in backward, too. The numbers are those of
the first time, by the same operations on the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .rules import Epsilon

if TYPE_CHECKING:
    from .fuse import Block
    from .rules import Rule
    from .tape import Value


class Remade:
    """A tensor that is made when it is read."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self.make = make

    def __call__(self) -> Tensor:
        with torch.no_grad():
            return self.make()


def of_convolution(input: Value, weight: Tensor, bias: Tensor | None, geometry: Any, dtype: torch.dtype) -> Remade:
    """A convolution's output of this dtype (autocast may have cast what it read)."""
    a, w, b = input.tensor.detach(), weight.detach(), None if bias is None else bias.detach()

    def make() -> Tensor:
        operands = (t if t is None else t.to(dtype) for t in (a, w, b))
        with torch.autocast(a.device.type, enabled=False):
            return torch.ops.aten.convolution.default(*operands, *geometry)

    return Remade(make)


class Concatenation(Remade):
    """A concatenation along ``dim``; concatenations among its parts along the same dimension are taken apart."""

    def __init__(self, tensors: list[Tensor], recipes: list[Remade | None], dim: int) -> None:
        self.dim = dim
        self.parts = parts = list[Tensor]()
        for tensor, recipe in zip(tensors, recipes, strict=True):
            nested = isinstance(recipe, Concatenation) and recipe.dim == dim
            parts += recipe.parts if nested else [tensor.detach()]  # type: ignore[union-attr]
        super().__init__(lambda: torch.cat(parts, dim))


def without_saving(tensor: Tensor, recipe: Remade | None) -> AbstractContextManager[Any]:
    """Operations in this context that would save ``tensor`` for backward save its recipe instead; None: nothing changes."""
    if recipe is None:
        return nullcontext()
    key, version = id(tensor), tensor._version

    def pack(saved: Tensor) -> Any:
        # Results are saved as well: as they are, they would hold the node that holds them.
        return recipe if id(saved) == key and saved._version == version else saved.detach()

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept() if isinstance(kept, Remade) else kept)


def linear(rule: Rule, block: Block, multipliers: tuple[Tensor, Tensor | None]) -> Tensor:
    """:meth:`Rule.linear`, run again in backward unless all that it saves is there anyway (or it is run first in backward)."""
    if type(rule) is Epsilon or rule.yields_relevance or not torch.is_grad_enabled():
        return rule.linear(block, multipliers)
    return checkpoint(rule.linear, block, multipliers, use_reentrant=False, preserve_rng_state=False)
