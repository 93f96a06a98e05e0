"""Calls of every op on shapes of real layers, and eager PyTorch doing the same, for benchmarks/bench_kernels.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrpkernels.functional import kept_ranks
from lrpkernels.testing import REFERENCES, RULE_REFERENCES, arithmetic_dtype


class Layer(NamedTuple):
    """Batch, channels in and out, and side of the planes of a 3x3 convolution."""

    batch: int
    channels: int
    side: int


# ResNet18 at 224x224: its first, third and last stage.
LAYERS = {"64x56x56": Layer(4, 64, 56), "256x14x14": Layer(4, 256, 14), "512x7x7": Layer(4, 512, 7)}
_DECAY = 0.9


def _epsilon_scale(g: Tensor, addend: None, output: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    return (
        g * (output / (output + epsilon)) * scale.to(g.dtype).view(1, -1, 1, 1)
    )  # no case for output 0: the same except for its slope


def _ratio(g: Tensor, value: Tensor, denominator: Tensor, epsilon: float) -> Tensor:
    return g * (value / (denominator + epsilon * denominator.sign()))  # the inputs have no zero there


def _conv_relevance(g: Tensor, *rest: Any) -> Tensor:
    s = _epsilon_scale(g, None, rest[1], rest[2], rest[15])
    return torch.nn.functional.conv_transpose2d(s, rest[5], padding=1)


def _conv_weight_gradient(g: Tensor, *rest: Any) -> Tensor:
    s = _epsilon_scale(g, None, rest[1], rest[2], rest[11])
    return torch.nn.grad.conv2d_weight(rest[5], (g.shape[1], rest[5].shape[1], 3, 3), s, padding=1)


def _average_pool_transpose(g: Tensor, size: list[int], *rest: Any) -> Tensor:
    whole = g.new_empty((*g.shape[:2], *size))  # only its sizes are read
    return torch.ops.aten.avg_pool2d_backward(g, whole, [2, 2], [2, 2], [0, 0], False, True, None)


# What one would write in PyTorch for one target. The references that results are checked against do more (several targets, every
# part of the weights), so the comparison is unfair where they do.
_FORMULAS: dict[str, Callable[..., Any]] = {
    **REFERENCES,
    **RULE_REFERENCES,
    "epsilon_scale": _epsilon_scale,
    "ratio": _ratio,
    "conv_relevance": _conv_relevance,
    "conv_weight_gradient": _conv_weight_gradient,
    "average_pool_transpose": _average_pool_transpose,
}


def arguments_of(op: str, layer: str | Layer, dtype: torch.dtype) -> tuple[Any, ...]:
    """Arguments in schema order, on the CPU.

    Args:
        op: a name in ``torch.ops.lrpkernels``.
        layer: a name in :data:`LAYERS`, or sizes of your own.
        dtype: of storage.

    Raises:
        ValueError: an op that has no inputs here.
    """
    generator = torch.Generator().manual_seed(0)
    batch, channels, side = LAYERS[layer] if isinstance(layer, str) else layer
    planes, half = (batch, channels, side, side), (batch, channels, side // 2, side // 2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def away_from_zero(values: Tensor) -> Tensor:
        return torch.where(values >= 0, values + 0.5, values - 0.5)

    g, grad, u = normal(*planes), normal(*planes), normal(*planes).relu()
    k = normal(channels).to(arithmetic_dtype(dtype))
    weight = normal(channels, channels, 3, 3) / (3 * channels**0.5)
    two, one, none = [2, 2], [1, 1], [0, 0]
    slide = (one, one, one, 1)
    if op in ("epsilon_scale", "epsilon_scale_backward"):
        return (grad, g, None, u, k, 1e-2, True) if op.endswith("backward") else (g, None, u, k, 1e-2)
    if op in ("ratio", "ratio_backward"):
        return (
            *((grad,) if op.endswith("backward") else ()),
            g,
            normal(*planes),
            away_from_zero(normal(*planes)),
            1e-2,
        )
    if op in ("affine", "affine_backward"):
        return (
            *((grad,) if op.endswith("backward") else ()),
            g,
            u,
            away_from_zero(normal(*planes)),
            k,
            None,
            1.0,
            0.0,
            0.05,
        )
    if op in ("sum_zplus", "sum_zplus_backward"):
        return (*((grad, normal(*planes)) if op.endswith("backward") else ()), g, normal(*planes), normal(*planes), 0.5)
    if op in ("max_pool_winner", "max_pool_winner_backward"):
        indices = torch.nn.functional.max_pool2d_with_indices(g.float(), 2)[1]
        windows = (two, two, none, one)
        return (
            (grad, indices, *windows) if op.endswith("backward") else (normal(*half), indices, [side, side], *windows)
        )
    if op == "average_pool":
        return (g, list(half[2:]), two, two, none, True, None)
    if op == "average_pool_transpose":
        return (normal(*half), [side, side], two, two, none, True, None)
    if op == "conv_apply":
        return (g, weight, 0, *slide, False)
    if op == "conv_relevance":
        return (g, None, u, k, None, None, weight, 0, None, None, None, [side, side], *slide, 1e-2, False)
    if op == "conv_weight_gradient":
        return (g, None, u, k, None, None, normal(*planes), [3, 3], *slide, 1e-2, False)
    if op in ("sample_norm", "sample_norm_backward"):  # a group norm of 32 groups
        row = channels * side * side // min(32, channels)
        return (*((grad,) if op.endswith("backward") else ()), g, normal(*planes), k, row, side * side, True, 1e-5)
    if op in ("heatmap_scores", "heatmap_scores_backward"):
        return _heatmap(op, batch, (4 * side) ** 2, normal, arithmetic_dtype(dtype))
    raise ValueError(f"op: no inputs for {op!r}")


def _heatmap(op: str, images: int, positions: int, normal: Callable[..., Tensor], wide: torch.dtype) -> tuple[Any, ...]:
    """A heatmap of three channels at four times the planes' side."""
    heatmap = normal(images, 1, 3, positions)
    mask = (normal(images, 1, positions) > 0).to(heatmap.dtype)
    kept = kept_ranks(positions, _DECAY)
    if op == "heatmap_scores":
        return heatmap, mask, kept, _DECAY
    order = _FORMULAS["heatmap_scores"](heatmap.double(), mask.double(), kept, _DECAY)[3]
    grads = (normal(images, 1), normal(images, 1), normal(images, 1, 3))
    return heatmap, mask, order, *(grad.to(wide) for grad in grads), _DECAY


