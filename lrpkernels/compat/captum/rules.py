"""captum's propagation rules, and what each means for a module here.

A rule says how a module's parameters are changed, and its stabiliser: with f' the module with changed parameters, R at its input a is
a * (df'/da)^T (R / (f'(a) + eps sgn f'(a))). Source: captum 0.9, ``captum.attr``.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...functional import Scaled, Stabilizer, ratio
from ...graph import Node
from ...layers import Block
from ...layers.activation import Activation, Relu
from ...layers.arithmetic import Add
from ...layers.batch_norm import BatchNorm
from ...layers.linear import LinearNode
from ...layers.pooling import AveragePool, MaxPool
from ...rules import EpsilonLayerwise, Gradient, Pass, Rule, views
from ...rules.base import SMALLEST
from ...rules.views import Layer

DEFAULT_EPS = 1e-9  # captum's stabiliser
_SMALL = 1e-6  # a stabiliser that may be left out
_STABILISED = (LinearNode, Activation, Relu, Add, AveragePool, MaxPool)
_HOOKS = (
    "forward_hook", "backward_hook_activation", "forward_hook_weights", "forward_pre_hook_activations",
    "_create_backward_hook_input", "_create_backward_hook_output",
)  # fmt: skip


class PropagationRule(ABC):
    """Base of captum's rules, for rules of your own: override :meth:`_manipulate_weights`.

    Attributes:
        STABILITY_FACTOR: eps of the denominators.
    """

    STABILITY_FACTOR = DEFAULT_EPS

    @abstractmethod
    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Change ``module.weight`` and ``module.bias`` to those that relevance is to follow.

        Args:
            module: a copy of the module; the model itself is never changed.
            inputs, outputs: what it read (a tuple) and returned.
        """

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({options})"


class EpsilonRule(PropagationRule):
    """The epsilon rule, captum's default for layers with weights, pooling and its addition module.

    Args:
        epsilon: stabiliser, > 0.
    """

    def __init__(self, epsilon: float = DEFAULT_EPS) -> None:
        self.STABILITY_FACTOR = epsilon

    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        pass


class GammaRule(PropagationRule):
    """W + gamma W+ in place of W, whatever the sign of the input.

    Args:
        gamma: weight of the positive part.
        set_bias_to_zero: the bias takes no relevance.
    """

    def __init__(self, gamma: float = 0.25, set_bias_to_zero: bool = False) -> None:
        self.gamma, self.set_bias_to_zero = gamma, set_bias_to_zero

    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        _change(module, lambda w: w + self.gamma * w.clamp(min=0), self.set_bias_to_zero)


class Alpha1_Beta0_Rule(PropagationRule):
    """W+ in place of W, whatever the sign of the input.

    Args:
        set_bias_to_zero: the bias takes no relevance.
    """

    def __init__(self, set_bias_to_zero: bool = False) -> None:
        self.set_bias_to_zero = set_bias_to_zero

    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        _change(module, lambda w: w.clamp(min=0), self.set_bias_to_zero)


class IdentityRule(EpsilonRule):
    """Relevance unchanged, for modules whose output has the shape of their input."""


def _change(module: nn.Module, part: Callable[[Tensor], Tensor], without_bias: bool) -> None:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(weight, Tensor):
        weight.data = part(weight.data)
    if without_bias and isinstance(bias, Tensor):
        bias.data = torch.zeros_like(bias.data)


# -- what they mean here ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ByDefault(EpsilonLayerwise):
    """The epsilon rule; activations hand relevance on unchanged, as if they had no stabiliser at all.

    Attributes:
        owner: the module's name: rules of two modules differ, so that neither merges with the other.
    """

    eps: Stabilizer = DEFAULT_EPS
    owner: str = ""
    reads = EpsilonLayerwise.reads

    def activation(self, layer: views.Activation, g: Tensor) -> Tensor:
        return ratio(g, layer.value, layer.a, epsilon=SMALLEST)


