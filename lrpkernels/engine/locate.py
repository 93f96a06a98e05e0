"""Where a recording departs from its model: a second, slow look that compares every value, with gradients on.

The recorded pass has an autograd graph of its own. At each recorded value, what the operations behind it hand on to it is compared with
autograd's gradient there, each operation being given autograd's gradients at its outputs: errors do not add up, and the value nearest to
the output that differs tells the operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RelevanceError
from ..graph import Node, Value
from ..rules import Gradient
from .eager import modes_restored
from .own_pass import Inputs, OwnPass, Watch, copy_of, outside_inference, own_pass, unchanged, with_gradients
from .tape_pass import (
    Arrivals,
    Take,
    Taken,
    add,
    difference,
    handed_on,
    size,
    starts_of,
    tolerance,
    walked_back,
    walking,
)


@dataclass(frozen=True)
class Departure:
    """Where a recording is not what the model does.

    Attributes:
        module: dotted path, "(model)" for the model itself.
        operation: as in the table of :meth:`lrpkernels.LRP.explain`.
        reason: what differs.
        error: relative norm of the difference, NaN where there is no such number.
    """

    module: str
    operation: str
    reason: str
    error: float = float("nan")

    def __str__(self) -> str:
        return f"{self.module} ({self.operation}): {self.reason}"


Steps = Sequence[tuple["nn.Module | None", str]]  # module and operation of every node of a recording


def locate(
    model: nn.Module,
    inputs: Inputs,
    kwargs: dict[str, Any],
    take: Take,
    own: OwnPass,
    found: Sequence[Tensor | None],
    steps: Steps,
) -> Departure | None:
    """Looks for the first operation, from the output, that is recorded wrongly.

    Args:
        model, inputs, kwargs, take: as for :func:`lrpkernels.engine.verify.check`.
        own: the model's own pass.
        found: the gradients that the recording has at the inputs, taken in the caller's grad mode.
        steps: its operations.

    Returns:
        None if the two differ by rounding alone, or by numbers that the model draws of its own.
    """
    watch = Watch(keep=True)
    device = inputs[0].device
    with unchanged(model, device), outside_inference():
        given = tuple(x.detach().clone().requires_grad_() for x in inputs)
        try:
            with modes_restored(watch._enter, watch._leave), watch, with_gradients():
                tape = take(tuple(x.clone() for x in given))
        except RelevanceError as error:  # it sees a hidden branch itself when there is a graph to look at
            place, _, reason = str(error).partition(": ")
            return Departure(place, "recording", reason)
        try:
            limits = tolerance(tape)
            try:
                graph = Graph(model, tape, starts_of(tape))
            except RuntimeError:  # reentrant checkpoints: there are no gradients at hidden values
                rounding = _same(found, own.gradients, limits.whole)
                return None if rounding else Departure("(model)", "recording", "its gradients are not autograd's")
            departure = graph.departure()
            if departure is not None:
                return _under_inference_mode(model, tape) or departure
            calls = [own_pass(model, inputs, kwargs, starts_of(tape), Watch(keep=True)) for _ in range(2)]
            if not _same(calls[0].outputs, calls[1].outputs, limits.step):
                return None  # it draws numbers of its own: no two calls are the same
            departure = _between_calls(model, graph, watch, *calls)
            # If the caller's recording agrees with this one, what is left is rounding: every step of this one is right.
            gradients, with_graph = _trail(tape)
            if departure is not None or _same(found, gradients, limits.whole):
                return departure
        finally:
            tape.clear()
    # The caller's recording is another one than this, though not by its steps: by its mode, or by being an earlier call.
    with unchanged(model, device):
        tape = take(tuple(map(copy_of, inputs)))
    try:
        (again, here), later = _trail(tape), steps_of(tape)
    finally:
        tape.clear()
    if _same(again, found, limits.whole):
        others = [*here, (None, "", 0.0)]
        parting = next((a[:2] for a, b in zip(with_graph, others, strict=False) if not _alike(a, b, limits.step)), None)
        reason = _MODE
    else:
        parting = next((a for a, b in zip(steps, [*later, None], strict=False) if a != b), None)
        reason = _KEPT
    module, operation = parting or steps[-1]
    return Departure(path_of(model, [] if module is None else [module]), operation, reason)


def _under_inference_mode(model: nn.Module, tape: Taken) -> Departure | None:
    """The first operation that the model itself runs where autograd cannot follow it."""
    for node in tape.nodes:
        if any(value.tensor.is_inference() for value in node.outputs):
            return Departure(tape.module_path(node.module or model), node.label(), _INFERENCE)
    return None


def _trail(tape: Taken) -> tuple[list[Tensor | None], list[tuple[nn.Module | None, str, float]]]:
    """The gradients of a recording, and the size of what each operation handed on, from the output."""
    starts = [*starts_of(tape).values()]
    arrivals: Arrivals = {}
    for value, start in starts:
        add(arrivals, value, start)
    with walking(tape):
        walk = walked_back(tape.plan(Gradient(), [value for value, _ in starts]), arrivals)
        trail = [(node.module, node.label(), sum(map(size, parts))) for node, _, _, parts in walk]
    return [arrivals.get(id(value)) for value in tape.input_values], trail


def _alike(one: tuple[Any, str, float], other: tuple[Any, str, float], bound: float) -> bool:
    return one[:2] == other[:2] and abs(one[2] - other[2]) <= bound * one[2]


def _between_calls(model: nn.Module, graph: Graph, watch: Watch, first: OwnPass, second: OwnPass) -> Departure | None:
    """What differs between a recorded call of the model, whose steps are right, and two calls of the model alone."""
    limits, whole = graph.limits, Departure("(model)", "module", _RECORDED)
    if not _same([value.tensor for value, _ in graph.starts], first.outputs, limits.step):
        for (module, made), (_, expected) in zip(watch.calls, first.calls, strict=False):
            if not _same(made, [t for t, _ in expected], limits.step):
                return Departure(path_of(model, [module]), "module", _RECORDED)
        return whole
    if not _same(first.gradients, second.gradients, limits.whole):
        for (module, pairs), (_, others) in zip(reversed(first.calls), reversed(second.calls), strict=False):
            if not _same([g for _, g in pairs], [g for _, g in others], limits.whole):
                return Departure(path_of(model, [module]), "module", _KEPT)
        return Departure("(model)", "module", _KEPT)
    return None if _same(graph.at_inputs(), first.gradients, limits.whole) else whole


def steps_of(tape: Taken) -> Steps:
    """Module and operation of every node of a recording."""
    return [(node.module, node.label()) for node in tape.nodes]


def _same(found: Sequence[Tensor | None], expected: Sequence[Tensor | None], bound: float) -> bool:
    pairs = (difference(*pair) for pair in zip(found, expected, strict=False))
    return len(found) == len(expected) and all(error <= bound * norm for error, norm in pairs)


def path_of(model: nn.Module, modules: Sequence[nn.Module]) -> str:
    """Dotted path of the innermost of the running modules."""
    if not modules:
        return "(model)"
    names = (name for name, module in model.named_modules() if module is modules[-1])
    return next(names, type(modules[-1]).__name__) or "(model)"


class Graph:
    """A recording made with gradients on, and autograd's gradients at all its values.

    Args:
        model: the recorded one.
        tape: nothing of it is released.
        starts: :func:`starts_of` it.
    """

    def __init__(self, model: nn.Module, tape: Taken, starts: dict[int, tuple[Value, Tensor]]) -> None:
        self._model, self.tape = model, tape
        self.limits, self.starts = tolerance(tape), [*starts.values()]
        values = [*tape.input_values, *(value for node in tape.nodes for value in node.outputs)]
        self._values = [value for value in values if value.tensor.requires_grad]
        self._planned = tape.plan(Gradient(), values)  # every operation by itself
        live = [(value.tensor, start) for value, start in self.starts if value.tensor.requires_grad]
        gradients = _gradients(live, [value.tensor for value in self._values])
        self._expected = {id(value): g for value, g in zip(self._values, gradients, strict=True)}

    def at_inputs(self) -> list[Tensor | None]:
        """Autograd's gradients at the inputs."""
        return [self._expected.get(id(value)) for value in self.tape.input_values]

    def departure(self) -> Departure | None:
        """The value nearest to the output to which other gradients are handed on than autograd's, as an operation."""
        arrived: Arrivals = {}
        parts: dict[int, list[_Part]] = {}
        for value, start in self.starts:
            add(arrived, value, start)
        with walking(self.tape):
            for node, rule in reversed(self._planned):
                for value in node.outputs:
                    found = self._departs(value, arrived, parts)
                    if found is not None:
                        return found
                # A value inside a custom function has no gradient of autograd's: there the recording's own go on.
                given = [self._arrival(value, arrived) for value in node.outputs]
                if all(g is None for g in given):
                    continue
                for value, part in zip(node.inputs, handed_on(node, rule, given), strict=True):
                    if part is not None:
                        parts.setdefault(id(value), []).append((node, given, part))
                        add(arrived, value, part)
            return next(filter(None, (self._departs(value, arrived, parts) for value in self.tape.input_values)), None)

    def _arrival(self, value: Value, arrived: Arrivals) -> Tensor | None:
        expected = self._expected.get(id(value))
        return arrived.get(id(value)) if expected is None else expected

    def _departs(self, value: Value, arrived: Arrivals, parts: dict[int, list[_Part]]) -> Departure | None:
        expected, handed = self._expected.get(id(value)), parts.get(id(value), [])
        if expected is None and not value.is_input:
            return None
        error, norm = difference(arrived.get(id(value)), expected)
        limits = self.limits
        if error <= limits.step * norm or error <= limits.floor * sum(_scale(value, *part) for part in handed):
            return None
        error = error / norm if norm else float("inf")
        for node, given, part in handed:
            wrong, own = difference(part, self._alone(node, given, value))
            if wrong > limits.step * own + limits.floor * _scale(value, node, given, part):
                return self._at(node, _custom(node) or _OTHER, error)
        custom = self._custom_behind([node for node, _, _ in handed])
        if custom is not None:
            return self._at(custom, _custom(custom), error)
        return self._at(self._hidden_reader(value), _HIDDEN, error)

    def _alone(self, node: Node, given: Sequence[Tensor | None], value: Value) -> Tensor | None:
        """Autograd's gradient at a value through one operation that reads it, and not by way of what else that reads."""
        pairs = zip(node.outputs, given, strict=True)
        live = [(out.tensor, g) for out, g in pairs if g is not None and out.tensor.requires_grad]
        total = _gradients(live, [value.tensor])[0]
        others = [v.tensor for v in node.inputs if v is not value and v.tensor.requires_grad]
        at_others = [(t, g) for t, g in zip(others, _gradients(live, others), strict=True) if g is not None]
        detour = _gradients(at_others, [value.tensor])[0]
        return total if total is None or detour is None else total - detour

    def _at(self, node: Node | None, reason: str, error: float) -> Departure:
        module = self._model if node is None else node.module or self._model
        return Departure(self.tape.module_path(module), "hidden" if node is None else node.label(), reason, error)

    def _custom_behind(self, nodes: Sequence[Node]) -> Node | None:
        """The end of the custom function that these operations stand in, if they do."""
        pending, seen = [*nodes], set()
        readers = _readers(self.tape.nodes)
        while pending:
            node = pending.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if _custom(node):
                return node
            for value in node.outputs:
                if self._expected.get(id(value)) is None:
                    pending += readers.get(id(value), [])
        return None

    def _hidden_reader(self, value: Value) -> Node | None:
        """The first recorded operation that autograd reaches the value from by way of others."""
        known = {v.tensor.grad_fn for v in self._values} - {None}
        target = value.tensor.grad_fn
        read = {id(node) for node in _readers(self.tape.nodes).get(id(value), [])}
        for node in self.tape.nodes:
            if id(node) in read:
                continue
            for out in node.outputs:
                if target in _reached(out.tensor.grad_fn, known):
                    return node
        return None


