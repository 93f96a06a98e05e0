"""Sums, differences and products of branches or with constants."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph import Arrived, Multipliers, Node, Value
from ..rules import Rule
from .activation import Activation
from .elementwise import argument, common_source, is_gate, keep_for_products
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
        self.moves_only = len(inputs) == 1
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

    def propagate_relevance(self, relevances: Arrived) -> Multipliers:
        if len(self.inputs) > 1:
            return super().propagate_relevance(relevances)
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
    moves_only = is_elementwise = True
    reads_inputs = reads_outputs = False

    def __init__(self, input: Value, factor: Tensor | float) -> None:
        super().__init__(input)
        self.factor = factor
        if not isinstance(factor, Tensor):
            self.line = (float(factor), 0.0)

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        g = _times(multipliers[0], self.factor, self.output)
        return (reduce_to(g, self.inputs[0].shape, self.output.shape),)

    def propagate_relevance(self, relevances: Arrived) -> Multipliers:
        return (reduce_to(relevances[0], self.inputs[0].shape, self.output.shape),)


def _times(multiplier: Tensor, factor: Tensor | float, output: Value) -> Tensor:
    if not isinstance(factor, Tensor):
        return multiplier * factor
    targets = multiplier.shape[0] // output.shape[0]
    return (multiplier.unflatten(0, (targets, -1)) * factor).flatten(0, 1).to(multiplier.dtype)


class Gate(Node):
    """t = x * y of two branches. The signal takes all relevance, the gate none (as in squeeze-and-excite); see docs/rules.md.

    The gate is the smaller (broadcast) operand, or the one that a sigmoid, its kin or a softmax made, in one call or written out; of n
    similar factors, x * y * z say, each gets an nth (the uniform rule of AttnLRP, arXiv 2402.05602). Two functions of one value are no
    gate and signal: their product is an activation of it.

    Attributes:
        shares: of x and y.
        factors: how many similar factors it is the product of; 1 for a signal with its gate.
    """

    kind = "gate"
    reads_outputs = False
    factors: int = 1

    def __init__(self, x: Value, y: Value) -> None:
        super().__init__(x, y)
        left, right = (v.producer.factors if isinstance(v.producer, Gate) else 1 for v in (x, y))
        if x.shape.numel() != y.shape.numel():
            self.shares = (1.0, 0.0) if x.shape.numel() > y.shape.numel() else (0.0, 1.0)
        elif is_gate(x) != is_gate(y):
            self.shares = (0.0, 1.0) if is_gate(x) else (1.0, 0.0)
        else:
            self.factors = left + right
            self.shares = (left / self.factors, right / self.factors)

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        x, y = self.inputs
        g = multipliers[0]
        results: list[Tensor | None] = []
        for share, own, other in zip(self.shares, (x, y), (y, x), strict=True):
            if share == 0:
                results.append(None)
                continue
            part = _times(g if share == 1 else g * share, other.tensor, self.output)
            results.append(reduce_to(part, own.shape, self.output.shape))
        return tuple(results)


def _written_out(name: str, out: Tensor, *operands: Value) -> Activation | None:
    """The last operation of a function of one value that the model writes out, such as x * sigmoid(x); None: of several values."""
    source = common_source(*operands) if all(value.shape == out.shape for value in operands) else None
    if source is None or source.dtype != out.dtype or source.present() is None:
        return None
    return Activation(source, name, operands=operands)


class GLU(Node):
    """a * sigmoid(b) of the two halves of one tensor: a takes all, as the signal of a gate."""

    kind = "glu"
    reads_outputs = False

    def __init__(self, input: Value, dim: int) -> None:
        super().__init__(input)
        self.dim = dim

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        x = self.inputs[0].tensor
        gate = x.chunk(2, self.dim)[1].sigmoid()
        signal = _times(multipliers[0], gate, self.output)
        return (torch.cat([signal, torch.zeros_like(signal)], self.dim),)


class Quotient(Node):
    """t = x / y of two branches: the divisor is a constant of the relevance pass (a normalization), x takes all.

    Two functions of one value are an activation of it, as for products.
    """

    kind = "quotient"
    reads_outputs = False

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        x, y = self.inputs
        g = _times(multipliers[0], y.tensor.reciprocal(), self.output)
        return reduce_to(g, x.shape, self.output.shape), None


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
    rec.add(Scale(rec.known(x), norm.reciprocal()), out)
    return out


@records(F.local_response_norm)
def _local_response_norm(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    """x over a power of its neighbours' mean square, likewise."""
    names = ("input", "size", "alpha", "beta", "k")
    x, size, alpha, beta, k = bind(args, kwargs, *names, alpha=1e-4, beta=0.75, k=1.0)
    out = func(x, size, alpha, beta, k)
    square = F.pad(x.square().flatten(2).unsqueeze(1), (0, 0, size // 2, (size - 1) // 2))
    mean = F.avg_pool2d(square, (size, 1), stride=1).view_as(x)
    rec.add(Scale(rec.known(x), (k + alpha * mean).pow(-beta)), out)
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
        rec.replace(x, out)
    return out


@records(*_ADDS, *_SUBS, *_RSUBS)
def _add(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, y = _operands(args, kwargs)
    alpha = kwargs.get("alpha", 1)
    if func in _IN_PLACE and rec.value(x) is None:
        return rec.unknown(func, args, kwargs)
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
            op = Activation(source, func.__name__.strip("_"), operands=(value,), line=op.line)
    return _finish(rec, func, op, x, out, nonnegative)


@records(*_MULS)
def _mul(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, y = _operands(args, kwargs)
    left, right = rec.value(x), rec.value(y)
    if func in _IN_PLACE and left is None:
        return rec.unknown(func, args, kwargs)
    out = torch.mul(x, y)
    if left is not None and right is not None:
        nonnegative = left is right or (left.nonnegative and right.nonnegative)
        node = _written_out("mul", out, left, right) or Gate(left, right)
        return _finish(rec, func, node, x, out, nonnegative)
    value, factor = (left, y) if left is not None else (rec.known(y), x)
    positive = not isinstance(factor, Tensor) and factor >= 0
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
        return _finish(rec, func, _written_out("div", out, value, divisor) or Quotient(value, divisor), x, out)
    positive = not isinstance(y, Tensor) and y > 0
    factor = y.reciprocal() if isinstance(y, Tensor) else 1.0 / y
    return _finish(rec, func, Scale(value, factor), x, out, value.nonnegative and positive)
