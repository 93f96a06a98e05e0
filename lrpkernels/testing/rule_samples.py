"""Sample calls and references of the ops of layers without a matrix product and of the heatmap loss; see :mod:`lrpkernels.testing`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..functional.heatmap import heatmap_scores_formula, kept_ranks
from .formulas import stretched

Values = Callable[[tuple[int, ...]], Tensor]

RULE_OPS = (
    *("affine", "affine_backward", "sum_zplus", "sum_zplus_backward"),
    *("sample_norm", "sample_norm_backward"),
    *("heatmap_scores", "heatmap_scores_backward"),
)

_SHAPES: tuple[tuple[int, ...], ...] = ((2, 3, 5, 7), (4, 17), (1, 130, 3, 3), (2, 8, 12, 11), (0, 3, 4, 4))
# (input [B, ...], row, channels of the weight or 0, inner): layer norms with short and long rows, group, instance and other norms.
_NORMS: tuple[tuple[tuple[int, ...], int, int, int], ...] = (
    ((2, 5, 33), 33, 33, 1),
    ((3, 4, 17), 17, 0, 1),
    ((2, 3, 1300), 1300, 1300, 1),
    ((2, 3, 8), 24, 24, 1),
    ((2, 6, 5, 7), 70, 6, 35),
    ((3, 8, 4, 4), 16, 8, 16),
    ((2, 12), 4, 12, 1),
    ((1, 2, 1100), 1100, 2, 1100),
    ((0, 3, 8), 8, 8, 1),
)
# (images, channels, positions, mask channels, decay)
_HEATMAPS = (
    *((2, 3, 49, 1, 0.9), (1, 2, 300, 2, 0.5), (2, 1, 64, 1, 0.0), (1, 3, 130, 3, 1.0), (1, 1, 1200, 1, 0.99)),
    (0, 3, 16, 1, 0.9),
)


def rule_samples(op: str, dtype: torch.dtype, values: Values, targets: int) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Arguments and label of each sample of an op of this family."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if op.startswith("heatmap"):
        yield from _heatmap_samples(op, wide, values, targets)
        return
    if op.startswith("sample_norm"):
        for shape, row, channels, inner in _NORMS:
            many = (targets * shape[0], *shape[1:])
            for centred in (True, False):
                grads = (values(many),) if op.endswith("backward") else ()
                weight = values((channels,)).contiguous().to(wide) if channels else None
                settings = (row, inner, centred, 1e-2)
                label = f"{shape} rows of {row} weight {channels} centred {centred}"
                yield (*grads, values(many), values(shape), weight, *settings), label
        return
    for shape in _SHAPES:
        many = (targets * shape[0], *shape[1:])
        if op.startswith("sum"):
            backward = [values(many), values(many)] if op.endswith("backward") else []
            yield (*backward, values(many), values(shape), values(shape), 0.5), f"{shape}"
            continue
        for favour in ((1.0, 0.0), (0.0, 1.0), (1.0, 0.1)):  # epsilon, z+, gamma
            for with_shift in (False, True):
                grads = (values(many),) if op.endswith("backward") else ()
                # Away from z = 0, around which the epsilon rule jumps.
                x = values(shape)
                x.copy_(torch.where(x < 0, x.clamp(-1, -0.25), x.clamp(0.25, 1)))
                k, c = (values((shape[1],)).contiguous().to(wide).clamp(-1, 1) for _ in range(2))
                k = torch.where(k < 0, k - 0.25, k + 0.25)
                shift = (torch.where(c < 0, c - 1.5, c + 1.5) if favour[0] else c) if with_shift else None
                yield (
                    (*grads, values(many), values(shape), x, k, shift, *favour, 0.05),
                    f"{shape} favour {favour} shift {with_shift}",
                )


def _heatmap_samples(op: str, wide: torch.dtype, values: Values, maps: int) -> Iterator[tuple[tuple[Any, ...], str]]:
    for images, channels, positions, mask_channels, decay in _HEATMAPS:
        heatmap = values((images, maps, channels, positions))
        mask = (values((images, mask_channels, positions)) > 0).to(heatmap.dtype)
        kept = 0 if decay == 1 else 1 if decay == 0 else kept_ranks(positions, decay)
        label = f"{(images, maps, channels, positions)} decay {decay}"
        if op == "heatmap_scores":
            yield (heatmap, mask, kept, decay), label
            continue
        order = heatmap_scores_formula(heatmap.double(), mask.double(), kept, decay)[3]
        shapes = ((images, maps), (images, maps), (images, maps, channels))
        yield (heatmap, mask, order, *(values(s).contiguous().to(wide) for s in shapes), decay), label


def _stable(z: Tensor, epsilon: float) -> Tensor:
    return torch.where(z < 0, z - epsilon, z + epsilon)


def _channels(slope: Tensor, shift: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """k and c, to be broadcast against x."""
    shape = (-1, *(1,) * (x.dim() - 2))
    c = x.new_zeros(()) if shift is None else shift.to(x.dtype).view(shape)
    return slope.to(x.dtype).view(shape), c


def sample_norm_formula(
    g: Tensor, x: Tensor, weight: Tensor | None, row: int, inner: int, centred: bool, epsilon: float
) -> Tensor:
    """(w G - mean(w G)) / sqrt(variance + eps) in each row, without the mean where the norm is not centred."""
    rows = x.reshape(-1, row)
    mean = rows.mean(1, keepdim=True) if centred else 0.0
    inverse = ((rows - mean).square().mean(1, keepdim=True) + epsilon).rsqrt()
    if weight is not None:
        g = (g.reshape(-1, weight.numel(), inner) * weight.to(x.dtype)[:, None]).reshape(g.shape)
    given = g.reshape(-1, *rows.shape) if rows.numel() else g.reshape(1, *rows.shape)
    centred_given = given - given.mean(2, keepdim=True) if centred else given
    return (centred_given * inverse).reshape(g.shape)


def affine_formula(
    g: Tensor, v: Tensor, x: Tensor, slope: Tensor, shift: Tensor | None, whole: float, positive: float, epsilon: float
) -> Tensor:
    """G v k / (d + eps sgn d), d = whole z + positive z+, k likewise with the k of x's sign."""
    k, c = _channels(slope, shift, x)
    d = whole * (k * x + c) + positive * ((k * x).relu() + c.relu())
    k = whole * k + positive * torch.where(x >= 0, k.clamp(min=0), k.clamp(max=0))
    return g * stretched(v * k / _stable(d, epsilon), g)


def sum_zplus_formula(g: Tensor, a: Tensor, b: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """s = G t / (a+ + b+ + eps), for the summands >= 0."""
    s = g * stretched((a + b) / (a.relu() + b.relu() + epsilon), g)
    return s * stretched(a >= 0, s), s * stretched(b >= 0, s)


def heatmap_scores_backward_reference(heatmap: Tensor, mask: Tensor, order: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """PyTorch's derivative of the formula of ``heatmap_scores``."""
    *grads, decay = rest
    with torch.enable_grad():
        results = heatmap_scores_formula(heatmap.requires_grad_(), mask, order.shape[-1], decay)
    return torch.autograd.grad(results[:3], heatmap, grads)


RULE_REFERENCES: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "affine": affine_formula,
    "sample_norm": sample_norm_formula,
    "sum_zplus": sum_zplus_formula,
    "heatmap_scores": heatmap_scores_formula,
    "heatmap_scores_backward": heatmap_scores_backward_reference,
}
