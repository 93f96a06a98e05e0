"""A network written down as primitives: what each step of it means, for :mod:`.reference`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor]


@dataclass
class Primitive:
    """One operation: ``function`` of its inputs, and what it means for relevance."""

    kind: str
    inputs: list[int]
    outputs: list[int]
    function: Function | None = None
    data: dict[str, Any] = field(default_factory=dict)
    owner: str = ""
    named: bool = False  # a module of the owner's own name runs it, and not one inside of it


# What may stand between the model's input and its first layer.
SEEN_THROUGH = ("move", "scale", "drawn", "relu", "activation", "average", "winner", "resampling")

# An element of the output depends on those of the inputs in the same place alone.
ELEMENTWISE = ("relu", "activation", "add", "scale", "drawn")


class Program:
    """Primitives in order and the values between them. Steps write to it through its methods, which return the number of a value.

    Args:
        inputs: of the network.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self.values: list[Tensor] = list(inputs)
        self.inputs = list(range(len(inputs)))
        self.nodes: list[Primitive] = []
        self.makers: dict[int, Primitive] = {}
        self.gates: set[int] = set()  # weights between 0 and 1, also moved, scaled by a number, with a constant added
        self.owner, self.named = "", False

    def _add(
        self, kind: str, inputs: Sequence[int], out: Tensor | Sequence[Tensor], function: Any = None, **data: Any
    ) -> Any:
        made = [out] if isinstance(out, Tensor) else list(out)
        places = list(range(len(self.values), len(self.values) + len(made)))
        self.values += made
        self.nodes.append(Primitive(kind, list(inputs), places, function, data, self.owner, self.named))
        self.makers |= dict.fromkeys(places, self.nodes[-1])
        return places[0] if isinstance(out, Tensor) else places

    # -- what steps write ----------------------------------------------------------------------------------------------------------

    def linear(self, x: int, function: Function, weight: Tensor, bias: Tensor | None = None, channel: int = 1) -> int:
        """``function(x, weight, bias)``, linear in x and in the weight; ``channel``: dimension of the output channels."""
        out = function(self.values[x], weight, bias)
        return self._add("linear", [x], out, function, weight=weight, bias=bias, channel=channel % out.dim())

    def batch_norm(self, x: int, gamma: Any, beta: Any, mean: Any, var: Any, eps: float, training: bool) -> int:
        a = self.values[x]
        shape = (1, -1, *(1,) * (a.dim() - 2))
        if training:
            dims = [d for d in range(a.dim()) if d != 1]
            mean, var = a.mean(dims), a.var(dims, unbiased=False)
        out = (a - mean.view(shape)) / (var.view(shape) + eps).sqrt()
        out = out if gamma is None else out * gamma.view(shape)
        out = out if beta is None else out + beta.view(shape)
        k = (var.detach() + eps).rsqrt() * (1.0 if gamma is None else gamma)
        c = -k * mean.detach() if beta is None else beta - k * mean.detach()
        return self._add("batch_norm", [x], out, k=k, c=c)

    def relu(self, x: int) -> int:
        return self._add("relu", [x], self.values[x].clamp(min=0))

    def activation(self, x: int, function: Function, gate: bool = False, eps: float | None = None) -> int:
        """``eps``: its stabilizer under every rule; None: the rule's."""
        out: int = self._add("activation", [x], function(self.values[x]), function, eps=eps)
        self.gates |= {out} if gate else set()
        return out

    def _functions_of(self, *places: int) -> int | None:
        """The nearest value that all of these are elementwise functions of, one of them included; None: there is none."""
        chains = [self._chain(place) for place in places]
        return next((place for place in chains[0] if all(place in chain for chain in chains)), None)

    def _chain(self, place: int) -> list[int]:
        """The value, what it is an elementwise function of, and so on."""
        chain = [place]
        while (node := self.makers.get(chain[-1])) is not None and (node.kind in ELEMENTWISE or "copy" in node.data):
            same = all(self.values[i].shape == self.values[place].shape for i in node.inputs)
            nearest = self._functions_of(*node.inputs) if same and node.inputs else None
            if nearest is None:
                break
            chain.append(nearest)
        return chain

    def add(self, terms: Sequence[tuple[int, float]], constant: Tensor | float = 0.0) -> int:
        out: Any = constant
        for x, sign in terms:
            out = out + sign * self.values[x]
        if len(terms) == 1 and isinstance(constant, float) and constant != 0:
            node = self.makers.get(terms[0][0])
            if (
                node is not None and node.kind == "activation" and node.owner == self.owner
            ):  # the number is part of the function
                return self._written_out(node.inputs[0], out)
        place: int = self._add("add", [x for x, _ in terms], out, signs=[sign for _, sign in terms])
        self.gates |= {place} if len(terms) == 1 and terms[0][0] in self.gates else set()
        return place

    def vjp(self, inputs: Sequence[int], function: Function, kind: str = "vjp", **data: Any) -> Any:
        """Follows its vector-Jacobian product: data movement ("move"), resampling, softmax."""
        out = self._add(kind, inputs, function(*(self.values[i] for i in inputs)), function, **data)
        if kind == "move" and len(inputs) == 1 and inputs[0] in self.gates:
            self.gates |= {out} if isinstance(out, int) else set(out)
        return out

    def softmax(self, x: int, dim: int) -> int:
        out: int = self.vjp([x], lambda v: torch.softmax(v, dim))
        self.gates.add(out)
        return out

    def product(self, x: int, y: int, gates: list[bool] | None = None) -> int:
        """Of a signal and a gate, the broadcast one, or what a sigmoid or softmax made (None); or of similar operands."""
        sizes = self.values[x].numel(), self.values[y].numel()
        source = self._functions_of(x, y) if sizes[0] == sizes[1] else None
        if source is not None:
            return self._written_out(source, self.values[x] * self.values[y])
        if gates is None:
            same, alone = sizes[0] == sizes[1], [x in self.gates, y in self.gates]
            gates = alone if same else [sizes[0] < sizes[1], sizes[1] < sizes[0]]
        # Of n similar factors each gets an nth, however they are grouped.
        makers = [self.makers.get(place) for place in (x, y)]
        counts = [1 if node is None else node.data.get("factors", 1) for node in makers]
        alike = [count / sum(counts) for count in counts]
        factors = 1 if gates[0] != gates[1] else sum(counts)
        activated = [self._is_activated(x), self._is_activated(y)]
        out: int = self._add(
            "product", [x, y], self.values[x] * self.values[y], torch.mul,
            alike=alike, factors=factors, gates=gates, activated=activated,
        )  # fmt: skip
        return out

    def _is_activated(self, place: int) -> bool:
        """Whether an activation made a value, or data movement behind one."""
        node = self.makers.get(place)
        while node is not None and node.kind == "move" and len(node.inputs) == 1:
            node = self.makers.get(node.inputs[0])
        return node is not None and node.kind in ("activation", "relu")

    def scale(self, x: int, factor: Tensor | float, drawn: bool = False) -> int:
        out: int = self._add("drawn" if drawn else "scale", [x], self.values[x] * factor, lambda v: v * factor)
        self.gates |= {out} if x in self.gates and not isinstance(factor, Tensor) else set()
        return out

    def quotient(self, x: int, y: int) -> int:
        source, out = self._functions_of(x, y), self.values[x] / self.values[y]
        return self._add("quotient", [x, y], out) if source is None else self._written_out(source, out)

    def _written_out(self, source: int, out: Tensor) -> int:
        """An activation that is spelled as several operations on one value."""
        place: int = self._add("activation", [source], out)
        return place

    def average(self, x: int, function: Function) -> int:
        return self._add("average", [x], function(self.values[x]), function)

    def winner(self, x: int, function: Function) -> int:
        return self._add("winner", [x], function(self.values[x]), function)

    def norm(self, x: int, function: Function) -> int:
        """``function(x, statistics)`` with ``statistics`` x itself, or a constant of the relevance pass."""
        v = self.values[x]
        return self._add("norm", [x], function(v, v), function)

    def matrix_product(self, operands: Sequence[int], function: Function, signals: Sequence[bool] | None = None) -> int:
        """Of branches. ``signals``: which take part under CP-LRP, none: all but gates."""
        signals = [place not in self.gates for place in operands] if signals is None else signals
        made: int = self._add(
            "matmul", operands, function(*(self.values[i] for i in operands)), function, signals=list(signals)
        )
        return made

    # -- what is known of values -------------------------------------------------------------------------------------------------------

    def data(self, place: int) -> Tensor:
        """1 where a value holds numbers of the input, 0 where data movement ahead wrote a constant."""
        node = self.makers.get(place)
        if node is None or not _is_seen_through(node):
            return torch.ones_like(self.values[place]).detach()
        marks = [self.data(i) for i in node.inputs]
        if node.kind in ("move", "winner"):
            values = tuple(self.values[i].detach() for i in node.inputs)
            assert node.function is not None
            _, moved = torch.func.jvp(node.function, values, tuple(marks))
            moved = [moved] if isinstance(moved, Tensor) else list(moved)
            return moved[node.outputs.index(place)].clamp(max=1.0)
        if node.kind == "resampling":
            return torch.ones_like(self.values[place]).detach()
        if node.kind == "average":
            assert node.function is not None
            return (node.function(marks[0]) != 0).to(marks[0].dtype)
        return marks[0].expand_as(self.values[place])

    def near(self) -> set[int]:
        """The inputs, and what is made of them behind what is seen through at most."""
        near = set(self.inputs)
        for node in self.nodes:
            if _is_seen_through(node) and near.issuperset(node.inputs):
                near.update(node.outputs)
        return near


def _is_seen_through(node: Primitive) -> bool:
    return node.kind in SEEN_THROUGH or (node.kind == "add" and len(node.inputs) == 1)
