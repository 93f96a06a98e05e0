"""Composites: which module follows which rule; registered to a model, its gradient is the relevance."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ... import rules as lrp
from ...errors import FallbackWarning
from .convert import UnknownHookError, of_assigned, typed
from .hooks import (
    BasicHook,
    Hook,
    ModuleMap,
    ParamMod,
    RemovableHandle,
    RemovableHandleList,
    Stabilizer,
    assigned,
    collect_leaves,
    expand,
    is_mapping,
    stabilize,
)
from .modified import ModifiedModel


class Composite:
    """A choice of rules for the modules of a model.

    ``with composite.context(model) as modified: output = modified(x)`` gives an output whose autograd gradient at ``x`` is the relevance
    of ``x``, started from the given gradient; with ``create_graph`` it is differentiable, with exact gradients for parameters.

    Args:
        module_map: (context, name, module) -> rule or None, called for every module in the order of ``named_modules()``.
        canonizers: accepted; batch norms are merged and sums shared out without them.

    Rules of the user's own that are written as code (a ``Hook`` with a ``backward``) have no counterpart in the engine: such a composite
    is registered module by module, as in zennit, with a :class:`lrpkernels.FallbackWarning`.
    """

    def __init__(self, module_map: ModuleMap | None = None, canonizers: Sequence[Any] | None = None) -> None:
        self.module_map: ModuleMap = module_map or (lambda context, name, module: None)
        self.canonizers = list(canonizers or ())
        self.handles = RemovableHandleList()
        self.hook_refs: weakref.WeakSet[Any] = weakref.WeakSet()
        self._inactive = 0

    @property
    def active(self) -> bool:
        """Whether gradients are relevance; False inside of :meth:`inactive`."""
        return not self._inactive

    def register(self, module: nn.Module) -> None:
        """Make the gradient of ``module`` relevance, until :meth:`remove`."""
        self.remove()
        # The installed ones merge and rewrite what is merged and shared out here.
        installed = [canonizer for canonizer in self.canonizers if type(canonizer).__module__.startswith("zennit.")]
        self._apply([canonizer for canonizer in self.canonizers if canonizer not in installed], module)
        found = assigned(self.module_map, module)
        if not found:
            return
        model: ModifiedModel | None = None
        try:
            model = ModifiedModel(module, of_assigned(found, module, typed(self)), lambda: self.active)
        except UnknownHookError as error:
            text = f"{error}. The model is explained module by module, without merged batch norms and shared sums"
            warnings.warn(text, FallbackWarning, stacklevel=3)
            self._apply(installed, module)
        for _, child, template in found:
            if model is not None and not isinstance(template, Hook):
                continue  # of the installed zennit, which would not keep still
            hook = template.copy()
            self.hook_refs.add(hook)
            if model is not None:
                hook.quiet = _quiet(model, child is module)
            self.handles.append(hook.register(child))
        if model is not None:
            model.install()
            self.handles.append(model)

    def _apply(self, canonizers: Sequence[Any], module: nn.Module) -> None:
        for canonizer in canonizers:
            self.handles += canonizer.apply(module)

    def remove(self) -> None:
        """Give the model its own gradient back."""
        self.handles.remove()
        self.hook_refs.clear()

    def context(self, module: nn.Module) -> CompositeContext:
        """``register`` and ``remove`` as a context; it yields the model."""
        return CompositeContext(module, self)

    @contextmanager
    def inactive(self) -> Iterator[Composite]:
        """In this context gradients are the model's own, for example those of a relevance that was made with ``create_graph``."""
        self._inactive += 1
        for hook in self.hook_refs:
            hook.active = False
        try:
            yield self
        finally:
            self._inactive -= 1
            for hook in self.hook_refs:
                hook.active = not self._inactive


class CompositeContext:
    """The context of :meth:`Composite.context`."""

    def __init__(self, module: nn.Module, composite: Composite) -> None:
        self.module, self.composite = module, composite

    def __enter__(self) -> nn.Module:
        self.composite.register(self.module)
        return self.module

    def __exit__(self, *exc: object) -> None:
        self.composite.remove()


class _Native(Composite):
    """A composite of the engine, to be registered like the others."""

    def __init__(self, composite: lrp.Composite | lrp.Rule) -> None:
        super().__init__()
        self._composite = lrp.as_composite(composite)

    def register(self, module: nn.Module) -> None:
        self.remove()
        model = ModifiedModel(module, self._composite, lambda: self.active)
        model.install()
        self.handles.append(model)


class _Foreign(Composite):
    """A composite of the installed zennit."""

    def __init__(self, composite: Any) -> None:
        super().__init__(composite.module_map, composite.canonizers)
        self.layer_map, self.composites = getattr(composite, "layer_map", ()), getattr(composite, "composites", ())


def as_registrable(composite: Any) -> Composite:
    """A composite that can be registered, from one of ours, of the installed zennit, or of the engine.

    Raises:
        TypeError: anything else.
    """
    if isinstance(composite, Composite):
        return composite
    if isinstance(composite, (lrp.Composite, lrp.Rule)):
        return _Native(composite)
    if is_mapping(composite):
        return _Foreign(composite)
    raise TypeError(
        f"composite must be a composite of zennit or lrpkernels, or a rule of lrpkernels, got {type(composite).__name__}"
    )


def _quiet(model: ModifiedModel, is_root: bool) -> Callable[[], bool]:
    return lambda: is_root or model.is_running


__all__ = [
    "BasicHook", "Composite", "CompositeContext", "Hook", "ParamMod", "RemovableHandle", "RemovableHandleList", "Stabilizer",
    "as_registrable", "collect_leaves", "expand", "stabilize",
]  # fmt: skip
