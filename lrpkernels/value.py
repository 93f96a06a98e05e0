"""Tensors of a recorded forward pass: held while something will read them, otherwise only watched."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .checkpoint import Remade
    from .layers.base import Op


class Value:
    """One tensor of the forward pass: an input of the model or the result of an operation.

    Attributes:
        shape, dtype: of the tensor.
        consumers: how many recorded operations read it.
        nonnegative: known from the operations that made it to hold no negative number (lets z+ take its one-convolution path).
        behind_input: the model's input, or what data movement and scaling by constants alone make of it.
        history: the autograd node that made it; forgotten when recording ends.
        recipe: makes the tensor again, where that is cheap and ``checkpoint`` was asked for.
    """

    __slots__ = (
        "_device", "_holders", "_strides", "_strong", "_weak", "behind_input", "consumers", "dtype", "history", "nonnegative", "producer",
        "recipe", "shape",
    )  # fmt: skip

    def __init__(
        self, tensor: Tensor, producer: Op | None, nonnegative: bool = False, behind_input: bool = False
    ) -> None:
        self._strong: Tensor | None = tensor
        self._weak: weakref.ref[Tensor] | None = None
        self._holders = 1
        self.shape = tensor.shape
        self.dtype = tensor.dtype
        self.producer = producer
        self.nonnegative = nonnegative
        self.behind_input = behind_input
        self.consumers = 0
        self.history: Any = tensor.grad_fn
        self.recipe: Remade | None = None

    def watch(self, registry: dict[int, Value] | None) -> None:
        """Keep the tensor alive no longer, unless :meth:`hold` says so; its entry in ``registry`` goes when it goes."""
        tensor = self._strong
        assert tensor is not None
        self._strong, self._holders = None, 0
        self._device, self._strides = tensor.device, tensor.stride()
        if registry is None:
            self._weak = weakref.ref(tensor)
            return
        key, pop = id(tensor), registry.pop
        self._weak = weakref.ref(tensor, lambda _: pop(key, None))

    def refill(self, tensor: Tensor, producer: Op | None, held: bool) -> None:
        """The tensor of another pass, in every other respect like the one before."""
        self._strong, self._weak = (tensor, None) if held else (None, weakref.ref(tensor))
        self._holders, self.producer = int(held), producer

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
        """Whether somebody will read it."""
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
