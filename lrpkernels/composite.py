"""Which layer follows which rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .rules import Epsilon, Rule

if TYPE_CHECKING:
    from .layers.base import Op


@dataclass(frozen=True)
class Composite:
    """An assignment of rules to layers.

    Args:
        default: rule of every layer that nothing else names.
        first: rule of the layers that read the model's input; None: as any other layer.
    """

    default: Rule = field(default_factory=Epsilon)
    first: Rule | None = None

    def rule_for(self, op: Op, reads_input: bool) -> Rule:
        """The rule of one (fused) operation; ``reads_input``: it reads the model's input itself."""
        if reads_input and self.first is not None and op.kind == "block":
            return self.first
        return self.default


def as_composite(composite: Composite | Rule | None) -> Composite:
    """A composite from what users pass: a composite, a single rule (with its own ``first``), or None for the default.

    Raises:
        TypeError: anything else.
    """
    if composite is None:
        return Composite()
    if isinstance(composite, Composite):
        return composite
    if isinstance(composite, Rule):
        return Composite(default=composite, first=composite.first)
    raise TypeError(f"composite must be a lrpkernels rule or Composite, got {type(composite).__name__}")
