"""Recording: one forward pass of an unchanged model, written down as a list of operations.

The model runs as it is, under a ``TorchFunctionMode`` that sees every PyTorch function it calls. Nothing is replaced in the model:
functional calls, modules that are used twice and in-place activations work, and the autograd graph stays PyTorch's own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode

from .composite import Composite, as_composite
from .demand import Demand
from .errors import InPlaceError, UnsupportedOperationError, UnusedInputError
from .layers.base import dispatch
from .rules import Rule
from .static import StaticCalls, demand_key
from .trace import Trace
from .value import Value

if TYPE_CHECKING:
    from typing_extensions import Self

    from .frame import Frame
    from .layers.base import Op
    from .target import Target


class Tape:
    """The record of one forward pass. Made by :func:`record`; a context manager that releases its tensors on exit.

    Attributes:
        output: what the model returned, unchanged (part of the ordinary autograd graph when gradients are on).
        inputs: the tensors the model was called with.
        ops: the recorded operations in the order they ran.
    """

    def __init__(
        self, model: nn.Module, inputs: Sequence[Tensor], demand: Demand | None = None, checkpoint: bool = False
    ) -> None:
        self.model = model
        self.demand = demand
        self.inputs = tuple(inputs)
        self.output: Any = None
        self.ops: list[Op] = []
        self._values: dict[int, Value] = {}
        self._replaced: dict[int, Tensor] = {}
        self._views: dict[int, list[weakref.ref[Tensor]]] = {}
        self._outdated: set[int] = set()
        self._modules: list[nn.Module] = []
        self._calls: dict[int, list[Value]] = {}
        self._keep: list[Any] = []
        self.live = torch.is_grad_enabled()
        self.checkpoint = checkpoint and self.live
        self.released = False
        self.frame: Frame | None = None  # operations and values that a later tape will use again
        self.watches = True  # False: whoever records takes values off the registry when their tensors go
        self.trace: Trace | None = None  # of a model whose calls are known: filled while it is recorded, or replayed
        self.constants: list[
            tuple[Tensor, nn.Module]
        ] = []  # read beside recorded tensors, with a gradient history of their own
        for tensor in self.inputs:
            self._values[id(tensor)] = Value(tensor, producer=None, behind_input=True)
        self.input_values = tuple(self._values[id(tensor)] for tensor in self.inputs)

    # -- used by the recorders in lrpkernels.layers ------------------------------------------------------------------------------

    def value(self, tensor: object) -> Value | None:
        """The recorded value that ``tensor`` is, or None if it does not depend on the model's input."""
        return self._values.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def known(self, tensor: Tensor) -> Value:
        """:meth:`value` of a tensor that is known to be recorded."""
        return self._values[id(tensor)]

    def add(self, op: Op, *outputs: Tensor, nonnegative: bool = False) -> None:
        """Append ``op``; its inputs are already :class:`Value` objects, ``outputs`` are the tensors it made."""
        op.module = self._modules[-1] if self._modules else self.model
        behind_input = True
        for value in op.inputs:
            value.consumers += 1
            behind_input &= value.behind_input
        behind_input = behind_input and _moves_only(op)
        registry, made = self._values, []
        for out in outputs:
            registry[id(out)] = value = Value(out, op, nonnegative, behind_input)
            made.append(value)
            if out._is_view():
                self._views.setdefault(id(out._base), []).append(weakref.ref(out))
        op.outputs = tuple(made)
        self.ops.append(op)
        if self.demand is not None:
            for value in made:
                value.watch(registry if self.watches else None)
            self.demand.note(op)

    def replace(self, stale: Tensor, fresh: Tensor) -> None:
        """An in-place call on ``stale`` was carried out as ``fresh``: later uses of ``stale`` mean ``fresh``.

        Raises:
            InPlaceError: ``stale`` is a part of another recorded tensor.
        """
        base = stale._base if stale._is_view() else None
        outdated = self._outdated
        for reference in self._views.get(id(stale if base is None else base), ()):
            view = reference()
            if view is not None and view is not stale:  # it still holds the old numbers
                key = id(view)
                outdated.add(key)
                self._keep.append(weakref.ref(view, lambda _, key=key: outdated.discard(key)))  # type: ignore[misc]
        if base is not None and id(base) in self._values:
            if stale.numel() == base.numel() and stale.is_contiguous() and base.is_contiguous():
                # A mere reshape: the base changes as a whole, too.
                self.rename(base, dispatch(self, torch.reshape, (fresh, base.shape), {}))
            else:
                self._refuse(base)
        self.rename(stale, fresh)

    def rename(self, stale: Tensor, fresh: Tensor) -> None:
        """Later uses of ``stale`` mean ``fresh``, which holds the same numbers or, after :meth:`replace`, newer ones."""
        replaced, key = self._replaced, id(stale)
        replaced[key] = fresh
        self._keep.append(weakref.ref(stale, lambda _: replaced.pop(key, None)))  # another tensor may get its id

    @property
    def changed_in_place(self) -> bool:
        """Whether :meth:`current` has anything to do."""
        return bool(self._replaced)

    def current(self, tensor: Any) -> Any:
        """What ``tensor`` stands for after the in-place calls so far; anything but a tensor stands for itself.

        Raises:
            InPlaceError: it is a view of a tensor that was changed in place after the view had been taken.
        """
        while id(tensor) in self._replaced:
            tensor = self._replaced[id(tensor)]
        if id(tensor) in self._outdated:
            raise InPlaceError(
                f"{self.path()}: a view of shape {tuple(tensor.shape)} is read after the tensor it looks at was changed in place; "
                "take the view after the change, or write the change out of place (y = f(x))"
            )
        return tensor

    def _refuse(self, base: Tensor) -> None:
        raise InPlaceError(
            f"{self.path()}: an in-place operation on a view changes part of a recorded tensor of shape {tuple(base.shape)}; write "
            "the model's operation out of place (for example y = f(x[...]); torch.cat)"
        )

    def path(self) -> str:
        """Dotted name of the module that is running, '(model)' outside all of them."""
        return self.module_path(self._modules[-1] if self._modules else self.model)

    # -- used after recording ----------------------------------------------------------------------------------------------------

    def module_path(self, module: nn.Module) -> str:
        for name, candidate in self.model.named_modules():
            if candidate is module:
                return name or "(model)"
        return type(module).__name__

    def module_output(self, name: str) -> Value:
        """The recorded output of the submodule called ``name``.

        Raises:
            ValueError: no such module, or it did not run exactly once, or its output is not a recorded tensor.
        """
        modules = dict(self.model.named_modules())
        if name not in modules:
            import difflib

            near = difflib.get_close_matches(name, [n for n in modules if n], n=3, cutoff=0.3)
            raise ValueError(f"at: the model has no module {name!r}; near matches: {', '.join(near) or 'none'}")
        module = modules[name]
        calls = self._calls.get(id(module), []) if self.trace is None else self.trace.outputs_of(self, module)
        if len(calls) != 1:
            raise ValueError(
                f"at: module {name!r} must give one recorded tensor in a forward pass, it gave {len(calls)}"
            )
        return calls[0]

    def relevance(
        self,
        target: Target = None,
        composite: Composite | Rule | None = None,
        at: Sequence[str] | None = None,
        output: Callable[[Any], Tensor] | None = None,
        memory_budget: int | None = None,
        release: bool = False,
    ) -> Any:
        """Relevance at the model's input, and at the output of named modules.

        Args:
            target: what is explained, as in :class:`lrpkernels.LRP`.
            composite: which rule each layer follows; default :class:`lrpkernels.Epsilon` with eps 1e-2.
            at: module names. None: only the input's relevance is returned.
            output: picks the logits out of the model's output, when that is no tensor.
            memory_budget: bytes that the multipliers of several targets may take together, roughly; more targets go in turn. None: all
                at once.
            release: let go of each forward value as soon as the pass has read it; there can be no further pass.

        Returns:
            R at the input, the input's shape; with several targets [B, T, ...] (targets after the batch dimension). A tuple if the
            model has several inputs. With ``at`` a dict: {"input": R, name: R at that module's output, ...}.

        Raises:
            ValueError: a target or a module name does not fit this model.
            UnusedInputError: the output does not depend on the input.
            UnsupportedOperationError: an operation on the way has no rule.
        """
        from .propagate import propagate

        if self.output is None:
            raise RuntimeError(
                "tape: its tensors were released when the 'with' block ended; call relevance() inside it"
            )
        if self.released:
            raise RuntimeError(
                "tape: an earlier relevance(..., release=True) has let its values go; leave `release` out there"
            )
        return propagate(self, target, composite, at, output, memory_budget, release)

    def adopt(self, frame: Frame) -> None:
        """Use the operations and values of an earlier pass for these inputs."""
        self.frame, self.ops, self.input_values = frame, frame.ops, frame.input_values
        for value, tensor in zip(frame.input_values, self.inputs, strict=True):
            value.refill(tensor, None, True)
            value.nonnegative = False
            self._values[id(tensor)] = value

    def finish(self) -> None:
        """Forget what only recording needs: histories would keep the autograd graph, replaced tensors their numbers."""
        for value in [*self.input_values, *(value for op in self.ops for value in op.outputs)]:
            value.history = None
        self._replaced, self._keep, self._views, self._outdated = {}, [], {}, set()

    def clear(self) -> None:
        """Release every recorded tensor, now and not when Python's garbage collector comes round."""
        if self.frame is not None and self.trace is not None:
            self.trace.give_back(self.frame)
            self.frame = None
        else:
            for op in self.ops:
                for value in op.outputs:
                    value.producer = value.recipe = None  # values and operations refer to each other
        self.demand = self.output = None
        self.ops = []
        self._values.clear()  # what watches a value refers to it
        self._replaced, self._calls, self._keep = {}, {}, []
        self._views, self._outdated, self.constants = {}, set(), []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.clear()


