"""Vector-Jacobian products by autograd of one function, for operations whose rules are not their gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def pull_back(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], multiplier: Tensor
) -> tuple[Tensor | None, ...]:
    """J^T g at each input, J the Jacobian of ``function`` there; differentiable, once more, when gradients are on.

    Args:
        function: makes one tensor, (B, ...), of the inputs.
        inputs: floating-point tensors (B, ...).
        multiplier: g, (T*B, ...), T targets, target-major.

    Returns:
        (T*B, ...) for each input; None where the function does not depend on it.
    """
    keep = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        # Aliases: one input may have been made from another, which is not what is asked here.
        given = [x.view_as(x) if keep and x.requires_grad else _leaf(x) for x in inputs]
        out = function(*given)
        if not out.requires_grad:
            return (None,) * len(given)
        targets = multiplier.shape[0] // max(1, out.shape[0])
        rows = [
            torch.autograd.grad(
                out, given, g.to(out.dtype), create_graph=keep, retain_graph=keep or targets > 1, allow_unused=True
            )
            for g in multiplier.unflatten(0, (targets, -1))
        ]  # fmt: skip
    return tuple(None if column[0] is None else torch.cat(column) for column in zip(*rows, strict=True))


def _leaf(x: Tensor) -> Tensor:
    """The same numbers, that a graph may start at."""
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()