def eager(op: str, arguments: tuple[Any, ...]) -> Callable[[], object]:
    """PyTorch doing the same: the plain formula; for a backward op autograd through it, whose graph is made beforehand."""
    if not op.endswith("_backward") or op == "max_pool_winner_backward":  # that one is a gather
        return lambda: _FORMULAS[op](*arguments)
    inputs: tuple[Any, ...]
    if op == "heatmap_scores_backward":
        heatmap, mask, order, *grads, decay = arguments
        inputs = (heatmap, mask, order.shape[-1], decay)
        wanted = 1
    else:
        count = 2 if op == "sum_zplus_backward" else 1
        grads, inputs = list(arguments[:count]), arguments[count:]
        inputs = inputs[:-1] if op == "epsilon_scale_backward" else inputs
        wanted = len(inputs)
    leaves = [a.detach().requires_grad_() if isinstance(a, Tensor) and i < wanted else a for i, a in enumerate(inputs)]
    with torch.enable_grad():
        made = _FORMULAS[op.removesuffix("_backward")](*leaves)
    results = [r for r, _ in zip(made if isinstance(made, tuple) else (made,), grads, strict=False)]
    asked = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    cast = [grad.to(result.dtype) for grad, result in zip(grads, results, strict=True)]
    return lambda: torch.autograd.grad(results, asked, cast, retain_graph=True)
