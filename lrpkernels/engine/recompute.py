"""Recomputation: less memory for a training step through heatmaps, at the price of computing some forward values twice.

PyTorch saves the input of every batch norm for its backward. Where that input is a convolution's output, it can be recomputed from the
convolution's own input, which is saved anyway; where it is a concatenation, from its parts, which a DenseNet's concatenations share
(:meth:`lrpkernels.graph.Node.recipe`). The relevance pass through a layer whose rule saves more than the multiplier is run again in
backward, too. The same operations on the same tensors give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..graph import Arrived, Multipliers, Node
from ..rules import Rule
from ..rules.base import reads_of


class _Saved:
    """What is saved in place of a tensor."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self.make = make

    def again(self) -> Tensor:
        with torch.no_grad():
            return self.make()


def without_saving(tensor: Tensor, recipe: Callable[[], Tensor]) -> AbstractContextManager[Any]:
    """Operations in this context that would save ``tensor`` for backward save its recipe instead."""
    key, version, saved_recipe = id(tensor), tensor._version, _Saved(recipe)

    def pack(saved: Tensor) -> Any:
        # Results are saved as well: without detaching, they would hold the node that holds them.
        return saved_recipe if id(saved) == key and saved._version == version else saved.detach()

    return torch.autograd.graph.saved_tensors_hooks(
        pack, lambda kept: kept.again() if isinstance(kept, _Saved) else kept
    )


def propagate(node: Node, multipliers: Arrived, rule: Rule) -> Multipliers:
    """:meth:`Node.through`, run again in backward unless all that it saves is available anyway (or its first run is in backward)."""
    if node.kind != "block" or not reads_of(rule) or rule.yields_relevance or not torch.is_grad_enabled():
        return node.through(multipliers, rule)
    held: list[Any] = [node, multipliers, rule]

    def run() -> Multipliers:
        node, multipliers, rule = held
        return node.through(multipliers, rule)

    try:
        return checkpoint(run, use_reentrant=False, preserve_rng_state=False)
    except BaseException:
        held.clear()  # PyTorch's frame, which refers to itself, keeps what it would run again
        raise
