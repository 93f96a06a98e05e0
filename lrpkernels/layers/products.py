"""Products of tensors: with constants a linear map like any other; of operands that all depend on the input each gets its share.

Every product (matmul, einsum, tensordot, ...) is read as a sum over labels of dimensions: (labels of each operand) -> (labels of z).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import Scaled, dense_weight_gradient, per_channel
from ..graph import Arrived, Multipliers, Node, Value
from ..rules import Rule
from .elementwise import is_gate, made_by_activation
from .linear import Linear, LinearNode, Product
from .pooling import AveragePool
from .registry import Recorder, bind, recorded, records
from .replayed import Replayed
from .shapes import Movement

Labels = list[int]
_TARGETS, _LIMIT = 51, 51  # torch.einsum knows the labels 0 to 51; the last one is ours


class Contraction(LinearNode):
    """z = sum of a W over shared labels + b, with a constant W: a dense layer whose inputs and outputs may lie along any dimensions.

    Every input meets every output in at most one element of W, so that parts of W are parts of the contributions.

    Args:
        input: a.
        weight: W.
        labels: of a, W and z; each label of W is one of a or z, none stands twice in one of them.
        bias: b, broadcastable to z, or None.
    """

    kind = "product"
    module_type = nn.Linear

    def __init__(
        self, input: Value, weight: Tensor, labels: tuple[Labels, Labels, Labels], bias: Tensor | None
    ) -> None:
        super().__init__(input)
        self.weight, self.bias = weight, bias
        self._a, self._w, self._z = labels
        first = self._a[0]
        self._by_image = self._z[0] == first and first not in self._w  # else images are not independent of each other

    @property
    def channel_dim(self) -> int:  # type: ignore[override]
        summed = [place for place, label in enumerate(self._a) if label not in self._z]
        if len(summed) != 1:
            raise ValueError(
                f"a product that sums over {len(summed)} dimensions of its input {tuple(self.input.shape)} has no dimension of channels; "
                "give one number for all"
            )
        return summed[0]

    @property
    def channels(self) -> int:
        merges = self.bias is None and len(self._z) > 1 and self._z[1] in self._w
        return self.output.shape[1] if merges else -1

    def part(self, part: Any, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        weight = self.weight
        if scale is not None:
            weight = weight * scale.view(*(-1 if label == self._z[1] else 1 for label in self._w))
        made: Tensor = part(weight.to(dtype))
        return made

    def apply(self, a: Tensor, weight: Tensor, bias: Tensor | None, known: Tensor | None = None) -> Tensor:
        if not self._by_image:
            a = a.expand(self.input.shape)
        z = torch.einsum(a, self._a, weight, self._w, self._z)
        return z if bias is None else z + self.per_output(bias)

    def pull(self, s: Scaled, weight: Tensor) -> Tensor:
        made, shape = s.tensor(), self.input.shape
        made = made.unflatten(0, (-1, self.output.shape[0]))
        sizes = dict(zip(self._w, weight.shape, strict=True)) | dict(zip(self._z, made.shape[1:], strict=True))
        # Dimensions that were summed over reach all their elements; those that were broadcast sum up.
        alone = [label for label in self._a if label not in sizes]
        ones = made.new_ones([n for label, n in zip(self._a, shape, strict=True) if label in alone])
        kept = [label for label, n in zip(self._a, shape, strict=True) if sizes.get(label, n) == n]
        operands = (made, [_TARGETS, *self._z], weight, self._w, ones, alone)
        pulled = torch.einsum(*operands, [_TARGETS, *kept])
        return pulled.reshape(made.shape[0] * shape[0], *shape[1:])

    def per_output(self, vector: Tensor) -> Tensor:
        return vector if self.bias is not None else per_channel(vector, len(self._z))


class PairProduct(Node):
    """A product of two operands that depend on the input, image by image: each gets its share of the relevance.

    Args:
        x, y: the operands.
        labels: of x, y and z, the image's first; none stands twice in one of them.
    """

    kind = "product"
    family = "attention"
    reads_outputs = False

    def __init__(self, x: Value, y: Value, labels: tuple[Labels, Labels, Labels]) -> None:
        super().__init__(x, y)
        self._labels = labels

    @staticmethod
    def fits(factors: Sequence[Value], operands: Sequence[Tensor], labels: Sequence[Labels], z: Labels) -> bool:
        """Whether this is such a product: nothing broadcasts, and each label of an operand is one of the other or of z."""
        if len(operands) != 2 or len(factors) != 2 or factors[0] is factors[1]:
            return False
        x, y = labels
        sizes: dict[int, int] = {}
        pairs = [
            pair for value, names in zip(factors, labels, strict=True) for pair in zip(names, value.shape, strict=True)
        ]
        return (
            bool(x and y and z)
            and x[0] == y[0] == z[0]
            and all(len(set(names)) == len(names) for names in (x, y, z))
            and {*x} <= {*y, *z}
            and {*y} <= {*x, *z}
            and all(sizes.setdefault(label, n) == n for label, n in pairs)
            and not any(value.dtype.is_complex for value in factors)
        )

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return rule.matmul(self, multipliers[0])

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return self.back(multipliers[0], (1.0, 1.0))

    @property
    def gates(self) -> tuple[bool, ...]:
        return tuple(map(is_gate, self.inputs))

    @property
    def activated(self) -> tuple[bool, ...]:
        return tuple(map(made_by_activation, self.inputs))

    def back(self, g: Tensor, shares: Sequence[float]) -> Multipliers:
        made = g.unflatten(0, (-1, self.output.shape[0]))
        x, y, z = self._labels
        parts: list[Tensor | None] = []
        for share, own, other, value in zip(shares, (x, y), (y, x), reversed(self.inputs), strict=True):
            if share == 0:
                parts.append(None)
                continue
            factor = value.tensor.to(g.dtype)  # autocast may have cast what it read
            pulled = torch.einsum(made * share, [_TARGETS, *z], factor, other, [_TARGETS, *own])
            parts.append(pulled.flatten(0, 1))
        return tuple(parts)


def record_product(
    rec: Recorder,
    func: Any,
    args: Any,
    kwargs: Any,
    operands: Sequence[Tensor],
    labels: Sequence[Labels],
    z: Labels,
    bias: Tensor | None = None,
) -> Tensor:
    """Run a product and record it.

    Args:
        operands: its factors.
        labels: of each operand's dimensions; sizes of 1 broadcast.
        z: those of the result.
        bias: what is added to the sum of products; a constant.
    """
    live = [place for place, operand in enumerate(operands) if rec.value(operand) is not None]
    if not live or not z or max(map(max, filter(None, labels))) >= _LIMIT:
        return rec.unknown(func, args, kwargs)
    out: Tensor = func(*args, **kwargs)
    if len(live) > 1:
        factors = [rec.known(operands[place]) for place in live]
        if PairProduct.fits(factors, operands, labels, z):
            rec.add(PairProduct(factors[0], factors[1], (labels[0], labels[1], z)), out)
            return out
        rec.add(Product(recorded(rec, operands), func, args, kwargs, factors), out)
        return out
    (place,) = live
    a, of_a = operands[place], labels[place]
    while len(set(of_a)) < len(of_a):  # a diagonal is read
        twice = next(label for label in of_a if of_a.count(label) > 1)
        i, j = [i for i, label in enumerate(of_a) if label == twice][:2]
        a = rec.call(torch.diagonal, a, 0, i, j)
        of_a = [*(label for k, label in enumerate(of_a) if k not in (i, j)), twice]
    others = [(_dense(t), names) for k, (t, names) in enumerate(zip(operands, labels, strict=True)) if k != place]
    if not others:
        _record_sum(rec, func, args, kwargs, a, of_a, z, out)
        return out
    weight, of_weight = _constant(others, {*of_a, *z})
    rec.add(_linear_node(rec.known(a), of_a, weight, of_weight, z, bias), out)
    return out


def _dense(constant: Tensor) -> Tensor:
    return constant if constant.layout is torch.strided else constant.to_dense()  # the adjacency matrix of a graph, say


def _constant(factors: Sequence[tuple[Tensor, Labels]], kept: set[int]) -> tuple[Tensor, Labels]:
    """The product of constants, summed over the labels that nothing else has."""
    (weight, names), *rest = factors
    names_kept = [label for label in dict.fromkeys(label for _, names in factors for label in names) if label in kept]
    if not rest and names_kept == names:
        return weight, names
    return torch.einsum(*(part for factor in factors for part in factor), names_kept), names_kept


def _linear_node(value: Value, a: Labels, weight: Tensor, w: Labels, z: Labels, bias: Tensor | None) -> LinearNode:
    """A dense layer on the last dimension as such, anything else as a contraction."""
    dense = len(a) > 1 and a[:-1] == z[:-1] and sorted(w) == sorted((a[-1], z[-1])) and z[-1] not in a
    fits = dense and dict(zip(w, weight.shape, strict=True))[a[-1]] == value.shape[-1]
    if fits and (bias is None or bias.dim() == 1):
        return Linear(value, weight if w[0] == z[-1] else weight.t(), bias)
    return Contraction(value, weight, (a, w, z), bias)


def _record_sum(
    rec: Recorder, func: Any, args: Any, kwargs: Any, a: Tensor, of_a: Labels, z: Labels, out: Tensor
) -> None:
    """A product of one operand: a permutation, or a sum over some of its dimensions."""
    value = rec.known(a)
    call: tuple[Any, Any, dict[str, Any]] = (torch.einsum, (a, of_a, z), {})
    if sorted(of_a) == sorted(z):
        rec.add(Movement([value], *call), out, nonnegative=value.nonnegative)
    elif of_a[0] == z[0]:
        rec.add(AveragePool(value, lambda v: torch.einsum(v, of_a, z)), out, nonnegative=value.nonnegative)
    else:
        rec.add(Replayed([value], *call), out)


# -- which dimensions meet ------------------------------------------------------------------------------------------------------------


@records(
    torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.linalg.matmul, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm,
    torch.mv, Tensor.mv,
)  # fmt: skip
def _matmul(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    second = next((name for name in ("other", "mat2", "vec") if name in kwargs), "other")
    left, right = bind(args, {"input": kwargs.get("self"), **kwargs}, "input", second)[:2]
    if func is Tensor.__rmatmul__:
        left, right = right, left
    row, inner, column, *batch = range(max(left.dim(), right.dim(), 2) + 1)
    of_left = [inner] if left.dim() == 1 else [*batch[len(batch) - left.dim() + 2 :], row, inner]
    of_right = [inner] if right.dim() == 1 else [*batch[len(batch) - right.dim() + 2 :], inner, column]
    z = [*batch, *of_left[-2:-1], *([column] if right.dim() > 1 else [])]
    return record_product(rec, func, args, kwargs, (left, right), (of_left, of_right), z)


@records(F.linear)
def _linear(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight, bias = bind(args, kwargs, "input", "weight", "bias")
    value = rec.value(x)
    if (
        value is not None
        and rec.value(weight) is None
        and rec.value(bias) is None
        and x.dim() > 1
        and weight.dim() == 2
    ):
        node = Linear(value, weight, bias)
        node.defer(dense_weight_gradient, (*x.shape[:-1], weight.shape[0]))
        out: Tensor = func(x, weight, bias)
        rec.add(node, out)
        return out
    if rec.value(bias) is not None:
        return rec.call(torch.add, rec.call(F.linear, x, weight), bias)
    inner, column, *rest = range(x.dim() + 1)
    of_weight, z = ([column, inner], [*rest, column]) if weight.dim() == 2 else ([inner], rest)
    return record_product(rec, func, args, kwargs, (x, weight), ([*rest, inner], of_weight), z, bias)


@records(F.bilinear)
def _bilinear(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, y, weight, bias = bind(args, kwargs, "input1", "input2", "weight", "bias")
    if rec.value(bias) is not None:
        return rec.call(torch.add, rec.call(F.bilinear, x, y, weight), bias)
    left, right, column, *rest = range(x.dim() + 2)
    labels = ([*rest, left], [*rest, right], [column, left, right])
    return record_product(rec, func, args, kwargs, (x, y, weight), labels, [*rest, column], bias)


# Products that add to a tensor: the labels of both factors, and of the result.
_ADDED: dict[Any, tuple[tuple[str, str], str, tuple[str, str]]] = {
    **dict.fromkeys((torch.addmm, Tensor.addmm), (("ij", "jk"), "ik", ("mat1", "mat2"))),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm), (("bij", "bjk"), "bik", ("batch1", "batch2"))),
    **dict.fromkeys((torch.addbmm, Tensor.addbmm), (("bij", "bjk"), "ik", ("batch1", "batch2"))),
    **dict.fromkeys((torch.addmv, Tensor.addmv), (("ij", "j"), "i", ("mat", "vec"))),
    **dict.fromkeys((torch.addr, Tensor.addr), (("i", "j"), "ij", ("vec1", "vec2"))),
}


@records(*_ADDED)
def _added_product(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    labels, z, names = _ADDED[func]
    given = {"input": kwargs.get("self"), "beta": 1, "alpha": 1, **kwargs}
    bias, left, right = bind(args, given, "input", *names)[:3]
    if "out" in kwargs or len(args) > 3:
        return rec.unknown(func, args, kwargs)
    beta, alpha = given["beta"], given["alpha"]
    if rec.value(bias) is None and (rec.value(left) is None or rec.value(right) is None):
        factors = [t if rec.value(t) is not None or alpha == 1 else t * alpha for t in (left, right)]
        added = None if beta == 0 else bias if beta == 1 else bias * beta
        of = [[ord(name) - ord("a") for name in names] for names in (*labels, z)]
        return record_product(rec, func, args, kwargs, factors, of[:2], of[2], added)
    product = rec.call(torch.einsum, f"{labels[0]},{labels[1]}->{z}", left, right)
    product = product if alpha == 1 else rec.call(torch.mul, product, alpha)
    if beta == 0:
        return product
    return rec.call(torch.add, product, bias if beta == 1 else rec.call(torch.mul, bias, beta))


@records(torch.tensordot)
def _tensordot(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    left, right, dims = bind(args, kwargs, "a", "b", "dims", dims=2)
    if isinstance(dims, int):
        dims = (range(left.dim() - dims, left.dim()), range(dims))
    elif isinstance(dims, Tensor):
        dims = dims.tolist()
    pairs = [((dim,) if isinstance(dim, int) else dim) for dim in dims]
    of_left = list(range(left.dim()))
    of_right = list(range(left.dim(), left.dim() + right.dim()))
    for i, j in zip(*pairs, strict=True):
        of_right[j] = of_left[i]
    z = [label for label in (*of_left, *of_right) if (label in of_left) != (label in of_right)]
    return record_product(rec, func, args, kwargs, (left, right), (of_left, of_right), z)


@records(torch.inner, Tensor.inner, torch.outer, Tensor.outer, torch.ger, Tensor.ger)
def _inner_outer(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    left, right = bind(args, {"input": kwargs.get("self"), **kwargs}, "input", "vec2" if "vec2" in kwargs else "other")[
        :2
    ]
    inner = func in (torch.inner, Tensor.inner)
    if inner and not (left.dim() and right.dim()):
        return rec.call(torch.mul, left, right)
    of_left, of_right = list(range(left.dim())), list(range(left.dim(), left.dim() + right.dim()))
    if inner:
        of_right[-1] = of_left[-1]
    z = [*of_left[:-1], *of_right[:-1]] if inner else [*of_left, *of_right]
    return record_product(rec, func, args, kwargs, (left, right), (of_left, of_right), z)


@records(torch.linalg.multi_dot, torch.chain_matmul)
def _chain(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    factors = args[0] if args and isinstance(args[0], (list, tuple)) else kwargs.get("tensors", args)
    labels = [[i, i + 1] for i in range(len(factors))]
    labels[0], labels[-1] = labels[0][2 - factors[0].dim() :], labels[-1][: factors[-1].dim()]
    z = [*labels[0][:-1], *labels[-1][1:]]
    return record_product(rec, func, args, kwargs, factors, labels, z)


@records(torch.einsum)
def _einsum(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    if kwargs:
        return rec.unknown(func, args, kwargs)
    if isinstance(args[0], str):
        left, arrow, right = args[0].replace(" ", "").partition("->")
        operands = args[1] if isinstance(args[1], (list, tuple)) else args[1:]
        names, of_z = [_symbols(part) for part in left.split(",")], _symbols(right) if arrow else None
    else:
        operands, names = args[: len(args) // 2 * 2 : 2], args[1::2]
        of_z = args[-1] if len(args) % 2 else None
    lengths = [t.dim() - len(part) + 1 if Ellipsis in part else 0 for t, part in zip(operands, names, strict=True)]
    spread = [(Ellipsis, k) for k in range(max(lengths, default=0))]

    def full(part: Sequence[Any], length: int) -> list[Any]:
        return [s for name in part for s in (spread[len(spread) - length :] if name is Ellipsis else [name])]

    parts = [full(part, length) for part, length in zip(names, lengths, strict=True)]
    every = [symbol for part in parts for symbol in part]
    implicit = [*spread, *sorted(s for s in set(every) - set(spread) if every.count(s) == 1)]
    z = implicit if of_z is None else full(of_z, len(spread))
    number = {symbol: k for k, symbol in enumerate(dict.fromkeys(every))}
    labels = [[number[symbol] for symbol in part] for part in parts]
    return record_product(rec, func, args, kwargs, operands, labels, [number[symbol] for symbol in z])


def _symbols(text: str) -> list[Any]:
    head, dots, tail = text.partition("...")
    return [*head, *([Ellipsis] if dots else []), *tail]
