"""The surroundings of a pass: plain Python and eager PyTorch, and nothing of it left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch.nn.modules.module import (
    _global_forward_hooks,
    _global_forward_hooks_with_kwargs,
    _global_forward_pre_hooks,
)
from torch.overrides import (
    _get_current_function_mode_stack,
    _len_torch_function_stack,
    _pop_torch_function_stack,
    _push_on_torch_function_stack,
)

_NOTHING: AbstractContextManager[Any] = nullcontext()
F = TypeVar("F", bound=Callable[..., Any])


def eager(function: F) -> F:
    """The function with the compiler out of the way: a compiled caller breaks its graph here, compiled parts of the model run as they are.

    Costs a look-up where nothing has been compiled.
    """

    def uncompiled(*args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return function(*args, **kwargs)

    skipped = torch._disable_dynamo(uncompiled)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return skipped(*args, **kwargs) if "torch._dynamo" in sys.modules else function(*args, **kwargs)

    return cast(F, run)


@contextmanager
def modes_restored(*hooks: Any) -> Iterator[None]:
    """In this context PyTorch's function modes, grad mode and global forward hooks may change.

    A keyboard interrupt may come between any two steps of the context managers that change them, and leave them half changed.

    Args:
        hooks: removed in the end, if they have been registered.
    """
    modes = [mode for mode in _get_current_function_mode_stack() if getattr(mode, "recording", mode) is not None]
    gradients = torch.is_grad_enabled()

    def restore() -> None:
        while _len_torch_function_stack():
            _pop_torch_function_stack()
        for mode in modes:
            _push_on_torch_function_stack(mode)
        for registered in (_global_forward_pre_hooks, _global_forward_hooks):
            for key in [key for key, hook in registered.items() if hook in hooks]:
                del registered[key]
                _global_forward_hooks_with_kwargs.pop(key, None)

    try:
        yield
    except BaseException:
        torch._C._set_grad_enabled(gradients)
        raise
    finally:
        try:
            restore()
        except BaseException:  # interrupted once more
            restore()
            raise


def outside_inference_mode() -> AbstractContextManager[Any]:
    """Without gradients, but out of inference mode, whose tensors know neither their views nor autograd."""
    return _no_gradients() if torch.is_inference_mode_enabled() else _NOTHING


@contextmanager
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():
        yield
