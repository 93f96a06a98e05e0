"""What is explained: the multiplier that starts the relevance pass at the model's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..functional import is_capturing

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
Position = tuple["int | Tensor", ...]
Target = (
    int
    | Tensor
    | Sequence["int | Tensor | Position | Callable[[Tensor], Tensor]"]
    | str
    | Callable[[Tensor], Tensor]
    | None
)


def select_logits(output: Any, pick: Callable[[Any], Tensor] | None = None) -> Tensor:
    """The explained tensor of a model's output: itself, what ``pick`` returns, or its entry or attribute ``logits`` (else ``out``).

    Raises:
        TypeError: none of these is a floating-point tensor.
    """
    if pick is not None:
        output = pick(output)
    elif not isinstance(output, Tensor):
        for name in ("logits", "out"):
            if isinstance(output, Mapping) and name in output:
                output = output[name]
            elif hasattr(output, name):
                output = getattr(output, name)
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() < 1:
        raise TypeError(
            f"the model returned {type(output).__name__}, not a floating-point tensor with a batch dimension (nor one called 'logits' or "
            "'out' in it); pass output=lambda out: ... to pick the logits"
        )
    return output


def start(target: Target, logits: Tensor) -> tuple[Tensor, int | None]:
    """The multiplier at the logits.

    Args:
        target: see :class:`lrpkernels.LRP`.
        logits: (B,), (B, K), or (B, K, ...) with positions, over which a channel is summed.

    Returns:
        G at the logits, (T*B, K, ...), target-major, and T; T is None when a single target was given (no target dimension).

    Raises:
        TypeError, ValueError: a target that does not fit the logits.
    """
    if callable(target):
        return _from_callable(target, logits), None
    if logits.dim() == 1:
        if target is not None:
            raise ValueError(f"target: the output is one number per image, which needs no target, got {target!r}")
        return torch.ones_like(logits), None
    batch, classes = logits.shape[:2]
    if target is None:
        if logits.dim() > 2:
            raise ValueError(
                f'target: the output has shape {tuple(logits.shape)}; name a channel (its sum over positions is explained), "all", or '
                "pass a callable from the output to one scalar per image"
            )
        return _one_hot(logits.detach().argmax(1), logits), None
    if isinstance(target, str):
        if target != "all":
            raise ValueError(f'target: the only string is "all", got {target!r}')
        seeds = torch.eye(classes, dtype=logits.dtype, device=logits.device).repeat_interleave(batch, 0)
        return _spread(seeds, logits), classes
    if isinstance(target, (list, tuple, range)):
        if not target:
            raise ValueError("target: an empty list explains nothing")
        return torch.cat([_one_of_several(t, logits) for t in target]), len(target)
    return _one_hot(_index(target, logits), logits), None


def _one_of_several(target: Any, logits: Tensor) -> Tensor:
    if callable(target):
        return _from_callable(target, logits)
    if isinstance(target, tuple):
        return _at_position(target, logits)
    return _one_hot(_index(target, logits), logits)


def _at_position(index: Position, logits: Tensor) -> Tensor:
    """One entry of the output: an index for each dimension behind the batch's, negative ones from the end."""
    shape = logits.shape[1:]
    if len(index) != len(shape):
        raise ValueError(
            f"target: a tuple names one entry of the output, {len(shape)} indices for shape {tuple(logits.shape)}, got {index!r}"
        )
    mask = torch.ones_like(logits, dtype=torch.bool)
    for dim, (entry, size) in enumerate(zip(index, shape, strict=True), start=1):
        if isinstance(entry, int) and not isinstance(entry, bool):
            if not -size <= entry < size:
                raise ValueError(
                    f"target: index {entry} is out of range, dimension {dim} of the output has {size} entries"
                )
            places = torch.full((len(logits),), entry % size, device=logits.device)
        elif isinstance(entry, Tensor):
            places = _index(entry, logits.movedim(dim, 1))
        else:
            raise TypeError(f"target: a tuple holds ints or LongTensors [B], got {type(entry).__name__}")
        here = places[:, None] == torch.arange(size, device=logits.device)
        mask &= here.view(len(logits), *(size if d == dim else 1 for d in range(1, logits.dim())))
    return mask.to(logits.dtype)


