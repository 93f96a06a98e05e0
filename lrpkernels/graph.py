"""A recorded forward pass as data: its tensors (:class:`Value`) and the operations between them (:class:`Node`)."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UnsupportedOperationError
from .rules import Rule

Multipliers = tuple["Tensor | None", ...]
Arrived = Sequence[Any]  # one multiplier per output, None where nothing arrived
EVERYTHING = (-math.inf, math.inf)


class Recipe:
    """How backward makes a forward value again.

    Neighbouring operations save the same value: the last two cheap ones that a backward pass has made are at hand until it ends.

    Attributes:
        make: makes it.
        is_cheap: by copies and work on single elements alone, so that whatever saves the value may save this instead.
    """

    _made = threading.local()

    def __init__(self, make: Callable[[], Tensor], is_cheap: bool = False) -> None:
        self.make, self.is_cheap = make, is_cheap
        self._first: tuple[weakref.ref[Tensor], int] | None = None

    def watch(self, tensor: Tensor) -> None:
        """The value itself, which is taken as long as something else keeps it."""
        self._first = weakref.ref(tensor), tensor._version

    def __call__(self) -> Tensor:
        first = None if self._first is None else self._first[0]()
        if self._first is not None and first is not None and first._version == self._first[1]:
            return first.detach()
        task = torch._C._current_graph_task_id()
        if not self.is_cheap or task < 0:
            return self.make()
        if getattr(self._made, "task", None) != task:
            self._made.task, self._made.latest = task, []
            # An error in backward leaves them until the next one.
            torch.autograd.Variable._execution_engine.queue_callback(self._made.latest.clear)
        latest: list[tuple[Recipe, Tensor]] = self._made.latest
        for recipe, tensor in latest:
            if recipe is self:
                return tensor
        made = self.make()
        latest.append((self, made))
        del latest[:-2]
        return made


class Value:
    """One tensor of the forward pass, an input of the model or the result of an operation: held while something will read it.

    Attributes:
        shape, dtype: of the tensor.
        consumers: how many recorded operations read it.
        nonnegative: known from the operations that made it to hold no negative number (lets z+ take its one-convolution path).
        behind_input: the model's input, or what operations that are seen through (``Node.sees_through``) make of it.
        unlayered: no layer with weights stands between the model's input and it.
        history: the autograd node that made it; forgotten when recording ends.
        recipe: recomputes the tensor, where that is cheap and ``checkpoint`` is on.
    """

    __slots__ = (
        "_device", "_holders", "_strides", "_strong", "_weak", "behind_input", "consumers", "dtype", "history", "is_input",
        "nonnegative", "producer", "recipe", "shape", "unlayered",
    )  # fmt: skip

    def __init__(
        self,
        tensor: Tensor,
        producer: Node | None,
        nonnegative: bool = False,
        behind_input: bool = False,
        unlayered: bool = False,
    ) -> None:
        self._strong: Tensor | None = tensor
        self._weak: weakref.ref[Tensor] | None = None
        self._holders = 1
        self.shape = tensor.shape
        self.dtype = tensor.dtype
        self.producer = producer
        self.is_input = producer is None
        self.nonnegative = nonnegative
        self.behind_input = behind_input
        self.unlayered = unlayered
        self.consumers = 0
        self.history: Any = tensor.grad_fn
        self.recipe: Recipe | None = None

    def watch(self, registry: dict[int, Value] | None) -> None:
        """Stop keeping the tensor alive, unless :meth:`hold` says so; its entry in ``registry`` goes with it."""
        tensor = self._strong
        assert tensor is not None
        self._strong, self._holders = None, 0
        self._device, self._strides = tensor.device, tensor.stride()
        if registry is None:
            self._weak = weakref.ref(tensor)
            return
        key, pop = id(tensor), registry.pop
        self._weak = weakref.ref(tensor, lambda _: pop(key, None))

    def hold(self) -> None:
        """One more reader to come: the tensor stays."""
        self._strong = self.tensor
        self._holders += 1

    def let_go(self) -> None:
        """One reader less; the last one lets the tensor go."""
        self._holders -= 1
        if self._holders <= 0:
            self._strong = None

    @property
    def is_held(self) -> bool:
        """Whether a reader is left."""
        return self._holders > 0

    def release(self) -> None:
        """No reader is left."""
        self._strong, self._weak, self._holders, self.producer, self.recipe = None, None, 0, None, None

    @property
    def tensor(self) -> Tensor:
        """The forward value itself, with its autograd graph.

        Raises:
            RuntimeError: it was not kept.
        """
        tensor = self.present()
        if tensor is None:
            raise RuntimeError(
                f"tape: a forward value of shape {tuple(self.shape)} is needed that was not kept. record() and LRP keep what the given "
                "composite and `at` read: ask for the relevance of these only, or record without them"
            )
        return tensor

    def form(self) -> Tensor:
        """A tensor of this value's sizes, strides, dtype and device; its numbers mean nothing."""
        tensor = self.present()
        if tensor is None:  # it was watched
            return torch.empty_strided(self.shape, self._strides, dtype=self.dtype, device=self._device)
        return tensor.detach()

    def present(self) -> Tensor | None:
        """:attr:`tensor`, or None if it was not kept."""
        return self._weak() if self._strong is None and self._weak is not None else self._strong


