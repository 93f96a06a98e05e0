"""Targets as captum has them: which number of each example's output is explained."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

Pick = Callable[[Tensor], Tensor]


class TargetError(ValueError, AssertionError):
    """A target that does not fit the model's output. An AssertionError, too, since captum raises these."""


def picker(target: Any) -> Pick:
    """A differentiable function from the model's output [B, ...] to the explained number of each example, [B].

    Args:
        target: an int; a tuple of indices into the dimensions behind the batch's; a tensor or array of one index, or of one per
            example; a list with an int or a tuple per example; None for an output of one number per example.

    Raises:
        TargetError: (by the function) a target that does not fit the output.
        IndexError: (by the function) an index out of range.
        TypeError: another kind of target.
    """
    if isinstance(target, np.ndarray):
        target = torch.from_numpy(target)
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise TypeError(f"target: a tensor must hold integers, got {target.dtype}")
        if target.numel() == 1:
            target = int(target)
        elif target.dim() == 1:
            target = target.tolist()
        else:
            raise TargetError(f"target: a tensor holds one index, or one per example, got shape {tuple(target.shape)}")
    if target is None:
        return lambda output: _one_number(output, output, target)
    if isinstance(target, list):
        each = [_indices(entry, True) for entry in target]
        return lambda output: _per_example(output, each)
    indices = _indices(target, False)
    where: tuple[Any, ...] = (slice(None), *indices)
    return lambda output: _one_number(_checked(output, indices)[where], output, target)


def _indices(target: Any, listed: bool) -> tuple[int, ...]:
    entries = target if isinstance(target, tuple) else (target,)
    found = []
    for entry in entries:
        if isinstance(entry, Tensor) and entry.numel() == 1 and not entry.is_floating_point():
            entry = entry.item()
        if not isinstance(entry, Integral) or isinstance(entry, bool):
            what = (
                "a list holds ints or tuples of ints"
                if listed
                else "expected an int, a tuple, a tensor, a list or None"
            )
            raise TypeError(f"target: {what}, got {type(entry).__name__}")
        found.append(int(entry))
    return tuple(found)


def _checked(output: Tensor, indices: tuple[int, ...]) -> Tensor:
    """The output, if it has an entry of these indices.

    Raises:
        TargetError, IndexError: it has none.
    """
    if len(indices) >= output.dim():
        raise TargetError(
            f"target: {len(indices)} indices for an output of shape {tuple(output.shape)}, which has {output.dim() - 1} dimensions behind "
            "the batch's"
        )
    for dim, index in enumerate(indices, start=1):
        if not -output.shape[dim] <= index < output.shape[dim]:
            raise IndexError(
                f"target: index {index} is out of range, dimension {dim} of the output of shape {tuple(output.shape)} has "
                f"{output.shape[dim]} entries"
            )
    return output


def _one_number(picked: Tensor, output: Tensor, target: Any) -> Tensor:
    if picked.numel() != len(picked):
        raise TargetError(
            f"target: an output of shape {tuple(output.shape)} has {picked.numel() // max(len(picked), 1)} numbers per example at "
            f"target={target!r}; name one, by an int or a tuple with an index for each dimension behind the batch's"
        )
    return picked.reshape(len(picked))


def _per_example(output: Tensor, each: list[tuple[int, ...]]) -> Tensor:
    if len(each) != len(output):
        raise TargetError(
            f"target: a list has one target per example, got {len(each)} for an output of shape {tuple(output.shape)}"
        )
    if not each:
        return output.flatten(1).sum(1)
    if len({len(indices) for indices in each}) > 1:
        raise TargetError("target: the entries of a list must have the same number of indices")
    for indices in each:
        _checked(output, indices)
    columns = torch.tensor(each, device=output.device).unbind(1)
    return _one_number(output[(torch.arange(len(output), device=output.device), *columns)], output, each)
