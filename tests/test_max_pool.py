"""Max pooling by channels on the CPU: PyTorch's numbers, winners, layout and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrpkernels as lrp
from lrpkernels.functional import max_pool

WINDOWS = {
    "3, 2, 1": ((3, 3), (2, 2), (1, 1), (1, 1), False),
    "2, ceil": ((2, 2), (2, 2), (0, 0), (1, 1), True),
    "dilated": ((3, 3), (1, 1), (1, 1), (2, 2), False),
    "uneven": ((2, 3), (3, 1), (1, 0), (1, 2), False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_values_winners_layout_and_gradients_are_those_of_pytorch(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randint(-2, 3, (2, 16, 33, 31)).to(dtype)  # many ties
    x[0, 0, :5, :5], x[0, 1, 3, 3], x[1, 2], x[1, 3], x[1, 4] = -torch.inf, torch.nan, torch.nan, -torch.inf, torch.inf
    x.requires_grad_()
    (found, winners), (expected, places) = max_pool(x, WINDOWS[name]), F.max_pool2d_with_indices(x, *WINDOWS[name])
    assert "MaxPoolBackward" in type(found.grad_fn).__name__ and not winners.requires_grad
    assert torch.equal(winners, places) and torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True)
    assert found.stride() == expected.stride() and winners.stride() == places.stride()
    g = torch.randn(expected.shape).to(dtype)
    for grad in (g, g[:1].expand_as(g), g.to(memory_format=torch.channels_last)):
        mine, theirs = (torch.autograd.grad(y, x, grad, retain_graph=True)[0] for y in (found, expected))
        assert torch.equal(mine, theirs)
    with torch.no_grad():
        assert torch.equal(max_pool(x, WINDOWS[name])[1], places)


@pytest.mark.parametrize(
    "x",
    [torch.rand(1, 3, 90, 90), torch.rand(1, 16, 4, 4), torch.rand(2, 32, 20, 20).to(memory_format=torch.channels_last),
     torch.rand(2, 32, 20, 20, dtype=torch.float64), torch.rand(2, 32, 40, 20)[:, :, ::2], torch.rand(0, 32, 20, 20)],
    ids=["colours", "few numbers", "channels-last", "float64", "strided", "empty"],
)  # fmt: skip
def test_other_tensors_go_to_pytorch(x: torch.Tensor) -> None:
    window = WINDOWS["3, 2, 1"]
    for mine, theirs in zip(max_pool(x, window), F.max_pool2d_with_indices(x, *window), strict=True):
        assert torch.equal(mine, theirs) and mine.stride() == theirs.stride()


def test_second_derivatives_of_logits_stay_possible() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 144, 2)
    )
    x = torch.rand(1, 3, 24, 24, requires_grad=True)

    def penalty(logits: torch.Tensor) -> list[torch.Tensor]:
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x, create_graph=True)
        return list(torch.autograd.grad(gradient.square().sum(), list(net.parameters()), allow_unused=True))[:2]

    with lrp.record(net, x, check=False) as tape:
        found = penalty(tape.output)
    torch.testing.assert_close(found, penalty(net(x)))
