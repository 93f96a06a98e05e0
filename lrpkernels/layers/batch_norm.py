"""Batch normalization: an affine map per channel, y = k * x + c, whose statistics LRP treats as constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..functional import Part, Scaled, wide
from ..graph import Arrived, Multipliers, Recipe, Value
from ..rules import Rule
from .gradients import pull_back
from .linear import LinearNode
from .registry import Recorder, bind, records


class Variance(NamedTuple):
    """A running variance, by whose root a batch norm in evaluation mode divides."""

    variance: Tensor
    eps: float


class BatchNorm(LinearNode):
    """y = k * x + c, k = gamma / sqrt(var + eps), c = beta - k * mean; alone (as here) or merged into the convolution ahead of it.

    In training mode mean and variance are those of the batch, as the forward pass computed them; gradients reach gamma and beta,
    never the statistics (docs/method.md section 1), but for :meth:`gradient`.

    Attributes:
        batch_eps: the eps of batch statistics, which are made of the input; None: the statistics are constants.
        again: its input -> its output, for :meth:`recipe`.
    """

    kind = "batch_norm"
    again: Callable[[Tensor], Tensor] | None = None
    module_type = nn.modules.batchnorm._BatchNorm

    def __init__(
        self,
        input: Value,
        gamma: Tensor | None,
        beta: Tensor | None,
        mean: Tensor,
        spread: Tensor | Variance,
        batch_eps: float | None = None,
    ) -> None:
        super().__init__(input)
        self.batch_eps = batch_eps
        if batch_eps is not None:
            self.reads_inputs = frozenset({"input", "statistics"})
        self.gamma, self.beta = gamma, beta
        self.mean, self.spread = mean, spread

    def recipe(self) -> Recipe | None:
        """The norm of an input that is cheap to make again, as a concatenation is; a convolution would be computed a second time."""
        made, again = self.input.recipe, self.again
        if made is None or again is None or not made.is_cheap:
            return None
        return Recipe(lambda: again(made()), is_cheap=True)

    @property
    def channels(self) -> int:
        return self.mean.shape[0]

    def scale(self) -> Tensor:
        """k, (C,), float32 or float64."""
        if isinstance(self.spread, Variance):
            return functional.batch_norm_scale(self.spread.variance, self.gamma, self.spread.eps)
        return self.spread if self.gamma is None else wide(self.gamma) * self.spread

    def shift(self, detach: bool = True) -> Tensor:
        """c, (C,); ``detach`` cuts beta off from gradients, k stays live."""
        shift = -self.scale() * wide(self.mean)
        if self.beta is None:
            return shift
        return shift + (self.beta.detach() if detach else self.beta)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.scale()

    @property
    def bias(self) -> Tensor:  # type: ignore[override]
        return self.shift(detach=False)

    def part(self, part: Any, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        slope = self.scale() if scale is None else self.scale() * scale
        return part(slope)

    def apply(self, a: Tensor, weight: Tensor, bias: Tensor | None, known: Tensor | None = None) -> Tensor:
        out = a * functional.per_channel(weight, a.dim()).to(a.dtype)
        return out if bias is None else out + functional.per_channel(bias, a.dim())

    def pull(self, s: Scaled, weight: Tensor) -> Tensor:
        if s.denominator is not None:
            s = Scaled(s.tensor())
        return s._replace(scale=weight if s.scale is None else weight * s.scale).tensor()

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        """Through batch statistics as autograd goes; the images of a batch are then coupled."""
        eps, gamma = self.batch_eps, self.gamma
        assert eps is not None
        return pull_back(lambda x: F.batch_norm(x, None, None, gamma, None, True, 0.0, eps), (self.a,), multipliers[0])

    def share(self, g: Tensor, value: Tensor, a: Tensor, bias: Tensor | None, part: Part, eps: float) -> Tensor:
        """A rule with the weights V in one pass: see :func:`lrpkernels.functional.affine`, which takes b whole."""
        slope = self.scale()
        shift = None if bias is None else bias.to(slope.dtype)
        if part.sign < 0:  # of -z, whose positive contributions are z's negative ones
            slope, shift = -slope, None if shift is None else -shift
        return functional.affine(g, value, a, slope, shift, whole=part.whole, positive=part.positive, epsilon=eps)


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
def _batch_norm(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, mean, var, gamma, beta, training, momentum, eps = _batch_norm_arguments(*args, **kwargs)
    value = rec.value(x)
    if value is None:
        return rec.unknown(func, args, kwargs)
    if (training and x.numel() // x.shape[1] <= 1) or (not training and (mean is None or var is None)):
        return func(x, mean, var, gamma, beta, training, momentum, eps)  # raises PyTorch's own error
    with rec.unsaved(value):
        out, mean, spread = _normalized(x, mean, var, gamma, beta, training, momentum, eps)
    node = BatchNorm(value, gamma, beta, mean, spread, eps if training else None)
    if rec.recomputes:
        node.again = _again(gamma, beta, mean, spread, training, eps)
    rec.add(node, out)
    return out


def _again(
    gamma: Any, beta: Any, mean: Tensor, spread: Tensor | Variance, training: bool, eps: float
) -> Callable[[Tensor], Tensor]:
    """The same call on the same numbers; statistics of a batch are taken again, those that run stay where they are."""
    gamma, beta = (None if t is None else t.detach() for t in (gamma, beta))
    mean_or_none, variance = (mean, spread.variance) if isinstance(spread, Variance) else (None, None)
    cudnn = torch._C._get_cudnn_enabled()
    return lambda x: torch.batch_norm(x, gamma, beta, mean_or_none, variance, training, 0.0, eps, cudnn)


def _normalized(
    x: Tensor, mean: Any, var: Any, gamma: Any, beta: Any, training: bool, momentum: Any, eps: float
) -> tuple[Tensor, Tensor, Tensor | Variance]:
    """What F.batch_norm returns, and what it used: the mean, and the inverse deviation or the variance that it comes from."""
    cudnn = torch._C._get_cudnn_enabled()
    if training:
        # What F.batch_norm calls; it also returns the statistics, which saves a second pass over the input.
        out, mean, inverse_deviation, _, _ = torch._batch_norm_impl_index(
            x, gamma, beta, mean, var, True, momentum, eps, cudnn
        )
        return out, mean.detach(), wide(inverse_deviation.detach())
    out = torch.batch_norm(x, gamma, beta, mean, var, False, momentum, eps, cudnn)
    return out, _constant(mean), Variance(_constant(var), eps)


def _constant(statistics: Tensor) -> Tensor:
    return statistics.detach() if statistics.requires_grad else statistics


# What nn.SyncBatchNorm calls in training in several processes, inside a custom autograd function that brings its own backward.


@records(torch.batch_norm_stats, torch.batch_norm_gather_stats_with_counts)
def _statistics(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    with torch.no_grad():
        return func(*args, **kwargs)


@records(torch.batch_norm_elemt)
def _synchronised_batch_norm(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, gamma, beta, mean, inverse_deviation, eps = bind(
        args, kwargs, "input", "weight", "bias", "mean", "invstd", "eps"
    )
    value = rec.value(x)
    with torch.no_grad():
        out = func(*args, **kwargs)
    if value is not None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        alone = (
            not distributed or torch.distributed.get_world_size() == 1
        )  # else the statistics are of other images, too
        rec.add(BatchNorm(value, gamma, beta, mean, wide(inverse_deviation), eps if alone else None), out)
    return out
