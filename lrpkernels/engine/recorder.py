"""Recording: one forward pass of an unchanged model, written down as a list of operations.

The model runs as it is, under a ``TorchFunctionMode`` that sees every PyTorch function it calls. Nothing is replaced in the model:
functional calls, modules that are used twice and in-place activations work, and the autograd graph stays PyTorch's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode

from ..errors import InPlaceError, UnsupportedOperationError
from ..graph import Node, Value
from ..layers.registry import leaves, map_leaves, record_of
from ..layers.replayed import Unknown
from .aliases import Aliases
from .liveness import Liveness
from .places import ModuleCall
from .recompute import without_saving

is_grad_enabled = torch.is_grad_enabled  # saves a lookup for every operation
_NOTHING: AbstractContextManager[Any] = nullcontext()
_NO_TENSORS = frozenset((int, float, bool, str, type(None)))
_PLAIN = (int, float, bool, str, torch.Size, torch.dtype, torch.device, type(None), torch.layout, torch.memory_format)


class Recording:
    """A forward pass that is being recorded, or has been: what recorders write to (:class:`lrpkernels.layers.registry.Recorder`).

    Attributes:
        model, inputs: what runs on what.
        names: the keywords that the inputs are given as; None: they are positional.
        nodes: the recorded operations in the order they ran.
        values: the recorded values by the id of their tensor.
        input_values: those of the inputs.
        modules: those running, the innermost last.
        calls: what each module read and returned, call by call, by its id.
        notes_calls: whether they are noted.
        find_calls: finds that in a replayed pass, in which no module ran.
        liveness: holds the forward values that will be read; None: all are held.
        recomputes: whether less is saved for backward and recomputed there.
        watches: False: the caller removes values from the registry when their tensors go.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        liveness: Liveness | None = None,
        recompute: bool = False,
        names: tuple[str, ...] | None = None,
    ) -> None:
        self.model = model
        self.names = names
        self.inputs = tuple(inputs)
        self.liveness = liveness
        self.nodes: list[Node] = []
        self.values: dict[int, Value] = {id(t): Value(t, producer=None, behind_input=True) for t in self.inputs}
        self.input_values = tuple(self.values[id(tensor)] for tensor in self.inputs)
        self.modules: list[nn.Module] = []
        self.calls: dict[int, list[ModuleCall]] = {}
        self.notes_calls = True
        self.find_calls: Callable[[Recording, int], list[ModuleCall]] | None = None
        self.live = torch.is_grad_enabled()
        self.recomputes = recompute and self.live
        self.watches = True
        # Read beside recorded tensors, with a gradient history of their own.
        self.constants: list[tuple[Tensor, nn.Module]] = []
        self.aliases = Aliases()

    # -- what recorders ask ------------------------------------------------------------------------------------------------------

    def value(self, tensor: object) -> Value | None:
        return self.values.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def known(self, tensor: Tensor) -> Value:
        return self.values[id(tensor)]

    def add(self, node: Node, *outputs: Tensor, nonnegative: bool = False) -> None:
        node.module = self.modules[-1] if self.modules else self.model
        behind_input = node.moves_only
        for value in node.inputs:
            value.consumers += 1
            behind_input = behind_input and value.behind_input
        registry, made = self.values, []
        for out in outputs:
            registry[id(out)] = value = Value(out, node, nonnegative, behind_input)
            made.append(value)
            if out._is_view():
                self.aliases.note_view(out)
        node.outputs = tuple(made)
        self.nodes.append(node)
        if self.recomputes:
            made[0].recipe = node.recipe()
        if self.liveness is not None:
            for value in made:
                value.watch(registry if self.watches else None)
            self.liveness.note(node)

    def call(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        return self.dispatch(func, args, kwargs)

    def unknown(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        if type(out) in _PLAIN:
            return out
        given = leaves((args, kwargs))
        inputs = [value for value in map(self.value, given) if value is not None]
        outputs = [t for t in leaves(out) if isinstance(t, Tensor)]
        if not inputs or not any(t.is_floating_point() for t in outputs):
            return out  # comparisons, indices, sizes: constants, as for gradients
        if any(self.value(t) is not None for t in outputs):
            if getattr(func, "__name__", "").endswith("_") and given[0] is outputs[0]:
                raise InPlaceError(
                    f"{self.path()}: {func.__name__} changes a recorded tensor in place and has no recorder; "
                    "use the out-of-place form in the model"
                )
            return out  # the function returned its argument
        self.add(Unknown(inputs, func, args, kwargs, self.path()), *outputs)
        return out

    def replace(self, stale: Tensor, fresh: Tensor) -> None:
        self.aliases.replace(self, stale, fresh)

    def current(self, tensor: Any) -> Any:
        """What ``tensor`` stands for after the in-place calls so far; anything but a tensor stands for itself.

        Raises:
            InPlaceError: it is a view of a tensor that was changed in place after the view had been taken.
        """
        return self.aliases.current(self, tensor)

    def rename(self, stale: Tensor, fresh: Tensor) -> None:
        self.aliases.rename(stale, fresh)

    def unsaved(self, value: Value) -> AbstractContextManager[Any]:
        return _NOTHING if value.recipe is None else without_saving(value.tensor, value.recipe)

    def path(self) -> str:
        return self.module_path(self.modules[-1] if self.modules else self.model)

    def module_path(self, module: nn.Module) -> str:
        """Dotted name of a module, '(model)' for the model itself."""
        for name, candidate in self.model.named_modules():
            if candidate is module:
                return name or "(model)"
        return type(module).__name__

    # -- running a function ------------------------------------------------------------------------------------------------------

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``func`` and record it if it reads a recorded tensor.

        Raises:
            InPlaceError: an argument is a view of a tensor that was changed in place.
        """
        if self.live and not is_grad_enabled() and in_custom_function():
            # A custom autograd.Function runs its forward without gradients and puts its own backward on the result. What happens inside
            # is recorded, so the relevance pass needs the inner tensors' gradients, too.
            with torch.enable_grad():
                return self._dispatch(func, args, kwargs)
        return self._dispatch(func, args, kwargs)

    def _dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.aliases.replaced:
            args, kwargs = map_leaves(self.current, args), map_leaves(self.current, kwargs)
        record = record_of(func)
        if record is None:
            return self.unknown(func, args, kwargs)
        reads = self._reads_recorded(args)
        if kwargs:
            reads |= self._reads_recorded(kwargs.values())
        return record(self, func, args, kwargs) if reads else func(*args, **kwargs)

    def _reads_recorded(self, args: Iterable[Any]) -> bool:
        """Whether a recorded tensor is among the arguments; constants with a history are noted on the way."""
        values, live, found = self.values, self.live, False
        for arg in args:
            kind = type(arg)
            if kind in _NO_TENSORS:
                continue
            if id(arg) in values:
                found = True
            elif kind is list or kind is tuple:
                found |= self._reads_recorded(arg)
            elif live and isinstance(arg, Tensor) and arg.grad_fn is not None:
                self.constants.append((arg, self.modules[-1] if self.modules else self.model))
        return found

    # -- the pass as a whole -----------------------------------------------------------------------------------------------------

    @contextmanager
    def running(self, mode: TorchFunctionMode) -> Iterator[None]:
        """Run the model in this context: its calls go through ``mode``; PyTorch's global hooks show which module runs.

        The hooks see this thread only and are gone afterwards.
        """
        thread, modules, notes = get_ident(), self.modules, self.notes_calls
        entered: list[tuple[tuple[Value, ...], int]] = []

        def enter(module: nn.Module, args: Any) -> None:
            if get_ident() == thread:
                modules.append(module)
                if notes:
                    entered.append((self._values_in(args), len(self.nodes)))
                if isinstance(module, torch.jit.ScriptModule) and any(self.value(arg) is not None for arg in args):
                    raise UnsupportedOperationError(
                        f"{self.path()}: a TorchScript module hides its operations; use the nn.Module it was made from"
                    )

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if get_ident() == thread:
                modules.pop()
                if not notes:
                    return
                read, before = entered.pop()
                if kwargs:  # which PyTorch shows to this hook only
                    read += self._values_in(kwargs, before)
                call = ModuleCall(read, self._values_in(output))
                self.calls.setdefault(id(module), []).append(call)
                if self.liveness is not None:
                    self.liveness.module_left(module, call)

        handles = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave, with_kwargs=True))
        try:
            with mode:
                yield
        finally:
            for handle in handles:
                handle.remove()
            modules.clear()

    def _values_in(self, tree: Any, before: int | None = None) -> tuple[Value, ...]:
        """The recorded floating-point values in a module's arguments or results, as they were when ``before`` nodes had run."""
        replaced, found = self.aliases.replaced, []
        if type(tree) is tuple and len(tree) == 1:
            tree = tree[0]
        if not replaced and isinstance(tree, Tensor):  # most calls
            only = self.values.get(id(tree))
            return () if only is None or not only.dtype.is_floating_point else (only,)
        later = () if before is None or not replaced else self.nodes[before:]
        for leaf in (tree,) if isinstance(tree, Tensor) else leaves(tree):
            tensor, value = leaf, self.values.get(id(leaf))
            while id(tensor) in replaced:
                tensor = replaced[id(tensor)]
                fresh = self.values.get(id(tensor))
                if fresh is None or fresh.producer in later:
                    break
                value = fresh
            if value is not None and value.dtype.is_floating_point:
                found.append(value)
        return tuple(found)

    def calls_of(self, module: nn.Module) -> list[ModuleCall]:
        """What a module read and returned, call by call.

        Raises:
            ValueError: that was not noted.
        """
        if not self.notes_calls:
            raise ValueError("at: this pass was recorded with at=None; name the places in record(at=[...])")
        return self.calls.get(id(module), []) if self.find_calls is None else self.find_calls(self, id(module))

    def finish(self) -> None:
        """Forget what only recording needs: histories would keep the autograd graph, replaced tensors their numbers."""
        for value in [*self.input_values, *(value for node in self.nodes for value in node.outputs)]:
            value.history = None
        self.aliases.forget()
        self.constants = []

    def refuse_hidden_branches(self) -> None:
        """Constants must not depend on recorded values in a way that was not recorded (known from the autograd graph only).

        Raises:
            UnsupportedOperationError: one does.
        """
        if not self.constants:
            return
        values = [*self.input_values, *(value for node in self.nodes for value in node.outputs)]
        known = {value.history for value in values} - {None}
        clean: set[Any] = set()
        for constant, module in self.constants:
            pending = [constant.grad_fn]
            while pending:
                node = pending.pop()
                if node is None or node in clean:
                    continue
                if node in known:
                    raise UnsupportedOperationError(
                        f"{self.module_path(module)}: a tensor of shape {tuple(constant.shape)} was made from the model's input by code "
                        "that hides its operations (TorchScript, a compiled extension), so its relevance would be lost; use plain "
                        "PyTorch functions there"
                    )
                clean.add(node)
                pending.extend(parent for parent, _ in node.next_functions)

    def clear(self) -> None:
        """Release every recorded tensor now, without waiting for Python's garbage collector."""
        for node in self.nodes:
            for value in node.outputs:
                value.producer = value.recipe = None  # values and operations refer to each other
        self.liveness = None
        self.nodes, self.constants = [], []
        self.values.clear()  # the watcher of a value refers to it
        self.calls = {}


class RecordingMode(TorchFunctionMode):
    """Sends every PyTorch function that touches a recorded tensor to its recorder in ``lrpkernels.layers``."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recording.dispatch(func, args, kwargs or {})


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
