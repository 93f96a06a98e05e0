"""Backward passes without a second derivative: they raise an error whichever way one is requested."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


class _NoContext:
    """Stands for the context of a Function's forward when there will be no backward."""

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


_is_transformed = torch._C._are_functorch_transforms_active


def call(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)``; without gradients its forward alone, which saves the overhead of autograd's Python functions."""
    if not torch.is_grad_enabled():
        return function.forward(_NoContext(), *args)
    if _is_transformed():
        return function.apply(*args)
    # What `apply` comes to, once it has looked for wrappers that a transform of torch.func has left in every argument.
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


class _Blocker(torch.autograd.Function):
    """Identity on ``outputs`` that also depends on ``anchors``, so that every path of a second derivative meets its error."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            f"{ctx.name}: a second derivative was asked for. Relevance is differentiable once (a loss on a heatmap can be "
            "trained); its own gradient cannot be differentiated again"
        )


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of ``autograd.Function.backward``.

    PyTorch's ``once_differentiable`` raises under ``backward()`` but not under ``torch.autograd.grad(..., inputs)``, where the
    missing path is silently left out.
    """

    @wraps(backward)
    def wrapper(ctx: Any, *grads: Any) -> Any:
        if not torch.is_grad_enabled():  # no second derivative can be requested
            return backward(ctx, *grads)
        with torch.no_grad():
            results = backward(ctx, *grads)
        results = results if isinstance(results, tuple) else (results,)
        anchors = [t for t in (*grads, *ctx.saved_tensors) if isinstance(t, Tensor) and t.requires_grad]
        where = [i for i, r in enumerate(results) if isinstance(r, Tensor)]
        if not anchors or not where:
            return results
        blocked = _Blocker.apply(type(ctx).__name__, len(where), *(results[i] for i in where), *anchors)
        out = list(results)
        for i, r in zip(where, blocked, strict=True):
            out[i] = r
        return tuple(out)

    return wrapper
