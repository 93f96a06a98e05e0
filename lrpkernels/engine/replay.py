"""Static calls: models that always make the same PyTorch calls run their Python code once for each form of input.

Recording looks at every PyTorch function that a model calls. Seen once, the list of these calls with their arguments can be run again
without modules, hooks and the ``TorchFunctionMode``, which on small layers cost more than the layers themselves. Every known call goes
through its own recorder, as in any other recording, so that batch-norm statistics move and dropout masks are drawn anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedOperationError
from ..graph import Node, Value
from ..layers.registry import leaves, map_leaves, record_of
from ..rules import Composite, Rule, as_composite
from .fusion import Plan, make_blocks, plan_blocks
from .liveness import Kept
from .places import ModuleCall, Place
from .recorder import Recording, RecordingMode, in_custom_function

# Functions that read numbers: the calls that follow may depend on them.
_READS_NUMBERS = frozenset({
    "item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "is_nonzero",
    "equal", "allclose", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount",
})  # fmt: skip


class StaticCalls:
    """The calls of one model, by the form of its input (shapes, strides, dtypes, device) and its state (training, gradients, autocast).

    For :func:`lrpkernels.record`, which fills it. The model must make the same PyTorch calls whenever these are the same; its modules
    must stay what they are, numbers such as the p of a dropout included (parameters may be trained, loaded and replaced). Forward
    hooks and other Python code of the model do not run again. A copy of this object, or a pickled one, knows no calls.
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
        composites: Sequence[Composite | Rule] | None,
        at: Sequence[str | Place] | None,
        recompute: bool,
        names: tuple[str, ...] | None = None,
    ) -> Any:
        """Everything that the calls, and what is kept of them, depend on.

        Raises:
            ValueError: another model.
            UnsupportedOperationError: an argument other than the inputs is not a plain value.
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
        state = (torch.is_grad_enabled(), autocast, recompute, names, at is None)
        given = [(name, type(value), value) for name, value in sorted(kwargs.items())]
        return (*forms, *training, *state, *given, _liveness_key(composites, at or ()))

    def find(self, key: Any) -> Trace | None:
        """The calls of that key, if they are known and the model's parameters are where they were."""
        trace = self._traces.get(key)
        return trace if trace is not None and trace.is_current() else None

    def keep(self, key: Any, trace: Trace) -> None:
        self._traces[key] = trace


def _liveness_key(composites: Sequence[Composite | Rule] | None, at: Sequence[str | Place]) -> Any:
    """What the values to keep depend on; rules without selectors are equal where their settings are."""
    if composites is None:
        return None
    found: list[Any] = []
    for composite in map(as_composite, composites):
        found += [_settings(composite.first), _settings(composite.default)]
        found += [(selector, _settings(rule)) for selector, rule in composite.layers.items()]
    return (*found, *at)


def _settings(rule: Rule | None) -> Any:
    """What stands for a rule in a key: itself, or its text if it holds lists (as the bounds of ZBox may be)."""
    try:
        hash(rule)
    except TypeError:
        return type(rule), repr(rule)
    return rule


def _is_plain(value: Any) -> bool:
    """Whether a value can be compared with that of another call."""
    return value is None or isinstance(value, (int, float, bool, str, torch.dtype, torch.device))


# Where values come from: (-1, an input) or (a node, one of its outputs).
_Origins = tuple[tuple[int, int], ...]


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
    """One PyTorch call of the model.

    Attributes:
        func, args, kwargs: the call, slots in place of the pass's tensors.
        module: the one that made it.
        grad: whether gradients were on.
        record: what records it; None: it reads no recorded tensor.
        results: slots of the tensors that it returns, None for anything else.
        whole: whether it was recorded as one node whose outputs are its results, with no other tensors in between.
        drop: slots that no later call reads.
    """

    __slots__ = ("args", "drop", "func", "grad", "kwargs", "module", "nested", "record", "results", "whole")

    def __init__(self, func: Any, args: Any, kwargs: Any, module: nn.Module, grad: bool) -> None:
        self.func, self.args, self.kwargs, self.module, self.grad = func, args, kwargs, module, grad
        self.record: Any = None
        self.results: list[int | None] = []
        self.whole = False
        self.drop: tuple[int, ...] = ()
        # Most calls have their tensors at the top of the positional arguments.
        self.nested = len([*self.slots()]) != sum(type(argument) is _Slot for argument in args)

    def filled(self, tensors: Sequence[Any]) -> tuple[Any, Any]:
        """The arguments in this pass, positional and keyword ones."""
        if self.nested:
            return _filled(self.args, tensors), _filled(self.kwargs, tensors)
        return tuple([tensors[a.index] if type(a) is _Slot else a for a in self.args]), self.kwargs

    def keep(self, out: Any, tensors: list[Any]) -> None:
        """Puts what the call has returned into its slots."""
        if isinstance(out, Tensor):
            tensors[self.results[0]] = out  # type: ignore[index]
            return
        for index, leaf in zip(self.results, leaves(out), strict=True):
            if index is not None:
                tensors[index] = leaf

    def slots(self) -> Iterator[int]:
        return _slots((self.args, self.kwargs))


