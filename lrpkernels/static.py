"""Models whose calls are always the same: their Python code runs once for each form of input, later passes run its PyTorch calls alone.

Recording looks at every PyTorch function that a model calls. Seen once, the list of these calls with their arguments can be run again
without modules, hooks and the ``TorchFunctionMode``, which on small layers cost more than the layers themselves. Every call goes
through its own recorder as in any other recording, so that batch-norm statistics move and dropout masks are drawn anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .composite import Composite
from .demand import Demand
from .errors import UnsupportedOperationError
from .layers.base import in_custom_function, recorder_of
from .layers.nested import leaves, map_leaves
from .rules import Rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from .fuse import Fusion
    from .layers.base import Op
    from .tape import Tape
    from .value import Value

# What looks at numbers: the calls that follow may depend on them.
_READS_NUMBERS = frozenset({
    "item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "is_nonzero",
    "equal", "allclose", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount",
})  # fmt: skip


class StaticCalls:
    """The calls of one model, by the form of its input (shapes, strides, dtypes, device) and its state (training, gradients, autocast).

    For :func:`lrpkernels.record`, which fills it. The model must make the same PyTorch calls whenever these are the same; its modules
    must stay what they are (parameters may be trained, loaded and replaced). Forward hooks and other Python code of the model do not
    run again. A copy of this object, or a pickled one, knows no calls.
    """

    def __init__(self) -> None:
        self._model: Callable[[], nn.Module | None] = lambda: None
        self._modules: list[nn.Module] = []
        self._traces: dict[Any, Trace] = {}

    def __reduce__(self) -> Any:
        return StaticCalls, ()

    def key(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        kwargs: Mapping[str, Any],
        demand: Any,
        checkpoint: bool,
    ) -> Any:
        """All that the calls and what is kept of them depend on.

        Raises:
            ValueError: another model.
            UnsupportedOperationError: an argument beside the inputs is no plain value.
        """
        if not self._modules:
            self._model, self._modules = weakref.ref(model), [*model.modules()]
        if model is not self._model():
            raise ValueError("static: these calls belong to another model; make a StaticCalls for each")
        for name, value in kwargs.items():
            if isinstance(value, Tensor) or not _is_plain(value):
                raise UnsupportedOperationError(
                    f"static: expected {name} to be a number, a string or None, got {type(value).__name__}; leave `static` out"
                )
        device = inputs[0].device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        forms = [(x.shape, x.stride(), x.dtype, x.device, x.requires_grad) for x in inputs]
        training = [module.training for module in self._modules]
        state = (torch.is_grad_enabled(), autocast, checkpoint)
        return (*forms, *training, *state, *sorted(kwargs.items()), demand)

    def find(self, key: Any) -> Trace | None:
        """The calls of that key, if they are known and the model's parameters are where they were."""
        trace = self._traces.get(key)
        return trace if trace is not None and trace.is_current() else None

    def keep(self, key: Any, trace: Trace) -> None:
        self._traces[key] = trace


def demand_key(composites: Sequence[Composite | Rule] | None, at: Sequence[str]) -> Any:
    """What the values to keep depend on; rules without selectors are equal where their settings are."""
    if composites is None:
        return None
    return (*(c if isinstance(c, Rule) else (c.first, c.default, *c.layers.items()) for c in composites), *at)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (int, float, bool, str, torch.dtype, torch.device))


