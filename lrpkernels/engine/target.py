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
Target = int | Tensor | Sequence["int | Tensor"] | str | Callable[[Tensor], Tensor] | None


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
        return torch.cat([_one_hot(_index(t, logits), logits) for t in target]), len(target)
    return _one_hot(_index(target, logits), logits), None


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
        source = logits if keep else logits.detach().requires_grad_()
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
