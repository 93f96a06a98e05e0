"""Ops that CPU tensors alone have: what several calls do, in one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck

from lrpkernels import functional
from lrpkernels.functional import ConvGeometry
from lrpkernels.testing import lay_out

ops = torch.ops.lrpkernels
CONVOLUTIONS = {
    # input (C, ...), output channels, kernel, stride, padding, dilation, groups
    "row": ((4, 11), 6, (3,), (2,), (1,), (1,), 2),
    "plane": ((3, 9, 8), 8, (3, 2), (1, 2), (1, 0), (2, 1), 1),
    "pixel": ((6, 5, 5), 4, (1, 1), (2, 2), (0, 0), (1, 1), 2),
    "volume": ((2, 5, 4, 6), 4, (2, 3, 3), (1, 1, 2), (0, 1, 1), (1, 1, 1), 1),
}
LAYOUTS = ("contiguous", "channels_last")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class Case:
    """The arguments of one convolution's epsilon rule, three targets of two images."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64, layout: str = "contiguous") -> None:
        (channels, *size), out, kernel, stride, padding, dilation, groups = CONVOLUTIONS[name]
        torch.manual_seed(0)
        self.slide = (stride, padding, dilation, groups)
        self.geometry = ConvGeometry(stride, padding, dilation, False, (0,) * len(stride), groups)
        place = layout if len(size) == 2 else "contiguous"
        self.input = lay_out(torch.randn(2, channels, *size).to(dtype), place)
        self.weight = torch.randn(out, channels // groups, *kernel).to(dtype)
        z = torch.convolution(self.input, self.weight, None, *self.geometry)
        self.output = z.relu()
        self.multiplier, self.addend = (lay_out(torch.randn(6, *z.shape[1:]).to(dtype), place) for _ in range(2))
        self.grad = lay_out(torch.randn(6, channels, *size).to(dtype), place)
        self.scale = torch.rand(out, dtype=torch.float64 if dtype == torch.float64 else torch.float32) + 0.5

    def factors(self, has: tuple[bool, bool, bool]) -> tuple[Tensor | None, ...]:
        given = (self.addend, self.output, self.scale)
        return tuple(factor if there else None for factor, there in zip(given, has, strict=True))

    def aten(self, s: Tensor, input: Tensor, wanted: int) -> Tensor:
        mask = [wanted == 0, wanted == 1, False]
        return torch.ops.aten.convolution_backward(s, input, self.weight, None, *self.geometry, mask)[wanted]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_one_call_gives_what_the_separate_calls_give(name: str, dtype: torch.dtype, layout: str) -> None:
    case = Case(name, dtype, layout)
    like = torch.empty_like(case.grad)
    for has in itertools.product((False, True), repeat=3):
        factors = case.factors(has)
        s = ops.epsilon_scale(case.multiplier, *factors, 0.1, 0.05) if any(has) else case.multiplier
        result = ops.conv_epsilon(case.multiplier, *factors, case.weight, case.input, *case.slide, 0.1, 0.05)
        expected = case.aten(s, like, 0)
        assert torch.equal(result, expected), has
        assert result.stride() == expected.stride()

        need_scale = factors[2] is not None
        arguments = (case.grad, case.multiplier, *factors, case.weight, *case.slide, 0.1, 0.05)
        g, u, k, w = ops.conv_epsilon_backward(*arguments, True, need_scale, True)
        t = torch.convolution(case.grad, case.weight, None, *case.geometry)
        separate: tuple[Tensor, ...] = (t,)
        if any(has):
            separate = ops.epsilon_scale_backward(t, case.multiplier, *factors, 0.1, 0.05, need_scale)
        for part, exact in zip((g, u, k), separate, strict=False):
            assert torch.equal(part, exact), has
        assert torch.equal(w, case.aten(s, case.grad, 1)), has

        alone = ops.conv_epsilon_backward(*arguments, False, False, True)
        assert [part.numel() for part in alone[:3]] == [0, 0, 0]
        assert torch.equal(alone[3], w)
        assert ops.conv_epsilon_backward(*arguments, True, False, False)[3].numel() == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_shape_functions(name: str, layout: str) -> None:
    case = Case(name, torch.float32, layout)
    for has in itertools.product((False, True), repeat=3):
        factors = case.factors(has)
        forward = (case.multiplier, *factors, case.weight, case.input, *case.slide, 0.1, 0.0)
        backward = (case.grad, case.multiplier, *factors, case.weight, *case.slide, 0.1, 0.0, True, has[2], True)
        for op, arguments in ((ops.conv_epsilon, forward), (ops.conv_epsilon_backward, backward)):
            real = op(*arguments)
            with FakeTensorMode() as mode:
                fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
            for r, f in zip(*((x if isinstance(x, tuple) else (x,)) for x in (real, fake)), strict=True):
                assert (r.shape, r.dtype) == (f.shape, f.dtype)


@pytest.mark.parametrize("has", [*itertools.product((False, True), repeat=3)], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_derivatives(name: str, has: tuple[bool, bool, bool]) -> None:
    case = Case(name)
    case.output = case.output + 0.1  # away from the kink at 0
    addend, output, scale = case.factors(has)

    def rule(g: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        given = iter(rest)
        a, u, k = (next(given) if there else None for there in has)
        return functional.conv_epsilon(
            g, weight, case.input, u, k, addend=a, geometry=case.geometry, epsilon=0.1, leak=0.05
        )

    given = [case.multiplier, case.weight, *(f for f in (addend, output, scale) if f is not None)]
    leaves = [t.clone().requires_grad_() for t in given]
    assert gradcheck(rule, leaves, atol=1e-6, fast_mode=True)


def test_the_factor_of_a_batch_norm() -> None:
    variance, gamma = torch.rand(70) * 3, torch.randn(70)
    for dtype in (torch.float32, torch.float64):
        v, g = variance.to(dtype), gamma.to(dtype)
        inverse = (v + 1e-5).rsqrt()
        assert torch.equal(ops.batch_norm_scale(v, g, 1e-5), g * inverse)
        assert torch.equal(ops.batch_norm_scale(v, None, 1e-5), inverse)
        assert torch.equal(functional.batch_norm_scale(v, g, 1e-5), g * inverse)
    strided = torch.rand(70, 2)[:, 0]
    assert torch.equal(ops.batch_norm_scale(strided, strided, 0.1), strided * (strided + 0.1).rsqrt())
    half = functional.batch_norm_scale(variance.bfloat16(), gamma.bfloat16(), 1e-5)
    assert torch.equal(half, gamma.bfloat16().float() * (variance.bfloat16().float() + 1e-5).rsqrt())


def _bad_calls() -> dict[str, tuple[Callable[[], Any], str]]:
    case = Case("plane", torch.float32)
    none, slide = (None, None, None), case.slide

    def forward(*factors: Tensor | None, weight: Tensor = case.weight, slide: tuple[Any, ...] = slide) -> Any:
        return ops.conv_epsilon(case.multiplier, *factors, weight, case.input, *slide, 0.1, 0.0)

    return {
        "addend": (lambda: forward(case.addend[:3], None, None), "addend must have the multiplier's shape [6, 8, "),
        "output": (lambda: forward(None, case.output[:, :3], None), "output must have shape [B, C, ...] for"),
        "stride": (
            lambda: forward(*none, slide=((1,), *slide[1:])),
            "conv_epsilon: stride must be 2 numbers >= 1, got [1]",
        ),
        "padding": (
            lambda: forward(*none, slide=(slide[0], (1, -1), *slide[2:])),
            "conv_epsilon: padding must be 2 numbers >= 0, got [1, -1]",
        ),
        "weight": (
            lambda: forward(*none, weight=case.weight[:5]),
            "conv_epsilon: weight must have 4 dimensions and C_out = 8 for groups = 1, got [5, 3, 3, 2]",
        ),
        "flat weight": (
            lambda: forward(*none, weight=torch.rand(8)),
            "conv_epsilon: weight must have 4 dimensions and C_out = 8",
        ),
        "rank": (
            lambda: ops.conv_epsilon(case.multiplier[0, 0], *none, case.weight, case.input, *slide, 0.1, 0.0),
            "conv_epsilon: multiplier must have shape [N, C, ...], got [",
        ),
        "groups": (lambda: forward(*none, slide=(*slide[:3], 3)), "C_out = 8 for groups = 3"),
        "input": (
            lambda: ops.conv_epsilon(case.multiplier, *none, case.weight, case.input[:, :2], *slide, 0.1, 0.0),
            "conv_epsilon: input must have 4 dimensions and C_in = 3, got [2, 2, 9, 8]",
        ),
        "sizes": (
            lambda: ops.conv_epsilon(case.multiplier, *none, case.weight, case.input[:, :, 1:], *slide, 0.1, 0.0),
            "conv_epsilon: input sizes [8, 8] give 6 output positions in dimension 0, got [7, 4]",
        ),
        "grad": (
            lambda: ops.conv_epsilon_backward(
                case.grad[:, :2], case.multiplier, *none, case.weight, *slide, 0.1, 0.0, True, False, True
            ),
            "conv_epsilon_backward: grad must have 4 dimensions and C_in = 3, got [6, 2, 9, 8]",
        ),
        "variance": (
            lambda: ops.batch_norm_scale(torch.rand(3, 1), None, 0.1),
            "batch_norm_scale: variance must have shape [C], got [3, 1]",
        ),
        "variance dtype": (
            lambda: ops.batch_norm_scale(torch.rand(3).half(), None, 0.1),
            "batch_norm_scale: variance must have dtype float32 or float64, got float16",
        ),
        "gamma": (
            lambda: ops.batch_norm_scale(torch.rand(3), torch.rand(4), 0.1),
            "batch_norm_scale: gamma must have shape [C] = [3], got [4]",
        ),
        "epsilon": (lambda: ops.batch_norm_scale(torch.rand(3), None, -1.0), "epsilon must be finite and >= 0, got -1"),
    }


@pytest.mark.parametrize("name", _bad_calls())
def test_errors_name_the_argument_what_was_expected_and_what_came(name: str) -> None:
    call, text = _bad_calls()[name]
    with pytest.raises(RuntimeError) as raised:
        call()
    assert text in str(raised.value)
