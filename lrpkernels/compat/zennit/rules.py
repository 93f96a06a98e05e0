"""zennit's rules by their names and arguments.

``rule.register(module)`` makes one module follow a rule; composites, which explain whole models, carry the same rules out by this engine
(:mod:`.convert`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .hooks import BasicHook, Hook, Names, ParamMod, Stabilize, Stabilizer, expand

StabilizerLike = float | Stabilize


def zero_bias(zero_params: Names = None) -> list[str]:
    """The names of ``zero_params`` as a list that holds "bias"."""
    names = [zero_params] if isinstance(zero_params, str) else list(zero_params or ())
    return names if "bias" in names else [*names, "bias"]


class NoMod(ParamMod):
    """Parameters as they are, but for those that ``zero_params`` names."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(lambda parameter, name: parameter, **kwargs)


class ClampMod(ParamMod):
    """Parameters clamped to [min, max]."""

    def __init__(self, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:
        super().__init__(lambda parameter, name: parameter.clamp(min=min, max=max), **kwargs)


class GammaMod(ParamMod):
    """Parameters plus gamma times their clamped values."""

    def __init__(self, gamma: float = 0.25, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:
        super().__init__(lambda parameter, name: parameter + gamma * parameter.clamp(min=min, max=max), **kwargs)


def _same(x: Tensor) -> Tensor:
    return x


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def _negative(x: Tensor) -> Tensor:
    return x.clamp(max=0)


def _products(inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    total = inputs[0] * gradients[0]
    for x, g in zip(inputs[1:], gradients[1:], strict=True):
        total = total + x * g
    return total


class _Stabilized(BasicHook):
    """A rule whose denominators are stabilized.

    Attributes:
        stabilizer: as it was given, a number or a callable.
        zero_params: likewise.
    """

    def _keep(self, stabilizer: StabilizerLike, zero_params: Names = None) -> Stabilize:
        self.stabilizer, self.zero_params = stabilizer, zero_params
        return Stabilizer.ensure(stabilizer)


class Epsilon(_Stabilized):
    """Shares in proportion to a_j w_jk, over z_k + epsilon sgn z_k: :class:`lrpkernels.EpsilonLayerwise`.

    Args:
        epsilon: stabilizer, or a callable from the denominator to the stabilized one.
        zero_params: parameters taken as zero ("bias": it absorbs no relevance).
    """

    def __init__(self, epsilon: StabilizerLike = 1e-6, zero_params: Names = None) -> None:
        stable = self._keep(epsilon, zero_params)
        super().__init__(
            [_same], [NoMod(zero_params=zero_params)], [_same], lambda r, outputs: [r / stable(outputs[0])], _products
        )


class Norm(_Stabilized):
    """As :class:`Epsilon`, for layers without parameters: :class:`lrpkernels.Norm`."""

    def __init__(self, stabilizer: StabilizerLike = 1e-6) -> None:
        stable = self._keep(stabilizer)
        super().__init__(
            [_same], [NoMod(param_keys=[])], [_same], lambda r, outputs: [r / stable(outputs[0])], _products
        )


class ZPlus(_Stabilized):
    """Positive contributions only: :class:`lrpkernels.ZPlus`."""

    def __init__(self, stabilizer: StabilizerLike = 1e-6, zero_params: Names = None) -> None:
        stable = self._keep(stabilizer, zero_params)
        changes = [ClampMod(min=0.0, zero_params=zero_params), ClampMod(max=0.0, zero_params=zero_bias(zero_params))]
        super().__init__(
            [_positive, _negative],
            changes,
            None,
            lambda r, outputs: [r / stable(outputs[0] + outputs[1])] * 2,
            _products,
        )


class AlphaBeta(_Stabilized):
    """alpha times the positive, minus beta times the negative contributions' shares: :class:`lrpkernels.AlphaBeta`.

    Raises:
        ValueError: a negative number, or alpha - beta is not 1.
    """

    def __init__(
        self, alpha: float = 2.0, beta: float = 1.0, stabilizer: StabilizerLike = 1e-6, zero_params: Names = None
    ) -> None:
        if alpha < 0 or beta < 0 or alpha - beta != 1:
            raise ValueError(f"alpha and beta must be >= 0 and differ by 1, got alpha={alpha!r}, beta={beta!r}")
        self.alpha, self.beta = alpha, beta
        stable = self._keep(stabilizer, zero_params)
        none = zero_bias(zero_params)
        changes = [
            ClampMod(min=0.0, zero_params=zero_params),
            ClampMod(max=0.0, zero_params=none),
            ClampMod(max=0.0, zero_params=zero_params),
            ClampMod(min=0.0, zero_params=none),
        ]

        def share(r: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
            up, down = (r / stable(a + b) for a, b in (outputs[:2], outputs[2:]))
            return [up, up, down, down]

        def total(inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
            return alpha * _products(inputs[:2], gradients[:2]) - beta * _products(inputs[2:], gradients[2:])

        super().__init__([_positive, _negative] * 2, changes, None, share, total)


class Gamma(_Stabilized):
    """Contributions of the output's sign favoured by gamma: :class:`lrpkernels.Gamma`."""

    def __init__(self, gamma: float = 0.25, stabilizer: StabilizerLike = 1e-6, zero_params: Names = None) -> None:
        self.gamma = gamma
        stable = self._keep(stabilizer, zero_params)
        none = zero_bias(zero_params)
        changes: list[ParamMod] = [
            GammaMod(gamma, min=0.0, zero_params=zero_params),
            GammaMod(gamma, max=0.0, zero_params=none),
            GammaMod(gamma, max=0.0, zero_params=zero_params),
            GammaMod(gamma, min=0.0, zero_params=none),
            NoMod(),
        ]

        def share(r: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
            z = outputs[4]
            up = (z > 0) * r / stable(outputs[0] + outputs[1])
            down = (z < 0) * r / stable(outputs[2] + outputs[3])
            return [up, up, down, down, torch.zeros_like(r)]

        super().__init__([*[_positive, _negative] * 2, _same], changes, None, share, _products)


class ZBox(_Stabilized):
    """The box rule for pixels in [low, high]: :class:`lrpkernels.ZBox` without its bias.

    Args:
        low: smallest value, a number or a tensor that broadcasts to the input.
        high: largest value, likewise.
        stabilizer: of the denominator.
        zero_params: parameters taken as zero.
    """

    def __init__(
        self, low: float | Tensor, high: float | Tensor, stabilizer: StabilizerLike = 1e-6, zero_params: Names = None
    ) -> None:
        self.low, self.high = low, high
        stable = self._keep(stabilizer, zero_params)

        def bound(value: float | Tensor) -> Any:
            return lambda x: expand(value, x.shape, cut_batch_dim=True).to(x)

        changes = [NoMod(zero_params=zero_params)]
        changes += [ClampMod(min=0.0, zero_params=zero_params), ClampMod(max=0.0, zero_params=zero_params)]  # type: ignore[list-item]
        super().__init__(
            [_same, bound(low), bound(high)],
            changes,
            None,
            lambda r, outputs: [r / stable(outputs[0] - outputs[1] - outputs[2])] * 3,
            lambda inputs, g: inputs[0] * g[0] - inputs[1] * g[1] - inputs[2] * g[2],
        )


class WSquare(_Stabilized):
    """Shares in proportion to squared weights: :class:`lrpkernels.WSquare`."""

    def __init__(self, stabilizer: StabilizerLike = 1e-6, zero_params: Names = None) -> None:
        stable = self._keep(stabilizer, zero_params)
        change = ParamMod(lambda parameter, name: parameter.square(), zero_params=zero_params)
        super().__init__(
            [torch.ones_like], [change], None, lambda r, outputs: [r / stable(outputs[0])], lambda inputs, g: g[0]
        )


class Flat(_Stabilized):
    """The same share for every input that an output sees: :class:`lrpkernels.Flat`."""

    def __init__(self, stabilizer: StabilizerLike = 1e-6, zero_params: Names = None) -> None:
        stable = self._keep(stabilizer, zero_params)
        change = ParamMod(
            lambda parameter, name: torch.ones_like(parameter), zero_params=zero_bias(zero_params), require_params=False
        )
        super().__init__(
            [torch.ones_like], [change], None, lambda r, outputs: [r / stable(outputs[0])], lambda inputs, g: g[0]
        )


class Pass(Hook):
    """Relevance unchanged: :class:`lrpkernels.Pass`."""

    reads_gradient = False

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
        return grad_output


class ReLUDeconvNet(Hook):
    """max(G, 0) at a ReLU: :class:`lrpkernels.ReLUDeconvNet`."""

    reads_gradient = False

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
        return (grad_output[0].clamp(min=0),)


class ReLUGuidedBackprop(Hook):
    """The gradient where G > 0 at a ReLU: :class:`lrpkernels.ReLUGuidedBackprop`."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
        return (grad_input[0] * (grad_output[0] > 0),)


class ReLUBetaSmooth(Hook):
    """G sigmoid(beta z) at a ReLU of z: :class:`lrpkernels.ReLUBetaSmooth`.

    Args:
        beta_smooth: beta.
    """

    reads_gradient = False

    def __init__(self, beta_smooth: float = 10.0) -> None:
        super().__init__()
        self.beta_smooth = beta_smooth

    def forward(self, module: nn.Module, input: Any, output: Any) -> Any:
        self.stored_tensors["input"] = input

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
        z = self.stored_tensors["input"][0]
        return (torch.sigmoid(self.beta_smooth * z) * grad_output[0],)
