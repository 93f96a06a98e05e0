"""Static calls: models that always make the same PyTorch calls run their Python code once for each form of input.

Recording looks at every PyTorch function that a model calls. Seen once, the list of these calls with their arguments can be run again
without modules, hooks and the ``TorchFunctionMode``, which on small layers cost more than the layers themselves. Every known call goes
through its own recorder, as in any other recording, so that batch-norm statistics move and dropout masks are drawn anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedOperationError
from ..graph import Node, Value
from ..layers.registry import leaves, map_leaves, record_of
from ..layers.replayed import Unknown
from ..rules import Composite, Epsilon, EpsilonLayerwise, Rule, as_composite
from . import writes
from .calls import Call, Parts, Slot, filled, refuse, slots_of
from .fusion import Plan, make_blocks, plan_blocks
from .guards import ModuleGuard, depends_on_indices, reads_numbers
from .hidden import in_custom_function
from .liveness import Kept
from .overloads import public
from .places import ModuleCall, Place
from .recorder import Recording, RecordingMode

_MOST_TRACES = 32  # of one model: forms of its input, modes and settings


class StaticCalls:
    """The calls of one model, by the form of its input (shapes, strides, dtypes, device) and its state (training, gradients, autocast).

    For :func:`lrpkernels.record`, which fills it. The model must make the same PyTorch calls whenever these are the same. Forward hooks
    and other Python code of the model do not run again. Modules that were exchanged, hooks that were added and plain attributes that
    were set since (the p of a dropout) are noticed: the model then runs once more. The calls of the 32 forms and states used last are
    known. A copy of this object, or a pickled one, knows no calls.
    """

    def __init__(self) -> None:
        self._model: Callable[[], nn.Module | None] = lambda: None
        self._modules: list[nn.Module] = []
        self._traces: dict[Any, Trace] = {}  # the one used last at the end
        self._latest: Trace | None = None

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
        """The calls of that key, if they are known, and the model and its parameters are what they were."""
        trace = self._traces.get(key)
        if trace is None:
            return None
        if not trace.is_current():
            model = self._model()
            self._modules = [] if model is None else [*model.modules()]
            return None
        if trace is not self._latest:
            self._latest = self._traces[key] = self._traces.pop(key)
        return trace

    def keep(self, key: Any, trace: Trace) -> None:
        self._traces.pop(key, None)
        while len(self._traces) >= _MOST_TRACES:
            del self._traces[next(iter(self._traces))]
        self._latest = self._traces[key] = trace


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
    if isinstance(rule, (Epsilon, EpsilonLayerwise)) and isinstance(rule.eps, Tensor):
        rule = replace(rule, eps=0.0)  # drawn anew for each step, and no matter for what is kept
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


class Trace:
    """The calls of one forward pass: noted by a :class:`TracingMode` while a model is recorded, then run by :meth:`replay`.

    Raises:
        UnsupportedOperationError: the model reads numbers, or uses a tensor that no call made and no module holds.
    """

    def __init__(self, recording: Recording) -> None:
        self._calls: list[Call] = []
        self._slots: dict[int, int] = {}
        self._views: list[tuple[int, int]] = []  # slots of views, with those of what they are views of
        self._watched: list[Any] = []
        self._count = self._nodes = 0
        self._grad = torch.is_grad_enabled()
        self._device = recording.inputs[0].device.type
        self._autocast = torch.is_autocast_enabled(self._device)
        self._owners = _tensors_of(recording.model)
        self._modules = ModuleGuard(recording.model)
        self._guards: dict[int, tuple[dict[str, Any], str, Tensor]] = {}
        self._output: Any = None
        self._module_calls: dict[int, list[tuple[_Origins, _Origins]]] = {}
        self._kept: tuple[bool, ...] | None = None
        self._notes_calls = recording.notes_calls
        self._plans: dict[Any, Plan] = {}
        for tensor in recording.inputs:
            self._new_slot(tensor)

    # -- while the model is recorded ---------------------------------------------------------------------------------------------

    def begin(self, recording: Recording, func: Any, args: Any, kwargs: Any) -> Call:
        """Notes a call that is about to run."""
        func = func if record_of(func) is not None else public(func)[0]
        reason = reads_numbers(func, args)
        if reason:
            refuse(recording, reason)
        if recording.live and not torch.is_grad_enabled() and in_custom_function():
            refuse(recording, "a custom autograd.Function brings a backward of its own")
        if torch.is_autocast_enabled(self._device) != self._autocast:
            refuse(recording, "the model switches autocast on or off")
        current = recording.current

        def slot(leaf: Any) -> Any:
            return self._slot_of(recording, current(leaf)) if isinstance(leaf, Tensor) else leaf

        module = recording.modules[-1] if recording.modules else recording.model
        call = Call(func, map_leaves(slot, args), map_leaves(slot, kwargs), module, torch.is_grad_enabled())
        if any(recording.value(leaf) is not None for leaf in map(current, leaves((args, kwargs)))):
            into = call.kwargs and call.kwargs.get("out") is not None
            call.record = writes.into if into else record_of(func) or Recording.unknown
        else:
            call.writes = bool(writes.constants_written(func, args))
        call.sizes = [] if depends_on_indices(args, kwargs) else None
        return call

    def end(self, recording: Recording, call: Call, out: Any) -> None:
        """Notes what the call has returned."""
        if call.func is torch._C._set_grad_enabled:
            return  # each call knows its own
        made = leaves(out)
        added, self._nodes = recording.nodes[self._nodes :], len(recording.nodes)
        if not any(isinstance(leaf, Tensor) for leaf in made) and out is not None:
            return  # a shape, a dtype: constant
        if call.record is not None and added and type(added[-1]) is Unknown:
            call.record = Recording.unknown  # of complex numbers, say
        call.results = [self._new_slot(leaf) if isinstance(leaf, Tensor) else None for leaf in made]
        if call.sizes is not None:
            call.sizes += [leaf.shape for leaf in made if isinstance(leaf, Tensor)]
        call.whole = len(added) == 1 and [recording.value(leaf) for leaf in made] == [*added[0].outputs]
        self._calls.append(call)

    def finish(self, recording: Recording, output: Any, keeps_state: bool) -> None:
        """The model has returned; ``keeps_state``: and left numbers of its input in a tensor that outlives the pass."""
        self._modules.settle()
        if keeps_state:
            refuse(
                recording, "the model writes numbers of its input to a buffer or another tensor that outlives the pass"
            )
        self._output = self._template(recording, output)
        last = {
            index: i
            for i, call in enumerate(self._calls)
            for index in (*call.slots(), *call.results)
            if index is not None
        }
        for view, base in self._views:  # a call that writes to a view changes its base
            last[base] = max(last[base], last[view]) if base in last else last[view]
        for index in slots_of(self._output):
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
        self._slots, self._views, self._watched, self._owners = {}, [], [], {}

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
            return Parts(kind, self._template(recording, parts))
        if not _is_plain(output):
            expected = "expected tensors, in tuples, lists, dicts or a dataclass"
            refuse(recording, f"the model returns {kind.__name__}; {expected}")
        return output

    def _new_slot(self, tensor: Tensor) -> int:
        key = id(tensor)
        if key in self._slots:  # a call has returned its argument
            return self._slots[key]
        index, self._count = self._count, self._count + 1
        self._slots[key] = index
        if tensor._is_view() and id(tensor._base) in self._slots:
            self._views.append((index, self._slots[id(tensor._base)]))

        def gone(_: Any, slots: dict[int, int] = self._slots) -> None:
            if slots.get(key) == index:
                del slots[key]

        self._watched.append(weakref.ref(tensor, gone))
        return index

    def _slot_of(self, recording: Recording, tensor: Tensor) -> Any:
        """The slot of a tensor of this pass; a parameter, buffer or attribute of a module stands for itself."""
        index = self._slots.get(id(tensor))
        if index is not None:
            return Slot(index)
        shape = tuple(tensor.shape)
        if recording.value(tensor) is not None:
            refuse(
                recording,
                f"a tensor of shape {shape} was made by code that hides its PyTorch calls, or by a change of a part of it",
            )
        owner = self._owners.get(id(tensor))
        if owner is None:
            refuse(
                recording,
                f"a tensor of shape {shape} is neither made by a PyTorch call of the model nor a parameter, buffer or "
                "attribute of one of its modules",
            )
        else:
            self._guards[id(tensor)] = (*owner, tensor)
        return tensor

    # -- afterwards --------------------------------------------------------------------------------------------------------------

    def is_current(self) -> bool:
        """Whether the modules are what they were, and every parameter, buffer and attribute that the calls read is still theirs."""
        return self._modules.holds() and all(place.get(name) is tensor for place, name, tensor in self._guards.values())

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
                    if call.record is not None and not call.grad:
                        args, kwargs = recording.without_history(call.func, args, kwargs)
                    out = _run(recording, call, args, kwargs)
            call.keep(out, tensors)
            if call.sizes is not None:
                call.check_sizes(recording, out)
            for index in call.drop:
                registry.pop(id(tensors[index]), None)
                tensors[index] = None
        modules.clear()
        if len(recording.nodes) != self._nodes:  # what is kept, and what merges, is known by the operations' places
            refuse(recording, "its calls make other operations when they run again")
        recording.find_calls, recording.notes_calls = self._calls_in, self._notes_calls
        return filled(self._output, tensors)

    def _calls_in(self, recording: Recording, module: int) -> list[ModuleCall]:
        """What a module, by its id, read and returned in a replayed pass."""

        def values(origins: _Origins) -> tuple[Value, ...]:
            return tuple(recording.input_values[i] if n < 0 else recording.nodes[n].outputs[i] for n, i in origins)

        return [ModuleCall(values(inputs), values(outputs)) for inputs, outputs in self._module_calls.get(module, [])]

    def fused(self, nodes: Sequence[Node], apart: Sequence[Value]) -> list[Node]:
        """The nodes of a replayed recording, merged into blocks; what merges is found once for each ``apart``."""
        places = tuple(-1 if value.producer is None else nodes.index(value.producer) for value in apart)
        if places not in self._plans:
            self._plans[places] = plan_blocks(nodes, apart)
        return make_blocks(nodes, self._plans[places])


def _run(recording: Recording, call: Call, args: Any, kwargs: Any) -> Any:
    if call.record is not None:
        return call.record(recording, call.func, args, kwargs)
    if call.writes:
        writes.before_writing(recording.nodes, call.func, args)
    return call.func(*args, **kwargs)


class TracingMode(RecordingMode):
    """Records a model and notes its calls, so that later passes can hand them to the recorder without it."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(recording)
        self.trace = Trace(recording)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.recording is None:
            return super().__torch_function__(func, types, args, kwargs)
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
