"""Pooling and convolution ops: error texts, derivatives of the functions on them, agreement with PyTorch's own layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_emulated_ops import load_emulated_ops
from torch import Tensor
from torch.autograd import gradcheck

import lrpkernels as lrp
from lrpkernels import functional

ops = torch.ops.lrpkernels


def _pooled(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(*shape)
    y, indices = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    return x, y, indices


WINDOW: Any = ((3, 3), (2, 2), (1, 1), (1, 1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_winner_takes_all_as_in_pytorch(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 70, 13, 11).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    y, indices = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    g = torch.randn_like(y)
    wide = x.detach().double().requires_grad_()  # PyTorch adds up in bfloat16
    (expected,) = torch.autograd.grad(F.max_pool2d(wide, 3, 2, 1), wide, g.double())
    actual = ops.max_pool_winner(g, indices, [13, 11], *WINDOW)
    torch.testing.assert_close(actual.double(), expected, rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    assert actual.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("op", ["max_pool_winner", "max_pool_winner_backward"])
@pytest.mark.parametrize("wrong", [-1, 49, 2**40])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_an_index_outside_its_plane_is_refused(op: str, wrong: int, memory_format: torch.memory_format) -> None:
    x, y, indices = (t.contiguous(memory_format=memory_format) for t in _pooled(2, 3, 7, 7))
    indices[1, 2, 3, 1] = wrong
    with pytest.raises(RuntimeError, match=f"{op}: indices must be >= 0 and below the plane's 49 positions"):
        if op == "max_pool_winner":
            ops.max_pool_winner(y, indices, [7, 7], *WINDOW)
        else:
            ops.max_pool_winner_backward(x, indices, *WINDOW)


def _bad_calls() -> dict[str, tuple[Callable[[Any], object], str]]:
    x, y, indices = _pooled(2, 3, 7, 7)
    g, w = torch.randn(4, 8, 5, 5), torch.randn(8, 3, 3, 3)
    none = (None,) * 5
    slide = ([1, 1], [1, 1], [1, 1], 1)
    rest = (*slide, 0.1, False)

    def relevance(o: Any, g: Tensor, w: Tensor, size: list[int], *rest: Any, part: int = 0, **given: Any) -> object:
        return o.conv_relevance(g, *none, w, part, given.get("input"), given.get("low"), given.get("high"), size, *rest)

    return {
        "rank": (lambda o: o.max_pool_winner(y[0, 0], indices, [7, 7], *WINDOW), "with 1 to 3 spatial dimensions"),
        "index dtype": (
            lambda o: o.max_pool_winner(y, indices.int(), [7, 7], *WINDOW),
            "max_pool_winner: indices must have dtype int64, got Int",
        ),
        "index batch": (
            lambda o: o.max_pool_winner(y[:1].repeat(3, 1, 1, 1), indices, [7, 7], *WINDOW),
            "max_pool_winner: indices must have shape [B, C, ...] beside [T * B, C, ...] = [3, 3, 4, 4], got [2, 3, 4, 4]",
        ),
        "index sizes": (
            lambda o: o.max_pool_winner(y[..., :3], indices, [7, 7], *WINDOW),
            "indices must have the multiplier's spatial sizes [4, 3], got [4, 4]",
        ),
        "stride": (
            lambda o: o.max_pool_winner(y, indices, [7, 7], (3, 3), (0, 2), (1, 1), (1, 1)),
            "max_pool_winner: stride must be 2 numbers >= 1, got [0, 2]",
        ),
        "window outside": (
            lambda o: o.average_pool(x, [9, 4], (3, 3), (2, 2), (1, 1), True, None),
            "average_pool: the last window must start inside the input or the padding ahead of it",
        ),
        "divisor": (
            lambda o: o.average_pool(x, [4, 4], (3, 3), (2, 2), (1, 1), True, 0),
            "average_pool: divisor_override must not be 0",
        ),
        "adaptive divisor": (
            lambda o: o.average_pool_transpose(y, [7, 7], [], [], [], True, 3),
            "average_pool_transpose: divisor_override must be None for adaptive pooling, got 3",
        ),
        "weight": (lambda o: relevance(o, g, w[:5], [5, 5], *rest), "for C_out = 8 and groups = 1, got [5, 3, 3, 3]"),
        "sizes": (
            lambda o: relevance(o, g, w, [6, 5], *rest),
            "conv_relevance: input sizes [6, 5] give 6 output positions in dimension 0, got [5, 5]",
        ),
        "weights": (lambda o: relevance(o, g, w, [5, 5], *rest, part=6), "weights must be 0 to 5, got 6"),
        "no input": (lambda o: relevance(o, g, w, [5, 5], *rest, part=3), "input must be given for weights 3"),
        "no bounds": (
            lambda o: relevance(o, g, w, [5, 5], *rest, part=5, input=torch.randn(2, 3, 5, 5)),
            "low must be given for weights 5",
        ),
        "lonely value": (
            lambda o: o.conv_relevance(g, None, None, None, g, None, w, 0, None, None, None, [5, 5], *rest),
            "value and denominator must be given together, got only value",
        ),
        "weight groups": (
            lambda o: o.conv_weight_gradient(
                g, *none, torch.randn(4, 3, 5, 5), [3, 3], [1, 1], [1, 1], [1, 1], 2, 0.1, False
            ),
            "conv_weight_gradient: groups must divide the 3 input and 8 output channels, got 2",
        ),
        "weight batch": (
            lambda o: o.conv_weight_gradient(g, *none, torch.randn(3, 3, 5, 5), [3, 3], *slide, 0.1, False),
            "conv_weight_gradient: input must have shape [4, 3, 5, 5], got [3, 3, 5, 5]",
        ),
    }


@pytest.mark.parametrize("name", _bad_calls())
def test_errors_name_the_argument_what_was_expected_and_what_came(name: str) -> None:
    load_emulated_ops()
    call, text = _bad_calls()[name]
    convolution = name in list(_bad_calls())[8:]  # no CPU kernels
    for namespace in (torch.ops.lrpkernels_emulated,) if convolution else (ops, torch.ops.lrpkernels_emulated):
        with pytest.raises(RuntimeError) as raised:
            call(namespace)
        assert text in str(raised.value)


def _average_cases() -> dict[str, tuple[Any, ...]]:
    return {
        "2x2": ((4, 5), (2, 2), (2, 2), (0, 0), True, None),
        "padded": ((5, 4), (3, 2), (2, 1), (1, 1), False, None),
        "divisor": ((5, 4), (3, 2), (2, 1), (1, 1), True, 7),
        "row": ((9,), (3,), (2,), (1,), True, None),
        "volume": ((4, 3, 4), (2, 2, 2), (2, 1, 2), (1, 0, 0), False, None),
        "adaptive": ((5, 7), (), (), (), True, None),
    }


@pytest.mark.parametrize("name", _average_cases())
def test_derivative_of_the_transposed_average(name: str) -> None:
    size, kernel, stride, padding, include, divisor = _average_cases()[name]
    out = [3, 4]
    if kernel:
        out = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)]
    g = torch.randn(2, 3, *out, dtype=torch.float64, requires_grad=True)
    pulled = lambda g: functional.average_pool_transpose(g, size, kernel, stride, padding, include, divisor)
    assert gradcheck(pulled, (g,))
    with pytest.raises(RuntimeError, match="second derivative"):
        (first,) = torch.autograd.grad(pulled(g).square().sum(), g, create_graph=True)
        torch.autograd.grad(first.sum(), g)


def test_derivative_of_the_winner_in_three_dimensions() -> None:
    x = torch.randn(2, 3, 5, 4, 6, dtype=torch.float64)
    y, indices = F.max_pool3d(x, (2, 3, 2), (2, 1, 2), 1, return_indices=True)
    arguments = ((2, 3, 2), (2, 1, 2), (1, 1, 1), (1, 1, 1), False)
    g = torch.randn(3 * y.shape[0], *y.shape[1:], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda g: functional.max_pool_winner(g, indices, x, arguments), (g,))


def test_a_description_of_s_keeps_what_it_has_when_a_quotient_is_added() -> None:
    g, addend, u, v, d = (torch.rand(2, 3, 4, dtype=torch.float64) + 0.1 for _ in range(5))
    k = torch.rand(3, dtype=torch.float64)
    scaled = functional.Scaled(g, addend, u, k, eps=0.5).over(v, d, 0.25)
    expected = (g + addend) * (u / (u + 0.5)) * k[:, None] * v / (d + 0.25)
    torch.testing.assert_close(scaled.tensor(), expected)


def test_the_scale_of_a_batch_norm_can_be_read_in_any_grad_mode() -> None:
    """Reading it changes nothing: one that was read without gradients has them later."""
    with lrp.record(torch.nn.BatchNorm1d(3).eval(), torch.rand(2, 3)) as tape:
        (norm,) = tape.nodes
        before = dict(vars(norm))
        with torch.inference_mode():
            norm.scale()
        gamma = norm.scale()
        assert vars(norm) == before and gamma.requires_grad