class Node:
    """One recorded operation.

    Subclasses say how the multiplier G (R = a * G) at the outputs goes to the inputs. Multipliers may carry T targets: their first
    dimension is then T times that of the forward value, target-major.

    Attributes:
        kind: name of the operation in tables.
        is_linear: a convolution, dense layer or batch norm, which becomes part of a block.
        sees_through: data movement, scaling by constants, interpolation, averages, elementwise functions: a layer behind it still reads
            the model's input, so that a composite's ``first`` is meant for it.
        bounds: between which numbers its outputs lie, whatever goes in.
        line: (c, d) of an output c x + d with numbers c and d.
        is_elementwise: where its operands have the output's shape, an element of the output depends on theirs in the same place alone.
        source: what its output is an elementwise function of, once known (see ``lrpkernels.layers.elementwise``).
        yields_relevance: :meth:`propagate` returns R at the inputs instead of G.
        reads_inputs, reads_outputs: whether the relevance pass reads these tensors: always, never, or if the rule's ``reads`` has one of
            the names.
        is_statistic: it is a part of a norm that is written out, namely of the factor.
        family: "attention", "product" or "norm": a composite's option of that name chooses its rule; None: a layer's rule.
        module_type: the module that does the same, for composites that select by type.
    """

    kind = "op"
    family: str | None = None
    is_linear = is_statistic = False
    sees_through = False
    bounds = EVERYTHING
    line: tuple[float, float] | None = None
    is_elementwise = False
    source: tuple[Value | None] | None = None
    yields_relevance = False
    reads_inputs: bool | frozenset[str] = True
    reads_outputs: bool | frozenset[str] = True
    module_type: type[nn.Module] | None = None

    def __init__(self, *inputs: Value) -> None:
        self.inputs: tuple[Value, ...] = inputs
        self.outputs: tuple[Value, ...] = ()
        self.module: nn.Module | None = None

    @property
    def input(self) -> Value:
        return self.inputs[0]

    @property
    def output(self) -> Value:
        return self.outputs[0]

    @property
    def operands(self) -> tuple[Value, ...]:
        """The values that the operation itself read; relevance may go past them, to others among the inputs."""
        return self.inputs

    @property
    def a(self) -> Tensor:
        """The forward value that is read."""
        return self.inputs[0].tensor

    @property
    def value(self) -> Tensor:
        """The forward value that is made."""
        return self.outputs[0].tensor

    def label(self) -> str:
        """What this operation is called in tables."""
        return self.kind

    def recipe(self) -> Recipe | None:
        """How to recompute the output from tensors that are kept anyway, where that is cheap; None: not at all."""
        return None

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        """Multipliers at the inputs, given those at the outputs (None: nothing arrives there). Linear nodes leave it to their block.

        Raises:
            UnsupportedOperationError: this operation has no rule.
        """
        raise UnsupportedOperationError(f"{self.label()}: this operation has no rule; use another one in the model")

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        """The exact vector-Jacobian product (:class:`lrpkernels.Gradient`); here for operations that hand on no other one."""
        return self.propagate(multipliers, rule)

    def through(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        """:meth:`propagate` or :meth:`gradient`, whichever the rule asks for."""
        return self.gradient(multipliers, rule) if rule.is_gradient else self.propagate(multipliers, rule)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers | None:
        """Relevance R itself at the inputs, given R at the outputs: ahead of a layer whose rule yields relevance (z^B, flat, ...).

        None: R does not follow the data through this operation; the multiplier R / output goes through :meth:`propagate`.
        """
        return None

    def marks(self, given: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Marks of the outputs, given those of the inputs; see :func:`marks`. None: every element is marked."""
        return [None if given[0] is None else given[0].expand(value.shape) for value in self.outputs]

    def release(self) -> None:
        """Let go of the forward values made here, once the walk has passed."""
        for value in self.outputs:
            value.release()


def marks(value: Value) -> Tensor | None:
    """1 where data movement ahead of this value copied an element, 0 where it wrote a constant, as padding does.

    None: 1 everywhere. Constants that movement wrote are no part of the data: rules that look at weights or bounds alone leave them out, so
    that a padded tensor means what a layer's own padding does.
    """
    node = value.producer
    if node is None or not node.sees_through:
        return None
    given = [marks(v) for v in node.inputs]
    return next(mark for out, mark in zip(node.outputs, node.marks(given), strict=True) if out is value)