@dataclass(frozen=True)
class Changed(ByDefault):
    """R_j = a_j sum_k v_jk R_k / (d_k + eps sgn d_k), d = V a + b': V and b' are W and b as the rule changes them.

    Attributes:
        weight: V of W.
        shift: b' of b.
    """

    weight: Callable[[Tensor], Tensor] = torch.clone
    shift: Callable[[Tensor], Tensor] = torch.clone

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        norm = layer.linear if isinstance(layer, Block) else None
        if isinstance(norm, BatchNorm):  # whose weight and bias are those of (x - mean) / deviation
            d = layer.apply(layer.a - norm.per_output(norm.mean).to(layer.a), self.weight)
            bias = None if norm.beta is None else norm.per_output(self.shift(norm.beta)).to(d)
        else:
            d, bias = layer.apply(layer.a, self.weight), layer.bias(self.shift)
        d = d if bias is None else d + bias
        return layer.pull(g.over(layer.value, d, self.eps), self.weight)


@dataclass(frozen=True)
class AsOneFunction(ByDefault):
    """The exact gradient of an operation, with its output stabilised: any module with captum's epsilon rule."""

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        return EpsilonLayerwise.linear(self, layer, g)

    def relu(self, layer: Any, g: Tensor) -> Tensor:
        return self._gradient(layer, g)[0]

    activation = average_pool = max_pool = softmax = norm = relu

    def add(self, layer: Any, g: Tensor) -> tuple[Tensor, ...]:
        return self._gradient(layer, g)

    product = matmul = attention = add

    def _gradient(self, layer: Any, g: Tensor) -> Any:
        return layer.gradient((self._normalized(g, layer.value),), Gradient())


@dataclass(frozen=True)
class Identity(Pass):
    """R unchanged through a module.

    Attributes:
        owner: its name.
    """

    owner: str = ""
    reads = Pass.reads


def is_rule(rule: object) -> bool:
    """Whether this is captum's rule object, one of ours of its kind, or a rule of lrpkernels."""
    return isinstance(rule, (PropagationRule, Rule)) or _kind(rule) is not None


def _kind(rule: object) -> str | None:
    """The name of captum's class, or ours, that this object is of, the nearest first."""
    for cls in type(rule).__mro__:
        if _is_known(cls):
            return cls.__name__
    return None


def _is_known(cls: type) -> bool:
    names = ("PropagationRule", "EpsilonRule", "GammaRule", "Alpha1_Beta0_Rule", "IdentityRule")
    return cls.__name__ in names and cls.__module__ in (__name__, "captum.attr._utils.lrp_rules")


def for_weights(rule: Any, name: str, module: nn.Module, inputs: Any, outputs: Any) -> Rule:
    """The rule of a module that is one layer with weights: convolution, dense layer or batch norm.

    Args:
        rule: captum's or ours.
        name, module: that has it.
        inputs, outputs: what the module read (a tuple) and returned.

    Raises:
        TypeError: a rule that changes how relevance is carried in a way that is not known here, or weights that it cannot.
    """
    kind, eps = _checked(rule, name), _eps(rule, name)
    if kind == "IdentityRule":
        return Identity(owner=name)
    if not _has_own(rule, "_manipulate_weights"):
        if kind == "EpsilonRule":
            return ByDefault(eps, owner=name)
        without_bias = bool(rule.set_bias_to_zero)
        shift = torch.zeros_like if without_bias else torch.clone
        if kind == "Alpha1_Beta0_Rule":
            return Changed(eps, owner=name, weight=torch.relu, shift=shift)
        gamma = float(rule.gamma)
        return Changed(eps, owner=name, weight=lambda w: w + gamma * w.clamp(min=0), shift=shift)
    if parametrize.is_parametrized(module):
        raise TypeError(
            f"module.rule: {type(rule).__name__} of {name!r} ({type(module).__name__}) writes to weights that a parametrization makes; "
            "torch.nn.utils.parametrize.remove_parametrizations leaves plain ones"
        )
    changed = copy.deepcopy(module)
    with torch.no_grad():
        rule._manipulate_weights(changed, inputs, outputs)
    weight: Any = changed.weight
    bias: Any = changed.bias
    if isinstance(changed, nn.modules.batchnorm._BatchNorm):
        assert isinstance(changed.running_var, Tensor)
        weight = weight * torch.rsqrt(changed.running_var + changed.eps)
    return Changed(
        eps,
        owner=name,
        weight=lambda w: weight.detach().to(w),
        shift=lambda b: b if bias is None else bias.detach().to(b),
    )