def multiplier_of(relevance: Any, value: Tensor, where: str) -> tuple[Tensor, int | None]:
    """The multiplier G = R / a of a given relevance: R of the value's shape [B, ...], or [B, T, ...].

    Returns:
        G, [T*B, ...], target-major, and T; T is None for a single relevance.

    Raises:
        TypeError, ValueError: another shape, or relevance where the value is zero, which G cannot carry.
    """
    if not isinstance(relevance, Tensor) or not relevance.is_floating_point():
        raise TypeError(f"start: relevance at {where} must be a floating-point tensor, got {type(relevance).__name__}")
    relevance = relevance.to(device=value.device, dtype=value.dtype)
    targets = (
        None if relevance.shape == value.shape else relevance.shape[1] if relevance.dim() == value.dim() + 1 else 0
    )
    if targets == 0 or (targets is not None and (relevance.shape[0], *relevance.shape[2:]) != tuple(value.shape)):
        raise ValueError(
            f"start: relevance at {where} must have shape {tuple(value.shape)}, or with targets behind the batch, got "
            f"{tuple(relevance.shape)}"
        )
    if targets is not None:
        relevance = relevance.movedim(1, 0)
    none = value == 0
    if not is_capturing(value.device) and bool((none & (relevance != 0)).any()):
        raise ValueError(
            f"start: relevance at {where} must be 0 where the value there is 0 (it has no contributions to share it by); multiply it "
            "with (value != 0), or start ahead of the ReLU"
        )
    multiplier = relevance / torch.where(none, 1.0, value)
    return (multiplier if targets is None else multiplier.flatten(0, 1)), targets


def _spread(seeds: Tensor, logits: Tensor) -> Tensor:
    """A multiplier per channel at every position of a dense output."""
    positions = logits.shape[2:]
    return seeds.view(*seeds.shape, *(1,) * len(positions)).expand(*seeds.shape, *positions).contiguous()


def _index(target: Any, logits: Tensor) -> Tensor:
    batch, classes = logits.shape[:2]
    if isinstance(target, np.ndarray):
        target = torch.from_numpy(target)
    if isinstance(target, Tensor):
        if target.dtype not in _INTEGERS or target.dim() > 1 or (target.dim() == 1 and len(target) != batch):
            raise ValueError(
                f"target: a tensor must hold one class index per image, int64 of shape [{batch}], got {target.dtype} of shape "
                f"{tuple(target.shape)}"
            )
        index = target.to(device=logits.device, dtype=torch.int64).expand(batch)
    elif isinstance(target, Integral) and not isinstance(target, bool):
        target = int(target)
        if batch and not 0 <= target < classes:
            raise _out_of_range(target, classes)
        return torch.full((batch,), target, device=logits.device)
    else:
        raise TypeError(
            f'target must be an int, a LongTensor [B], a list of these, "all", a callable or None, got {type(target).__name__}'
        )
    if batch and not is_capturing(logits.device) and (int(index.min()) < 0 or int(index.max()) >= classes):
        raise _out_of_range(int(index[(index < 0) | (index >= classes)][0]), classes)
    return index


def _out_of_range(index: int, classes: int) -> ValueError:
    return ValueError(f"target: class {index} is out of range, the model has {classes} classes (0 to {classes - 1})")


def _one_hot(index: Tensor, logits: Tensor) -> Tensor:
    classes = torch.arange(
        logits.shape[1], device=index.device
    )  # torch's one_hot waits for the device to check the index
    return _spread((index[:, None] == classes).to(logits.dtype), logits)


def _from_callable(target: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    keep = torch.is_grad_enabled() and logits.requires_grad
    with torch.enable_grad():
        # An alias: hooks on the logits (FSDP has one) are for the gradients of a training step.
        source = logits.view_as(logits) if keep else logits.detach().requires_grad_()
        score = target(source)
        if not isinstance(score, Tensor) or score.shape != logits.shape[:1]:
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(
                f"target: the callable must return one scalar per image, shape [{logits.shape[0]}], got {got}"
            )
        if not score.requires_grad:
            raise ValueError("target: the callable's result does not depend on the logits")
        if not is_capturing(score.device) and not bool(torch.isfinite(score.detach()).all()):
            raise NonFiniteError("target: the explained score is not finite")
        (gradient,) = torch.autograd.grad(score.sum(), source, create_graph=keep)
    return gradient
