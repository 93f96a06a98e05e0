"""Which layer follows which rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .alpha_beta import AlphaBeta, ZPlus
from .base import OperationRule, Rule
from .epsilon import Epsilon
from .gamma import Gamma
from .layerwise import EpsilonLayerwise, Norm
from .modified_gradients import ReLUBetaSmooth, ReLUDeconvNet, ReLUGuidedBackprop
from .views import Recorded
from .weights_only import Flat
from .zbox import Bound, ZBox

Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Composite:
    """An assignment of rules to layers; the most specific match wins.

    Args:
        layers: selector -> rule. A selector is, from the most to the least specific: a module's dotted name ("layer1.0.conv1"); a
            glob of names ("layer1.*"; the longest matching one wins); a function (name, module) -> bool; a module type
            (``nn.Conv2d``; of several, the most derived). Functional calls count as the module type that does the same, attention,
            products and norms also as that of the module that calls them. A batch norm or ReLU that would merge into the layer ahead is
            a layer of its own where its own name has another rule than that layer.
        first: rule of the layers that read the model's input, whatever ``layers`` says; None: like any other layer.
        default: rule of everything else, sums, pooling and stand-alone ReLUs included.
        attention: rule of attention: of softmax, matrix products of branches, and attention in one operation
            (:class:`AttnLRP`, :class:`CPLRP`, :class:`Uniform`); None: what the layers' rule does, AttnLRP.
        product: likewise of elementwise products of branches, gates among them.
        norm: likewise of layer, group, instance and RMS norms; :class:`Pass` hands relevance on unchanged.
        multiply_by_inputs: False: the heatmap is G, a modified gradient, in place of the relevance R = input * G.

    A selector in ``layers`` may lead to a rule of these operations as well, which goes before the options.

    Raises:
        TypeError: a selector or rule of another type.
        ValueError: a rule that yields relevance itself beside ``multiply_by_inputs=False``. When it is applied: a name or glob in
            ``layers`` that no layer of the model has, or a ``first`` that does not reach the first layer.

    Examples:
        >>> lrp.Composite({nn.Conv2d: lrp.ZPlus(), "features.0": lrp.Gamma(0.25)}, first=lrp.ZBox(0, 1))
        >>> lrp.Composite(default=lrp.Epsilon(1e-6), attention=lrp.CPLRP())
    """

    layers: Mapping[Selector, Rule] = field(default_factory=dict)
    first: Rule | None = None
    default: Rule = field(default_factory=Epsilon)
    attention: Rule | None = None
    product: Rule | None = None
    norm: Rule | None = None
    multiply_by_inputs: bool = True

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
        for name in ("first", "default"):
            if isinstance(getattr(self, name), OperationRule):
                raise TypeError(
                    f"{name} must be a rule of layers, got {type(getattr(self, name)).__name__}, a rule of attention, products and norms: "
                    "use the options of these names"
                )
        for family in ("attention", "product", "norm"):
            rule = getattr(self, family)
            if rule is not None and not (isinstance(rule, Rule) and family in rule.families):
                got = repr(rule) if isinstance(rule, Rule) else type(rule).__name__
                raise TypeError(f"{family} must be a rule of this operation (AttnLRP, CPLRP, ...) or None, got {got}")
        if not self.multiply_by_inputs and (
            self.yields_in_hidden_layers or (self.first or self.default).yields_relevance
        ):
            raise ValueError(
                "multiply_by_inputs=False asks for the modified gradient G, but a rule of this composite yields relevance itself (ZBox, "
                "Flat, WSquare, Pass); leave it out"
            )

    @property
    def yields_in_hidden_layers(self) -> bool:
        """Whether a rule other than ``first`` yields relevance R, so that R itself may arrive at any operation."""
        rules = (self.default, self.norm, *self.layers.values())
        return any(rule is not None and rule.yields_relevance for rule in rules)

    def rule_for(self, op: Recorded, name: str, reads_input: bool) -> Rule:
        """The rule of one (fused) operation.

        Args:
            op: the operation.
            name: dotted name of the module that called it.
            reads_input: it reads the model's input, with nothing but data movement and constants ahead of it.
        """
        if reads_input and self.first is not None and op.kind == "block":
            return self.first
        if op.family is not None:
            own = self._selected(op, name, lambda rule: op.family in rule.families) or getattr(self, op.family)
            if own is not None:
                return own
        return self._selected(op, name, lambda rule: not isinstance(rule, OperationRule)) or self.default

    def _selected(self, op: Recorded, name: str, fits: Callable[[Rule], bool]) -> Rule | None:
        """The rule of the most specific selector that names this operation; None: there is none."""
        found = ((_specificity(selector, op, name), rule) for selector, rule in self.layers.items() if fits(rule))
        best = max(found, key=lambda match: match[0], default=None)
        return None if best is None or best[0] == (0, 0) else best[1]

    def reads_names(self) -> bool:
        """Whether some selector looks at more than a type: at the name of a module, or at the module itself."""
        return not all(isinstance(selector, type) for selector in self.layers)

    def chooser(self) -> Callable[[Recorded, str, bool], Rule]:
        """:meth:`rule_for` for one pass; what types alone decide is looked up once for each type."""
        if not (self.layers or self.attention or self.product or self.norm):
            first, default = self.first, self.default
            if first is None:
                return lambda op, name, reads_input: default
            return lambda op, name, reads_input: first if reads_input and op.kind == "block" else default
        if self.reads_names():
            return self.rule_for
        known: dict[Any, Rule] = {}

        def choose(op: Recorded, name: str, reads_input: bool) -> Rule:
            kind = (op.module_type, type(op.module), reads_input and op.kind == "block", op.family)
            rule = known.get(kind)
            if rule is None:
                rule = known[kind] = self.rule_for(op, name, reads_input)
            return rule

        return choose


def _specificity(selector: Any, op: Recorded, name: str) -> tuple[int, int]:
    """How closely a selector names this operation; (0, 0): not at all."""
    if isinstance(selector, str):
        if selector == name:
            return 4, 0
        return (3, len(selector)) if fnmatchcase(name, selector) else (0, 0)
    if isinstance(selector, type):
        for kind in (type(op.module), op.module_type):
            listed = op.module_type is not None or op.family is not None
            if kind is not None and issubclass(kind, selector) and listed:
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


def EpsilonAlpha2Beta1Flat(eps: float = 1e-6, *, stabilizer: float = 1e-6) -> Composite:
    """:func:`EpsilonAlpha2Beta1` with the flat rule at the input. Source: zennit's preset of that name."""
    return EpsilonAlpha2Beta1(eps, first=Flat(stabilizer), stabilizer=stabilizer)