def _moves_only(op: Op) -> bool:
    """Data movement, or scaling by constants: what it makes of the model's input, a first layer still reads as the input."""
    return op.kind in ("reshape", "movement", "cast", "scale", "cat") or (op.kind == "add" and len(op.inputs) == 1)


class _Recorder(TorchFunctionMode):
    """Sends every PyTorch function that touches a recorded tensor to its recorder in ``lrpkernels.layers``."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        trace = self.tape.trace
        if trace is None:
            return dispatch(self.tape, func, args, kwargs or {})
        call = trace.begin(self.tape, func, args, kwargs or {})
        out = dispatch(self.tape, func, args, kwargs or {})
        trace.end(self.tape, call, out)
        return out


@contextmanager
def _module_tracking(tape: Tape) -> Iterator[None]:
    """Notes which module is running, in this thread only, through PyTorch's global hooks, which are gone afterwards."""
    thread = get_ident()

    modules, values, replaced = tape._modules, tape._values, tape._replaced
    scripted = torch.jit.ScriptModule

    def enter(module: nn.Module, args: Any) -> None:
        if get_ident() == thread:
            modules.append(module)
            if isinstance(module, scripted) and any(tape.value(arg) is not None for arg in args):
                raise UnsupportedOperationError(
                    f"{tape.path()}: a TorchScript module hides its operations; use the nn.Module it was made from"
                )

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if get_ident() == thread:
            modules.pop()
            value = values.get(id(replaced.get(id(output), output) if replaced else output))
            if value is not None:
                tape._calls.setdefault(id(module), []).append(value)
                if tape.trace is not None:
                    tape.trace.left(tape, module, value)
                if tape.demand is not None:
                    tape.demand.module_left(module, value)

    handles = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        tape._modules.clear()


