"""Recomputation: less memory for a training step through heatmaps, at the price of computing some forward values twice.

PyTorch saves the input of every batch norm for its backward. Where that input is a convolution's output, it can be recomputed from the
convolution's own input, which is saved anyway; where it is a concatenation, from its parts, which a DenseNet's concatenations share
(:meth:`lrpkernels.graph.Node.recipe`). What a batch norm and a ReLU make of a concatenation is recomputed likewise. The relevance pass
through a layer whose rule saves more than the multiplier is run again in backward, too. The same operations on the same tensors give the
same numbers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..graph import Arrived, Multipliers, Node, Recipe
from ..rules import Rule
from ..rules.base import reads_of


class _Saved:
    """What is saved in place of a tensor."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def again(self) -> Tensor:
        with torch.no_grad():
            return self.recipe()


def without_saving(tensor: Tensor | None, recipe: Recipe) -> AbstractContextManager[Any]:
    """Operations in this context that would save ``tensor`` for backward save its recipe instead; None: all that they save."""
    saved_recipe = _Saved(recipe)
    key, version = (None, 0) if tensor is None else (id(tensor), tensor._version)

    def pack(saved: Tensor) -> Any:
        if key is None or (id(saved) == key and saved._version == version):
            return saved_recipe
        return saved.detach()  # results are saved as well: they would hold the node that holds them

    return torch.autograd.graph.saved_tensors_hooks(
        pack, lambda kept: kept.again() if isinstance(kept, _Saved) else kept
    )


def runs_again(node: Node, rule: Rule) -> bool:
    """Whether the relevance pass through this operation, whose rule saves more than the multiplier, runs again in backward."""
    return node.kind == "block" and bool(reads_of(rule)) and not rule.yields_relevance


def propagate(node: Node, multipliers: Arrived, rule: Rule) -> Multipliers:
    """:meth:`Node.through`, run again in backward unless all that it saves is available anyway (or its first run is in backward)."""
    if not runs_again(node, rule) or not torch.is_grad_enabled():
        recipe = node.outputs[0].recipe
        tensor = node.outputs[0].present() if recipe is not None and recipe.is_cheap else None
        if tensor is None or recipe is None:
            return node.through(multipliers, rule)
        with without_saving(tensor, recipe):
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
