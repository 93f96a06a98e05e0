"""Activations: relevance passes through them unchanged; the epsilon rule puts its stabilizer here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..graph import EVERYTHING, Arrived, Multipliers, Node, Recipe, Value
from ..rules import Rule
from .elementwise import argument, keep_for_products, value_range
from .gradients import pull_back
from .registry import Recorder, bind, records


class Relu(Node):
    """u = max(z, 0)."""

    kind = "relu"
    is_elementwise = True
    bounds = (0.0, math.inf)
    reads_inputs = frozenset({"relu"})
    module_type = nn.ReLU
    sees_through = True

    _recipe: Recipe | None = None

    def recipe(self) -> Recipe | None:
        made = self.input.recipe
        if self._recipe is None and made is not None and made.is_cheap:
            self._recipe = Recipe(lambda: torch.relu_(made.make()), is_cheap=True)
        return self._recipe

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (rule.relu(self, multipliers[0]),)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers:
        return (relevances[0],)


@records(F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
def _relu(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x = args[0] if args else kwargs["input"]
    value = rec.known(x)
    node = Relu(value)
    with rec.making(node):
        out = torch.relu(x)
    keep_for_products(value)
    rec.add(node, out, nonnegative=True)
    inplace = args[1] if len(args) > 1 else kwargs.get("inplace", False)
    if inplace or func is torch.relu_ or func is Tensor.relu_:
        rec.replace(x, out)
    return out


class Activation(Node):
    """Any other elementwise a = f(z): R_z = R_a, so that the multiplier is scaled by f(z) / z.

    Where a model writes f out in several operations, this is the last of them, and relevance goes past the others to z.

    Args:
        source: z.
        name: of the operation in tables.
        function: the operation itself, of its operands; a random one draws the same numbers again.
        bounds, line: see :class:`lrpkernels.graph.Node`.
        operands: what the operation reads; none: z.
    """

    kind = "activation"
    is_elementwise = True
    sees_through = True

    def __init__(
        self,
        source: Value,
        name: str,
        function: Callable[..., Tensor],
        bounds: tuple[float, float] = EVERYTHING,
        operands: tuple[Value, ...] = (),
        line: tuple[float, float] | None = None,
    ) -> None:
        given = operands or (source,)
        super().__init__(*{id(value): value for value in (source, *given)}.values())
        self.name, self.function, self.bounds, self.line, self._operands = name, function, bounds, line, given

    @property
    def operands(self) -> tuple[Value, ...]:
        return self._operands

    def label(self) -> str:
        return self.name

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return rule.activation(self, multipliers[0]), *(None,) * (len(self.inputs) - 1)

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        given = [value.tensor for value in self.operands]
        pulled: dict[int, Tensor] = {}
        for value, part in zip(self.operands, pull_back(self.function, given, multipliers[0]), strict=True):
            if part is not None:
                pulled[id(value)] = pulled[id(value)] + part if id(value) in pulled else part
        return tuple(pulled.get(id(value)) for value in self.inputs)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers:
        return relevances[0], *(None,) * (len(self.inputs) - 1)


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
    torch.erfc: (Tensor.erfc, torch.special.erfc),
    torch.special.ndtr: (),
    torch.exp2: (Tensor.exp2, torch.special.exp2),
    torch.log2: (Tensor.log2,),
    torch.log10: (Tensor.log10,),
    torch.sinh: (Tensor.sinh,),
    torch.cosh: (Tensor.cosh,),
    torch.asinh: (Tensor.asinh, torch.arcsinh),
    torch.sin: (Tensor.sin,),
    torch.cos: (Tensor.cos,),
    torch.atan: (Tensor.atan, torch.arctan),
}  # fmt: skip
_CANONICAL = {alias: function for function, aliases in _ACTIVATIONS.items() for alias in (function, *aliases)}
_RANDOM = (F.alpha_dropout, F.feature_alpha_dropout)


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
    source = rec.known(x)
    bounds = _bounds(function, args, kwargs)
    if function is torch.reciprocal:
        bounds = over(1.0, source)
    again = _again(function, rest, options, draws)
    node = Activation(argument(rec, source), function.__name__, again, bounds, (source,))
    rec.add(node, out, nonnegative=bounds[0] >= 0)
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


# What comes out, whatever goes in.
_RANGES: dict[Any, tuple[float, float]] = {
    **dict.fromkeys((torch.sigmoid, F.hardsigmoid, torch.special.ndtr), (0.0, 1.0)),
    **dict.fromkeys((torch.tanh, torch.erf, F.softsign, torch.sin, torch.cos), (-1.0, 1.0)),
    **dict.fromkeys(
        (torch.abs, torch.square, torch.sqrt, torch.rsqrt, torch.exp, torch.exp2, torch.cosh), (0.0, math.inf)
    ),
    F.relu6: (0.0, 6.0),
    torch.erfc: (0.0, 2.0),
    F.logsigmoid: (-math.inf, 0.0),
}


def _bounds(function: Any, args: Any, kwargs: Any) -> tuple[float, float]:
    """The range of outputs, as far as the function and the numbers of its call tell."""
    low: Any = None
    high: Any = None
    if function is F.hardtanh:
        low, high = bind(args, kwargs, "input", "min_val", "max_val", min_val=-1.0, max_val=1.0)[1:3]
    elif function is torch.clamp:
        low, high = bind(args, kwargs, "input", "min", "max")[1:3]
    elif function is torch.clamp_min:
        low = bind(args, kwargs, "input", "min")[1]
    elif function is torch.clamp_max:
        high = bind(args, kwargs, "input", "max")[1]
    elif function is F.softplus:
        return (0.0, math.inf) if bind(args, kwargs, "input", "beta", beta=1.0)[1] > 0 else EVERYTHING
    else:
        return _RANGES.get(function, EVERYTHING)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return EVERYTHING
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    return min(low, high), high  # PyTorch clamps from above last


@records(torch.pow, Tensor.pow, Tensor.__pow__, Tensor.__rpow__, Tensor.__rtruediv__, Tensor.__rdiv__)
def _power(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    """x ** p, c ** x and c / x with constants p, c: elementwise functions of x like any other."""
    x, other = bind(args, kwargs, "input" if "input" in kwargs else "self", "exponent")
    power, first = func in (torch.pow, Tensor.pow, Tensor.__pow__), True
    if power and rec.value(x) is None:
        x, other, power, first = other, x, False, False
    if rec.value(x) is None or rec.value(other) is not None:
        return rec.unknown(func, args, kwargs)
    if isinstance(other, Tensor) and torch.broadcast_shapes(other.shape, x.shape) != x.shape:
        return rec.unknown(func, args, kwargs)
    out = func(*args, **kwargs)
    value, number, bounds = rec.known(x), not isinstance(other, Tensor), EVERYTHING
    if power:
        even = isinstance(other, int) and other % 2 == 0
        bounds = (0.0, math.inf) if value.nonnegative or even else EVERYTHING
    elif func in (Tensor.__rtruediv__, Tensor.__rdiv__):
        bounds = over(other, value) if number else EVERYTHING
    elif number and other >= 0:
        bounds = (0.0, math.inf)
    again = _again(func, (other,), {}) if first else lambda z: torch.pow(other, z)
    node = Activation(argument(rec, value), func.__name__.strip("_"), again, bounds, (value,))
    rec.add(node, out, nonnegative=bounds[0] >= 0)
    return out


def over(number: float, value: Value) -> tuple[float, float]:
    """Between which numbers ``number / value`` lies."""
    low, high = value_range(value)
    if number < 0 or low < 0:
        return (0.0, math.inf) if number >= 0 and value.nonnegative else EVERYTHING
    return number / high, number / low if low > 0 else math.inf
