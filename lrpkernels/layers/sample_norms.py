"""Layer, group, instance and RMS normalization: the deviation takes no relevance, centring is a linear map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import sample_norm, wide
from ..graph import Arrived, Multipliers, Node, Value
from ..rules import Rule
from .batch_norm import BatchNorm, Variance
from .gradients import pull_back
from .registry import Recorder, bind, records


class Normalization(Node):
    """y = w (x - mean) / deviation + b over groups of elements of one sample.

    The deviation takes no relevance, as in AttnLRP (arXiv 2402.05602): it is a number that x is divided by. The mean is subtracted by a
    linear map, whose adjoint subtracts the multiplier's mean. Deviation and w are live, so that a loss on the heatmap has its exact
    gradient.

    Args:
        input: x.
        module_type: see :class:`Node`.
        row: how many neighbouring elements share a mean and a deviation.
        weight: w, (C,) over the elements of a row or over the channels of (B, C, ...); None: 1.
        inner: elements of a plane with one weight.
        eps: of the norm.
        centred: whether the mean is subtracted.
    """

    kind = "normalization"
    family = "norm"
    reads_outputs = False

    def __init__(
        self,
        input: Value,
        module_type: type[nn.Module],
        row: int,
        weight: Tensor | None,
        inner: int,
        eps: float,
        centred: bool = True,
    ) -> None:
        super().__init__(input)
        self.module_type = module_type
        self.row, self.weight, self.inner, self.eps, self.centred = row, weight, inner, eps, centred

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (rule.norm(self, multipliers[0]),)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers | None:
        return (relevances[0],) if rule.yields_relevance and "norm" in rule.families else None

    def pull(self, g: Tensor) -> Tensor:
        x = self.inputs[0].tensor
        dtype = torch.promote_types(g.dtype, x.dtype)
        weight = None if self.weight is None else wide(self.weight).to(torch.promote_types(dtype, torch.float32))
        pulled = sample_norm(
            g.to(dtype), x.to(dtype), weight, row=self.row, inner=self.inner, centred=self.centred, epsilon=self.eps
        )
        return pulled.to(g.dtype)

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return pull_back(self._normalized, (self.a,), multipliers[0])

    def _normalized(self, x: Tensor) -> Tensor:
        """y, without its b."""
        rows = x.reshape(-1, self.row)
        if self.centred:
            rows = rows - rows.mean(1, keepdim=True)
        rows = rows * torch.rsqrt(rows.square().mean(1, keepdim=True) + self.eps)
        if self.weight is None:
            return rows.view(x.shape)
        return (rows.view(-1, self.weight.numel(), self.inner) * self.weight[:, None]).view(x.shape)


def _over_last(
    value: Value,
    module_type: type[nn.Module],
    shape: Sequence[int],
    weight: Tensor | None,
    eps: float,
    centred: bool = True,
) -> Normalization:
    """A norm over the last dimensions, with a weight for each element."""
    flat = None if weight is None else weight.reshape(-1)
    return Normalization(value, module_type, math.prod(shape), flat, 1, eps, centred)


@records(F.layer_norm, torch.layer_norm)
def _layer_norm(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, shape, weight, _, eps = bind(args, kwargs, "input", "normalized_shape", "weight", "bias", "eps", eps=1e-5)
    if rec.value(x) is None:
        return rec.unknown(func, args, kwargs)
    out = func(*args, **kwargs)
    rec.add(_over_last(rec.known(x), nn.LayerNorm, shape, weight, eps), out)
    return out


@records(F.rms_norm)
def _rms_norm(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, shape, weight, eps = bind(args, kwargs, "input", "normalized_shape", "weight", "eps")
    if rec.value(x) is None:
        return rec.unknown(func, args, kwargs)
    out = func(*args, **kwargs)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    rec.add(_over_last(rec.known(x), nn.RMSNorm, shape, weight, eps, centred=False), out)
    return out


@records(F.group_norm, torch.group_norm)
def _group_norm(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, groups, weight, _, eps = bind(args, kwargs, "input", "num_groups", "weight", "bias", "eps", eps=1e-5)
    if rec.value(x) is None:
        return rec.unknown(func, args, kwargs)
    out = func(*args, **kwargs)
    row, plane = x.shape[1:].numel() // groups, x.shape[2:].numel()
    rec.add(Normalization(rec.known(x), nn.GroupNorm, row, weight, plane, eps), out)
    return out


@records(F.instance_norm)
def _instance_norm(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    x, mean, var, weight, bias, use_input, _, eps = bind(
        args, kwargs, *names, use_input_stats=True, momentum=0.1, eps=1e-5
    )
    if rec.value(x) is None:
        return rec.unknown(func, args, kwargs)
    out = func(*args, **kwargs)
    if not use_input:
        rec.add(BatchNorm(rec.known(x), weight, bias, mean.detach(), Variance(var.detach(), eps)), out)
        return out
    plane = x.shape[2:].numel()
    rec.add(Normalization(rec.known(x), nn.modules.instancenorm._InstanceNorm, plane, weight, plane, eps), out)
    return out