class Trace:
    """The calls of one forward pass: noted by a :class:`TracingMode` while a model is recorded, then run by :meth:`replay`.

    Raises:
        UnsupportedOperationError: the model reads numbers, or uses a tensor that no call made and no module holds.
    """

    def __init__(self, recording: Recording) -> None:
        self._calls: list[_Call] = []
        self._slots: dict[int, int] = {}
        self._watched: list[Any] = []
        self._count = self._nodes = 0
        self._grad = torch.is_grad_enabled()
        self._device = recording.inputs[0].device.type
        self._autocast = torch.is_autocast_enabled(self._device)
        self._owners = _tensors_of(recording.model)
        self._guards: dict[int, tuple[dict[str, Any], str, Tensor]] = {}
        self._output: Any = None
        self._module_calls: dict[int, list[tuple[_Origins, _Origins]]] = {}
        self._kept: tuple[bool, ...] | None = None
        self._notes_calls = recording.notes_calls
        self._plan: Plan | None = None
        for tensor in recording.inputs:
            self._new_slot(tensor)

    # -- while the model is recorded ---------------------------------------------------------------------------------------------

    def begin(self, recording: Recording, func: Any, args: Any, kwargs: Any) -> _Call:
        """Notes a call that is about to run."""
        name = getattr(func, "__name__", "")
        if name in _READS_NUMBERS:
            _refuse(recording, f"{name}() reads the numbers of a tensor, on which the model's next calls may depend")
        if recording.live and not torch.is_grad_enabled() and in_custom_function():
            _refuse(recording, "a custom autograd.Function brings a backward of its own")
        if torch.is_autocast_enabled(self._device) != self._autocast:
            _refuse(recording, "the model switches autocast on or off")
        current = recording.current

        def slot(leaf: Any) -> Any:
            return self._slot_of(recording, current(leaf)) if isinstance(leaf, Tensor) else leaf

        module = recording.modules[-1] if recording.modules else recording.model
        call = _Call(func, map_leaves(slot, args), map_leaves(slot, kwargs), module, torch.is_grad_enabled())
        if any(recording.value(leaf) is not None for leaf in map(current, leaves((args, kwargs)))):
            call.record = record_of(func) or Recording.unknown
        return call

    def end(self, recording: Recording, call: _Call, out: Any) -> None:
        """Notes what the call has returned."""
        made = leaves(out)
        added, self._nodes = recording.nodes[self._nodes :], len(recording.nodes)
        if not any(isinstance(leaf, Tensor) for leaf in made) and out is not None:
            return  # a shape, a dtype: constant
        call.results = [self._new_slot(leaf) if isinstance(leaf, Tensor) else None for leaf in made]
        call.whole = len(added) == 1 and [recording.value(leaf) for leaf in made] == [*added[0].outputs]
        self._calls.append(call)

    def finish(self, recording: Recording, output: Any) -> None:
        """The model has returned."""
        self._output = self._template(recording, output)
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
        origins = {id(value): (-1, i) for i, value in enumerate(recording.input_values)}
        for place, node in enumerate(recording.nodes):
            origins |= {id(value): (place, i) for i, value in enumerate(node.outputs)}
        for module, calls in recording.calls.items():
            self._module_calls[module] = [
                (tuple(origins[id(v)] for v in call.inputs), tuple(origins[id(v)] for v in call.outputs))
                for call in calls
            ]
        if recording.liveness is not None:
            self._kept = tuple(value.is_held for node in recording.nodes for value in node.outputs)
        self._slots, self._watched, self._owners = {}, [], {}

    def _template(self, recording: Recording, output: Any) -> Any:
        """The model's output with slots in place of its tensors."""
        kind = type(output)
        if isinstance(output, Tensor):
            return self._slot_of(recording, output)
        if kind is tuple or kind is list:
            return kind(self._template(recording, part) for part in output)
        if kind is dict:
            return {key: self._template(recording, part) for key, part in output.items()}
        if is_dataclass(output):  # what transformers' models return
            parts = {field.name: getattr(output, field.name) for field in fields(output)}
            return _Record(kind, self._template(recording, parts))
        if not _is_plain(output):
            expected = "expected tensors, in tuples, lists, dicts or a dataclass"
            _refuse(recording, f"the model returns {kind.__name__}; {expected}")
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

    def _slot_of(self, recording: Recording, tensor: Tensor) -> Any:
        """The slot of a tensor of this pass; a parameter, buffer or attribute of a module stands for itself."""
        index = self._slots.get(id(tensor))
        if index is not None:
            return _Slot(index)
        shape = tuple(tensor.shape)
        if recording.value(tensor) is not None:
            _refuse(recording, f"a tensor of shape {shape} was made by code that hides its PyTorch calls")
        owner = self._owners.get(id(tensor))
        if owner is None:
            _refuse(
                recording,
                f"a tensor of shape {shape} is neither made by a PyTorch call of the model nor a parameter, buffer or "
                "attribute of one of its modules",
            )
        else:
            self._guards[id(tensor)] = (*owner, tensor)
        return tensor

    # -- afterwards --------------------------------------------------------------------------------------------------------------

    def is_current(self) -> bool:
        """Whether every parameter, buffer and attribute that the calls read is still its module's."""
        return all(place.get(name) is tensor for place, name, tensor in self._guards.values())

    def replay(self, recording: Recording) -> Any:
        """Run the calls on the recording's inputs, which fills it; returns the model's output."""
        if self._kept is not None:
            recording.liveness = Kept(self._kept)
        tensors: list[Any] = [None] * self._count
        tensors[: len(recording.inputs)] = recording.inputs
        registry, modules = recording.values, recording.modules
        modules.append(recording.model)
        for call in self._calls:
            args, kwargs = call.filled(tensors)
            modules[0] = call.module
            recording.watches = not call.whole  # else `call.drop` lists what no later call reads
            if call.grad is self._grad:
                out = _run(recording, call, args, kwargs)
            else:
                with torch.set_grad_enabled(call.grad):
                    out = _run(recording, call, args, kwargs)
            call.keep(out, tensors)
            for index in call.drop:
                registry.pop(id(tensors[index]), None)
                tensors[index] = None
        modules.clear()
        recording.find_calls, recording.notes_calls = self._calls_in, self._notes_calls
        return _filled(self._output, tensors)

    def _calls_in(self, recording: Recording, module: int) -> list[ModuleCall]:
        """What a module, by its id, read and returned in a replayed pass."""

        def values(origins: _Origins) -> tuple[Value, ...]:
            return tuple(recording.input_values[i] if n < 0 else recording.nodes[n].outputs[i] for n, i in origins)

        return [ModuleCall(values(inputs), values(outputs)) for inputs, outputs in self._module_calls.get(module, [])]

    def fused(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes of a replayed recording, merged into blocks; what merges is found once."""
        if self._plan is None:
            self._plan = plan_blocks(nodes)
        return make_blocks(nodes, self._plan)


def _run(recording: Recording, call: _Call, args: Any, kwargs: Any) -> Any:
    return call.func(*args, **kwargs) if call.record is None else call.record(recording, call.func, args, kwargs)


def _refuse(recording: Recording, reason: str) -> None:
    raise UnsupportedOperationError(f"static: {recording.path()}: {reason}; leave `static` out for this model")


class TracingMode(RecordingMode):
    """Records a model and notes its calls, so that later passes can hand them to the recorder without it."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(recording)
        self.trace = Trace(recording)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = self.trace.begin(self.recording, func, args, kwargs or {})
        out = super().__torch_function__(func, types, args, kwargs)
        self.trace.end(self.recording, call, out)
        return out


def _tensors_of(model: nn.Module) -> dict[int, tuple[dict[str, Any], str]]:
    """Where each parameter, buffer and plain tensor attribute of the modules is kept, by its id."""
    found = {}
    for module in model.modules():
        for place in (module._parameters, module._buffers, vars(module)):
            for name, tensor in place.items():
                if isinstance(tensor, Tensor):
                    found[id(tensor)] = (place, name)
    return found
