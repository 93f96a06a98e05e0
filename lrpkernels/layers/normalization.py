"""Batch normalization: an affine map per channel, y = k * x + c, whose statistics LRP treats as constants."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..checkpoint import without_saving
from .base import bind, records
from .linear_maps import LinearMap

if TYPE_CHECKING:
    from ..rules.base import Favour
    from ..tape import Tape, Value


class Variance(NamedTuple):
    """Running statistics that a batch norm in evaluation mode divides by the root of."""

    variance: Tensor
    eps: float


class BatchNorm(LinearMap):
    """y = k * x + c, k = gamma / sqrt(var + eps), c = beta - k * mean; alone (as here) or merged into the convolution ahead of it.

    In training mode mean and variance are those of the batch, as the forward pass computed them; gradients reach gamma and beta,
    never the statistics (docs/method.md section 1).
    """

    kind = "batch_norm"
    module_type = nn.modules.batchnorm._BatchNorm

    def __init__(
        self, input: Value, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, spread: Tensor | Variance
    ) -> None:
        super().__init__(input)
        self.gamma, self.beta = gamma, beta
        self.mean, self.spread = mean, spread

    def can_repeat(self, func: Any, args: Any, kwargs: Any) -> bool:
        return func is F.batch_norm

    def repeat(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        out, self.mean, self.spread = _normalized(*_batch_norm_arguments(*args, **kwargs))
        return out

    @property
    def channels(self) -> int:
        return self.mean.shape[0]

    def scale(self) -> Tensor:
        """k, (C,), float32 or float64."""
        if isinstance(self.spread, Variance):
            if not torch.is_grad_enabled():
                return functional.batch_norm_scale(self.spread.variance, self.gamma, self.spread.eps)
            with torch.no_grad():
                self.spread = functional.batch_norm_scale(self.spread.variance, None, self.spread.eps)
        return self.spread if self.gamma is None else _wide(self.gamma) * self.spread

    def shift(self, detach: bool = True) -> Tensor:
        """c, (C,); ``detach`` cuts beta off from gradients, k stays live."""
        shift = -self.scale() * _wide(self.mean)
        if self.beta is None:
            return shift
        return shift + (self.beta.detach() if detach else self.beta)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.scale()

    @property
    def bias(self) -> Tensor:  # type: ignore[override]
        return self.shift(detach=False)

    def epsilon(
        self,
        multiplier: Tensor,
        addend: Tensor | None,
        output: Tensor | None,
        scale: Tensor | None,
        epsilon: float,
    ) -> Tensor:
        k = self.scale() if scale is None else self.scale() * scale
        return functional.epsilon_scale(multiplier, output, k, addend=addend, epsilon=epsilon)

    def _broadcast(self, vector: Tensor) -> Tensor:
        return vector.view(-1, *(1,) * (len(self.output.shape) - 2))

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = input * self._broadcast(weight)
        return out if bias is None else out + self._broadcast(bias)

    def transpose(self, s: Tensor, weight: Tensor) -> Tensor:
        return s * self._broadcast(weight)

    def has_fused_rule(self, g: Tensor) -> bool:
        return functional.has_affine_kernels(g)

    def fused_rule(
        self, g: Tensor, value: Tensor, input: Tensor, bias: Tensor | None, epsilon: float, favour: Favour
    ) -> Tensor:
        slope = self.scale()
        shift = None if bias is None else bias.to(slope.dtype)
        if favour.sign < 0:  # of -z, whose positive contributions are z's negative ones
            slope, shift = -slope, None if shift is None else -shift
        return functional.affine(
            g, value, input, slope, shift, whole=favour.whole, positive=favour.positive, epsilon=epsilon
        )

    def per_channel(self, vector: Tensor) -> Tensor:
        return vector


def can_merge(map: LinearMap, norm: BatchNorm) -> bool:
    """A batch norm can be merged if its channels are the map's (a Linear on a sequence puts them last)."""
    channel_last_linear = map.kind == "linear" and len(map.output.shape) > 2
    return not channel_last_linear and torch.Size(norm.mean.shape) == (map.channels,)


def _wide(tensor: Tensor) -> Tensor:
    """Statistics are computed with in float32 or better."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _batch_norm_arguments(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Any:
    return input, running_mean, running_var, weight, bias, training, momentum, eps


@records(F.batch_norm)
def _batch_norm(tape: Tape, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, mean, var, gamma, beta, training, momentum, eps = _batch_norm_arguments(*args, **kwargs)
    value = tape.value(x)
    if value is None:
        from .linear_maps import _unrecorded

        return _unrecorded(tape, func, args, kwargs)
    if (training and x.numel() // x.shape[1] <= 1) or (not training and (mean is None or var is None)):
        return func(x, mean, var, gamma, beta, training, momentum, eps)  # raises PyTorch's own error
    with _NOTHING if value.recipe is None else without_saving(x, value.recipe):
        out, mean, spread = _normalized(x, mean, var, gamma, beta, training, momentum, eps)
    tape.add(BatchNorm(value, gamma, beta, mean, spread), out)
    return out


_NOTHING = nullcontext()


def _normalized(
    x: Tensor, mean: Any, var: Any, gamma: Any, beta: Any, training: bool, momentum: Any, eps: float
) -> tuple[Tensor, Tensor, Tensor | Variance]:
    """What F.batch_norm returns, and what it used: the mean, and the inverse deviation or the variance that it comes from."""
    cudnn = torch._C._get_cudnn_enabled()
    if training:
        # What F.batch_norm calls; it also hands out the statistics, which spares a second pass over the input.
        out, mean, inverse_deviation, _, _ = torch._batch_norm_impl_index(
            x, gamma, beta, mean, var, True, momentum, eps, cudnn
        )
        return out, mean.detach(), _wide(inverse_deviation.detach())
    out = torch.batch_norm(x, gamma, beta, mean, var, False, momentum, eps, cudnn)
    return out, _constant(mean), Variance(_constant(var), eps)


def _constant(statistics: Tensor) -> Tensor:
    return statistics.detach() if statistics.requires_grad else statistics


# What nn.SyncBatchNorm calls in training in several processes, inside a custom autograd function that brings its own backward.


@records(torch.batch_norm_stats, torch.batch_norm_gather_stats_with_counts)
def _statistics(tape: Tape, func: Any, args: Any, kwargs: Any) -> Any:
    with torch.no_grad():
        return func(*args, **kwargs)


@records(torch.batch_norm_elemt)
def _synchronised_batch_norm(tape: Tape, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, gamma, beta, mean, inverse_deviation, _ = bind(args, kwargs, "input", "weight", "bias", "mean", "invstd", "eps")
    value = tape.value(x)
    with torch.no_grad():
        out = func(*args, **kwargs)
    if value is not None:
        tape.add(BatchNorm(value, gamma, beta, mean, _wide(inverse_deviation)), out)
    return out
