"""Recording: one forward pass of an unchanged model, written down as a list of operations.

The model runs as it is, under a ``TorchFunctionMode`` that sees every PyTorch function it calls. Nothing is replaced in the model:
functional calls, modules that are used twice and in-place activations work, and the autograd graph stays PyTorch's own.
"""

from __future__ import annotations

import weakref
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
from torch.overrides import TorchFunctionMode, _push_on_torch_function_stack

from .._extension import ops
from ..errors import UnsupportedOperationError
from ..graph import Node, Value
from ..layers.registry import NO_TENSORS, holds_tensors, leaves, map_leaves, record_of
from ..layers.replayed import Replayed, Unknown
from ..layers.shapes import Cast
from . import writes
from .aliases import Aliases
from .eager import modes_restored
from .hidden import in_custom_function, is_wrapped, refuse_hidden_branches, transform, unwrapped
from .liveness import Kept, Liveness
from .overloads import public
from .places import ModuleCall
from .recompute import without_saving
from .sharding import marks_post_backward
from .writes import writes_to

is_grad_enabled = torch.is_grad_enabled  # saves a lookup for every operation
_NOTHING: AbstractContextManager[Any] = nullcontext()
# What a model asks of a tensor's form: plain values, nothing to record.
_ASKS = frozenset({
    Tensor.dim, Tensor.ndimension, Tensor.size, Tensor.stride, Tensor.numel, Tensor.nelement, Tensor.element_size, Tensor.is_complex,
    Tensor.is_floating_point, Tensor.is_contiguous, Tensor.get_device, Tensor.__len__,
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad")),
})  # fmt: skip
_RECORDED, _WRAPPED = 1, 2
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
        reads_again: whether backward will read values that relevance passes have read.
        watches: False: the caller removes values from the registry when their tensors go.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        liveness: Liveness | Kept | None = None,
        recompute: bool = False,
        names: tuple[str, ...] | None = None,
    ) -> None:
        self.model = model
        self.names = names
        self.inputs = tuple(inputs)
        self.liveness = liveness
        self.nodes: list[Node] = []
        self.values: dict[int, Value] = {
            id(t): Value(t, producer=None, behind_input=True, unlayered=True) for t in self.inputs
        }
        self.input_values = tuple(self.values[id(tensor)] for tensor in self.inputs)
        self.modules: list[nn.Module] = []
        self.calls: dict[int, list[ModuleCall]] = {}
        self.notes_calls = True
        self.find_calls: Callable[[Recording, int], list[ModuleCall]] | None = None
        self.live = torch.is_grad_enabled()
        self.recomputes = recompute and self.live
        self.reads_again = False
        self.watches = True
        # Read beside recorded tensors, with a gradient history of their own.
        self.constants: list[tuple[Tensor, nn.Module]] = []
        self.aliases = Aliases()
        self._dtype, self._complex = self.inputs[0].dtype, False
        self._names: list[weakref.ref[Tensor]] = []  # further tensors that stand for a value

    # -- what recorders ask ------------------------------------------------------------------------------------------------------

    def value(self, tensor: object) -> Value | None:
        return self.values.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def known(self, tensor: Tensor) -> Value:
        return self.values[id(tensor)]

    def add(self, node: Node, *outputs: Tensor, nonnegative: bool = False) -> None:
        node.module = self.modules[-1] if self.modules else self.model
        behind_input, unlayered = node.sees_through, not node.is_linear
        if self._complex and not isinstance(node, Replayed) and any(value.dtype.is_complex for value in node.inputs):
            raise _ComplexError
        for value in node.inputs:
            value.consumers += 1
            behind_input = behind_input and value.behind_input
            unlayered = unlayered and value.unlayered
        registry, made, usual = self.values, [], self._dtype
        for out in outputs:
            value = Value(out, node, nonnegative, behind_input, unlayered)
            if value.dtype is not usual:
                self._check_dtype(node, value)
            registry[id(out)] = value
            made.append(value)
        node.outputs = tuple(made)
        self.nodes.append(node)
        if self.recomputes:
            recipe = made[0].recipe = node.recipe()
            if recipe is not None:
                recipe.watch(outputs[0])
        if self.liveness is not None:
            for value in made:
                value.watch(registry if self.watches else None)
            self.liveness.note(node)

    def _check_dtype(self, node: Node, value: Value) -> None:
        """Another dtype than the input's: the rules know real numbers, in dtypes that have kernels."""
        if value.dtype.is_complex:
            self._complex = True
            if not isinstance(node, Replayed):
                for read in node.inputs:
                    read.consumers -= 1
                raise _ComplexError
        elif ops.lack(value.tensor):
            raise UnsupportedOperationError(
                f"{self.path()}: {node.label()} gives float16 on the CPU, which has no kernels for it; use bfloat16 "
                "(torch.autocast('cpu', torch.bfloat16)) or float32"
            )

    def call(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        return self.dispatch(func, args, kwargs)

    def unknown(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._unknown(func, args, kwargs, writes_to(func))

    def _unknown(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], places: tuple[int, ...]) -> Any:
        if places and any(self.value(leaf) is not None for leaf in leaves((args, kwargs))):
            return writes.on_copies(self, func, places, args, kwargs)
        out = func(*args, **kwargs)
        if type(out) in _PLAIN:
            return out
        given = leaves((args, kwargs))
        self._refuse_wrapped(self._reads_recorded(given))  # which notes constants
        inputs = list({id(v): v for v in map(self.value, given) if v is not None}.values())
        outputs = [t for t in leaves(out) if isinstance(t, Tensor)]
        if not inputs or not any(t.is_floating_point() or t.is_complex() for t in outputs):
            return out  # comparisons, indices, sizes: constants, as for gradients
        if any(self.value(t) is not None for t in outputs):
            return out  # the function returned its argument
        node = Unknown(inputs, func, args, kwargs, self.path())
        for made in outputs:
            if made.is_nested or made.layout is not torch.strided:
                raise UnsupportedOperationError(
                    f"{self.path()}: {node.label()} makes a nested tensor or one of layout {made.layout}, which relevance cannot be "
                    "followed through; use dense tensors there"
                )
        self.add(node, *outputs)
        return out

    def overwrite(self, target: Tensor, fresh: Tensor) -> None:
        writes.overwrite(self, target, fresh)

    def settle(self) -> bool:
        """Give buffers and the like the numbers of its input that the model has written to them; whether there are any."""
        outlived = False
        for reference in self.aliases.outside:
            if reference() is None:
                continue
            writes.keep(
                self.nodes, reference()
            )  # of what the model made for itself, operations are all that is left to hold it
            target = reference()
            if target is not None:
                writes.settle(target, self.current(target))
                outlived = True
        return outlived

    def replace(self, stale: Tensor, fresh: Tensor) -> None:
        self.aliases.replace(self, stale, fresh)

    def current(self, tensor: Any) -> Any:
        """What ``tensor`` stands for after the in-place calls so far; anything but a tensor stands for itself."""
        return self.aliases.current(self, tensor)

    def rename(self, stale: Tensor, fresh: Tensor) -> None:
        self.aliases.rename(stale, fresh)

    def unsaved(self, value: Value) -> AbstractContextManager[Any]:
        return _NOTHING if value.recipe is None else without_saving(value.tensor, value.recipe)

    def unsaved_if_cheap(self, value: Value) -> AbstractContextManager[Any]:
        return self.unsaved(value) if value.recipe is not None and value.recipe.is_cheap else _NOTHING

    def making(self, node: Node) -> AbstractContextManager[Any]:
        recipe = node.recipe() if self.recomputes else None
        return _NOTHING if recipe is None else without_saving(None, recipe)

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
        """Run ``func`` and record it if it reads a recorded tensor."""
        if self.live and not is_grad_enabled():
            if in_custom_function():
                # A custom autograd.Function runs its forward without gradients and puts its own backward on the result. What happens
                # inside is recorded, so the relevance pass needs the inner tensors' gradients, too.
                with torch.enable_grad():
                    return self._dispatch(func, args, kwargs)
            if func is Tensor.view_as and marks_post_backward():
                return self._renamed(*args)
            return self._dispatch(func, args, kwargs, self.without_history)
        return self._dispatch(func, args, kwargs)

    def _dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], adapt: Any = None) -> Any:
        if self.aliases.replaced:
            if func in _ASKS:
                return func(*map(self.current, args), **kwargs)
            if self.aliases.changes(args):
                args = map_leaves(self.current, args)
            if kwargs and self.aliases.changes(kwargs.values()):
                kwargs = map_leaves(self.current, kwargs)
        elif func in _ASKS:
            return func(*args, **kwargs)
        if kwargs and kwargs.get("out") is not None:
            return writes.into(self, func, args, kwargs)
        record = record_of(func)
        if record is None:
            func, record, places = public(func)
            if record is None:
                if adapt is not None:
                    args, kwargs = adapt(func, args, kwargs)
                return self._unknown(func, args, kwargs, places)
        reads = self._reads_recorded(args)
        if kwargs:
            reads |= self._reads_recorded(kwargs.values())
        if reads != _RECORDED and not self._refuse_wrapped(reads):
            writes.before_writing(self.nodes, func, args)
            return func(*args, **kwargs)
        if adapt is not None:
            args, kwargs = adapt(func, args, kwargs)
        try:
            return record(self, func, args, kwargs)
        except _ComplexError:  # the rules are those of real numbers
            return self.unknown(func, args, kwargs)

    def _renamed(self, tensor: Tensor, _: Tensor) -> Tensor:
        """The tensor under another name, which stands for the same value."""
        out, value = tensor.view_as(tensor), self.value(tensor)
        if value is not None:
            key, pop = id(out), self.values.pop
            self.values[key] = value
            self._names.append(weakref.ref(out, lambda _: pop(key, None)))
        return out

    def without_history(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """A part of the model that runs without gradients: what it reads is constant for them, in the relevance pass, too."""
        changes = writes_to(func) or kwargs.get("inplace") or (args and args[-1] is True)

        def cut(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.requires_grad:
                return leaf
            value, constant = self.value(leaf), leaf.detach()
            if value is None:
                return constant
            if changes or leaf.is_complex():
                return leaf
            self.add(Cast(value), constant, nonnegative=value.nonnegative)
            return constant

        return map_leaves(cut, args), map_leaves(cut, kwargs)

    def _reads_recorded(self, args: Iterable[Any]) -> int:
        """Whether recorded or wrapped tensors are among the arguments; constants with a history are noted on the way."""
        values, live, found = self.values, self.live, 0
        for arg in args:
            kind = type(arg)
            if kind in NO_TENSORS:
                continue
            if id(arg) in values:
                found |= _RECORDED
            elif kind is list or kind is tuple:
                if holds_tensors(arg):
                    found |= self._reads_recorded(arg)
            elif kind is not nn.Parameter and isinstance(arg, Tensor):
                if live and arg.grad_fn is not None:
                    self.constants.append((arg, self.modules[-1] if self.modules else self.model))
                if transform() is not None and is_wrapped(arg):
                    found |= _WRAPPED | (id(unwrapped(arg)) in values)
        return found

    def _refuse_wrapped(self, reads: int) -> int:
        if reads == _RECORDED | _WRAPPED:
            raise UnsupportedOperationError(
                f"{self.path()}: torch.vmap and the transforms of torch.func hide which numbers are read; write the function for a batch"
            )
        return reads & _RECORDED

    # -- the pass as a whole -----------------------------------------------------------------------------------------------------

    @contextmanager
    def running(self, mode: RecordingMode) -> Iterator[None]:
        """Run the model in this context: its calls go through ``mode``; PyTorch's global hooks show which module runs.

        The hooks see this thread only. They, and PyTorch's modes, are afterwards as they were, whatever has interrupted the model.
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
                if modules.pop() is not module:
                    left = 1  # by an exception that the model has caught
                    while modules and modules.pop() is not module:
                        left += 1
                    del entered[len(entered) - left if notes else 0 :]
                if not notes:
                    return
                read, before = entered.pop()
                if kwargs:  # which PyTorch shows to this hook only
                    read += self._values_in(kwargs, before)
                call = ModuleCall(read, self._values_in(output))
                self.calls.setdefault(id(module), []).append(call)
                if self.liveness is not None:
                    self.liveness.module_left(module, call)

        with modes_restored(enter, leave):
            register_module_forward_pre_hook(enter)
            register_module_forward_hook(leave, with_kwargs=True)
            _push_on_torch_function_stack(mode)
            yield
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
        """See :func:`lrpkernels.engine.hidden.refuse_hidden_branches`."""
        if self.constants:
            values = [*self.input_values, *(value for node in self.nodes for value in node.outputs)]
            refuse_hidden_branches(self.constants, {value.history for value in values} - {None}, self.module_path)

    def clear(self) -> None:
        """Release every recorded tensor now, without waiting for Python's garbage collector."""
        for node in self.nodes:
            for value in node.outputs:
                value.producer = value.recipe = None  # values and operations refer to each other
        self.liveness = None
        self.nodes, self.constants = [], []
        self.values.clear()  # the watcher of a value refers to it
        self.calls = {}


class _ComplexError(Exception):
    """A recorder for real numbers was given, or has made, complex ones."""


class RecordingMode(TorchFunctionMode):
    """Sends every PyTorch function that touches a recorded tensor to its recorder in ``lrpkernels.layers``."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording: Recording | None = (
            recording  # None: it is over, should an interrupt have left this mode on the stack
        )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.recording is None:
            return func(*args, **(kwargs or {}))
        return self.recording.dispatch(func, args, kwargs or {})
