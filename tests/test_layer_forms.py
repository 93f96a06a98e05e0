"""Functions that say the same in two ways have the same heatmap; small public helpers and their refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrpkernels as lrp

X = torch.rand(2, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.1
RULES = [lrp.Epsilon(1e-2), lrp.EpsilonLayerwise(1e-2), lrp.ZPlus(1e-2)]


class Between(nn.Module):
    """A function between two dense layers."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.last, self.function = nn.Linear(6, 8), nn.LazyLinear(3), function
        self.weight, self.shift = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4))
        self.double()
        self(X)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(x)).flatten(1))


def _response(x: Tensor) -> Tensor:
    return F.local_response_norm(x.view(2, 8, 1), 3, 0.5, 0.75, 2.0).flatten(1)


def _response_written_out(x: Tensor) -> Tensor:
    square = F.pad(x.detach().square()[:, None], (1, 1))
    mean = F.avg_pool1d(square, 3, 1)[:, 0]
    return x * (2.0 + 0.5 * mean).pow(-0.75)


PAIRS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], Callable[[nn.Module, Tensor], Tensor]]] = {
    "glu": (lambda m, x: F.glu(x, 1), lambda m, x: x[:, :4] * x[:, 4:].sigmoid()),
    "normalize": (lambda m, x: F.normalize(x, dim=1), lambda m, x: x / x.norm(dim=1, keepdim=True).detach()),
    "local response norm": (lambda m, x: _response(x), lambda m, x: _response_written_out(x)),
    "neg": (lambda m, x: -x, lambda m, x: x * -1.0),
    "rsub": (lambda m, x: 1 - x, lambda m, x: torch.rsub(x, 1)),
    "rsub of branches": (lambda m, x: torch.rsub(x, x.relu()), lambda m, x: x.relu() - x),
    "sub with alpha": (lambda m, x: torch.sub(x, x.relu(), alpha=2), lambda m, x: x - 2 * x.relu()),
    "div by a constant": (lambda m, x: x / m.shift.repeat(2), lambda m, x: x * m.shift.repeat(2).reciprocal()),
    "pow": (lambda m, x: x**2, lambda m, x: x.square()),
    "reciprocal": (lambda m, x: 1.0 / (x.relu() + 1), lambda m, x: (x.relu() + 1).reciprocal()),
    "clamp_min": (lambda m, x: x.clamp_min(0.1), lambda m, x: torch.clamp(x, min=0.1)),
    "addmm": (lambda m, x: torch.addmm(m.shift, x, m.weight), lambda m, x: F.linear(x, m.weight.t(), m.shift)),
    "matmul": (lambda m, x: x @ m.weight, lambda m, x: F.linear(x, m.weight.t())),
    "mul_": (lambda m, x: x.clone().mul_(2.0), lambda m, x: x * 2.0),
    "keyword": (lambda m, x: torch.flatten(input=x, start_dim=1), lambda m, x: x.flatten(1)),
    "padding valid": (
        lambda m, x: F.conv1d(x[:, None], m.weight[:2, None], padding="valid"),
        lambda m, x: F.conv1d(x[:, None], m.weight[:2, None]),
    ),
    "unbatched convolution": (
        lambda m, x: torch.stack([F.conv1d(row[None], m.weight[:2, None]) for row in x.unbind()]),
        lambda m, x: F.conv1d(x[:, None], m.weight[:2, None]),
    ),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("name", PAIRS)
def test_two_ways_to_say_it(name: str, rule: lrp.Rule) -> None:
    nets = [Between(function) for function in PAIRS[name]]
    (logits, heatmap), (same, expected) = (lrp.LRP(net, rule)(X, 1) for net in nets)
    torch.testing.assert_close(logits, same, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(heatmap, expected, rtol=1e-9, atol=1e-12)


class Attends(nn.Module):
    """Multi-head attention in its many forms."""

    def __init__(self, kdim: int | None, options: dict[str, object]) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.attention = nn.MultiheadAttention(4, 2, kdim=kdim, vdim=kdim, batch_first=True)
        self.options, self.kdim = options, kdim
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        keys = x if self.kdim is None else x[..., : self.kdim]
        return self.attention(x, keys, keys, **self.options)[0].mean(1)


PADDING = torch.tensor([[False, False, True], [False, False, False]])
CAUSAL = torch.ones(3, 3, dtype=torch.bool).triu(1)
FORMS: dict[str, tuple[int | None, dict[str, object]]] = {
    "plain": (None, {}),
    "other keys": (3, {}),
    "padding": (None, {"key_padding_mask": PADDING}),
    "causal": (None, {"attn_mask": CAUSAL}),
    "additive": (None, {"attn_mask": torch.zeros(3, 3, dtype=torch.float64).masked_fill(CAUSAL, -torch.inf)}),
    "both": (None, {"attn_mask": CAUSAL, "key_padding_mask": PADDING}),
    "per head": (None, {"attn_mask": CAUSAL.expand(4, 3, 3)}),
    "weights of each head": (None, {"average_attn_weights": False}),
}


@pytest.mark.parametrize("form", FORMS)
def test_attention_weights_change_no_heatmap(form: str) -> None:
    kdim, options = FORMS[form]
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    maps = [lrp.LRP(Attends(kdim, {**options, "need_weights": need}))(x, 1)[1] for need in (False, True)]
    assert bool(torch.isfinite(maps[0]).all()) and float(maps[0].abs().sum()) > 0
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("which", ["q", "k", "v", "qk", "qv", "kv"])
def test_attention_with_constant_operands(which: str) -> None:
    constant = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    x = torch.randn(2, 3, 4, dtype=torch.float64)

    class Net(nn.Module):
        def __init__(self, fused: bool) -> None:
            super().__init__()
            self.fused = fused

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1.5
            q, k, v = (
                constant if name in which else part for name, part in zip("qkv", (x, x.tanh(), 2 * x), strict=True)
            )
            if self.fused:
                return F.scaled_dot_product_attention(q, k, v).sum(1)
            return (torch.softmax(q @ k.transpose(1, 2) / 2.0, -1) @ v).sum(1)

    fused, eager = (lrp.LRP(Net(flag))(x, 1)[1] for flag in (True, False))
    torch.testing.assert_close(fused, eager, rtol=1e-10, atol=1e-12)


def test_helpers_of_heatmaps_refuse_what_does_not_fit() -> None:
    maps = torch.randn(2, 3, 4, 4)
    assert lrp.heatmap.sum_channels(maps).shape == (2, 4, 4)
    with pytest.raises(ValueError, match=r"relevance must have shape"):
        lrp.heatmap.sum_channels(maps[0, 0])
    with pytest.raises(ValueError, match="dims must lie between 1 and 4, got 5"):
        lrp.heatmap.normalize(maps, dims=5)
    with pytest.raises(ValueError, match='by must be "max", "sum" or "mean"'):
        lrp.heatmap.normalize(maps, by="median")  # type: ignore[arg-type]
    torch.testing.assert_close(lrp.heatmap.normalize(maps, "mean").abs().mean((1, 2, 3)), torch.ones(2))
    with pytest.raises(ValueError, match="does not fit relevance"):
        lrp.heatmap.background_share(maps, torch.ones(2, 1, 3, 3))


def test_pass_needs_a_layer_that_keeps_its_shape() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    _, heatmap = lrp.LRP(net, lrp.Epsilon(1e-2, first=lrp.Pass()))(X, 1)
    hidden = net[:2](X)
    torch.testing.assert_close(heatmap, hidden * net[2].weight[1], rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"Pass: a layer of input shape \(2, 6\) and output shape \(2, 3\)"):
        lrp.LRP(nn.Sequential(net[2]), lrp.Epsilon(1e-2, first=lrp.Pass()))(X, 1)
