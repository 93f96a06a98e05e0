"""zennit's composites by their names and arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from .core import Composite
from .hooks import Names
from .layer import Sum
from .rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    Pass,
    ReLUBetaSmooth,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    StabilizerLike,
    ZBox,
    ZPlus,
)
from .types import Activation, AvgPool, BatchNorm, Convolution, Linear

LayerMap = list[tuple[Any, Any]]
Canonizers = Sequence[Any] | None
Kind = TypeVar("Kind", bound=type[Composite])
COMPOSITES: dict[str, type[Composite]] = {}


def register_composite(name: str) -> Callable[[Kind], Kind]:
    """Decorates a composite that is to be found under ``name`` in ``COMPOSITES``."""

    def put(composite: Kind) -> Kind:
        COMPOSITES[name] = composite
        return composite

    return put


class LayerMapComposite(Composite):
    """Rules by module type; the first match counts.

    Args:
        layer_map: (types, rule), types as for ``isinstance``.
        canonizers: see :class:`.core.Composite`.
    """

    def __init__(self, layer_map: LayerMap, canonizers: Canonizers = None) -> None:
        self.layer_map = list(layer_map or ())
        super().__init__(self.mapping, canonizers)

    def mapping(self, ctx: dict[Any, Any], name: str, module: nn.Module) -> Any:
        """The rule of a module, or None."""
        return _of_types(self.layer_map, module)


class SpecialFirstLayerMapComposite(LayerMapComposite):
    """As :class:`LayerMapComposite`, with a map of its own for the first module that it matches.

    Args:
        layer_map: (types, rule).
        first_map: (types, rule).
        canonizers: see :class:`.core.Composite`.
    """

    def __init__(self, layer_map: LayerMap, first_map: LayerMap, canonizers: Canonizers = None) -> None:
        self.first_map = list(first_map or ())
        super().__init__(layer_map, canonizers)

    def mapping(self, ctx: dict[Any, Any], name: str, module: nn.Module) -> Any:
        """The rule of a module, or None."""
        if "first" not in ctx:
            found = _of_types(self.first_map, module)
            if found is not None:
                ctx["first"] = name
                return found
        return super().mapping(ctx, name, module)


class NameMapComposite(Composite):
    """Rules by module name.

    Args:
        name_map: (names, rule).
        canonizers: see :class:`.core.Composite`.
    """

    def __init__(self, name_map: list[tuple[Any, Any]], canonizers: Canonizers = None) -> None:
        self.name_map = list(name_map or ())
        super().__init__(self.mapping, canonizers)

    def mapping(self, ctx: dict[Any, Any], name: str, module: nn.Module) -> Any:
        """The rule of a module, or None."""
        return next((hook for names, hook in self.name_map if name in names), None)


class MixedComposite(Composite):
    """Several composites; the first that has a rule for a module counts.

    Args:
        composites: in order.
        canonizers: beside theirs.
    """

    def __init__(self, composites: Sequence[Any], canonizers: Canonizers = None) -> None:
        self.composites = list(composites)
        super().__init__(self.mapping, [*(canonizers or ()), *(c for part in composites for c in part.canonizers)])

    def mapping(self, ctx: dict[Any, Any], name: str, module: nn.Module) -> Any:
        """The rule of a module, or None."""
        each = [part.module_map(ctx.setdefault(id(part), {}), name, module) for part in self.composites]
        return next((hook for hook in each if hook is not None), None)


class NameLayerMapComposite(MixedComposite):
    """Rules by name, else by type.

    Args:
        name_map: (names, rule).
        layer_map: (types, rule).
        canonizers: see :class:`.core.Composite`.
    """

    def __init__(
        self, name_map: LayerMap | None = None, layer_map: LayerMap | None = None, canonizers: Canonizers = None
    ) -> None:
        super().__init__([NameMapComposite(name_map or []), LayerMapComposite(layer_map or [])], canonizers)


def _of_types(layer_map: LayerMap, module: nn.Module) -> Any:
    return next((hook for types, hook in layer_map if isinstance(module, types)), None)


def layer_map_base(stabilizer: StabilizerLike = 1e-6) -> LayerMap:
    """What all presets of relevance begin with: activations and batch norms pass relevance on, sums and averages share it out."""
    return [(Activation, Pass()), (Sum, Norm(stabilizer)), (AvgPool, Norm(stabilizer)), (BatchNorm, Pass())]


def _preset(own: LayerMap | None, stabilizer: StabilizerLike, convolution: Any, dense: Any) -> LayerMap:
    return [*(own or ()), *layer_map_base(stabilizer), (Convolution, convolution), (nn.Linear, dense)]


@register_composite("epsilon_gamma_box")
class EpsilonGammaBox(SpecialFirstLayerMapComposite):
    """Box rule in the first convolution, gamma in the others, epsilon in dense layers: :func:`lrpkernels.EpsilonGammaBox`.

    Args:
        low, high: range of pixels, numbers or tensors.
        epsilon: of dense layers.
        gamma: of the gamma rule.
        stabilizer: of all other rules.
        layer_map, first_map: go ahead of the composite's own.
        zero_params: parameters that rules take as zero, such as "bias".
        canonizers: see :class:`.core.Composite`.
    """

    def __init__(
        self,
        low: float | Tensor,
        high: float | Tensor,
        epsilon: StabilizerLike = 1e-6,
        gamma: float = 0.25,
        stabilizer: StabilizerLike = 1e-6,
        layer_map: LayerMap | None = None,
        first_map: LayerMap | None = None,
        zero_params: Names = None,
        canonizers: Canonizers = None,
    ) -> None:
        layers = _preset(layer_map, stabilizer, Gamma(gamma, stabilizer, zero_params), Epsilon(epsilon, zero_params))
        super().__init__(
            layers, [*(first_map or ()), (Convolution, ZBox(low, high, stabilizer, zero_params))], canonizers
        )


@register_composite("epsilon_plus")
class EpsilonPlus(LayerMapComposite):
    """z+ in convolutions, epsilon in dense layers: :func:`lrpkernels.EpsilonPlus`. Arguments as :class:`EpsilonGammaBox`."""

    def __init__(
        self,
        epsilon: StabilizerLike = 1e-6,
        stabilizer: StabilizerLike = 1e-6,
        layer_map: LayerMap | None = None,
        zero_params: Names = None,
        canonizers: Canonizers = None,
    ) -> None:
        layers = _preset(layer_map, stabilizer, ZPlus(stabilizer, zero_params), Epsilon(epsilon, zero_params))
        super().__init__(layers, canonizers)


@register_composite("epsilon_alpha2_beta1")
class EpsilonAlpha2Beta1(LayerMapComposite):
    """alpha 2, beta 1 in convolutions, epsilon in dense layers: :func:`lrpkernels.EpsilonAlpha2Beta1`."""

    def __init__(
        self,
        epsilon: StabilizerLike = 1e-6,
        stabilizer: StabilizerLike = 1e-6,
        layer_map: LayerMap | None = None,
        zero_params: Names = None,
        canonizers: Canonizers = None,
    ) -> None:
        alpha = AlphaBeta(2, 1, stabilizer, zero_params)
        super().__init__(_preset(layer_map, stabilizer, alpha, Epsilon(epsilon, zero_params)), canonizers)


class _WithFlat(SpecialFirstLayerMapComposite):
    def __init__(
        self,
        epsilon: StabilizerLike = 1e-6,
        stabilizer: StabilizerLike = 1e-6,
        layer_map: LayerMap | None = None,
        first_map: LayerMap | None = None,
        zero_params: Names = None,
        canonizers: Canonizers = None,
    ) -> None:
        layers = _preset(
            layer_map, stabilizer, self._convolution(stabilizer, zero_params), Epsilon(epsilon, zero_params)
        )
        super().__init__(layers, [*(first_map or ()), (Linear, Flat(stabilizer, zero_params))], canonizers)

    def _convolution(self, stabilizer: StabilizerLike, zero_params: Names) -> Any:
        raise NotImplementedError


@register_composite("epsilon_plus_flat")
class EpsilonPlusFlat(_WithFlat):
    """:class:`EpsilonPlus` with the flat rule in the first layer: :func:`lrpkernels.EpsilonPlusFlat`."""

    def _convolution(self, stabilizer: StabilizerLike, zero_params: Names) -> Any:
        return ZPlus(stabilizer, zero_params)


@register_composite("epsilon_alpha2_beta1_flat")
class EpsilonAlpha2Beta1Flat(_WithFlat):
    """:class:`EpsilonAlpha2Beta1` with the flat rule in the first layer: :func:`lrpkernels.EpsilonAlpha2Beta1Flat`."""

    def _convolution(self, stabilizer: StabilizerLike, zero_params: Names) -> Any:
        return AlphaBeta(2, 1, stabilizer, zero_params)


@register_composite("excitation_backprop")
class ExcitationBackprop(LayerMapComposite):
    """z+ in every layer with weights: :func:`lrpkernels.ExcitationBackprop`."""

    def __init__(
        self,
        stabilizer: StabilizerLike = 1e-6,
        layer_map: LayerMap | None = None,
        zero_params: Names = None,
        canonizers: Canonizers = None,
    ) -> None:
        own = [(Sum, Norm(stabilizer)), (AvgPool, Norm(stabilizer)), (Linear, ZPlus(stabilizer, zero_params))]
        super().__init__([*(layer_map or ()), *own], canonizers)


@register_composite("deconvnet")
class DeconvNet(LayerMapComposite):
    """max(G, 0) at ReLUs: :func:`lrpkernels.DeconvNet`."""

    def __init__(self, layer_map: LayerMap | None = None, canonizers: Canonizers = None) -> None:
        super().__init__([*(layer_map or ()), (nn.ReLU, ReLUDeconvNet())], canonizers)


@register_composite("guided_backprop")
class GuidedBackprop(LayerMapComposite):
    """Positive gradients only at ReLUs: :func:`lrpkernels.GuidedBackprop`."""

    def __init__(self, layer_map: LayerMap | None = None, canonizers: Canonizers = None) -> None:
        super().__init__([*(layer_map or ()), (nn.ReLU, ReLUGuidedBackprop())], canonizers)


@register_composite("beta_smooth")
class BetaSmooth(LayerMapComposite):
    """The derivative of softplus at ReLUs: :func:`lrpkernels.BetaSmooth`.

    Args:
        beta_smooth: softplus' beta.
        layer_map: goes ahead of the composite's own.
        canonizers: see :class:`.core.Composite`.
    """

    def __init__(
        self, beta_smooth: float = 10.0, layer_map: LayerMap | None = None, canonizers: Canonizers = None
    ) -> None:
        super().__init__([*(layer_map or ()), (nn.ReLU, ReLUBetaSmooth(beta_smooth))], canonizers)
