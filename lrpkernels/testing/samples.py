"""Sample inputs and float64 references of every op, shared by tests, ``lrpkernels doctor`` and benchmarks.

References are plain PyTorch formulas; those of the backward ops are PyTorch's own derivatives of the forward
formulas, so that a wrong hand-derived gradient cannot agree with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .formulas import epsilon_scale_reference, ratio_reference
from .layer_samples import CONV_OPS, POOL_OPS, REFERENCES, conv_samples, pool_samples
from .rule_samples import RULE_OPS, RULE_REFERENCES, rule_samples

POINTWISE_OPS = ("epsilon_scale", "epsilon_scale_backward", "ratio", "ratio_backward")
OPS = (*POINTWISE_OPS, *POOL_OPS, *CONV_OPS, *RULE_OPS)
CPU_OPS = tuple(op for op in OPS if op not in CONV_OPS)  # convolutions of CPU tensors are ATen's
LAYOUTS = ("contiguous", "channels_last", "strided", "offset")

# Odd sizes, vector tails, batch 0 and 1, one channel, [N, C], volumes, planes longer than a parallel task, many channels.
SHAPES: tuple[tuple[int, ...], ...] = (
    (2, 3, 5, 7),
    (1, 1, 1, 1),
    (4, 17),
    (3, 5, 33),
    (2, 3, 2, 5, 3),
    (1, 2, 131, 130),
    (2, 130, 1, 3),
    (1, 1037, 2, 5),
    (3, 1, 9, 8),
    (0, 3, 4, 4),
    (2, 3, 0, 4),
)


@dataclass(frozen=True)
class Sample:
    """One call of an op: its name, its arguments in schema order, and a text that distinguishes samples."""

    op: str
    arguments: tuple[Any, ...]
    label: str


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another layout.

    Args:
        tensor: any tensor.
        layout: "contiguous"; "channels_last" (where the number of dimensions has one); "strided", a view that
            is dense in no layout; "offset", contiguous but not aligned to a vector.
    """
    if layout == "channels_last" and tensor.dim() in (4, 5):
        memory_format = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
        return tensor.contiguous(memory_format=memory_format)
    if layout == "strided":
        wide = tensor.new_empty((*tensor.shape[:-1], 2 * tensor.shape[-1]))
        view = wide[..., ::2]
        view.copy_(tensor)
        return view
    if layout == "offset":
        flat = tensor.new_empty(tensor.numel() + 1)
        flat[1:] = tensor.reshape(-1)
        return flat[1:].view(tensor.shape)
    return tensor.contiguous()


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of per-channel tensors beside tensors of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def samples(
    op: str,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    targets: int = 1,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    generator: torch.Generator | None = None,
) -> Iterator[Sample]:
    """Sample calls of an op, on the CPU.

    Args:
        op: a name in ``torch.ops.lrpkernels``.
        dtype: storage dtype.
        layout: one of `LAYOUTS`.
        targets: explanations per image, T.
        shapes: forward shapes [B, C, ...] of the pointwise ops; the others have tables of layers.
        generator: source of the values; a fixed seed if None.
    """
    generator = generator or torch.Generator().manual_seed(0)

    def values(shape: tuple[int, ...]) -> Tensor:
        return lay_out(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype), layout)

    def per_image(shape: tuple[int, ...]) -> Tensor:
        """Stabilizers, one of them much larger than the others."""
        return torch.linspace(0.05, 1.0, shape[0], dtype=arithmetic_dtype(dtype))

    if op not in POINTWISE_OPS:
        if op in POOL_OPS:
            found = pool_samples(op, values, targets)
        else:
            found = (conv_samples if op in CONV_OPS else rule_samples)(op, dtype, values, targets)
        for arguments, label in found:
            yield Sample(op, arguments, label)
        return
    for shape in shapes:
        many = (targets * shape[0], *shape[1:])
        grad = (values(many),) if op.endswith("_backward") else ()
        if op.startswith("ratio"):
            arguments = (*grad, values(many), values(shape), values(shape))
            yield Sample(op, (*arguments, 1e-2), f"{shape}")
            yield Sample(op, (*arguments, 0.0, per_image(shape)), f"{shape} epsilons")
            continue
        for has_addend in (False, True):
            for has_output in (False, True):
                for has_scale in (False, True):
                    addend = values(many) if has_addend else None
                    output = lay_out(values(shape).relu(), layout) if has_output else None
                    scale = None
                    if has_scale:
                        scale = torch.randn(shape[1], generator=generator, dtype=arithmetic_dtype(dtype))
                    label = f"{shape} addend={has_addend} output={has_output} scale={has_scale}"
                    numbers = (1e-2, has_scale) if grad else (1e-2,)
                    arguments = (*grad, values(many), addend, output, scale, *numbers)
                    yield Sample(op, arguments, label)
                    if has_output and has_addend == has_scale:
                        yield Sample(op, (*arguments, per_image(shape)), f"{label} epsilons")


_FORWARD: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "epsilon_scale": epsilon_scale_reference,
    "ratio": ratio_reference,
    **REFERENCES,
    **RULE_REFERENCES,
}


def reference(op: str, arguments: tuple[Any, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """What an op should return, computed by plain PyTorch.

    Args:
        op: a name in ``torch.ops.lrpkernels``.
        arguments: its arguments in schema order.
        dtype: in which to compute; float64 is the truth, the storage dtype shows what plain PyTorch would give.

    Returns:
        All results in ``dtype``, those optional ones that were not requested with zero elements.
    """
    cast = [
        a.detach().to(dtype, copy=True) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments
    ]
    if op in _FORWARD:
        results = _FORWARD[op](*cast)
        return results if isinstance(results, tuple) else (results,)
    base = op.removesuffix("_backward")
    count = 2 if base == "sum_zplus" else 1
    grads, inputs = cast[:count], cast[count:]
    # What stands behind the numbers of a pointwise op: its stabilizers, which have no gradient.
    last = [inputs.pop()] if op in POINTWISE_OPS and isinstance(inputs[-1], Tensor) else []
    # Each of the leading tensors has a gradient among the results, an empty one if it is missing.
    wanted: list[bool | None] = [True for a in inputs if a is None or isinstance(a, Tensor)]
    if base == "epsilon_scale":  # that of the addend is the multiplier's; the scale's must be requested
        wanted[1], wanted[3] = None, bool(inputs.pop())
    leaves = [a.requires_grad_() if isinstance(a, Tensor) else a for a in inputs]
    with torch.enable_grad():
        results = _FORWARD[base](*leaves, *last)
    asked = [leaf for leaf, want in zip(leaves, wanted, strict=False) if want and leaf is not None]
    found = iter(torch.autograd.grad(results, asked, grads if isinstance(results, tuple) else grads[0]))
    pairs = [pair for pair in zip(leaves, wanted, strict=False) if pair[1] is not None]
    return tuple(next(found) if want and leaf is not None else grads[0].new_empty(0) for leaf, want in pairs)
