"""Arguments and results that nest tensors in lists, tuples and dicts.

``torch.utils._pytree`` does the same, but its flattening leaves a reference cycle with all leaves in it at every call: the tensors of
a training step then stay until Python's garbage collector happens to run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def leaves(tree: Any) -> list[Any]:
    """What is in lists, tuples and the values of dicts, at any depth, in order; anything else is a leaf."""
    found: list[Any] = []
    _collect(tree, found)
    return found


def _collect(tree: Any, found: list[Any]) -> None:
    if isinstance(tree, (tuple, list)) and not isinstance(tree, torch.Size):
        for part in tree:
            _collect(part, found)
    elif isinstance(tree, dict):
        for part in tree.values():
            _collect(part, found)
    else:
        found.append(tree)


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """``tree`` with every leaf replaced by ``function`` of it."""
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind(map_leaves(function, part) for part in tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return kind(*(map_leaves(function, part) for part in tree))
    if isinstance(tree, dict):
        return {key: map_leaves(function, part) for key, part in tree.items()}
    return function(tree)
