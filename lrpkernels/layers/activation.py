"""Activations: relevance passes through them unchanged; the epsilon rule puts its stabilizer here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..graph import Arrived, Multipliers, Node, Value
from ..rules import Rule
from .gradients import pull_back
from .registry import Recorder, bind, records


class Relu(Node):
    """u = max(z, 0)."""

    kind = "relu"
    reads_inputs = frozenset({"relu"})
    module_type = nn.ReLU
    sees_through = True

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (rule.relu(self, multipliers[0]),)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers:
        return (relevances[0],)


@records(F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
def _relu(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x = args[0] if args else kwargs["input"]
    out = torch.relu(x)
    rec.add(Relu(rec.known(x)), out, nonnegative=True)
    inplace = args[1] if len(args) > 1 else kwargs.get("inplace", False)
    if inplace or func is torch.relu_ or func is Tensor.relu_:
        rec.replace(x, out)
    return out


class Activation(Node):
    """Any other elementwise a = f(z): R_z = R_a, so that the multiplier is scaled by f(z) / z. Sigmoid and its kin are gates.

    Attributes:
        function: f; a random one draws the same numbers again.
    """

    kind = "activation"
    sees_through = True

    def __init__(self, input: Value, name: str, function: Callable[[Tensor], Tensor], gate: bool = False) -> None:
        super().__init__(input)
        self.name, self.function, self.is_gate = name, function, gate

    def label(self) -> str:
        return self.name

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (rule.activation(self, multipliers[0]),)

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return pull_back(self.function, (self.a,), multipliers[0])

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers:
        return (relevances[0],)


# The function that runs -> all its names; in-place forms are replaced by it.
_ACTIVATIONS: dict[Any, tuple[Any, ...]] = {
    F.relu6: (),
    F.leaky_relu: (F.leaky_relu_,),
    F.prelu: (torch.prelu, Tensor.prelu),
    F.rrelu: (F.rrelu_, torch.rrelu, torch.rrelu_),
    F.elu: (F.elu_,),
    F.selu: (F.selu_, torch.selu, torch.selu_),
    F.celu: (F.celu_, torch.celu, torch.celu_),
    F.gelu: (),
    F.silu: (),
    F.mish: (),
    F.hardswish: (),
    F.hardtanh: (F.hardtanh_,),
    F.hardshrink: (Tensor.hardshrink,),
    F.softshrink: (),
    F.tanhshrink: (),
    F.softsign: (),
    F.softplus: (),
    F.logsigmoid: (),
    F.threshold: (F.threshold_, torch.threshold, torch.threshold_),  # type: ignore[attr-defined]
    torch.tanh: (Tensor.tanh, torch.tanh_, Tensor.tanh_, F.tanh),
    torch.clamp: (torch.clip, torch.clamp_, Tensor.clamp, Tensor.clip, Tensor.clamp_, Tensor.clip_),
    torch.clamp_min: (torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_),
    torch.clamp_max: (torch.clamp_max_, Tensor.clamp_max, Tensor.clamp_max_),
    torch.sigmoid: (torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, F.sigmoid, torch.special.expit),
    F.hardsigmoid: (),
    F.alpha_dropout: (torch.alpha_dropout,),
    F.feature_alpha_dropout: (torch.feature_alpha_dropout,),
    torch.abs: (torch.absolute, Tensor.abs, Tensor.absolute, Tensor.__abs__, Tensor.abs_),
    torch.square: (Tensor.square, Tensor.square_),
    torch.sqrt: (Tensor.sqrt, Tensor.sqrt_),
    torch.rsqrt: (Tensor.rsqrt, Tensor.rsqrt_),
    torch.reciprocal: (Tensor.reciprocal, Tensor.reciprocal_),
    torch.exp: (Tensor.exp, Tensor.exp_),
    torch.expm1: (Tensor.expm1, torch.special.expm1),
    torch.log: (Tensor.log, Tensor.log_),
    torch.log1p: (Tensor.log1p, torch.special.log1p),
    torch.erf: (Tensor.erf, torch.special.erf),
    torch.sin: (Tensor.sin,),
    torch.cos: (Tensor.cos,),
    torch.atan: (Tensor.atan, torch.arctan),
}  # fmt: skip
_CANONICAL = {alias: function for function, aliases in _ACTIVATIONS.items() for alias in (function, *aliases)}
_RANDOM = (F.alpha_dropout, F.feature_alpha_dropout)
_NON_NEGATIVE = {F.relu6, torch.sigmoid, F.hardsigmoid, F.softplus, torch.abs, torch.square, torch.sqrt, torch.exp}


@records(*_CANONICAL)
def _activation(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    function = _CANONICAL[func]
    x = args[0] if args else kwargs["input"]
    if rec.value(x) is None:  # for example, only a learned slope is recorded
        return rec.unknown(func, args, kwargs)
    options = {k: v for k, v in kwargs.items() if k != "inplace"}
    # The flag may be positional (F.relu6(x, True)); every function here has it last.
    flagged = bool(args) and isinstance(args[-1], bool) and function not in _RANDOM
    inplace = kwargs.get("inplace", flagged and args[-1]) or func.__name__.endswith("_")
    options.pop("input", None)
    rest = args[1:-1] if flagged else args[1:]
    draws = _Draws(x) if function in _RANDOM or (function is F.rrelu and _is_training(rest, options)) else None
    out = function(x, *rest, **options)
    if out is x:
        return out
    low, high = _bounds(function, args, kwargs)
    gate = function in (torch.sigmoid, F.hardsigmoid) or (low, high) == (0, 1)
    node = Activation(rec.known(x), function.__name__, _again(function, rest, options, draws), gate)
    rec.add(node, out, nonnegative=function in _NON_NEGATIVE or (isinstance(low, (int, float)) and low >= 0))
    if inplace:
        rec.replace(x, out)
    return out


def _again(function: Any, rest: Any, options: Any, draws: _Draws | None = None) -> Callable[[Tensor], Tensor]:
    """f of z alone, holding nothing of the pass but what ``rest`` and ``options`` do."""

    def again(z: Tensor) -> Tensor:
        if draws is None:
            return function(z, *rest, **options)
        with draws.once_more():
            return function(z, *rest, **options)

    return again


class _Draws:
    """The state of PyTorch's generators, ahead of a function that draws."""

    def __init__(self, x: Tensor) -> None:
        self._devices = [x.device] if x.device.type == "cuda" else []
        self._cpu = torch.get_rng_state()
        self._cuda = [torch.cuda.get_rng_state(device) for device in self._devices]

    @contextmanager
    def once_more(self) -> Iterator[None]:
        """Draw the same numbers again; the generators are afterwards where they were."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._cpu)
            for device, state in zip(self._devices, self._cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


def _is_training(rest: Any, options: Any) -> bool:
    return bool(options.get("training", len(rest) > 2 and rest[2]))


def _bounds(function: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The range of outputs that the call itself asks for, (None, None) for most."""
    if function is F.hardtanh:
        return tuple(bind(args, kwargs, "input", "min_val", "max_val", min_val=-1.0, max_val=1.0)[1:3])
    if function is torch.clamp:
        return tuple(bind(args, kwargs, "input", "min", "max")[1:3])
    if function is torch.clamp_min:
        return bind(args, kwargs, "input", "min")[1], None
    return None, None


@records(torch.pow, Tensor.pow, Tensor.__pow__, Tensor.__rtruediv__, Tensor.__rdiv__)
def _power(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    """x ** p and c / x with constants p, c: elementwise functions of x like any other."""
    x, other = bind(args, kwargs, "input" if "input" in kwargs else "self", "exponent")
    value = rec.value(x)
    if value is None or rec.value(other) is not None:
        return rec.unknown(func, args, kwargs)
    out = func(*args, **kwargs)
    if out.shape != x.shape:
        return rec.unknown(func, args, kwargs)
    even = isinstance(other, int) and other % 2 == 0 and func.__name__.endswith(("pow", "pow__"))
    node = Activation(value, func.__name__.strip("_"), _again(func, (other,), {}))
    rec.add(node, out, nonnegative=value.nonnegative or even)
    return out
