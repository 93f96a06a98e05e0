"""What a variant of the ISNet says of itself: what it explains, and by which rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

import lrpkernels as lrp

Form = Literal["flex", "layerwise"]


@dataclass(frozen=True)
class Explained:
    """One relevance pass: a target as :class:`lrpkernels.LRP` takes it, and the composite that carries it."""

    target: Any
    composite: lrp.Composite | lrp.Rule


def first_rule(eps: float, input_range: tuple[Any, Any] | None) -> lrp.Rule | None:
    """z^B at the input, if the range of the pixels is known."""
    return None if input_range is None else lrp.ZBox(*input_range, eps=eps, detach_bias=True)


@dataclass(frozen=True)
class Variant(ABC):
    """Base of the variants.

    Args:
        eps: LRP stabilizer.
        input_range: (low, high) of the pixels for z^B at the input, or None.
        generator: source of the random choices, for variants that make any.
        form: where the epsilon rule has its stabilizers, "flex" or "layerwise".

    Attributes:
        has_unlike_maps: whether the maps of an image differ in kind, so that each has a natural range of its own.

    Raises:
        ValueError: an unknown form.
    """

    has_unlike_maps: ClassVar[bool] = False

    eps: float = 1e-2
    input_range: tuple[Any, Any] | None = (0.0, 1.0)
    generator: torch.Generator | None = None
    form: Form = "flex"

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ValueError(f"form must be one of {', '.join(get_args(Form))}, got {self.form!r}")

    def epsilon(self) -> lrp.Rule:
        """Epsilon in the form of LRP-Flex or of LRP-Block, z^B at the input if its range is known."""
        first = first_rule(self.eps, self.input_range)
        if self.form == "layerwise":
            return lrp.EpsilonLayerwise(self.eps, first=first, detach_bias=True)
        return lrp.Epsilon(self.eps, first=first)

    def composites(self) -> list[lrp.Composite | lrp.Rule]:
        """The rules that :meth:`explained` will use, known before the forward pass, which keeps what they read."""
        return [self.epsilon()]

    @abstractmethod
    def explained(self, logits: Tensor, place: tuple[int, int] | None = None) -> list[Explained]:
        """The relevance passes of one batch; their maps are stacked along M. ``place``: see :func:`stochastic_target`."""
