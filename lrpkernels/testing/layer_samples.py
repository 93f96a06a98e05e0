"""Sample calls and references of the pooling and convolution ops; see :mod:`lrpkernels.testing`, which offers them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import Weights
from .formulas import epsilon_scale_reference, ratio_reference, stretched

Values = Callable[[tuple[int, ...]], Tensor]

# (input [B, C, ...], kernel, stride, padding, dilation, ceil mode): overlapping and gapped windows, 1 to 3 dimensions, tails.
_POOLS: tuple[tuple[Any, ...], ...] = (
    ((2, 3, 7, 9), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 8, 7, 9), (3, 3), (2, 2), (1, 1), (1, 1), True),
    ((1, 70, 6, 5), (3, 2), (1, 3), (1, 0), (1, 2), False),
    ((2, 4, 11), (3,), (2,), (1,), (1,), False),
    ((1, 3, 4, 5, 6), (2, 3, 2), (2, 1, 2), (1, 1, 0), (1, 1, 1), False),
    ((0, 3, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1), False),
)
_ADAPTIVE: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((2, 5, 7, 9), (3, 4)),
    ((1, 8, 5, 5), (1, 1)),
    ((2, 3, 7), (10,)),
    ((1, 2, 4, 5, 6), (3, 2, 4)),
)

# (batch, C_in, C_out, input, kernel, stride, padding, dilation, groups)
_CONVS: tuple[tuple[Any, ...], ...] = (
    (2, 3, 5, (7, 9), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (1, 8, 16, (9, 8), (3, 2), (2, 1), (1, 0), (1, 2), 2),
    (2, 6, 6, (8, 7), (3, 3), (2, 2), (1, 1), (1, 1), 6),
    (2, 5, 4, (6, 5), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (1, 3, 8, (15, 14), (7, 7), (3, 3), (3, 3), (1, 1), 1),
    (2, 4, 6, (11,), (3,), (2,), (1,), (1,), 1),
    (0, 3, 4, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1), 1),
)

POOL_OPS = ("max_pool_winner", "max_pool_winner_backward", "average_pool", "average_pool_transpose")
CONV_OPS = ("conv_relevance", "conv_apply", "conv_weight_gradient")


def _max_pool(x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
    pool = (F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices)[x.dim() - 3]
    return pool(x if x.dtype == torch.float64 else x.float(), kernel, stride, padding, dilation, ceil_mode)[1]


def _average(
    x: Tensor, output: Any, kernel: Any, stride: Any, padding: Any, include: bool, divisor: int | None
) -> Tensor:
    """The layer itself, by PyTorch, which has no 16-bit kernels for all of them."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return _average(x.float(), output, kernel, stride, padding, include, divisor).to(x.dtype)
    spatial = x.dim() - 2
    if not kernel:
        return (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[spatial - 1](x, output)
    if spatial == 1:  # has no divisor_override: a row of an image
        lifted = F.avg_pool2d(x[:, :, None], (1, *kernel), (1, *stride), (0, *padding), False, include, divisor)
        return lifted[:, :, 0]
    for ceil_mode in (False, True):
        pool = F.avg_pool2d if spatial == 2 else F.avg_pool3d
        result = pool(x, kernel, stride, padding, ceil_mode, include, divisor)
        if tuple(result.shape[2:]) == tuple(output):
            return result
    raise ValueError(f"no average pooling of {tuple(x.shape)} gives {tuple(output)}")


def pool_samples(op: str, values: Values, targets: int) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Arguments and label of each sample of a pooling op."""
    for shape, kernel, stride, padding, dilation, ceil_mode in _POOLS:
        x = values(shape)
        indices = _max_pool(x, kernel, stride, padding, dilation, ceil_mode)
        many, label = targets * shape[0], f"{shape} kernel={kernel} stride={stride}"
        slide = [*map(list, (kernel, stride, padding, dilation))]
        if op == "max_pool_winner":
            yield (values((many, *indices.shape[1:])), indices, list(shape[2:]), *slide), label
        elif op == "max_pool_winner_backward":
            yield (values((many, *shape[1:])), indices, *slide), label
        elif max(dilation) == 1 and shape[0]:
            for include, divisor in ((True, None), (False, None), (True, 5)):
                windows = (*map(list, (kernel, stride, padding)), include, divisor)
                if op == "average_pool":
                    yield (
                        (values((many, *shape[1:])), list(indices.shape[2:]), *windows),
                        f"{label} {include} {divisor}",
                    )
                else:
                    g = values((many, *indices.shape[1:]))
                    yield (g, list(shape[2:]), *windows), f"{label} {include} {divisor}"
    if op.startswith("average_pool"):
        for shape, output in _ADAPTIVE:
            given, asked = (shape[2:], output) if op == "average_pool" else (output, shape[2:])
            g = values((targets * shape[0], shape[1], *given))
            yield (g, list(asked), [], [], [], True, None), f"{shape} adaptive={output}"


def conv_samples(op: str, dtype: torch.dtype, values: Values, targets: int) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Arguments and label of each sample of a convolution op."""
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    for batch, c_in, c_out, size, kernel, stride, padding, dilation, groups in _CONVS:
        geometry = zip(size, kernel, stride, padding, dilation, strict=True)
        out = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry)
        slide = ([*stride], [*padding], [*dilation], groups)
        weight = values((c_out, c_in // groups, *kernel)).contiguous()
        label = f"{(batch, c_in, *size)} -> {c_out}, kernel {kernel} stride {stride} groups {groups}"
        images = targets * batch
        if op == "conv_apply":
            for part in (Weights.ALL, Weights.POSITIVE, Weights.NEGATIVE):
                yield (values((images, c_in, *size)), weight, int(part), *slide, False), f"{label} {part.name}"
            continue
        forward, g = (batch, c_out, *out), values((images, c_out, *out))
        u = values(forward).relu()
        k = values((c_out,)).contiguous().to(arithmetic)
        d = values(forward)
        d = torch.where(d >= 0, d + 0.5, d - 0.5)
        factors = {
            "plain": (None, None, None, None, None),
            "epsilon": (values((images, c_out, *out)), u, k, None, None),
            "ratio": (None, None, None, values(forward), d),
        }
        for name, given in factors.items():
            if op == "conv_weight_gradient":
                a = values((images, c_in, *size))
                yield (g, *given, a, [*kernel], *slide, 1e-2, False), f"{label} {name}"
            else:
                none = (None, None, None)
                yield (g, *given, weight, 0, *none, [*size], *slide, 1e-2, False), f"{label} {name}"
        if op == "conv_relevance":
            a = values((batch, c_in, *size))
            bounds = tuple(values((c_in,)).contiguous().to(arithmetic) for _ in range(2))
            for part in (Weights.POSITIVE, Weights.SAME_SIGN, Weights.OPPOSITE_SIGN, Weights.BOX):
                input = None if part == Weights.POSITIVE else a
                low, high = bounds if part == Weights.BOX else (None, None)
                rest = ([*size], *slide, 1e-2, False)
                yield (g, *factors["ratio"], weight, int(part), input, low, high, *rest), f"{label} {part.name}"


def _transposed(map: Callable[[Tensor], Tensor], g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The transpose of a linear map by PyTorch's derivative of it."""
    with torch.enable_grad():
        x = torch.zeros(shape, dtype=g.dtype, requires_grad=True)
        return torch.autograd.grad(map(x), x, g)[0]


def _scaled(g: Tensor, factors: tuple[Any, ...], epsilon: float) -> Tensor:
    addend, output, scale, value, denominator = factors
    s = epsilon_scale_reference(g, addend, output, scale, epsilon)
    return s if denominator is None else ratio_reference(s, value, denominator, epsilon)


def _conv(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    return (F.conv1d if x.dim() == 3 else F.conv2d)(x, weight, None, stride, padding, dilation, groups)


def max_pool_winner_reference(g: Tensor, indices: Tensor, size: Any, *windows: Any) -> Tensor:
    """The formula of ``max_pool_winner``."""
    flat = g.new_zeros((*g.shape[:2], torch.Size(size).numel()))
    return flat.scatter_add(2, stretched(indices, g).flatten(2), g.flatten(2)).view(*g.shape[:2], *size)


def max_pool_winner_backward_reference(grad: Tensor, indices: Tensor, *_: Any) -> Tensor:
    """The formula of ``max_pool_winner_backward``."""
    many = stretched(indices, grad)
    return grad.flatten(2).gather(2, many.flatten(2)).view(many.shape)


def average_pool_transpose_reference(g: Tensor, size: Any, *windows: Any) -> Tensor:
    """The formula of ``average_pool_transpose``."""
    return _transposed(lambda x: _average(x, g.shape[2:], *windows), g, (*g.shape[:2], *size))


def conv_apply_reference(x: Tensor, weight: Tensor, part: int, *rest: Any) -> Tensor:
    """The formula of ``conv_apply``."""
    clamped = (weight, weight.clamp(min=0), weight.clamp(max=0))[part]
    return _conv(x, clamped, *rest[:4])


def conv_relevance_reference(g: Tensor, *arguments: Any) -> Tensor:
    """The formula of ``conv_relevance``."""
    factors, (weight, part, a, low, high, size), slide = arguments[:5], arguments[5:11], arguments[11:15]
    s = _scaled(g, factors, arguments[15])
    shape = (g.shape[0], weight.shape[1] * slide[3], *size)

    def pulled(w: Tensor) -> Tensor:
        return _transposed(lambda x: _conv(x, w, *slide), s, shape)

    up, down = pulled(weight.clamp(min=0)), pulled(weight.clamp(max=0))
    if part in (Weights.ALL, Weights.POSITIVE, Weights.NEGATIVE):
        return (pulled(weight), up, down)[part]
    many = stretched(a, g)
    if part == Weights.BOX:
        low, high = (b.to(s.dtype).view(1, -1, *(1,) * (s.dim() - 2)) for b in (low, high))
        return many * pulled(weight) - low * up - high * down
    if part == Weights.OPPOSITE_SIGN:
        up, down = down, up
    return torch.where(many >= 0, up, torch.where(many < 0, down, many))


def conv_weight_gradient_reference(g: Tensor, *arguments: Any) -> Tensor:
    """The formula of ``conv_weight_gradient``."""
    factors, (a, kernel), slide = arguments[:5], arguments[5:7], arguments[7:11]
    s = _scaled(g, factors, arguments[11])
    return _transposed(lambda w: _conv(a, w, *slide), s, (g.shape[1], a.shape[1] // slide[3], *kernel))


REFERENCES: dict[str, Callable[..., Tensor]] = {
    "max_pool_winner": max_pool_winner_reference,
    "max_pool_winner_backward": max_pool_winner_backward_reference,
    "average_pool": _average,
    "average_pool_transpose": average_pool_transpose_reference,
    "conv_relevance": conv_relevance_reference,
    "conv_apply": conv_apply_reference,
    "conv_weight_gradient": conv_weight_gradient_reference,
}
