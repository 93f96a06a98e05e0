"""A model's own pass, without any recording: what it returns, and autograd's gradients at its inputs.

What ``detach``, ``.data`` and conversions to NumPy cut off is a constant, as it is for a relevance pass. ``torch.no_grad`` inside a model
is not: relevance goes through what it guards, so that the model is differentiated as if it were not there.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, _push_on_torch_function_stack

from ..layers.registry import leaves, map_leaves
from .eager import modes_restored
from .overloads import public
from .target import select_logits

Inputs = tuple[Tensor, ...]


class _EverythingLive(TorchFunctionMode):
    """Ignores switches of the grad mode, and writes to ``out=`` by copying, which autograd follows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            return None
        if kwargs and kwargs.get("out") is not None:
            rest = {name: value for name, value in kwargs.items() if name != "out"}
            made = public(func)[0](*args, **rest)
            for target, fresh in zip(leaves(kwargs["out"]), leaves(made), strict=True):
                if not target.numel() and fresh.numel():
                    target.resize_(fresh.shape)
                target.copy_(fresh)
            return kwargs["out"]
        return func(*args, **(kwargs or {}))


@contextmanager
def with_gradients() -> Iterator[None]:
    """Gradients are on, whatever the caller's mode is and the model switches on its way."""
    with outside_inference(), modes_restored():
        _push_on_torch_function_stack(_EverythingLive())
        yield


@contextmanager
def outside_inference() -> Iterator[None]:
    """Gradients are on, whatever the caller's mode is."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model's buffers, and the generators of PyTorch, NumPy and Python, are afterwards what they were."""
    places = [(module._buffers, name, b) for module in model.modules() for name, b in module._buffers.items()]
    copies = [None if buffer is None else buffer.detach().clone() for _, _, buffer in places]
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        with torch.no_grad():
            for (place, name, buffer), kept in zip(places, copies, strict=True):
                place[name] = buffer
                if buffer is not None and buffer.grad_fn is not None:
                    buffer.detach_()  # the model has written to it, which the pass has followed
                if buffer is not None and kept is not None and not torch.equal(*map(_dense, (buffer, kept))):
                    buffer.copy_(kept)


def _dense(buffer: Tensor) -> Tensor:
    return buffer if buffer.layout is torch.strided else buffer.to_dense()  # PyTorch compares no sparse ones


class Watch:
    """A context that sees this thread's modules run.

    Attributes:
        running: those that have not returned, the innermost last; what an exception left is where it was raised.
        calls: the modules that have returned, with the floating-point tensors that they returned, if these are kept.
    """

    def __init__(self, keep: bool = False) -> None:
        self.running: list[nn.Module] = []
        self.calls: list[tuple[nn.Module, list[Tensor]]] = []
        self._keep, self._thread = keep, get_ident()
        self._handles: tuple[Any, ...] = ()

    def __enter__(self) -> Watch:
        self._handles = (register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if get_ident() == self._thread:
            self.running.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if get_ident() == self._thread:
            while self.running and self.running.pop() is not module:
                pass  # the model has caught an exception
            if self._keep:
                made = [t for t in tensors_of(output) if t.is_floating_point()]
                self.calls.append((module, made))


@dataclass
class OwnPass:
    """What a model does by itself.

    Attributes:
        outputs: the explained ones.
        gradients: of the outputs times their seeds, at each input; None where there is none.
        calls: the modules that ran, each with the tensors that it returned and the gradients at them, if they were watched.
    """

    outputs: list[Tensor]
    gradients: list[Tensor | None]
    calls: list[tuple[nn.Module, list[tuple[Tensor, Tensor | None]]]]


def own_pass(
    model: nn.Module, inputs: Inputs, kwargs: dict[str, Any], explained: Collection[int], watch: Watch
) -> OwnPass:
    """One forward and one backward pass of the model as it is; ``.grad`` and what :func:`unchanged` names stay.

    Args:
        model, inputs, kwargs: what is called; the tensors are copied.
        explained: which of its :func:`explainable` outputs.
        watch: sees it run.

    Raises:
        Exception: what the model raises.
    """
    try:
        return _pass(model, inputs, kwargs, explained, watch)
    except RuntimeError as error:
        reentrant = "use_reentrant" in str(error)  # checkpoints that torch.autograd.grad does not go through
        if not reentrant and "modified by an inplace operation" not in str(error):
            raise
    watch.running, watch.calls = [], []
    if reentrant:
        return _pass(model, inputs, kwargs, explained, watch, backward=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        return _pass(model, inputs, kwargs, explained, watch)


def _pass(
    model: nn.Module,
    inputs: Inputs,
    kwargs: dict[str, Any],
    explained: Collection[int],
    watch: Watch,
    backward: bool = False,
) -> OwnPass:
    with unchanged(model, inputs[0].device), outside_inference():
        given = [x.detach().clone().requires_grad_() for x in inputs]
        options = map_leaves(copy_of, kwargs)
        with modes_restored(watch._enter, watch._leave), watch, with_gradients():
            output = model(*(x.clone() for x in given), **options)  # it may change its input in place
        outputs = [(i, out) for i, out in enumerate(explainable(output)) if i in explained]
        live = [(out, seed(i, out)) for i, out in outputs if out.requires_grad]
        at = [*given, *(t for _, made in watch.calls for t in made if t.requires_grad)]
        found: Sequence[Tensor | None] = [None] * len(at)
        if live and backward:
            found = [*_backward(model, live, given), *found[len(given) :]]
        elif live:
            outs, seeds = zip(*live, strict=True)
            found = torch.autograd.grad(outs, at, seeds, allow_unused=True)
    gradients, rest = [*found[: len(given)]], iter(found[len(given) :])
    calls = [
        (module, [(t.detach(), next(rest) if t.requires_grad else None) for t in made]) for module, made in watch.calls
    ]
    watch.calls = []
    return OwnPass([out.detach() for _, out in outputs], gradients, calls)


def _backward(
    model: nn.Module, starts: Sequence[tuple[Tensor, Tensor]], given: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients at the leaves by way of ``.grad``, which stays what it is for the parameters."""
    outs, seeds = zip(*starts, strict=True)
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        torch.autograd.backward(outs, seeds)
    finally:
        for parameter, grad in before:
            parameter.grad = grad
    return [x.grad for x in given]


def copy_of(leaf: Any) -> Any:
    """What an extra pass may change, as one of its own: a tensor, or an object such as a cache of keys and values, if it can be copied."""
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    if leaf is None or isinstance(leaf, (int, float, str, torch.dtype, torch.device, nn.Module)):
        return leaf
    try:
        return copy.deepcopy(leaf)
    except Exception:
        return leaf


def explainable(output: Any) -> list[Tensor]:
    """The logits of a model's output if they can be told, else all its floating-point tensors with a batch dimension."""
    try:
        return [select_logits(output, None)]
    except TypeError:
        return [t for t in tensors_of(output) if t.is_floating_point() and t.dim() and t.numel()]


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The tensors of a model's output: in lists, tuples, dicts and dataclasses."""
    for part in leaves(output):
        if isinstance(part, Tensor):
            yield part
        elif is_dataclass(part) and not isinstance(part, type):
            yield from tensors_of([getattr(part, field.name) for field in fields(part)])


def seed(index: int, output: Tensor) -> Tensor:
    """Where both passes start at an output: numbers without structure, in which nothing cancels."""
    generator = torch.Generator().manual_seed(index)
    numbers = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return numbers.to(device=output.device, dtype=output.dtype)