def for_function(rule: Any, name: str, module: nn.Module, node: Node | None) -> Rule:
    """The rule of the operation that makes the output of any other module.

    Args:
        rule: captum's or ours.
        name, module: that has it.
        node: the operation.

    Raises:
        TypeError: as :func:`for_weights`; a rule that changes the module's weights; a large stabiliser where there is no place for one.
    """
    own = _has_own(rule, "_manipulate_weights")
    if _checked(rule, name) != "EpsilonRule" or own:
        changed = next(module.parameters(), None) if own else getattr(module, "weight", None)
        if isinstance(changed, Tensor):
            raise TypeError(
                f"module.rule: {type(rule).__name__} of {name!r} ({type(module).__name__}) changes weights, which is defined for "
                "convolutions, dense layers and batch norms; give this module EpsilonRule(), or none"
            )
    eps = _eps(rule, name)
    takes_eps = isinstance(node, _STABILISED) or (node is not None and node.family is not None)
    if eps > _SMALL and not (takes_eps and (not isinstance(node, Activation) or len(node.inputs) == 1)):
        raise TypeError(
            f"module.rule: {type(rule).__name__} of {name!r} ({type(module).__name__}) has a stabiliser of {eps:g}, and this module ends "
            f"in an operation that takes none above {_SMALL:g}; leave epsilon out"
        )
    return AsOneFunction(eps, owner=name)


def is_identity(rule: Any) -> bool:
    """Whether this is captum's identity rule, or ours."""
    return _kind(rule) == "IdentityRule"


def identity_of(node: Node | None, name: str, module: nn.Module) -> Rule:
    """The identity rule of a module without weights.

    Args:
        node: the operation that it runs; None: several.
        name, module: that has the rule.

    Raises:
        TypeError: it is not known what this means for the module.
    """
    if isinstance(node, (Activation, Relu)):
        return ByDefault(owner=name)
    if node is not None and node.family == "norm":
        return Identity(owner=name)
    raise TypeError(
        f"module.rule: IdentityRule of {name!r} ({type(module).__name__}) is defined for convolutions, dense layers, norms and activations "
        "that keep their input's shape; give this module EpsilonRule(), or none"
    )


def _checked(rule: Any, name: str) -> str:
    hooks = [hook for hook in _HOOKS if _has_own(rule, hook)]
    if hooks:
        raise TypeError(
            f"module.rule: {type(rule).__name__} of {name!r} overrides {hooks[0]}, which works inside captum only; override "
            "_manipulate_weights, or write a rule of lrpkernels (docs/rules.md, 'A rule of your own') and assign that"
        )
    kind = _kind(rule)
    assert kind is not None
    return kind


def _eps(rule: Any, name: str) -> float:
    eps = rule.STABILITY_FACTOR
    if not isinstance(eps, (int, float)) or not 0 <= eps < math.inf:
        raise ValueError(
            f"module.rule: epsilon of {type(rule).__name__} of {name!r} must be a finite number >= 0, got {eps!r}"
        )
    return float(eps)


def _has_own(rule: Any, method: str) -> bool:
    """Whether a class of the user's defines this method."""
    return any(method in vars(cls) and not _is_known(cls) for cls in type(rule).__mro__ if cls is not object)
