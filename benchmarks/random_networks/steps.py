"""What a random network is made of: each kind of step as PyTorch code in several spellings, and as primitives of the reference."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .program import Program

Shape = tuple[int, ...]  # without the batch
KINDS: dict[str, type[Step]] = {}


class Step(nn.Module, ABC):
    """One step of a network.

    A subclass draws its options, builds its parameters, runs as PyTorch code (:meth:`forward`) and says what that means
    (:meth:`mean`, numbers of values of the reference in and out).

    Attributes:
        arity: how many values it reads; a second one has the first one's shape.
        weight: how often it is drawn.
        wild: values that it makes may be large, so it is followed by a bounded one.
    """

    arity = 1
    frequency = 1.0
    options: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            KINDS[cls.__name__] = cls

    def __init__(self, options: dict[str, Any], shape: Shape, seed: int, training: bool) -> None:
        super().__init__()
        self.options, self.shape, self.seed = options, shape, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.build(training)

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        """Options for an input of this shape; None: it does not fit."""
        return {}

    def build(self, training: bool) -> None: ...

    @abstractmethod
    def forward(self, *xs: Tensor) -> Any: ...

    @abstractmethod
    def mean(self, ref: Program, *xs: int) -> Any: ...

    # -- helpers -------------------------------------------------------------------------------------------------------------------

    def parameter(self, *shape: int, scale: float = 1.0, offset: float = 0.0) -> nn.Parameter:
        return nn.Parameter(offset + scale * torch.randn(shape, generator=self.generator, dtype=torch.float64))

    def constant(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)


def spelled(options: dict[str, Any], spellings: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    return spellings[options["form"]]


def is_image(shape: Shape, low: int = 1, high: int = 3) -> bool:
    return low <= len(shape) - 1 <= high


def is_sequence(shape: Shape) -> bool:
    return len(shape) == 2