def EpsilonGammaBox(
    low: Bound = 0.0,
    high: Bound = 1.0,
    eps: float = 1e-6,
    *,
    gamma: float = 0.25,
    stabilizer: float = 1e-6,
) -> Composite:
    """gamma for convolutions, epsilon (layer form) for dense layers, z^B at the input. Source: Montavon et al. 2019."""
    return _preset(Gamma(gamma, stabilizer), EpsilonLayerwise(eps), ZBox(low, high, stabilizer, bias=False), stabilizer)


def ExcitationBackprop(stabilizer: float = 1e-6, *, first: Rule | None = None) -> Composite:
    """z+ for every layer with weights. Source: Zhang et al. 2016; zennit's preset of that name.

    Args:
        stabilizer: of z+, sums and averages.
        first: rule of the layers that read the input.
    """
    plus = ZPlus(stabilizer)
    return _preset(plus, plus, first, stabilizer)


def DeconvNet() -> Composite:
    """Gradients with :class:`ReLUDeconvNet` at ReLUs; the heatmap is the modified gradient. Source: Zeiler and Fergus 2014; zennit."""
    return Composite(default=ReLUDeconvNet(), multiply_by_inputs=False)


def GuidedBackprop() -> Composite:
    """Gradients with :class:`ReLUGuidedBackprop` at ReLUs; the heatmap is the modified gradient.

    Source: Springenberg et al. 2015; zennit.
    """
    return Composite(default=ReLUGuidedBackprop(), multiply_by_inputs=False)


def BetaSmooth(beta_smooth: float = 10.0) -> Composite:
    """Gradients with :class:`ReLUBetaSmooth` at ReLUs; the heatmap is the modified gradient. Source: Dombrowski et al. 2019; zennit.

    Args:
        beta_smooth: softplus' beta.
    """
    return Composite(default=ReLUBetaSmooth(beta_smooth), multiply_by_inputs=False)
