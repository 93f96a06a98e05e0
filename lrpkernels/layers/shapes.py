"""Data movement: reshapes, permutations, concatenation, slices, padding, dropout, casts. Relevance follows the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional
from ..graph import Arrived, Multipliers, Node, Recipe, Value
from ..rules import Rule
from .arithmetic import Scale
from .moves import moved
from .registry import Recorder, bind, leaves, recorded, records
from .replayed import OnCopies, Replayed


class Reshape(Node):
    """The same numbers in the same order under another shape."""

    kind = "reshape"
    sees_through = True
    reads_inputs = reads_outputs = False

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        g, shape = multipliers[0], self.inputs[0].shape
        return (g.reshape(g.numel() // max(1, shape[1:].numel()), *shape[1:]),)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers:
        return (relevances[0].reshape(-1, *self.inputs[0].shape[1:]),)

    def marks(self, given: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        return [None if given[0] is None else given[0].reshape(self.output.shape)]


class Cat(Node):
    """Concatenation along a dimension other than the batch's."""

    kind = "cat"
    sees_through = True
    reads_inputs = reads_outputs = False

    def __init__(
        self, inputs: tuple[Value, ...], places: list[tuple[int, int]], dim: int, tensors: list[Tensor] | None
    ) -> None:
        super().__init__(*inputs)
        self.places, self.dim = places, dim
        self._tensors = tensors  # all parts, constants among them, if the output will be recomputed

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return functional.uncat(multipliers[0], self.dim, self.places)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers:
        return functional.uncat(relevances[0], self.dim, self.places)

    def marks(self, given: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        whole = sum(length for _, length in self.places) == self.output.shape[self.dim]
        if whole and all(mark is None for mark in given):
            return [None]
        made = self.output.form().new_zeros(self.output.shape)
        for (start, length), mark in zip(self.places, given, strict=True):
            made.narrow(self.dim, start, length).copy_(1 if mark is None else mark)  # type: ignore[arg-type]
        return [made]

    def recipe(self) -> Recipe:
        assert self._tensors is not None
        tensors, self._tensors = self._tensors, None
        known = {id(value.tensor): value.recipe for value in self.inputs}
        return Concatenation(tensors, [known.get(id(tensor)) for tensor in tensors], self.dim)


class Concatenation(Recipe):
    """Recomputes a concatenation; parts that are concatenations along the same dimension are flattened."""

    parts: list[Tensor]
    dim: int

    def __init__(self, tensors: list[Tensor], recipes: list[Any], dim: int) -> None:
        parts: list[Tensor] = []
        for tensor, recipe in zip(tensors, recipes, strict=True):
            nested = isinstance(recipe, Concatenation) and recipe.dim == dim
            parts += recipe.parts if nested else [tensor.detach()]
        super().__init__(lambda: torch.cat(parts, dim), is_cheap=True)
        self.parts, self.dim = parts, dim


class Movement(Replayed):
    """Any other data movement: every output element is a copy of one input element, or a constant."""

    kind = "movement"
    sees_through = True

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers:
        return self._vjp(relevances)

    def marks(self, given: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        with torch.enable_grad():
            tensors = self._inputs()
            live = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
            wanted = [tensors[i] for i in live]
            marked = [torch.ones_like(t) if given[i] is None else given[i] for i, t in zip(live, wanted, strict=True)]
            results = self._run(tensors)
            ys = [y for y in results if y.requires_grad]
            # A vector-Jacobian product is linear in its vector; the derivative for that is the Jacobian-vector product.
            seeds = [torch.zeros_like(y, requires_grad=True) for y in ys]
            pulled = torch.autograd.grad(ys, wanted, seeds, create_graph=True)
            made = iter(torch.autograd.grad(pulled, seeds, marked))
        # Windows that overlap (fold) add up.
        return [next(made).clamp(max=1) if y.requires_grad else None for y in results]


class Interpolation(Replayed):
    """Resampling: every output element is a weighted mean of input elements, whose weights share its relevance out."""

    kind = "interpolation"
    sees_through = True

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers:
        return self._vjp(relevances)

    def marks(self, given: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        return [None]


class Cast(Node):
    """A copy, possibly in another dtype; the walk casts multipliers to each value's dtype by itself."""

    kind = "cast"
    sees_through = is_elementwise = True
    reads_inputs = reads_outputs = False

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (multipliers[0],)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers:
        return (relevances[0],)


class Dropout(Scale):
    """Dropout in training mode: a product with the mask that was drawn."""

    kind = "dropout"


def _getter(name: str) -> Any:
    """What the recorder sees when the model reads this attribute of a tensor."""
    return getattr(Tensor, name).__get__


@records(
    torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape, Tensor.view, Tensor.view_as, Tensor.reshape_as,
    torch.unsqueeze, Tensor.unsqueeze, torch.squeeze, Tensor.squeeze, torch.unflatten, Tensor.unflatten, torch.ravel, Tensor.ravel,
)  # fmt: skip
def _reshape(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    out = func(*args, **kwargs)
    x = args[0] if args else kwargs["input"]
    value = rec.value(x)
    if out is x:
        return out
    if value is None or out.dtype != x.dtype:  # view(dtype) is not a reshape
        return rec.unknown(func, args, kwargs)
    rec.add(Reshape(value), out, nonnegative=value.nonnegative)
    return out


@records(torch.cat, torch.concat, torch.concatenate)
def _cat(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    tensors, dim = bind(args, {**kwargs, "dim": kwargs.get("dim", kwargs.get("axis", 0))}, "tensors", "dim", dim=0)
    dim = dim % tensors[0].dim()
    if dim == 0 or any(t.dim() != tensors[0].dim() for t in tensors):
        return _movement(rec, func, args, kwargs)
    out = func(*args, **kwargs)
    inputs, places, start = [], [], 0
    for tensor in tensors:
        value = rec.value(tensor)
        if value is not None:
            inputs.append(value)
            places.append((start, tensor.shape[dim]))
        start += tensor.shape[dim]
    nonnegative = len(inputs) == len(tensors) and all(v.nonnegative for v in inputs)
    node = Cat(tuple(inputs), places, dim, list(tensors) if rec.recomputes else None)
    rec.add(node, out, nonnegative=nonnegative)
    return out


@records(
    torch.permute, Tensor.permute, torch.transpose, Tensor.transpose, Tensor.t, torch.t, torch.swapaxes, Tensor.swapaxes,
    torch.movedim, Tensor.movedim, _getter("T"), _getter("mT"), _getter("H"), _getter("mH"),
    torch.chunk, Tensor.chunk, torch.split, Tensor.split, torch.tensor_split, Tensor.tensor_split, Tensor.unbind, torch.unbind,
    torch.stack, Tensor.__getitem__, torch.narrow, Tensor.narrow, torch.select, Tensor.select, torch.index_select,
    Tensor.index_select, F.pad, torch.roll, Tensor.roll, torch.flip, Tensor.flip, Tensor.expand, Tensor.expand_as,
    Tensor.repeat, torch.tile, Tensor.tile, torch.gather, Tensor.gather, torch.take_along_dim, torch.where, Tensor.where,
    Tensor.masked_fill, torch.masked_fill, Tensor.unfold, torch.diagonal, Tensor.diagonal, torch.hstack, torch.vstack,
    torch.max, Tensor.max, torch.min, Tensor.min, torch.maximum, Tensor.maximum, torch.minimum, Tensor.minimum, torch.amax, Tensor.amax,
    torch.amin, Tensor.amin, torch.topk, Tensor.topk, torch.sort, Tensor.sort, torch.kthvalue, Tensor.kthvalue, torch.median, Tensor.median,
    torch.triu, Tensor.triu, torch.tril, Tensor.tril, torch.dstack, torch.column_stack, torch.scatter, Tensor.scatter, torch.index_fill,
    Tensor.index_fill, torch.slice_scatter, torch.select_scatter, torch.nan_to_num, Tensor.nan_to_num, F.max_unpool1d, F.max_unpool2d,
    F.max_unpool3d,
    torch.repeat_interleave, Tensor.repeat_interleave, torch.rot90, Tensor.swapdims, torch.swapdims, torch.moveaxis,
    Tensor.moveaxis, F.fold, torch.broadcast_to, Tensor.broadcast_to, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, F.unfold,
)  # fmt: skip
def _movement(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    if _sums_up(func, args, kwargs):
        return rec.unknown(func, args, kwargs)
    out = func(*args, **kwargs)
    outputs = [t for t in leaves(out) if isinstance(t, Tensor)]
    if any(rec.value(t) is not None for t in outputs):
        return out
    if any(t.dim() == 0 for t in outputs):  # for example the maximum of a whole batch
        return rec.unknown(func, args, kwargs)
    inputs = recorded(rec, args, kwargs)
    nonnegative = all(v.nonnegative for v in inputs) and _writes_nothing_negative(rec, func, args, kwargs)
    node = moved(inputs[0], func, args, kwargs, outputs) if len(inputs) == 1 and args and rec.value(args[0]) else None
    rec.add(node or Movement(inputs, func, args, kwargs), *outputs, nonnegative=nonnegative)
    return out


# The numbers that a function may write, by position and name; any other number is an index or a size.
_WRITTEN: dict[Any, tuple[tuple[int, str], ...]] = {
    F.pad: ((3, "value"),),
    torch.where: ((1, "input"), (1, "self"), (2, "other")),
    Tensor.where: ((2, "other"),),
    **dict.fromkeys((torch.masked_fill, Tensor.masked_fill), ((2, "value"),)),
    **dict.fromkeys((torch.index_fill, Tensor.index_fill), ((3, "value"),)),
    **dict.fromkeys((torch.scatter, Tensor.scatter), ((3, "value"), (3, "src"))),
    **dict.fromkeys((torch.nan_to_num, Tensor.nan_to_num), ((1, "nan"), (2, "posinf"))),
}
# Whose tensors all hold data, none an index.
_JOINS = {
    torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack, torch.dstack, torch.column_stack,
    torch.slice_scatter, torch.select_scatter, torch.min, Tensor.min, torch.minimum, Tensor.minimum,
}  # fmt: skip
_LARGEST = (torch.max, Tensor.max, torch.maximum, Tensor.maximum)


def _writes_nothing_negative(rec: Recorder, func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the constants among the arguments leave a result of non-negative inputs non-negative, as far as the call tells."""
    if func in _LARGEST:
        return True
    constants = [t for t in leaves((args, kwargs)) if isinstance(t, Tensor) and rec.value(t) is None]
    if any(t.is_floating_point() or func in _JOINS for t in constants):
        return False  # their numbers are not looked at: the host would wait for the device
    written = [args[place] if place < len(args) else kwargs.get(name) for place, name in _WRITTEN.get(func, ())]
    return all(rec.value(it) is not None or it is None or (not isinstance(it, Tensor) and it >= 0) for it in written)


_COPIES = (
    "alias", "expand", "permute", "select", "slice", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view", "split",
    "split_with_sizes", "as_strided",
)  # fmt: skip
_MOVES = (
    "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "hsplit", "vsplit", "dsplit", "take", "index_put",
    "index_copy", "masked_scatter", "masked_select", "diagonal_scatter", "as_strided", "atleast_1d", "atleast_2d", "atleast_3d",
    "row_stack", "fliplr", "flipud", "adjoint", "diag_embed", "block_diag", "narrow_copy", "positive", "fmax", "fmin",
    "msort", "cummax", "cummin", "native_channel_shuffle", "meshgrid", *(f"{name}_copy" for name in _COPIES),
)  # fmt: skip
records(
    *(getattr(owner, name) for owner in (torch, Tensor) for name in _MOVES if hasattr(owner, name)),
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.index.Tensor,
)(_movement)


def _sums_up(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether numbers that are written into a tensor are added to, or multiplied with, what was there."""
    position = {"index_put": 3, "index_put_": 3, "scatter": 4, "scatter_": 4}.get(func.__name__)
    return bool(kwargs.get("accumulate") or kwargs.get("reduce") or (position is not None and len(args) > position))


@records(torch.cumsum, Tensor.cumsum, F.interpolate, F.upsample, F.grid_sample, torch.lerp, Tensor.lerp)
def _linear_function(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    inputs = recorded(rec, args, kwargs)
    how = args[2] if len(args) > 2 else kwargs.get("weight")  # of lerp
    where = args[1] if len(args) > 1 else kwargs.get("grid")
    if rec.value(how) is not None or (func is F.grid_sample and rec.value(where) is not None):
        return rec.unknown(func, args, kwargs)  # a product of what is sampled and where
    out = func(*args, **kwargs)
    kind = Interpolation if func in (F.interpolate, F.upsample, F.grid_sample) else Replayed
    rec.add(kind(inputs, func, args, kwargs), out, nonnegative=False)
    return out


_RENAMED_SHAPES = {
    Tensor.unsqueeze_: torch.unsqueeze, Tensor.squeeze_: torch.squeeze, Tensor.t_: torch.t, Tensor.transpose_: torch.transpose,
    Tensor.swapaxes_: torch.transpose, Tensor.swapdims_: torch.transpose,
}  # fmt: skip


@records(*_RENAMED_SHAPES)
def _reshape_in_place(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    out = rec.call(_RENAMED_SHAPES[func], *args, **kwargs)
    if out is not args[0]:
        rec.rename(args[0], out)
    return out


@records(
    Tensor.contiguous, torch.clone, Tensor.clone, Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16,
    Tensor.type_as, Tensor.type, Tensor.long, Tensor.int,
)  # fmt: skip
def _cast(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    out = func(*args, **kwargs)
    value = rec.value(args[0])
    if (
        not isinstance(out, Tensor)
        or out is args[0]
        or value is None
        or (value.dtype.is_floating_point and not (out.is_floating_point() or out.is_complex()))
    ):
        return out
    rec.add(Cast(value), out, nonnegative=value.nonnegative)
    return out


@records(
    Tensor.detach, torch.detach, _getter("data"), Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_empty, Tensor.new_tensor,
    torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, torch.rand_like, torch.randn_like,
)  # fmt: skip
def _constant(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """A constant from here on, as for gradients."""
    return func(*args, **kwargs)


@records(
    Tensor.__setitem__, Tensor.index_put_, Tensor.masked_fill_, Tensor.copy_, Tensor.fill_, Tensor.zero_, Tensor.index_fill_,
    Tensor.index_copy_, Tensor.masked_scatter_, Tensor.scatter_, Tensor.fill_diagonal_,
)  # fmt: skip
def _assignment(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Numbers written into a tensor: the tensor as it was, with these in their places."""
    if _sums_up(func, args, kwargs):
        return rec.unknown(func, args, kwargs)  # a sum with what was there
    run, target = OnCopies(func, (0,)), args[0]
    out = run(*args, **kwargs)
    inputs = recorded(rec, args, kwargs)
    if rec.value(target) is None:
        args = (target.detach(), *args[1:])  # only its form matters: the model's own tensor need not live on
    rec.add(Movement(inputs, run, args, kwargs), out, nonnegative=False)
    rec.replace(target, out)
    return out


_DROPOUT_DIMS = {F.dropout: None, F.dropout1d: 1, F.dropout2d: 2, F.dropout3d: 3}


@records(*_DROPOUT_DIMS)
def _dropout(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, p, training, inplace = bind(
        args, kwargs, "input", "p", "training", "inplace", p=0.5, training=True, inplace=False
    )
    if not training or p == 0.0:
        return x
    value = rec.known(x)
    # The mask is drawn as PyTorch does on the CPU, so that the random stream is that of an unrecorded run; the mask is kept.
    whole = _DROPOUT_DIMS[func]
    if whole is None:
        noise = torch.empty_like(x)  # in the input's layout, which decides which number falls on which element
    else:
        noise = torch.empty((*x.shape[: x.dim() - whole], *(1,) * whole), dtype=x.dtype, device=x.device)
    noise = noise.bernoulli_(1 - p)
    noise = noise.div_(1 - p) if p < 1 else noise
    out = x * noise
    rec.add(Dropout(value, noise), out, nonnegative=value.nonnegative)
    if inplace:
        rec.replace(x, out)
    return out
