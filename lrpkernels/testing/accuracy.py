"""How far an op's results are from float64, held against what their dtype allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .layer_samples import CONV_OPS
from .samples import POINTWISE_OPS, arithmetic_dtype, reference

# Sums over images and positions, which plain PyTorch adds up in another order: its own error is a weaker bound for a kernel's.
_SUMMING_OPS = (*CONV_OPS, "affine_backward")
_SUM_MARGIN = 4.0
# Of the terms of a pointwise op, in units of eps = 2 u, u the largest error of a rounding. An element takes at most a dozen operations
# (du of epsilon_scale with three targets: eight of products and their sum, two factors, two quotients), 12 u. In a sum the errors of
# d additions in a row, each at most u times a partial sum, have either sign: together in the order of sqrt(d) u times all terms
# (Higham and Mary, SIAM J. Sci. Comput. 41, 2019), 17 u for the kernels' 272 at most, and less, since partial sums are parts.
_TERM_ROUNDINGS = 10
# Where the exact result is itself rounded, at each of the many operations of autograd.
_FLOAT64_ROUNDINGS = 64


class Accuracy(NamedTuple):
    """One result of an op against the same in float64.

    Attributes:
        error: its largest difference, relative to the largest value; infinite for another shape or a NaN that is not due.
        ratio: its largest difference relative to what is allowed; at most 1 for a correct kernel.
    """

    error: float
    ratio: float


def accuracies(
    op: str, arguments: tuple[Any, ...], results: Tensor | Sequence[Tensor], dtype: torch.dtype | None = None
) -> list[Accuracy]:
    """Each result of a call against float64.

    The bound of a pointwise op, for each number by itself, is one rounding of the exact result to its dtype and some roundings of
    the sum of its terms' absolute values in the dtype of the arithmetic: of terms that cancel no order of addition gives more. Plain
    PyTorch's own error is no bound for such a sum: of two channels it may happen to be next to nothing. The bound of the others is
    twice plain PyTorch's largest error and two roundings of the largest value (`error_ratio`), wider for sums over positions.

    Args:
        op: a name in ``torch.ops.lrpkernels``.
        arguments: of the call, in schema order.
        results: of the call, on any device.
        dtype: in which plain PyTorch computes; that of the arguments if None.
    """
    exact = reference(op, arguments)
    results = [results] if isinstance(results, Tensor) else results
    if op in POINTWISE_OPS:
        terms = reference(op, tuple(a.abs() if isinstance(a, Tensor) else a for a in arguments))
        ratios = [_ratio_to_terms(r, e, t.abs()) for r, e, t in zip(results, exact, terms, strict=True)]
    else:
        plain = reference(op, arguments, dtype or next(a.dtype for a in arguments if isinstance(a, Tensor)))
        margin = _SUM_MARGIN if op in _SUMMING_OPS else 1.0
        ratios = [error_ratio(r, p, e) / margin for r, p, e in zip(results, plain, exact, strict=True)]
    return [Accuracy(_relative(r, e), ratio) for r, e, ratio in zip(results, exact, ratios, strict=True)]


def error_ratio(actual: Tensor, plain: Tensor, exact: Tensor) -> float:
    """The largest error of a kernel, relative to what is allowed.

    The bound is twice plain PyTorch's error in the same dtype, where that is finite, plus two roundings; for float64, where the exact
    result is itself rounded, 64 roundings. Results beyond the range of the dtype must be infinite.

    Args:
        actual: the kernel's result.
        plain: plain PyTorch's result, computed in the storage dtype.
        exact: the result in float64.

    Returns:
        At most 1 for a correct kernel; infinite for a NaN that is not in ``exact``, a missing one, or another shape.
    """
    found = _comparable(actual, exact)
    if found is None or found.got.numel() == 0:
        return 0.0 if found else float("inf")
    limits = torch.finfo(actual.dtype)
    eager = plain.double()[found.known]
    theirs = (eager - found.exact).abs()[eager.isfinite()]
    roundings = _FLOAT64_ROUNDINGS if actual.dtype == torch.float64 else 2
    allowed = 2 * (theirs.max() if theirs.numel() else 0.0) + roundings * limits.eps * found.exact.abs().max()
    return float((found.got - found.exact).abs().max() / (allowed + limits.tiny))


def _ratio_to_terms(actual: Tensor, exact: Tensor, terms: Tensor) -> float:
    """The largest error relative to what is allowed, number by number, by the absolute values of the terms of each."""
    found = _comparable(actual, exact)
    if found is None or found.got.numel() == 0:
        return 0.0 if found else float("inf")
    limits, arithmetic = torch.finfo(actual.dtype), torch.finfo(arithmetic_dtype(actual.dtype))
    allowed = limits.eps / 2 * found.exact.abs() + _TERM_ROUNDINGS * arithmetic.eps * terms[found.known]
    if actual.dtype == torch.float64:
        allowed = allowed + _FLOAT64_ROUNDINGS * limits.eps * found.exact.abs().max()
    return float(((found.got - found.exact).abs() / (allowed + limits.smallest_normal * limits.eps)).max())


class _Comparable(NamedTuple):
    """Numbers of a result, and what they should be, in float64 and within the range of the result's dtype; where they stand."""

    got: Tensor
    exact: Tensor
    known: Tensor


def _comparable(actual: Tensor, exact: Tensor) -> _Comparable | None:
    """None if the result is wrong without a look at its errors: in shape, in NaNs, finite far beyond the dtype's range, in positions."""
    if actual.shape != exact.shape:
        return None
    known = ~exact.isnan()
    got = actual.to(exact.device, torch.float64)
    if not torch.equal(got.isnan(), ~known):
        return None
    got, exact = got[known], exact[known].double()
    if not actual.is_floating_point():  # positions: right or wrong
        return _Comparable(got[:0], exact[:0], known) if torch.equal(got, exact) else None
    limits = torch.finfo(actual.dtype)
    beyond = exact.abs() > 1.01 * limits.max
    if not torch.equal(got[beyond], exact[beyond].sign() * float("inf")):
        return None
    top = limits.max * (1 + limits.eps / 4)  # from there on numbers round to infinity
    return _Comparable(got.clamp(-top, top), exact.clamp(-top, top), known)


def _relative(actual: Tensor, exact: Tensor) -> float:
    found = _comparable(actual, exact)
    if found is None or found.got.numel() == 0 or not bool(found.exact.any()):
        return 0.0 if found else float("inf")
    return float((found.got - found.exact).abs().max() / found.exact.abs().max())
