"""Layer, group, instance and RMS normalization: the deviation takes no relevance, centring is a linear map."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import per_channel
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
    """

    kind = "normalization"
    family = "norm"
    reads_outputs = False

    def __init__(
        self,
        input: Value,
        module_type: type[nn.Module],
        grouped: tuple[int, ...],
        weight: Tensor | None,
        eps: float,
        centred: bool = True,
    ) -> None:
        super().__init__(input)
        self.module_type = module_type
        self.grouped, self.weight, self.eps, self.centred = grouped, weight, eps, centred

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (rule.norm(self, multipliers[0]),)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers | None:
        return (relevances[0],) if rule.yields_relevance and "norm" in rule.families else None

    def pull(self, g: Tensor) -> Tensor:
        x = self.inputs[0].tensor
        groups = x.reshape(self.grouped)
        dims = tuple(range(2, len(self.grouped)))
        centre = groups.mean(dims, keepdim=True) if self.centred else 0.0
        variance = (groups - centre).square().mean(dims, keepdim=True)
        scaled = g if self.weight is None else (g.unflatten(0, (-1, x.shape[0])) * self.weight).flatten(0, 1)
        scaled = scaled.reshape(-1, *self.grouped) * torch.rsqrt(variance + self.eps)
        if self.centred:
            dims = tuple(d + 1 for d in dims)
            scaled = scaled - scaled.mean(dims, keepdim=True)
        return scaled.reshape(g.shape).to(g.dtype)

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return pull_back(self._normalized, (self.a,), multipliers[0])

    def _normalized(self, x: Tensor) -> Tensor:
        """y, without its b."""
        groups = x.reshape(self.grouped)
        dims = tuple(range(2, len(self.grouped)))
        if self.centred:
            groups = groups - groups.mean(dims, keepdim=True)
        groups = groups * torch.rsqrt(groups.square().mean(dims, keepdim=True) + self.eps)
        normalized = groups.reshape(x.shape)
        return normalized if self.weight is None else normalized * self.weight


def _per_channel(weight: Tensor | None, x: Tensor) -> Tensor | None:
    return None if weight is None else per_channel(weight, x.dim())


@records(F.layer_norm, torch.layer_norm)
def _layer_norm(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, shape, weight, _, eps = bind(args, kwargs, "input", "normalized_shape", "weight", "bias", "eps", eps=1e-5)
    if rec.value(x) is None:
        return rec.unknown(func, args, kwargs)
    out = func(*args, **kwargs)
    samples = x.shape[: x.dim() - len(shape)].numel()
    rec.add(Normalization(rec.known(x), nn.LayerNorm, (1, samples, *shape), weight, eps), out)
    return out


@records(F.rms_norm)
def _rms_norm(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, shape, weight, eps = bind(args, kwargs, "input", "normalized_shape", "weight", "eps")
    if rec.value(x) is None:
        return rec.unknown(func, args, kwargs)
    out = func(*args, **kwargs)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    samples = x.shape[: x.dim() - len(shape)].numel()
    rec.add(Normalization(rec.known(x), nn.RMSNorm, (1, samples, *shape), weight, eps, centred=False), out)
    return out


@records(F.group_norm, torch.group_norm)
def _group_norm(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, groups, weight, _, eps = bind(args, kwargs, "input", "num_groups", "weight", "bias", "eps", eps=1e-5)
    if rec.value(x) is None:
        return rec.unknown(func, args, kwargs)
    out = func(*args, **kwargs)
    grouped = (x.shape[0], groups, x.shape[1:].numel() // groups)
    rec.add(Normalization(rec.known(x), nn.GroupNorm, grouped, _per_channel(weight, x), eps), out)
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
    grouped = (x.shape[0], x.shape[1], x.shape[2:].numel())
    rec.add(
        Normalization(rec.known(x), nn.modules.instancenorm._InstanceNorm, grouped, _per_channel(weight, x), eps), out
    )
    return out
