"""Sums, differences and products of branches or with constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import ratio
from ..graph import Arrived, Multipliers, Node, Value
from ..rules import Rule
from .activation import Activation
from .elementwise import argument, common_source, is_gate, keep_for_products, made_by_activation
from .gradients import pull_back
from .registry import Recorder, bind, records


def reduce_to(multiplier: Tensor, shape: torch.Size, output: torch.Size) -> Tensor:
    """Sum a multiplier of an output over the dimensions along which an input of ``shape`` was broadcast."""
    targets = multiplier.shape[0] // output[0]
    if shape == output:
        return multiplier
    padded = (1,) * (len(output) - len(shape)) + tuple(shape)
    parts = multiplier.unflatten(0, (targets, output[0]))
    dims = [i + 1 for i, (a, b) in enumerate(zip(padded, output, strict=True)) if a != b]
    parts = parts.sum(dims, keepdim=True) if dims else parts
    return parts.reshape(targets * shape[0] if shape else targets, *shape[1:])


class Add(Node):
    """t = x + y or x - y of two branches, or of a branch and a constant (which keeps its share, like a bias).

    Args:
        inputs: the branches.
        signs: their factors.
        constant: with its factor, if there is one branch.
    """

    kind = "add"
    is_elementwise = True
    reads_inputs = frozenset({"summands"})
    reads_outputs = frozenset({"sum"})

    def __init__(self, inputs: tuple[Value, ...], signs: tuple[float, ...], constant: Any = None) -> None:
        super().__init__(*inputs)
        self.signs = signs
        self.sees_through = len(inputs) == 1
        if isinstance(constant, (int, float)):
            self.line = (signs[0], float(constant))
        self._mask = constant if isinstance(constant, Tensor) else None

    @property
    def value(self) -> Tensor:
        """t; 1 where an added mask is infinite: behind the softmax that follows nothing is left there to be shared."""
        total = self.output.tensor
        return total if self._mask is None else torch.where(self._mask.isinf(), 1.0, total)

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return rule.add(self, multipliers[0])

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers | None:
        if len(self.inputs) > 1:
            return None
        return (reduce_to(relevances[0], self.inputs[0].shape, self.output.shape),)

    @property
    def terms(self) -> tuple[Tensor, ...]:
        pairs = zip(self.inputs, self.signs, strict=True)
        terms = ((v.tensor if sign == 1 else v.tensor * sign).to(self.output.dtype) for v, sign in pairs)
        return tuple(term if term.shape == self.output.shape else term.expand(self.output.shape) for term in terms)

    def back(self, *multipliers: Tensor) -> tuple[Tensor, ...]:
        given = multipliers * len(self.inputs) if len(multipliers) == 1 else multipliers
        found = []
        for g, value, sign in zip(given, self.inputs, self.signs, strict=True):
            g = reduce_to(g, value.shape, self.output.shape)
            found.append(g if sign == 1 else g * sign)
        return tuple(found)


class Scale(Node):
    """t = c * x with a constant c: a diagonal linear map."""

    kind = "scale"
    sees_through = is_elementwise = True
    reads_inputs = reads_outputs = False

    def __init__(self, input: Value, factor: Tensor | float) -> None:
        super().__init__(input)
        self.factor = factor
        if isinstance(factor, (int, float)):
            self.line = (float(factor), 0.0)

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        g = _times(multipliers[0], self.factor, self.output)
        return (reduce_to(g, self.inputs[0].shape, self.output.shape),)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers | None:
        return (reduce_to(relevances[0], self.inputs[0].shape, self.output.shape),)


def _times(multiplier: Tensor, factor: Tensor | float, output: Value) -> Tensor:
    if not isinstance(factor, Tensor):
        return multiplier * factor
    targets = multiplier.shape[0] // output.shape[0]
    return (multiplier.unflatten(0, (targets, -1)) * factor).flatten(0, 1).to(multiplier.dtype)


class Normalized(Scale):
    """t = x over a number made of x itself, which is a constant of the relevance pass.

    Attributes:
        function: t of x.
    """

    kind = "normalization"
    family = "norm"
    sees_through = is_elementwise = False
    reads_inputs = True

    def __init__(self, input: Value, factor: Tensor, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(input, factor)
        self.function = function

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (rule.norm(self, multipliers[0]),)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers | None:
        return (relevances[0],) if _passes(rule) else None

    def pull(self, g: Tensor) -> Tensor:
        return _times(g, self.factor, self.output)

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return pull_back(self.function, (self.a,), multipliers[0])


class Gate(Node):
    """t = x * y of two branches. The gate is the smaller (broadcast) operand, or the one that a sigmoid, its kin or a softmax made.

    A factor that is made of the signal without weights, as 1 / deviation is, makes it a norm that is written out. Two functions of one
    value are no gate and signal: their product is an activation of it.

    Attributes:
        factors: how many similar factors it is the product of, x * y * z say; 1 for a signal with its gate.
    """

    kind = "gate"
    reads_outputs = False
    factors: int = 1

    def __init__(self, x: Value, y: Value) -> None:
        super().__init__(x, y)
        smaller = self.gates.index(True) if self.gates in ((True, False), (False, True)) else None
        is_norm = smaller is not None and _is_statistic(self.inputs[smaller], self.inputs[1 - smaller])
        self.family = "norm" if is_norm else "product"
        counts = [v.producer.factors if isinstance(v.producer, Gate) else 1 for v in (x, y)]
        self.factors = sum(counts) if smaller is None else 1
        self._alike = tuple(count / sum(counts) for count in counts)

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        if self.family == "product":
            return rule.product(self, multipliers[0])
        return self._of_signal(rule.norm(self, multipliers[0]))

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers | None:
        return self._of_signal(relevances[0]) if self.family == "norm" and _passes(rule) else None

    def pull(self, g: Tensor) -> Tensor:
        """Through a norm: its factor is a constant."""
        factor = self.inputs[self.gates.index(True)]
        return _times(g, factor.tensor, self.output)

    def _of_signal(self, part: Tensor) -> Multipliers:
        return tuple(None if gate else part for gate in self.gates)

    @property
    def gates(self) -> tuple[bool, ...]:
        x, y = (value.shape.numel() for value in self.inputs)
        return (x < y, y < x) if x != y else tuple(map(is_gate, self.inputs))

    @property
    def activated(self) -> tuple[bool, ...]:
        return tuple(map(made_by_activation, self.inputs))

    def back(self, g: Tensor, shares: Sequence[float]) -> Multipliers:
        x, y = self.inputs
        if shares[0] == shares[1]:  # of n similar factors each gets an nth, however they are grouped
            shares = self._alike
        results: list[Tensor | None] = []
        for share, own, other in zip(shares, (x, y), (y, x), strict=True):
            if share == 0:
                results.append(None)
                continue
            part = _times(g if share == 1 else g * share, other.tensor, self.output)
            results.append(reduce_to(part, own.shape, self.output.shape))
        return tuple(results)

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        x, y = self.inputs
        parts = (_times(multipliers[0], other.tensor, self.output) for other in (y, x))
        return tuple(reduce_to(part, own.shape, self.output.shape) for part, own in zip(parts, (x, y), strict=True))


def _passes(rule: Rule) -> bool:
    """Whether a rule hands relevance itself on through a norm."""
    return rule.yields_relevance and "norm" in rule.families


def _is_statistic(factor: Value, signal: Value) -> bool:
    """Whether a factor is a reduced and elementwise function of the signal it multiplies: x * rsqrt(mean(x ** 2) + eps)."""
    value, made = factor, list[Node]()
    while value is not signal:
        op = value.producer
        if op is None or len(op.inputs) != 1 or op.bounds == (0.0, 1.0) or op.kind not in _STATISTIC:
            return False
        made.append(op)
        value = op.inputs[0]
    if not any(op.kind == "avg_pool" for op in made):
        return False
    for op in made:  # parts of the norm: a rule of norms that differentiates the factor goes on through them
        if op.output.consumers <= 1:
            op.family, op.is_statistic = "norm", True
    return True


_STATISTIC = frozenset({"activation", "avg_pool", "add", "scale", "cast", "reshape", "movement"})


def _written_out(name: str, function: Any, out: Tensor, *operands: Value) -> Activation | None:
    """The last operation of a function of one value that the model writes out, such as x * sigmoid(x); None: of several values."""
    source = common_source(*operands) if all(value.shape == out.shape for value in operands) else None
    if source is None or source.dtype != out.dtype or source.present() is None:
        return None
    return Activation(source, name, function, operands=operands)


class GLU(Node):
    """a * sigmoid(b) of the two halves of one tensor: signal and gate."""

    kind = "glu"
    family = "product"
    module_type = nn.GLU
    reads_outputs = False
    gates, activated = (False, True), (False, True)

    def __init__(self, input: Value, dim: int) -> None:
        super().__init__(input)
        self.dim = dim

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return rule.product(self, multipliers[0])

    def back(self, g: Tensor, shares: Sequence[float]) -> Multipliers:
        a, b = self.inputs[0].tensor.chunk(2, self.dim)
        gate = b.sigmoid()
        signal = _times(g * shares[0], gate, self.output)
        if shares[1] == 0:
            return (torch.cat([signal, torch.zeros_like(signal)], self.dim),)
        behind = _times(g * shares[1], a, self.output)  # and on through the sigmoid, which leaves R unchanged
        return (torch.cat([signal, ratio(behind, gate, b.contiguous(), epsilon=1e-6)], self.dim),)

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return pull_back(lambda x: F.glu(x, self.dim), (self.a,), multipliers[0])


class Quotient(Node):
    """t = x / y of two branches: the divisor is a constant of the relevance pass (a normalization), x takes all.

    Two functions of one value are an activation of it, as for products; where y is made of x without weights, it is a norm.
    """

    kind = "quotient"
    reads_outputs = False

    def __init__(self, x: Value, y: Value) -> None:
        super().__init__(x, y)
        self.family = "norm" if _is_statistic(y, x) else None

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        g = multipliers[0]
        return (self.pull(g) if self.family is None else rule.norm(self, g)), None

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers | None:
        return (relevances[0], None) if self.family == "norm" and _passes(rule) else None

    def pull(self, g: Tensor) -> Tensor:
        x, y = self.inputs
        return reduce_to(_times(g, y.tensor.reciprocal(), self.output), x.shape, self.output.shape)

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        x, y = self.inputs
        g = _times(multipliers[0], y.tensor.reciprocal(), self.output)
        of_y = -_times(g, x.tensor / y.tensor, self.output)
        return reduce_to(g, x.shape, self.output.shape), reduce_to(of_y, y.shape, self.output.shape)


@records(F.glu)
def _glu(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, dim = bind(args, kwargs, "input", "dim", dim=-1)
    out = func(x, dim)
    rec.add(GLU(rec.known(x), dim % x.dim()), out)
    return out


@records(F.normalize)
def _normalize(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    """x over its norm, which is a constant of the relevance pass as in :class:`Quotient`."""
    x, p, dim, eps = bind(args, kwargs, "input", "p", "dim", "eps", p=2.0, dim=1, eps=1e-12)
    out = func(x, p, dim, eps)
    norm = x.norm(p, dim, keepdim=True).clamp_min(eps)
    rec.add(Normalized(rec.known(x), norm.reciprocal(), lambda z: func(z, p, dim, eps)), out)
    return out


@records(F.local_response_norm)
def _local_response_norm(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    """x over a power of its neighbours' mean square, likewise."""
    names = ("input", "size", "alpha", "beta", "k")
    x, size, alpha, beta, k = bind(args, kwargs, *names, alpha=1e-4, beta=0.75, k=1.0)
    out = func(x, size, alpha, beta, k)
    square = F.pad(x.square().flatten(2).unsqueeze(1), (0, 0, size // 2, (size - 1) // 2))
    mean = F.avg_pool2d(square, (size, 1), stride=1).view_as(x)
    factor = (k + alpha * mean).pow(-beta)
    rec.add(Normalized(rec.known(x), factor, lambda z: func(z, size, alpha, beta, k)), out)
    return out


@records(torch.neg, torch.negative, Tensor.neg, Tensor.negative, Tensor.__neg__)
def _negative(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x = args[0] if args else kwargs["input"]
    out = torch.neg(x)
    rec.add(Scale(rec.known(x), -1.0), out)
    return out


_IN_PLACE = {
    Tensor.add_, Tensor.__iadd__, Tensor.sub_, Tensor.__isub__, Tensor.mul_, Tensor.__imul__, Tensor.div_, Tensor.__itruediv__,
}  # fmt: skip
_ADDS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__)
_SUBS = (torch.sub, torch.subtract, Tensor.sub, Tensor.subtract, Tensor.__sub__, Tensor.sub_, Tensor.__isub__)
_RSUBS = (torch.rsub, Tensor.__rsub__)
_MULS = (
    torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__, Tensor.mul_, Tensor.__imul__,
)  # fmt: skip
_DIVS = (
    torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide, Tensor.true_divide, Tensor.__truediv__, Tensor.div_,
    Tensor.__itruediv__,
)  # fmt: skip


def _operands(args: Any, kwargs: Any) -> tuple[Any, Any]:
    values = list(args)
    for name in ("input", "self", "other"):
        if name in kwargs:
            values.append(kwargs[name])
    return values[0], values[1]


def _finish(rec: Recorder, func: Any, op: Node, x: Any, out: Tensor, nonnegative: bool = False) -> Tensor:
    if len(op.operands) == 1:
        keep_for_products(op.operands[0])
    rec.add(op, out, nonnegative=nonnegative)
    if func in _IN_PLACE:
        rec.overwrite(x, out)
    return out


@records(*_ADDS, *_SUBS, *_RSUBS)
def _add(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, y = _operands(args, kwargs)
    alpha = kwargs.get("alpha", 1)
    how: Any = torch.add
    left, right = 1.0, float(alpha)
    if func in _SUBS:
        right, how = -right, torch.sub
    elif func in _RSUBS:
        left, right, how = -right, 1.0, torch.rsub
    out = how(x, y, alpha=alpha)
    values = (rec.value(x), rec.value(y))
    pairs = [(value, sign) for value, sign in zip(values, (left, right), strict=True) if value is not None]
    nonnegative = len(pairs) == 2 and all(value.nonnegative and sign > 0 for value, sign in pairs)
    constant = None if len(pairs) == 2 else y if values[1] is None else x
    if isinstance(constant, (int, float)):
        constant *= right if values[1] is None else left
    op: Node = Add(tuple(value for value, _ in pairs), tuple(sign for _, sign in pairs), constant)
    if op.line is not None and pairs[0][0].shape == out.shape:
        (value, _), *_ = pairs
        source = argument(rec, value, op.line[1])
        if source is not value:
            line: tuple[float, float] = op.line
            on_line = lambda v: v * line[0] + line[1]  # noqa: E731
            op = Activation(source, func.__name__.strip("_"), on_line, operands=(value,), line=line)
    return _finish(rec, func, op, x, out, nonnegative)


@records(*_MULS)
def _mul(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, y = _operands(args, kwargs)
    left, right = rec.value(x), rec.value(y)
    out = torch.mul(x, y)
    if left is not None and right is not None:
        nonnegative = left is right or (left.nonnegative and right.nonnegative)
        node = _written_out("mul", torch.mul, out, left, right) or Gate(left, right)
        return _finish(rec, func, node, x, out, nonnegative)
    value, factor = (left, y) if left is not None else (rec.known(y), x)
    positive = isinstance(factor, (int, float)) and factor >= 0
    return _finish(rec, func, Scale(value, factor), x, out, value.nonnegative and positive)


@records(*_DIVS)
def _div(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, y = _operands(args, kwargs)
    value, divisor = rec.value(x), rec.value(y)
    if kwargs.get("rounding_mode") is not None or (value is None and (divisor is None or func in _IN_PLACE)):
        return rec.unknown(func, args, kwargs)
    if value is None:
        return rec.call(Tensor.__rtruediv__, y, x)
    out = torch.div(x, y)
    if divisor is not None:
        return _finish(
            rec, func, _written_out("div", torch.div, out, value, divisor) or Quotient(value, divisor), x, out
        )
    positive = isinstance(y, (int, float)) and y > 0
    factor = y.reciprocal() if isinstance(y, Tensor) else 1.0 / y if y else math.copysign(math.inf, y)
    return _finish(rec, func, Scale(value, factor), x, out, value.nonnegative and positive)
