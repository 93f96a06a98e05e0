"""The list of PyTorch calls that a model makes in a forward pass: noted while it is recorded, run again later (see lrpkernels.static)."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import UnsupportedOperationError
from .frame import Frame, Kept
from .fuse import Fusion, fuse, fusion
from .layers.base import in_custom_function, recorder_of
from .layers.nested import leaves, map_leaves
from .static import is_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from .layers.base import Op
    from .tape import Tape
    from .value import Value

# What looks at numbers: the calls that follow may depend on them.
_READS_NUMBERS = frozenset({
    "item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "is_nonzero",
    "equal", "allclose", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount",
})  # fmt: skip
_IDLE = 2  # frames kept for passes to come; more are needed only while more tapes are open


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
        recorder: what records it; None: it reads no recorded tensor.
        results: the slots of the tensors that it returned, None for other leaves.
        place: of the one operation that it was recorded as, whose output is its result; -1: it was recorded in another way.
        drop: slots that no later call reads.
        first: slot of the first argument if no other is a tensor of the pass, as in most calls; -1: otherwise.
    """

    __slots__ = (
        "args", "drop", "fills", "first", "func", "grad", "kwargs", "module", "nested", "place", "recorder", "rest", "results",
    )  # fmt: skip

    def __init__(self, func: Any, args: Any, kwargs: Any, module: nn.Module, grad: bool) -> None:
        self.func, self.args, self.kwargs, self.module, self.grad = func, args, kwargs, module, grad
        self.recorder: Callable[..., Any] | None = None
        self.results: list[int | None] = []
        self.place = -1
        self.drop: tuple[int, ...] = ()
        top = [argument for argument in args if type(argument) is _Slot]
        # Most calls have their tensors at the top of the positional arguments.
        self.nested = len([*self.slots()]) != len(top)
        self.fills = bool(top)
        alone = len(top) == 1 and not self.nested and type(args) is tuple and args[0] is top[0]
        self.first: int = top[0].index if alone else -1
        self.rest: tuple[Any, ...] = args[1:] if alone else ()

    def filled(self, tensors: Sequence[Any]) -> tuple[Any, Any]:
        """The arguments in this pass, positional and keyword ones."""
        if self.first >= 0:
            return (tensors[self.first], *self.rest), self.kwargs
        if self.nested:
            return _filled(self.args, tensors), _filled(self.kwargs, tensors)
        if self.fills:
            return tuple([tensors[a.index] if type(a) is _Slot else a for a in self.args]), self.kwargs
        return self.args, self.kwargs

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
        self._repeats = not tape.checkpoint  # whose backward reads the values after the pass
        self._direct = False  # every call of a frame is one operation or reads none
        self._produced: dict[int, int] = {}  # the operation behind a slot of the output
        self._idle: list[Frame] = []
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
        if added:
            op, value = tape.ops[-1], tape.value(out)
            if added == 1 and value is not None and op.outputs == (value,):
                call.place = self._ops - 1
            # Linear maps keep their weights, which must not be of this pass (made by a parametrization, say).
            same = call.place >= 0 and (not op.is_linear or len([*call.slots()]) == 1)
            self._repeats &= same and op.can_repeat(call.func, call.args, call.kwargs)
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
        self._direct = all(c.grad is self._grad and (c.place >= 0 or c.recorder is None) for c in self._calls)
        places = {call.results[0]: call.place for call in self._calls if call.place >= 0}
        self._produced = {index: places[index] for index in _slots(self._output) if index in places}
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
        if not is_plain(output):
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
        if self._idle:
            tape.adopt(self._idle.pop())
        elif self._kept is not None:
            tape.demand = Kept(self._kept)
        tensors: list[Any] = [None] * self._count
        tensors[: len(tape.inputs)] = tape.inputs
        if tape.frame is not None and self._direct:
            self._run_frame(tape, tape.frame, tensors)
        else:
            self._run_calls(tape, tensors)
        tape.output = _filled(self._output, tensors)
        if self._repeats and tape.frame is None:
            tape.frame = Frame(tape, self._kept)

    def _run_frame(self, tape: Tape, frame: Frame, tensors: list[Any]) -> None:
        for call in self._calls:
            args, kwargs = call.filled(tensors)
            if call.place >= 0:
                tensors[call.results[0]] = frame.run(call.place, call.func, args, kwargs)  # type: ignore[index]
            else:
                call.keep(call.func(*args, **kwargs), tensors)
            for index in call.drop:
                tensors[index] = None
        for index, place in self._produced.items():
            tape._values[id(tensors[index])] = frame.ops[place].outputs[0]

    def _run_calls(self, tape: Tape, tensors: list[Any]) -> None:
        registry = tape._values
        tape._modules.append(tape.model)
        for call in self._calls:
            args, kwargs = call.filled(tensors)
            if call.grad is self._grad:
                out = _run(tape, call, args, kwargs)
            else:
                with torch.set_grad_enabled(call.grad):
                    out = _run(tape, call, args, kwargs)
            call.keep(out, tensors)
            for index in call.drop:
                registry.pop(id(tensors[index]), None)
                tensors[index] = None
        tape._modules.clear()

    def fused(self, tape: Tape, keep: Sequence[Value]) -> list[Op]:
        """The tape's operations, merged into blocks; what merges is found once for each ``keep``."""
        places = tuple(-1 if value.producer is None else tape.ops.index(value.producer) for value in keep)
        found = None if tape.frame is None else tape.frame.blocks.get(places)
        if found is None:
            if places not in self._fusions:
                self._fusions[places] = fusion(tape.ops, keep)
            found = fuse(tape.ops, self._fusions[places])
            if tape.frame is not None:
                tape.frame.blocks[places] = found
        return found

    def give_back(self, frame: Frame) -> None:
        """A tape has ended that had this frame."""
        frame.empty()
        if len(self._idle) < _IDLE:
            self._idle.append(frame)

    def outputs_of(self, tape: Tape, module: nn.Module) -> list[Value]:
        """The recorded values that a module returned."""
        return [tape.ops[index].outputs[place] for index, place in self._left.get(id(module), ())]


def _run(tape: Tape, call: _Call, args: Any, kwargs: Any) -> Any:
    if call.recorder is None:
        return call.func(*args, **kwargs)
    if call.place >= 0 and tape.frame is not None:
        out = tape.frame.run(call.place, call.func, args, kwargs)
        tape._values[id(out)] = tape.frame.ops[call.place].outputs[0]
        return out
    tape._modules[0] = call.module
    tape.watches = call.place < 0
    return call.recorder(tape, call.func, args, kwargs)


def _tensors_of(model: nn.Module) -> dict[int, tuple[dict[str, Any], str]]:
    """Where each parameter, buffer and plain tensor attribute of the modules is kept, by its id."""
    found = {}
    for module in model.modules():
        for place in (module._parameters, module._buffers, vars(module)):
            for name, tensor in place.items():
                if isinstance(tensor, Tensor):
                    found[id(tensor)] = (place, name)
    return found
