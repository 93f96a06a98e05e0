"""The epsilon rule of a convolution and the factor of a batch norm on CPU tensors, in any dimension."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from lrpkernels import functional
from lrpkernels.functional import ConvGeometry, ConvWeight, Scaled
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
def test_the_rule_is_an_elementwise_pass_and_atens_convolution(name: str, dtype: torch.dtype, layout: str) -> None:
    case = Case(name, dtype, layout)
    like = torch.empty_like(case.grad)
    for has in itertools.product((False, True), repeat=3):
        addend, output, scale = case.factors(has)
        s = ops.epsilon_scale(case.multiplier, addend, output, scale, 0.1) if any(has) else case.multiplier
        scaled = Scaled(case.multiplier, addend, output, scale, eps=0.1)
        result = functional.conv_pull(scaled, ConvWeight(case.weight), case.input, case.geometry)
        torch.testing.assert_close(result, case.aten(s, like, 0))


@pytest.mark.parametrize("has", [*itertools.product((False, True), repeat=3)], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_derivatives(name: str, has: tuple[bool, bool, bool]) -> None:
    case = Case(name)
    case.output = case.output + 0.1  # away from the kink at 0
    addend, output, scale = case.factors(has)

    def rule(g: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        given = iter(rest)
        a, u, k = (next(given) if there else None for there in has)
        return functional.conv_pull(Scaled(g, a, u, k, eps=0.1), ConvWeight(weight), case.input, case.geometry)

    given = [case.multiplier, case.weight, *(f for f in (addend, output, scale) if f is not None)]
    leaves = [t.clone().requires_grad_() for t in given]
    assert gradcheck(rule, leaves, atol=1e-6, fast_mode=True)


def test_the_factor_of_a_batch_norm() -> None:
    variance, gamma = torch.rand(70) * 3, torch.randn(70)
    for dtype in (torch.float32, torch.float64):
        v, g = variance.to(dtype), gamma.to(dtype)
        inverse = (v + 1e-5).rsqrt()
        assert torch.equal(functional.batch_norm_scale(v, g, 1e-5), g * inverse)
        assert torch.equal(functional.batch_norm_scale(v, None, 1e-5), inverse)
    half = functional.batch_norm_scale(variance.bfloat16(), gamma.bfloat16(), 1e-5)
    assert torch.equal(half, gamma.bfloat16().float() * (variance.bfloat16().float() + 1e-5).rsqrt())
