"""Elementwise relevance operations: how s is made from a multiplier."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._extension import ops
from .autograd import call, first_order
from .layout import check_forward_value, check_like_multiplier, empty_like, memory_format, times
from .stabilizer import Stabilizer, check_epsilons, stabilizer


class _EpsilonScale(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        multiplier: Tensor,
        addend: Tensor | None,
        output: Tensor | None,
        scale: Tensor | None,
        epsilon: Stabilizer,
    ) -> Tensor:
        ctx.save_for_backward(multiplier, addend, output, scale)
        ctx.epsilon = epsilon
        return Scaled(multiplier, addend, output, scale, eps=epsilon).scaled()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        multiplier, addend, output, scale = ctx.saved_tensors
        scaled = Scaled(multiplier, addend, output, scale, eps=ctx.epsilon)
        return *scaled.gradients(grad, ctx.needs_input_grad)[:4], None


def epsilon_scale(
    multiplier: Tensor,
    output: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    addend: Tensor | None = None,
    epsilon: Stabilizer = 1e-2,
) -> Tensor:
    r"""The elementwise part of the epsilon rule through [batch norm ->] ReLU, in one pass.

    s = (G + G2) * m(u) * k_c,  m(u) = u / (u + epsilon) for u > 0, 0 for u <= 0; epsilon = 0 is ReLU's own derivative.

    Args:
        multiplier: G at the ReLU's output, (T*B, C, ...), T targets of one batch, target-major; any floating dtype.
        output: u, the ReLU's output, (B, C, ...), dtype of multiplier; None: no ReLU, m = 1.
        scale: k_c, the batch norm's factor per channel, (C,), float32 (float64 for float64 tensors); None: 1.
        addend: G2, a second contribution to the multiplier, its shape and dtype.
        epsilon: stabilizer, >= 0, in units of u; a tensor (B,): one for each image, a constant.

    Returns:
        s, shape, dtype and memory format of multiplier.

    Gradients: multiplier, addend, output, scale; first order only.
    Deterministic: yes.

    Raises:
        RuntimeError: a shape, dtype or device does not fit (the text names the argument and both values).

    Source: LRP-Flex of Bassi, Decherchi, Cavalli, "Faster ISNet", arXiv 2401.08409; docs/method.md section 1.
    """
    return call(_EpsilonScale, multiplier, addend, output, scale, epsilon)


class _Ratio(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, multiplier: Tensor, value: Tensor, denominator: Tensor, epsilon: Stabilizer) -> Tensor:
        ctx.save_for_backward(multiplier, value, denominator)
        ctx.epsilon, ctx.epsilons = stabilizer(epsilon, denominator)
        return ops.ratio(multiplier, value, denominator, ctx.epsilon, ctx.epsilons)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        grads = ops.ratio_backward(grad, *ctx.saved_tensors, ctx.epsilon, ctx.epsilons)
        return (*(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False)), None)


def ratio(multiplier: Tensor, value: Tensor, denominator: Tensor, *, epsilon: Stabilizer = 1e-2) -> Tensor:
    r"""Relevance over a stabilized denominator, s = G * v / (d + epsilon * sgn d), sgn 0 = +1.

    Args:
        multiplier: G at a layer's output, (T*B, C, ...), T targets of one batch, target-major; any floating dtype.
        value: v, the layer's output, (B, C, ...), so that G * v is its relevance.
        denominator: d, (B, C, ...): the layer's preactivation (epsilon rule) or its positive part (z+ rule).
        epsilon: stabilizer, >= 0, in units of d; a tensor (B,): one for each image, a constant.

    Returns:
        s, shape and dtype of multiplier.

    Gradients: multiplier, value, denominator; first order only. Not differentiable where d = 0.
    Deterministic: yes.

    Raises:
        RuntimeError: a shape, dtype or device does not fit.

    Source: Bach et al. 2015, the epsilon rule; docs/method.md section 1.
    """
    return call(_Ratio, multiplier, value, denominator, epsilon)


def over_value(relevance: Tensor, value: Tensor) -> Tensor:
    """The multiplier G with R = G v; 0 where v is 0.

    Args:
        relevance: R, (T*B, ...), T targets of one batch, target-major.
        value: v, (B, ...).
    """
    zero = value == 0
    return times(relevance, torch.where(zero, 0.0, torch.where(zero, 1.0, value).reciprocal()))


class Scaled(NamedTuple):
    """How s is made from the multiplier at a layer's output, so that kernels can make it as they load it.

    s = (G + G2) * m(u) * k_c * v / (d + eps sgn d), m as in :func:`epsilon_scale`; what is None drops out. ``eps`` belongs to m, or to d
    where there is one.

    Behind a rule that yields relevance (:func:`Scaled.of_relevance`) R itself takes the place of G v, so that relevance where v is 0
    is carried on as well.

    Attributes:
        multiplier, addend: G and G2, (T*B, C, ...), T targets of one batch, target-major; or R.
        output: u, (B, C, ...).
        scale: k, (C,), float32 or float64.
        value, denominator: v and d, (B, C, ...).
        eps: stabilizer, >= 0; a tensor (B,): one for each image.
        carrier: where ``multiplier`` is R: the layer's output z, (B, C, ...), which G would be R over.
    """

    multiplier: Tensor
    addend: Tensor | None = None
    output: Tensor | None = None
    scale: Tensor | None = None
    value: Tensor | None = None
    denominator: Tensor | None = None
    eps: Stabilizer = 0.0
    carrier: Tensor | None = None

    @staticmethod
    def of_relevance(relevance: Tensor, carrier: Tensor) -> Scaled:
        """R itself, (T*B, C, ...), at a layer whose output is ``carrier``."""
        return Scaled(relevance, carrier=carrier)

    def total(self) -> Tensor:
        """G + G2."""
        if self.carrier is not None:
            return over_value(self.multiplier, self.carrier)
        return self.multiplier if self.addend is None else self.multiplier + self.addend

    def joined(self) -> Scaled:
        """The same with G + G2 in one tensor, for rules that read it several times."""
        return self if self.addend is None else Scaled(self.total())

    def relevance(self, value: Tensor) -> Tensor:
        """R = (G + G2) v, v the layer's output."""
        return self.multiplier if self.carrier is not None else times(self.total(), value)

    def carried(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Two tensors whose product is R: G + G2 and v, or R and ones."""
        if self.carrier is not None:
            return self.multiplier, torch.ones_like(self.carrier)
        return self.total(), value

    def by_sign(self, value: Tensor) -> tuple[tuple[Scaled, Tensor], tuple[Scaled, Tensor]]:
        """What is carried where v > 0 and where v < 0, each with the v that :meth:`over` takes."""
        if self.carrier is None:
            return (self, value.clamp(min=0)), (self, value.clamp(max=0))
        up = times(self.multiplier, (value >= 0).to(value.dtype))
        return (self._replace(multiplier=up), value), (self._replace(multiplier=self.multiplier - up), value)

    def at_relu(self, output: Tensor | None, eps: Stabilizer) -> Scaled:
        """(G + G2) m(u), u the ReLU's output (None: there is no ReLU, m = 1); of R itself R / (z + eps sgn z)."""
        if self.carrier is not None:
            stabilized = isinstance(eps, Tensor) or eps
            return self.over(self.carrier, self.carrier, eps) if stabilized else Scaled(self.total())
        return Scaled(self.multiplier, self.addend, output, None, None, None, eps)

    def over(self, value: Tensor, denominator: Tensor, eps: Stabilizer) -> Scaled:
        """s as it is so far, times v / (d + eps sgn d), v the layer's output."""
        if self.carrier is None and not (self.output is None and self.scale is None and self.denominator is None):
            return Scaled(self.tensor(), value=value, denominator=denominator, eps=eps)
        multiplier, value = self.carried(value)
        return Scaled(multiplier, value=value, denominator=denominator, eps=eps)

    @property
    def is_plain(self) -> bool:
        """Whether s is the multiplier itself."""
        return self.addend is None and self.output is None and self.scale is None and self.denominator is None

    @property
    def batch(self) -> int:
        """Images of the forward values; 0 if there are none."""
        return next((f.shape[0] for f in (self.output, self.value) if f is not None), 0)

    def tensor(self) -> Tensor:
        """s, differentiable."""
        if self.is_plain:
            return self.multiplier
        if self.denominator is None:
            options: dict[str, Any] = {"addend": self.addend, "epsilon": self.eps}
            return epsilon_scale(self.multiplier, self.output, self.scale, **options)
        assert self.value is not None and self.scale is None
        return ratio(self.total(), self.value, self.denominator, epsilon=self.eps)

    def made(self) -> Tensor:
        """s, for use inside of autograd functions."""
        if self.is_plain:
            return self.multiplier
        if self.denominator is None:
            return self.scaled()
        epsilon, epsilons = stabilizer(self.eps, self.denominator)
        return ops.ratio(self.multiplier, self.value, self.denominator, epsilon, epsilons)

    def with_one_eps(self) -> Scaled:
        """The same for convolution kernels, which take one stabilizer: with one for each image s is made ahead of them."""
        return Scaled(self.made()) if isinstance(self.eps, Tensor) else self

    def scaled(self) -> Tensor:
        """(G + G2) m(u) k, for use inside of autograd functions."""
        epsilon, epsilons = self._at_output()
        return ops.epsilon_scale(self.multiplier, self.addend, self.output, self.scale, epsilon, epsilons)

    def _at_output(self) -> tuple[float, Tensor | None]:
        """The stabilizer of m(u); without a ReLU there is none."""
        return (0.0, None) if self.output is None else stabilizer(self.eps, self.output)

    def gradients(self, grad: Tensor, need: Any) -> tuple[Tensor | None, ...]:
        """Gradients of the six tensors, given that of s; ``need`` says which are wanted."""
        if self.denominator is not None:
            eps, each = stabilizer(self.eps, self.denominator)
            g, v, d = ops.ratio_backward(grad, self.multiplier, self.value, self.denominator, eps, each)
            return g if need[0] else None, None, None, None, v if need[4] else None, d if need[5] else None
        if self.is_plain:
            return grad if need[0] else None, None, None, None, None, None
        eps, each = self._at_output()
        g, u, k = ops.epsilon_scale_backward(
            grad, self.multiplier, self.addend, self.output, self.scale, eps, need[3], each
        )
        first, second, output, scale = need[:4]
        return g if first else None, g if second else None, u if output else None, k if scale else None, None, None


# -- shape functions ----------------------------------------------------------------------------------------------------------------


def check_epsilon_scale(
    op: str, multiplier: Tensor, addend: Tensor | None, output: Tensor | None, scale: Tensor | None
) -> None:
    """Raise RuntimeError unless these factors fit the multiplier."""
    if addend is not None:
        check_like_multiplier(op, "addend", addend, multiplier)
    if output is not None:
        check_forward_value(op, "output", output, multiplier)
    if scale is not None:
        torch._check(
            scale.dim() == 1 and multiplier.dim() >= 2 and scale.shape[0] == multiplier.shape[1],
            lambda: f"{op}: scale must have shape [C] = [{multiplier.shape[1]}], got {list(scale.shape)}",
        )


@torch.library.register_fake("lrpkernels::epsilon_scale")
def _epsilon_scale(
    multiplier: Tensor,
    addend: Tensor | None,
    output: Tensor | None,
    scale: Tensor | None,
    epsilon: float,
    epsilons: Tensor | None = None,
) -> Tensor:
    check_epsilon_scale("epsilon_scale", multiplier, addend, output, scale)
    check_epsilons("epsilon_scale", epsilons, multiplier if output is None else output)
    return empty_like(multiplier, multiplier if output is None else output)


@torch.library.register_fake("lrpkernels::epsilon_scale_backward")
def _epsilon_scale_backward(
    grad: Tensor,
    multiplier: Tensor,
    addend: Tensor | None,
    output: Tensor | None,
    scale: Tensor | None,
    epsilon: float,
    need_scale: bool,
    epsilons: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    op = "epsilon_scale_backward"
    check_like_multiplier(op, "grad", grad, multiplier)
    check_epsilon_scale(op, multiplier, addend, output, scale)
    check_epsilons(op, epsilons, multiplier if output is None else output)
    format = memory_format(multiplier if output is None else output)
    grad_output = multiplier.new_empty(0) if output is None else torch.empty_like(output, memory_format=format)
    grad_scale = torch.empty_like(scale) if need_scale and scale is not None else multiplier.new_empty(0)
    return torch.empty_like(multiplier, memory_format=format), grad_output, grad_scale


def _check_ratio(
    op: str, multiplier: Tensor, value: Tensor, denominator: Tensor, epsilons: Tensor | None = None
) -> None:
    check_epsilons(op, epsilons, denominator)
    check_forward_value(op, "value", value, multiplier)
    torch._check(
        denominator.shape == value.shape,
        lambda: f"{op}: denominator must have the shape of value {list(value.shape)}, got {list(denominator.shape)}",
    )


@torch.library.register_fake("lrpkernels::ratio")
def _ratio(
    multiplier: Tensor, value: Tensor, denominator: Tensor, epsilon: float, epsilons: Tensor | None = None
) -> Tensor:
    _check_ratio("ratio", multiplier, value, denominator, epsilons)
    return empty_like(multiplier, denominator)


@torch.library.register_fake("lrpkernels::ratio_backward")
def _ratio_backward(
    grad: Tensor,
    multiplier: Tensor,
    value: Tensor,
    denominator: Tensor,
    epsilon: float,
    epsilons: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    check_like_multiplier("ratio_backward", "grad", grad, multiplier)
    _check_ratio("ratio_backward", multiplier, value, denominator, epsilons)
    return tuple(empty_like(tensor, denominator) for tensor in (multiplier, value, denominator))  # type: ignore[return-value]