_Part = tuple[Node, Sequence["Tensor | None"], Tensor]  # an operation, what arrived at its outputs, what it hands on

_KEPT = "its gradient differs from call to call: the model keeps tensors of an earlier call; compute them in every call"
_RECORDED = "it is another one while the model is recorded: its output, or its gradient"
_MODE = "it is recorded rightly with gradients on, and not as it is called here (no_grad or inference_mode)"
_OTHER = "the gradient through this operation is not autograd's"
_INFERENCE = (
    "the model runs it under torch.inference_mode(), where autograd cannot follow it; use torch.no_grad() there"
)
_HIDDEN = (
    "a value recorded ahead of it also gets here through code that hides its PyTorch calls, so its relevance would be lost; use plain "
    "PyTorch functions there"
)


def _custom(node: Node) -> str:
    """What to say of an operation whose result a custom autograd function returned; empty for any other."""
    for value in node.outputs:
        history = value.tensor.grad_fn
        if isinstance(history, torch.autograd.function.BackwardCFunction):
            name = history.name().removesuffix("Backward")
            return (
                f"the custom autograd function {name} brings a backward that is not the gradient of its forward, as straight-through "
                "estimators do; relevance follows what the forward computes"
            )
    return ""


def _gradients(starts: Sequence[tuple[Tensor, Tensor]], at: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Autograd's gradients of tensors with their multipliers."""
    if not starts or not at:
        return [None] * len(at)
    outs, seeds = zip(*starts, strict=True)
    return torch.autograd.grad(outs, at, seeds, allow_unused=True, retain_graph=True)


def _readers(nodes: Sequence[Node]) -> dict[int, list[Node]]:
    found: dict[int, list[Node]] = {}
    for node in nodes:
        for value in node.inputs:
            found.setdefault(id(value), []).append(node)
    return found


def _scale(value: Value, node: Node, given: Sequence[Tensor | None], part: Tensor) -> float:
    """How large what an operation hands on would be if nothing cancelled in it: by how much it scales the value."""
    before = size(value.tensor)
    pairs = zip(node.outputs, given, strict=True)
    scales = [size(part), *(size(g) * size(o.tensor) / before for o, g in pairs if g is not None and before)]
    return max((scale for scale in scales if isfinite(scale)), default=0.0)


def _reached(start: Any, known: set[Any]) -> Iterator[Any]:
    """The autograd nodes behind one, up to those of recorded values."""
    pending, seen = [start], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node is not start:
            yield node
        if node is start or node not in known:
            pending += [parent for parent, _ in node.next_functions]
