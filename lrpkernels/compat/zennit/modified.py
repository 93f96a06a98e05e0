"""A model whose output has relevance for its gradient, while a composite is registered to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from ... import rules as lrp
from ...engine import recorder
from ...engine.places import Place
from ...tape import Tape, record
from .hooks import Hook

_NOTHING = object()


class _Relevance(torch.autograd.Function):
    """The model's output, whose gradient at the inputs is their relevance."""

    @staticmethod
    def forward(
        ctx: Any, relevance: Callable[[Tensor], tuple[Tensor | None, ...] | None], output: Tensor, *x: Tensor
    ) -> Tensor:
        ctx.relevance, ctx.inputs = relevance, len(x)
        return output.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        found = ctx.relevance(grad)
        return (None, grad, *(None,) * ctx.inputs) if found is None else (None, None, *found)


class ModifiedModel:
    """Stands in for a model's ``forward``: records the call, and explains what autograd asks for by one relevance pass.

    Args:
        model: the one whose calls are explained.
        composite: the rules.
        is_active: asked when autograd runs; False: the model's own gradient.
    """

    def __init__(self, model: nn.Module, composite: lrp.Composite, is_active: Callable[[], bool]) -> None:
        self._model, self._composite, self._is_active = model, composite, is_active
        self._before: Any = _NOTHING
        self.is_running = False

    def install(self) -> None:
        """Take the place of the model's ``forward``."""
        self._before = self._model.__dict__.get("forward", _NOTHING)
        self._model.__dict__["forward"] = self

    def remove(self) -> None:
        """Give the model its own back."""
        if self._model.__dict__.get("forward") is self:
            del self._model.__dict__["forward"]
            if self._before is not _NOTHING:
                self._model.__dict__["forward"] = self._before

    def _chain(self) -> list[ModifiedModel]:
        """This one, and those that were installed before it and stand still meanwhile."""
        chain = [self]
        while isinstance(chain[-1]._before, ModifiedModel):
            chain.append(chain[-1]._before)
        return chain

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hooks = (self._model._forward_pre_hooks, self._model._forward_hooks)
        before = [dict(registered) for registered in hooks]
        chain = self._chain()
        if chain[-1]._before is _NOTHING:
            self._model.__dict__.pop("forward", None)
        else:
            self._model.__dict__["forward"] = chain[-1]._before
        for modified in chain:
            modified.is_running = True
        try:
            for registered in hooks:  # the call that has led here runs them
                registered.clear()
            return self._run(args, kwargs)
        finally:
            for registered, own in zip(hooks, before, strict=True):
                registered.update(own)
            for modified in chain:
                modified.is_running = False
            self._model.__dict__["forward"] = self

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        model = self._model
        x, rest = _explained(model, args, kwargs)
        inputs = tuple(x.values()) if isinstance(x, Mapping) else x
        explained_by_others = any(
            type(mode).__module__.startswith(recorder.__package__ or "") for mode in _get_current_function_mode_stack()
        )
        if explained_by_others or not torch.is_grad_enabled() or not any(t.requires_grad for t in inputs):
            return model.forward(*args, **kwargs)
        # Hooks of the user's own may ask for the gradients of tensors inside.
        listened = any(_listens(module) for module in model.modules())
        tape = record(model, x, composite=None if listened else self._composite, **rest)

        def explained(output: Tensor) -> Tensor:
            if not output.requires_grad or not output.is_floating_point():
                return output
            return _Relevance.apply(lambda r: self._relevance(tape, output, r, inputs), output, *inputs)

        return torch.utils._pytree.tree_map_only(Tensor, explained, tape.output)

    def _relevance(
        self, tape: Tape, output: Tensor, r: Tensor, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...] | None:
        """Relevance at the inputs, and as ``grad`` of the tensors inside that retain theirs; None: the gradient is wanted."""
        if not self._is_active():
            return None
        retained = _retained(tape)
        options: dict[str, Any] = {"output": lambda _: output, "at": [*retained]}
        if self._composite.multiply_by_inputs:
            found = tape.relevance(None, self._composite, start=r, **options)
        else:  # a gradient starts it
            found = tape.relevance(lambda z: (z * r).flatten().view(len(z), -1).sum(1), self._composite, **options)
        for place, tensor in retained.items():
            tensor.grad = found[place] if tensor.grad is None else tensor.grad + found[place]
        at_input = found["input"]
        maps = (
            at_input.values()
            if isinstance(at_input, dict)
            else at_input
            if isinstance(at_input, tuple)
            else (at_input,)
        )
        return tuple(m if t.requires_grad else None for m, t in zip(maps, inputs, strict=True))


def _explained(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Tensor, ...] | dict[str, Tensor], dict[str, Any]]:
    """What is explained of the arguments of a call, and the others by their names."""
    keywords = any(isinstance(value, Tensor) and value.requires_grad for value in kwargs.values())
    if not keywords and all(isinstance(value, Tensor) and value.is_floating_point() for value in args):
        return args, kwargs
    named = dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    for key in [key for key, value in named.items() if isinstance(value, dict) and key not in kwargs]:
        named.update(named.pop(key))  # **kwargs of the model
    x = {key: value for key, value in named.items() if isinstance(value, Tensor) and value.requires_grad}
    return x, {key: value for key, value in named.items() if key not in x}


def _listens(module: nn.Module) -> bool:
    """Whether a forward hook that is no rule watches this module."""
    return any(not isinstance(getattr(hook, "__self__", None), Hook) for hook in module._forward_hooks.values())


def _retained(tape: Tape) -> dict[Place, Tensor]:
    """The outputs of modules whose ``retain_grad()`` was called, in a forward hook."""
    found: dict[Place, Tensor] = {}
    seen: set[int] = set()  # a container returns what its last module does
    for name, module in tape.model.named_modules():
        if not _listens(module):
            continue
        for call in range(1_000_000):
            place = Place(name, call=call)
            try:
                values = tape.values_at(place)
            except ValueError:
                break
            tensor = values[0].present()
            if len(values) == 1 and tensor is not None and tensor.retains_grad and id(tensor) not in seen:
                seen.add(id(tensor))
                found[place] = tensor
    return found
