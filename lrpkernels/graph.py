"""A recorded forward pass as data: its tensors (:class:`Value`) and the operations between them (:class:`Node`)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UnsupportedOperationError
from .rules import Rule

Multipliers = tuple["Tensor | None", ...]
Arrived = Sequence[Any]  # one multiplier per output, None where nothing arrived


class Value:
    """One tensor of the forward pass, an input of the model or the result of an operation: held while something will read it.

    Attributes:
        shape, dtype: of the tensor.
        consumers: how many recorded operations read it.
        nonnegative: known from the operations that made it to hold no negative number (lets z+ take its one-convolution path).
        behind_input: the model's input, or what data movement and scaling by constants alone make of it.
        history: the autograd node that made it; forgotten when recording ends.
        recipe: recomputes the tensor, where that is cheap and ``checkpoint`` is on.
    """

    __slots__ = (
        "_device", "_holders", "_strides", "_strong", "_weak", "behind_input", "consumers", "dtype", "history", "is_input",
        "nonnegative", "producer", "recipe", "shape",
    )  # fmt: skip

    def __init__(
        self, tensor: Tensor, producer: Node | None, nonnegative: bool = False, behind_input: bool = False
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
        self.consumers = 0
        self.history: Any = tensor.grad_fn
        self.recipe: Callable[[], Tensor] | None = None

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
        moves_only: data movement, or scaling by constants: a first layer behind it still reads the model's input.
        yields_relevance: :meth:`propagate` returns R at the inputs instead of G.
        is_gate: its output is a weight between 0 and 1; a product treats it as the gate, not as the signal.
        reads_inputs, reads_outputs: whether the relevance pass reads these tensors: always, never, or if the rule's ``reads`` has one of
            the names.
        module_type: the module that does the same, for composites that select by type.
    """

    kind = "op"
    is_linear = False
    moves_only = False
    yields_relevance = False
    is_gate = False
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

    def recipe(self) -> Callable[[], Tensor] | None:
        """How to recompute the output from tensors that are kept anyway, where that is cheap; None: not at all."""
        return None

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        """Multipliers at the inputs, given those at the outputs (None: nothing arrives there). Linear nodes leave it to their block.

        Raises:
            UnsupportedOperationError: this operation has no rule.
        """
        raise UnsupportedOperationError(f"{self.label()}: this operation has no rule; use another one in the model")

    def propagate_relevance(self, relevances: Arrived) -> Multipliers:
        """Relevance R itself at the inputs, for operations ahead of a first-layer rule.

        Raises:
            UnsupportedOperationError: R cannot follow the data through this operation.
        """
        raise UnsupportedOperationError(
            f"{self.kind}: a first-layer rule yields relevance behind this operation, which cannot be taken through it; move the "
            "operation out of the model, or use a rule without `first`"
        )

    def release(self) -> None:
        """Let go of the forward values made here, once the walk has passed."""
        for value in self.outputs:
            value.release()
