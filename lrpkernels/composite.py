"""Which layer follows which rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .rules import (
    AlphaBeta,
    Epsilon,
    EpsilonLayerwise,
    Flat,
    Gamma,
    Norm,
    Rule,
    ZBox,
    ZPlus,
)

if TYPE_CHECKING:
    from .layers.base import Op

Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Composite:
    """An assignment of rules to layers; the most specific match wins.

    Args:
        layers: selector -> rule. A selector is, from the most to the least specific: a module's dotted name ("layer1.0.conv1"); a
            glob of names ("layer1.*"; the longest matching one wins); a function (name, module) -> bool; a module type
            (``nn.Conv2d``; of several, the most derived). Functional calls count as the module type that does the same.
        first: rule of the layers that read the model's input, whatever ``layers`` says; None: as any other layer.
        default: rule of everything else, sums, pooling and stand-alone ReLUs included.

    Raises:
        TypeError: a selector or rule of another type.

    Example:
        >>> lrp.Composite({nn.Conv2d: lrp.ZPlus(), "features.0": lrp.Gamma(0.25)}, first=lrp.ZBox(0, 1))
    """

    layers: Mapping[Selector, Rule] = field(default_factory=dict)
    first: Rule | None = None
    default: Rule = field(default_factory=Epsilon)

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Mapping):
            raise TypeError(f"layers must map selectors to rules, got {type(self.layers).__name__}")
        for selector, rule in self.layers.items():
            known = isinstance(selector, str) or callable(selector)
            if not known or (isinstance(selector, type) and not issubclass(selector, nn.Module)):
                raise TypeError(
                    f"layers: a selector must be a name, a glob, a module type or a function, got {selector!r}"
                )
            if not isinstance(rule, Rule):
                raise TypeError(f"layers[{selector!r}] must be a lrpkernels rule, got {type(rule).__name__}")
        if not isinstance(self.default, Rule):
            raise TypeError(f"default must be a lrpkernels rule, got {type(self.default).__name__}")
        if self.first is not None and not isinstance(self.first, Rule):
            raise TypeError(f"first must be a lrpkernels rule or None, got {type(self.first).__name__}")

    def rule_for(self, op: Op, name: str, reads_input: bool) -> Rule:
        """The rule of one (fused) operation.

        Args:
            op: the operation.
            name: dotted name of the module that called it.
            reads_input: it reads the model's input, with nothing but data movement and constants ahead of it.
        """
        if reads_input and self.first is not None and op.kind == "block":
            return self.first
        if self.layers:
            best = max(
                ((_specificity(selector, op, name), rule) for selector, rule in self.layers.items()), key=lambda m: m[0]
            )
            if best[0] > (0, 0):
                return best[1]
        return self.default

    def reads_names(self) -> bool:
        """Whether some selector is more than a type: looks at the name of a module, or at the module itself."""
        return not all(isinstance(selector, type) for selector in self.layers)

    def chooser(self) -> Callable[[Op, str, bool], Rule]:
        """:meth:`rule_for`, for one pass: what types alone decide it looks up once for each type."""
        if self.reads_names() or not self.layers:
            return self.rule_for
        known: dict[Any, Rule] = {}

        def choose(op: Op, name: str, reads_input: bool) -> Rule:
            kind = (op.module_type, type(op.module), reads_input and op.kind == "block")
            rule = known.get(kind)
            if rule is None:
                rule = known[kind] = self.rule_for(op, name, reads_input)
            return rule

        return choose

    def explain(self, model: nn.Module, x: Tensor | tuple[Tensor, ...]) -> str:
        """A table of what each layer of ``model`` would follow: module, operation, rule, output shape. Runs one forward pass.

        Runs under ``torch.no_grad()`` in the model's present mode.
        """
        import torch

        from .propagate import plan
        from .tape import record

        with torch.no_grad(), record(model, x) as tape:
            rows = [("module", "operation", "rule", "output")]
            for op, rule in plan(tape, self):
                rows.append((tape.module_path(op.module or model), op.label(), repr(rule), str(tuple(op.output.shape))))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join("  ".join((*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3])) for row in rows)


def _specificity(selector: Any, op: Op, name: str) -> tuple[int, int]:
    """How closely a selector names this operation; (0, 0): not at all."""
    if isinstance(selector, str):
        if selector == name:
            return 4, 0
        return (3, len(selector)) if fnmatchcase(name, selector) else (0, 0)
    if isinstance(selector, type):
        for kind in (type(op.module), op.module_type):
            if kind is not None and issubclass(kind, selector) and op.module_type is not None:
                return 1, len(selector.__mro__)
        return 0, 0
    return (2, 0) if selector(name, op.module) else (0, 0)


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


_CONVOLUTIONS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


def _preset(convolution: Rule, dense: Rule, first: Rule | None, eps: float) -> Composite:
    """Presets follow one plan: a rule for convolutions (and batch norms that stand alone), one for dense layers, exact sums."""
    layers: dict[Selector, Rule] = {**dict.fromkeys(_CONVOLUTIONS, convolution), nn.Linear: dense}
    return Composite(layers, first=first, default=Norm(eps))


def EpsilonPlus(eps: float = 1e-6, *, first: Rule | None = None, stabilizer: float = 1e-6) -> Composite:
    """z+ for convolutions, epsilon (layer form) for dense layers. Source: Montavon et al. 2019; zennit's preset of that name.

    Args:
        eps: of the dense layers.
        first: rule of the layers that read the input.
        stabilizer: of z+, sums and averages.
    """
    return _preset(ZPlus(stabilizer), EpsilonLayerwise(eps), first, stabilizer)


def EpsilonPlusFlat(eps: float = 1e-6, *, stabilizer: float = 1e-6) -> Composite:
    """:func:`EpsilonPlus` with the flat rule at the input."""
    return EpsilonPlus(eps, first=Flat(stabilizer), stabilizer=stabilizer)


def EpsilonAlpha2Beta1(eps: float = 1e-6, *, first: Rule | None = None, stabilizer: float = 1e-6) -> Composite:
    """alpha 2, beta 1 for convolutions, epsilon (layer form) for dense layers. Source: Bach et al. 2015; zennit's preset."""
    return _preset(AlphaBeta(2.0, 1.0, stabilizer), EpsilonLayerwise(eps), first, stabilizer)


def EpsilonGammaBox(
    low: float | tuple[float, ...] = 0.0,
    high: float | tuple[float, ...] = 1.0,
    eps: float = 1e-6,
    *,
    gamma: float = 0.25,
    stabilizer: float = 1e-6,
) -> Composite:
    """gamma for convolutions, epsilon (layer form) for dense layers, z^B at the input. Source: Montavon et al. 2019."""
    return _preset(Gamma(gamma, stabilizer), EpsilonLayerwise(eps), ZBox(low, high, stabilizer, bias=False), stabilizer)