def record(
    model: nn.Module,
    x: Tensor | tuple[Tensor, ...],
    *,
    composite: Composite | Rule | Sequence[Composite | Rule] | None = None,
    at: Sequence[str] = (),
    checkpoint: bool = False,
    static: StaticCalls | None = None,
    **kwargs: Any,
) -> Tape:
    """Run ``model(x, **kwargs)`` once, unchanged, and write down what it did.

    The model, its parameters, buffers, hooks and mode stay as they are (batch-norm statistics move once, as in any training-mode
    forward pass); gradients follow the caller's grad mode.

    Args:
        model: any ``nn.Module`` made of PyTorch functions.
        x: a floating-point tensor, or a tuple of them for a model with several inputs; relevance is attributed to them.
        composite: the rules that the relevance passes to come will follow, one composite or several: only what these read is kept of
            the forward pass. None: everything is.
        at: module names that they will ask for; counts beside ``composite``.
        checkpoint: when gradients are on, save less for backward and make it again there (lrpkernels.checkpoint); the same numbers.
        static: for models that always make the same PyTorch calls, see :class:`lrpkernels.StaticCalls`: the calls of the first pass
            are run again in later ones, without the model's Python code. None: the model runs.
        kwargs: passed on to the model, not explained.

    Returns:
        A :class:`Tape`. Use it in a ``with`` statement, so that its tensors are released.

    Raises:
        TypeError: an input is not a floating-point tensor.
        UnusedInputError: the model called no PyTorch function on its input.
        InPlaceError, UnsupportedOperationError: see lrpkernels.errors.
        ValueError: ``static`` belongs to another model.
    """
    inputs = x if isinstance(x, tuple) else (x,)
    if not inputs:
        raise TypeError("record: the model needs at least one input tensor, got an empty tuple")
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = f"dtype {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(
                f"record: input {index} must be a floating-point tensor, got {got}; integer inputs (token ids) have no "
                "relevance of their own: start at their embedding, or pass them as keyword arguments"
            )
    several = [composite] if isinstance(composite, (Composite, Rule)) else composite
    key = None if static is None else static.key(model, inputs, kwargs, demand_key(several, at), checkpoint)
    known = None if static is None else static.find(key)
    if known is not None:
        tape = Tape(model, inputs, None, checkpoint)
        known.replay(tape)
        if tape.frame is None:
            tape.finish()
        return tape
    demand = None if several is None else Demand(model, [as_composite(c) for c in several], at)
    tape = Tape(model, inputs, demand, checkpoint)
    tape.trace = None if static is None else Trace(tape)
    with _module_tracking(tape), _Recorder(tape):
        output = model(*inputs, **kwargs)
    tape.output = output
    if tape.changed_in_place:
        tape.output = (
            tape.current(output)
            if isinstance(output, Tensor)
            else torch.utils._pytree.tree_map_only(Tensor, tape.current, output)
        )
    if not tape.ops:
        raise UnusedInputError(
            f"{type(model).__name__}: the model called no PyTorch function on its input (exported and compiled-extension models hide "
            "theirs: pass the nn.Module they were made from)"
        )
    _refuse_hidden_branches(tape)
    if static is not None and tape.trace is not None:
        tape.trace.finish(tape)
        static.keep(key, tape.trace)
    tape.finish()
    return tape


def _refuse_hidden_branches(tape: Tape) -> None:
    """Constants of the tape must not depend on its values in a way the tape does not know (known from the autograd graph only).

    Raises:
        UnsupportedOperationError: one does.
    """
    if not tape.constants:
        return
    values = [*tape.input_values, *(value for op in tape.ops for value in op.outputs)]
    known = {value.history for value in values} - {None}
    clean: set[Any] = set()
    for constant, module in tape.constants:
        pending = [constant.grad_fn]
        while pending:
            node = pending.pop()
            if node is None or node in clean:
                continue
            if node in known:
                raise UnsupportedOperationError(
                    f"{tape.module_path(module)}: a tensor of shape {tuple(constant.shape)} was made from the model's input by code "
                    "that hides its operations (TorchScript, a compiled extension), so its relevance would be lost; use plain PyTorch "
                    "functions there"
                )
            clean.add(node)
            pending.extend(parent for parent, _ in node.next_functions)
    tape.constants.clear()
