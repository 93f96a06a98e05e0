"""Models that hide or overwrite what they do: recorded exactly, or refused by name; never explained wrongly in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lrpkernels as lrp

X = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


class _Net(nn.Module):
    """A convolution, something in between, a dense layer."""

    def __init__(self, middle: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3).double(), nn.Linear(144, 3).double()
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(self.conv(x)).flatten(1))


def _gradients(net: nn.Module) -> list[Tensor]:
    net.zero_grad()
    lrp.LRP(net)(X, 1)[1].square().sum().backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


class _MemoryEfficientSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * s * (1 + x * (1 - s))


def test_inside_a_custom_function_relevance_and_gradients_are_those_of_its_parts() -> None:
    hidden, plain = _Net(_MemoryEfficientSwish.apply), _Net(lambda x: x * torch.sigmoid(x))
    (a, ga), (b, gb) = ((lrp.LRP(net)(X, 1)[1], _gradients(net)) for net in (hidden, plain))
    torch.testing.assert_close(a, b)
    assert len(ga) == len(gb)
    for ours, expected in zip(ga, gb, strict=True):
        torch.testing.assert_close(ours, expected)
    logits, _ = lrp.LRP(hidden)(X, 1)
    assert "Addmm" in type(logits.grad_fn).__name__  # the model's own graph


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_parts_have_exact_gradients(reentrant: bool) -> None:
    net = _Net(lambda x: checkpoint(lambda v: F.relu(v) * 2, x, use_reentrant=reentrant))
    for ours, expected in zip(_gradients(net), _gradients(_Net(lambda x: F.relu(x) * 2)), strict=True):
        torch.testing.assert_close(ours, expected)


def _two_in_place(x: Tensor) -> Tensor:
    x.relu_()
    x.mul_(2)
    x.add_(1)
    return x


def _through_a_view(x: Tensor) -> Tensor:
    x.flatten(1).relu_()
    return x


def _shape_in_place(x: Tensor) -> Tensor:
    x.unsqueeze_(1)
    assert x.shape[1] == 1
    x.squeeze_(1)
    return x.transpose_(1, 2)


@pytest.mark.parametrize("middle", [_two_in_place, _through_a_view, _shape_in_place])
@pytest.mark.parametrize("grad", [True, False])
def test_in_place_calls_mean_what_they_mean_in_the_model(middle: Any, grad: bool) -> None:
    net = _Net(middle)
    with torch.set_grad_enabled(grad):
        assert torch.equal(lrp.LRP(net)(X, 1)[0], net(X))


def test_a_view_taken_before_an_in_place_change_has_the_new_numbers() -> None:
    def earlier(x: Tensor) -> Tensor:
        view = x.flatten(1)
        x.relu_()
        return view * 2 + x.flatten(1)

    net = _Net(earlier)
    expected = _Net(lambda x: x.relu().flatten(1) * 3)
    for ours, theirs in zip(lrp.LRP(net)(X, 1), lrp.LRP(expected)(X, 1), strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.jit.script
def _scripted(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def test_branches_that_hide_their_operations_are_refused() -> None:
    with pytest.raises(lrp.UnsupportedOperationError, match="TorchScript"):
        lrp.LRP(_Net(lambda x: x + _scripted(x)))(X, 1)
    scripted = torch.jit.script(nn.Sequential(nn.ReLU()))
    with pytest.raises(lrp.UnsupportedOperationError, match="TorchScript module"), torch.no_grad():
        lrp.LRP(_Net(lambda x: x + scripted(x)))(X, 1)
    # Constants with a history of their own are none of that.
    free = nn.Parameter(torch.ones(1, 4, 1, 1, dtype=torch.float64))
    lrp.LRP(_Net(lambda x: x + free.exp() * 2))(X, 1)


@pytest.mark.parametrize(
    ("name", "middle"),
    [
        ("gumbel_softmax", lambda x: F.gumbel_softmax(x, dim=1)),
        ("lstm", nn.LSTM(36, 36, 2, batch_first=True, dropout=0.5).double()),
    ],
)
def test_random_functions_without_a_rule_are_not_replayed(name: str, middle: Any) -> None:
    def run(x: Tensor) -> Tensor:
        out = middle(x.flatten(2))
        return out[0] if isinstance(out, tuple) else out

    with pytest.raises(lrp.UnsupportedOperationError, match=name):
        lrp.LRP(_Net(run))(X, 1)


def test_functions_without_a_rule_are_named_with_their_module() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.logaddexp(x, 0.5 * x)

    with pytest.warns(lrp.FallbackWarning, match=r"logaddexp \(middle\)"):
        lrp.LRP(_Net(Inner()))(X, 1)
    with pytest.raises(lrp.UnsupportedOperationError, match="heaviside is not differentiable"):
        lrp.LRP(_Net(lambda x: torch.heaviside(x, x)))(X, 1)
    with pytest.raises(lrp.UnsupportedOperationError, match="mixes the images"):
        lrp.LRP(_Net(lambda x: x.detach() * 0 + x.std()))(X, 1)