class _Slot:
    """Stands for a tensor of the pass in a call's arguments."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


class _Record:
    """Stands for a dataclass."""

    def __init__(self, kind: type, parts: dict[str, Any]) -> None:
        self.kind, self.parts = kind, parts


def _slots(template: Any) -> Iterator[int]:
    for leaf in leaves(template):
        if type(leaf) is _Slot:
            yield leaf.index
        elif type(leaf) is _Record:
            yield from _slots(leaf.parts)


def _filled(template: Any, tensors: Sequence[Any]) -> Any:
    def fill(leaf: Any) -> Any:
        if type(leaf) is _Slot:
            return tensors[leaf.index]
        return leaf.kind(**_filled(leaf.parts, tensors)) if type(leaf) is _Record else leaf

    return map_leaves(fill, template)


class _Call:
    """One PyTorch call of the model."""

    __slots__ = ("args", "drop", "fills", "func", "grad", "kwargs", "module", "nested", "recorder", "results", "single")

    def __init__(self, func: Any, args: Any, kwargs: Any, module: nn.Module, grad: bool) -> None:
        self.func, self.args, self.kwargs, self.module, self.grad = func, args, kwargs, module, grad
        self.recorder: Callable[..., Any] | None = None  # None: it reads no recorded tensor
        self.results: list[int | None] = []
        self.single = False  # it is recorded as one operation, whose outputs are its results
        self.drop: tuple[int, ...] = ()
        top = [argument for argument in args if type(argument) is _Slot]
        # Most calls have their tensors at the top of the positional arguments.
        self.nested = len([*self.slots()]) != len(top)
        self.fills = bool(top)

    def slots(self) -> Iterator[int]:
        return _slots((self.args, self.kwargs))


class Trace:
    """The calls of one forward pass.

    Filled while a model is recorded (:meth:`begin`, :meth:`end`, :meth:`finish`), then run by :meth:`replay`.

    Raises:
        UnsupportedOperationError: the model looks at numbers, or uses a tensor that no call made and no module holds.
    """

    def __init__(self, tape: Tape) -> None:
        self._calls: list[_Call] = []
        self._slots: dict[int, int] = {}
        self._watched: list[Any] = []
        self._count = self._ops = 0
        self._grad = torch.is_grad_enabled()
        self._device = tape.inputs[0].device.type
        self._autocast = torch.is_autocast_enabled(self._device)
        self._owners = _tensors_of(tape.model)
        self._guards: dict[int, tuple[dict[str, Any], str, Tensor]] = {}
        self._output: Any = None
        self._left: dict[int, list[tuple[int, int]]] = {}
        self._kept: tuple[bool, ...] | None = None
        self._fusions: dict[Any, Fusion] = {}
        for tensor in tape.inputs:
            self._new_slot(tensor)

    # -- while the model is recorded ---------------------------------------------------------------------------------------------

    def begin(self, tape: Tape, func: Any, args: Any, kwargs: Any) -> _Call:
        """A call as it is about to run."""
        name = getattr(func, "__name__", "")
        if name in _READS_NUMBERS:
            self._refuse(tape, f"{name}() reads the numbers of a tensor, on which the model's next calls may depend")
        if tape.live and not torch.is_grad_enabled() and in_custom_function():
            self._refuse(tape, "a custom autograd.Function brings a backward of its own")
        if torch.is_autocast_enabled(self._device) != self._autocast:
            self._refuse(tape, "the model switches autocast on or off")

        def slot(leaf: Any) -> Any:
            return self._slot_of(tape, tape.current(leaf)) if isinstance(leaf, Tensor) else leaf

        module = tape._modules[-1] if tape._modules else tape.model
        call = _Call(func, map_leaves(slot, args), map_leaves(slot, kwargs), module, torch.is_grad_enabled())
        if any(tape.value(leaf) is not None for leaf in map(tape.current, leaves((args, kwargs)))):
            call.recorder = recorder_of(func)
        return call

    def end(self, tape: Tape, call: _Call, out: Any) -> None:
        """What the call has returned."""
        made = [leaf for leaf in leaves(out) if isinstance(leaf, Tensor)]
        if not made and out is not None:
            return  # a shape, a dtype: the same every time
        call.results = [self._new_slot(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves(out)]
        added, self._ops = len(tape.ops) - self._ops, len(tape.ops)
        call.single = added == 1 and all(id(leaf) in map(id, made) for leaf in _present(tape.ops[-1]))
        self._calls.append(call)

    def left(self, tape: Tape, module: nn.Module, value: Value) -> None:
        """A module has returned this value."""
        if value.producer is not None:
            index = next(i for i in range(len(tape.ops) - 1, -1, -1) if tape.ops[i] is value.producer)
            self._left.setdefault(id(module), []).append((index, value.producer.outputs.index(value)))

    def finish(self, tape: Tape) -> None:
        """The model has returned; ``tape.output`` stands."""
        self._output = self._template(tape, tape.output)
        last = {
            index: i
            for i, call in enumerate(self._calls)
            for index in (*call.slots(), *call.results)
            if index is not None
        }
        for index in _slots(self._output):
            last.pop(index, None)
        drops: dict[int, list[int]] = {}
        for index, i in last.items():
            drops.setdefault(i, []).append(index)
        for i, call in enumerate(self._calls):
            call.drop = tuple(drops.get(i, ()))
        if tape.demand is not None:
            self._kept = tuple(value.is_held for op in tape.ops for value in op.outputs)
        self._slots, self._watched, self._owners = {}, [], {}

    def _template(self, tape: Tape, output: Any) -> Any:
        """The model's output with slots in place of its tensors."""
        kind = type(output)
        if isinstance(output, Tensor):
            return self._slot_of(tape, output)
        if kind is tuple or kind is list:
            return kind(self._template(tape, part) for part in output)
        if kind is dict:
            return {key: self._template(tape, part) for key, part in output.items()}
        if is_dataclass(output):  # what transformers' models return
            parts = {field.name: getattr(output, field.name) for field in fields(output)}
            return _Record(kind, self._template(tape, parts))
        if not _is_plain(output):
            self._refuse(
                tape, f"the model returns {kind.__name__}; expected tensors, in tuples, lists, dicts or a dataclass"
            )
        return output

    def _new_slot(self, tensor: Tensor) -> int:
        key = id(tensor)
        if key in self._slots:  # a call has returned its argument
            return self._slots[key]
        index, self._count = self._count, self._count + 1
        self._slots[key] = index

        def gone(_: Any, slots: dict[int, int] = self._slots) -> None:
            if slots.get(key) == index:
                del slots[key]

        self._watched.append(weakref.ref(tensor, gone))
        return index

    def _slot_of(self, tape: Tape, tensor: Tensor) -> Any:
        """The slot of a tensor of this pass; a parameter, buffer or attribute of a module stands for itself."""
        index = self._slots.get(id(tensor))
        if index is not None:
            return _Slot(index)
        if tape.value(tensor) is not None:
            self._refuse(tape, f"a tensor of shape {tuple(tensor.shape)} was made by code that hides its PyTorch calls")
        owner = self._owners.get(id(tensor))
        if owner is None:
            self._refuse(
                tape,
                f"a tensor of shape {tuple(tensor.shape)} is neither made by a PyTorch call of the model nor a parameter, buffer or "
                "attribute of one of its modules",
            )
        else:
            self._guards[id(tensor)] = (*owner, tensor)
        return tensor

    def _refuse(self, tape: Tape, reason: str) -> None:
        raise UnsupportedOperationError(f"static: {tape.path()}: {reason}; leave `static` out for this model")

    # -- afterwards --------------------------------------------------------------------------------------------------------------

    def is_current(self) -> bool:
        """Whether every parameter, buffer and attribute that the calls read is still its module's."""
        return all(place.get(name) is tensor for place, name, tensor in self._guards.values())

    def replay(self, tape: Tape) -> None:
        """Runs the calls on the tape's inputs: fills its operations and its output."""
        tape.trace = self
        if self._kept is not None:
            tape.demand = _Kept(self._kept)
        tensors: list[Any] = [None] * self._count
        registry = tape._values
        tensors[: len(tape.inputs)] = tape.inputs
        tape._modules.append(tape.model)
        for call in self._calls:
            args, kwargs = call.args, call.kwargs
            if call.nested:
                args, kwargs = _filled(args, tensors), _filled(kwargs, tensors)
            elif call.fills:
                args = tuple([tensors[a.index] if type(a) is _Slot else a for a in args])
            if call.grad is not self._grad:
                with torch.set_grad_enabled(call.grad):
                    out = self._run(tape, call, args, kwargs)
            else:
                out = self._run(tape, call, args, kwargs)
            if isinstance(out, Tensor):
                tensors[call.results[0]] = out  # type: ignore[index]
            else:
                for index, leaf in zip(call.results, leaves(out), strict=True):
                    if index is not None:
                        tensors[index] = leaf
            for index in call.drop:
                registry.pop(id(tensors[index]), None)
                tensors[index] = None
        tape._modules.clear()
        tape.output = _filled(self._output, tensors)

    @staticmethod
    def _run(tape: Tape, call: _Call, args: Any, kwargs: Any) -> Any:
        if call.recorder is None:
            return call.func(*args, **kwargs)
        tape._modules[0] = call.module
        tape.watches = not call.single
        return call.recorder(tape, call.func, args, kwargs)

    def outputs_of(self, tape: Tape, module: nn.Module) -> list[Value]:
        """The recorded values that a module returned."""
        return [tape.ops[index].outputs[place] for index, place in self._left.get(id(module), ())]

    def fusion(self, key: Any, make: Callable[[], Fusion]) -> Fusion:
        """What :func:`lrpkernels.fuse.fusion` makes of the operations, once for each key."""
        found = self._fusions.get(key)
        if found is None:
            found = self._fusions[key] = make()
        return found


def _present(op: Op) -> list[Tensor]:
    return [tensor for tensor in (value.present() for value in op.outputs) if tensor is not None]


class _Kept(Demand):
    """What is kept of a pass is what was kept of the one that was traced."""

    def __init__(self, kept: Sequence[bool]) -> None:
        self._kept = iter(kept)

    def note(self, op: Op) -> None:
        for value in op.outputs:
            if next(self._kept):
                value.hold()

    def module_left(self, module: nn.Module, value: Value) -> None: ...


def _tensors_of(model: nn.Module) -> dict[int, tuple[dict[str, Any], str]]:
    """Where each parameter, buffer and plain tensor attribute of the modules is kept, by its id."""
    found = {}
    for module in model.modules():
        for place in (module._parameters, module._buffers, vars(module)):
            for name, tensor in place.items():
                if isinstance(tensor, Tensor):
                    found[id(tensor)] = (place, name)
    return found
