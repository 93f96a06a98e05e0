"""Code that hides its operations from a recording: known by its traces, so that nothing is lost in silence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedOperationError

transform = (
    torch._C._functorch.peek_interpreter_stack
)  # that of torch.func, torch.vmap among them, which is running; None: none
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # by such a transform


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor that a transform of ``torch.func`` has wrapped."""
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def refuse_hidden_branches(
    constants: Sequence[tuple[Tensor, nn.Module]], known: Collection[Any], module_path: Callable[[nn.Module], str]
) -> None:
    """Constants must not depend on recorded values in a way that was not recorded (known from the autograd graph only).

    Args:
        constants: tensors read beside recorded ones, with the modules that read them.
        known: the autograd nodes of recorded values.
        module_path: the name of a module.

    Raises:
        UnsupportedOperationError: one does.
    """
    clean: set[Any] = set()
    for constant, module in constants:
        pending = [constant.grad_fn]
        while pending:
            node = pending.pop()
            if node is None or node in clean:
                continue
            if node in known:
                raise UnsupportedOperationError(
                    f"{module_path(module)}: a tensor of shape {tuple(constant.shape)} was made from the model's input by code "
                    "that hides its operations (TorchScript, a compiled extension), so its relevance would be lost; use plain "
                    "PyTorch functions there"
                )
            clean.add(node)
            pending.extend(parent for parent, _ in node.next_functions)


def in_custom_function() -> bool:
    """Whether this runs inside the ``forward`` of a custom ``torch.autograd.Function``."""
    frame, forwards = sys._getframe(1), None
    while frame is not None:
        if frame.f_code.co_name == "forward":
            forwards = _custom_forwards() if forwards is None else forwards
            if frame.f_code in forwards:
                return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _custom_forwards() -> set[Any]:
    """The code of every ``forward`` of a custom function; ``Function.apply`` itself leaves no frame in newer versions of PyTorch."""
    codes: set[Any] = set()
    pending: list[Any] = [torch.autograd.Function]
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        codes.add(getattr(cls.forward, "__code__", None))
    return codes - {None}
