"""Kinds of layers: what a call proves about its result, padding ahead of first-layer rules, attention."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from functions import Map, Wrapped, heatmap_of, random
from torch import Tensor, nn

import lrpkernels as lrp

# -- what is known to be non-negative -----------------------------------------------------------------------------------------------

_MASK = random(2, 3, 4, 4, seed=1) > 0.5
_INDEX = torch.tensor([1, 2])
SIGNED: dict[str, Map] = {
    "pad": lambda u: F.pad(u, (1, 1, 1, 1), value=-2.0),
    "pad, by module": lambda u: nn.ConstantPad2d(1, -0.5)(u),
    "where": lambda u: torch.where(_MASK, u, -1.5),
    "where, first": lambda u: torch.where(_MASK, -1.5, u),
    "where, method": lambda u: u.where(_MASK, -1.5),
    "where, a tensor": lambda u: torch.where(_MASK, u, torch.tensor(-1.5, dtype=torch.float64)),
    "where, an integer tensor": lambda u: torch.where(_MASK, u, torch.tensor(-1)),
    "masked_fill": lambda u: u.masked_fill(_MASK, -1.0),
    "masked_fill, by name": lambda u: torch.masked_fill(u, _MASK, value=-1.0),
    "index_fill": lambda u: u.index_fill(2, _INDEX, -3.0),
    "scatter": lambda u: u.scatter(2, torch.zeros(2, 3, 1, 4, dtype=torch.long), -3.0),
    "select_scatter": lambda u: torch.select_scatter(u, torch.full((2, 3, 4), -1.0, dtype=torch.float64), 2, 0),
    "slice_scatter": lambda u: torch.slice_scatter(u, torch.full((2, 3, 1, 4), -1.0, dtype=torch.float64), 2, 0, 1),
    "cat": lambda u: torch.cat([u, torch.full((2, 3, 4, 4), -1.0, dtype=torch.float64)], 1),
    "stack": lambda u: torch.stack([u, torch.full((2, 3, 4, 4), -1.0, dtype=torch.float64)], 1).flatten(1, 2),
    "minimum": lambda u: torch.minimum(u, torch.tensor(-0.3, dtype=torch.float64)),
    "nan_to_num": lambda u: torch.nan_to_num(torch.where(_MASK, u, torch.nan), nan=-1.0),
    "times a negative": lambda u: u * -2.0,
    "divided by a negative": lambda u: u / -2.0,
    "divided by a negative, named": lambda u: torch.divide(u, -2.0),
    "negative over it": lambda u: -2.0 / F.softplus(u),
    "minus": lambda u: u - 0.7,
    "from a number": lambda u: 0.7 - u,
    "minus another": lambda u: u - u.flip(3),
    "alpha": lambda u: torch.add(u, u.flip(3), alpha=-2),
    "clamp below zero": lambda u: u.clamp(0.0, -1.0),
    "hardtanh": lambda u: F.hardtanh(u, -1.0, 0.2) - 0.1,
    "softplus of negative beta": lambda u: F.softplus(u, -1.0),
    "power with a factor": lambda u: (-u) ** 3,
    "negative divisor": lambda u: F.avg_pool2d(u, 2, divisor_override=-3),
}


@pytest.mark.parametrize("name", SIGNED)
def test_constants_below_zero_are_met_by_the_rule_for_signed_inputs(name: str) -> None:
    """z+ of a convolution: positive contributions of signed inputs come from W+ and W-; its parts by plain autograd."""
    x, change = random(2, 3, 4, 4, seed=2), SIGNED[name]
    v = change(x.relu())
    assert float(v.min()) < 0, "the case shows nothing"
    weight, eps = random(5, v.shape[1], 2, 2, seed=3), 1e-3
    found: dict[str, Tensor] = {}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.change = Wrapped(change)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(self.change(x.relu()), weight).flatten(1)

    with lrp.record(Net(), x) as tape:
        found = tape.relevance(lambda logits: logits.sum(1), lrp.ZPlus(eps), at=["change"])
    up, down = (
        (v.clamp(min=0).requires_grad_(), weight.clamp(min=0)),
        (v.clamp(max=0).requires_grad_(), weight.clamp(max=0)),
    )
    contributions = sum(F.conv2d(a, w) for a, w in (up, down))
    z = F.conv2d(v, weight).flatten(1)
    share = (z / (contributions.flatten(1) + eps)).detach()
    parts = torch.autograd.grad((contributions.flatten(1) * share).sum(), (up[0], down[0]))
    expected = parts[0] * up[0] + parts[1] * down[0]
    torch.testing.assert_close(found["change"], expected.detach(), rtol=1e-8, atol=1e-12)


def test_a_known_sign_still_saves_half_the_work() -> None:
    """Constants that are not below zero leave the flag."""
    kept: dict[str, Map] = {
        "pad": lambda u: F.pad(u, (1, 1)),
        "where": lambda u: torch.where(_MASK, u, 0.5),
        "masked_fill": lambda u: u.masked_fill(_MASK, 0.0),
        "roll": lambda u: u.roll(-1, -1),
        "maximum": lambda u: torch.maximum(u, torch.tensor(-1.0, dtype=torch.float64)),
        "divided": lambda u: u / 2,
        "divisor": lambda u: F.avg_pool2d(u, 2, divisor_override=3),
        "softplus": lambda u: F.softplus(u),
    }
    for name, change in kept.items():
        with lrp.record(Wrapped(lambda x, change=change: change(x.relu())), random(2, 3, 4, 4)) as tape:
            assert tape.nodes[-1].output.nonnegative, name


# -- padding ahead of a first-layer rule ------------------------------------------------------------------------------------------------


def test_even_same_padding_of_the_documented_size() -> None:
    layer = nn.Conv1d(1, 1, 2, padding="same", bias=False).double()
    nn.init.ones_(layer.weight)
    x = torch.tensor([[[1.0, 2.0, 3.0]]], dtype=torch.float64)
    heatmap = heatmap_of(lambda x: layer(x).flatten(1).sum(1, keepdim=True), lrp.Composite(first=lrp.Flat(0.0)), x, 0)
    torch.testing.assert_close(heatmap, torch.tensor([[[1.5, 4.0, 5.5]]], dtype=torch.float64))


FIRST = [lrp.Flat(0.0), lrp.WSquare(1e-3), lrp.ZBox(-4.0, 4.0, 1e-3)]


def _first_layer(rule: lrp.Rule, conv: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """Flat, w^2 and z^B by their definitions, on matrices of the convolution: what a padded zero would get is shared by the pixels."""
    matrix = torch.autograd.functional.jacobian(lambda a: conv(a, weight), x).reshape(-1, x.numel())  # type: ignore[no-untyped-call]

    def of(w: Tensor) -> Tensor:
        made: Tensor = torch.autograd.functional.jacobian(lambda a: conv(a, w), x).reshape(-1, x.numel())  # type: ignore[no-untyped-call]
        return made

    flat, relevance = x.flatten(), conv(x, weight).flatten()
    if isinstance(rule, lrp.ZBox):
        parts = matrix * flat + 4 * of(weight.clamp(min=0)) - 4 * of(weight.clamp(max=0))
    else:
        parts = of(torch.ones_like(weight) if isinstance(rule, lrp.Flat) else weight.square())
    d = parts.sum(1)
    d = torch.where(d == 0, 1.0, d)  # an output that sees padding alone
    return (parts * (relevance / (d + rule.eps * torch.where(d >= 0, 1, -1))).unsqueeze(1)).sum(0).reshape(x.shape)


PADDED: dict[str, tuple[int, Map | None, dict[str, object]]] = {
    "1-D, even": (1, None, {"padding": "same"}),
    "1-D, dilated": (1, None, {"padding": "same", "dilation": 3}),
    "2-D, even": (2, None, {"padding": "same"}),
    "3-D, even": (3, None, {"padding": "same"}),
    "zeros written ahead": (2, lambda x: F.pad(x, (0, 1, 2, 0)), {}),
    "zeros, then moved": (2, lambda x: F.pad(x, (0, 1, 2, 0)).flip(3).transpose(2, 3), {}),
    "zeros, then pooled": (2, lambda x: F.max_pool2d(F.pad(x, (0, 1, 2, 0)), 2, 1), {}),
    "cropped": (2, lambda x: F.pad(x, (-1, 0, 0, 1)), {}),
    "reflect": (2, lambda x: F.pad(x, (1, 1, 1, 0), mode="reflect"), {}),
    "circular": (2, lambda x: F.pad(x, (1, 1, 1, 0), mode="circular"), {}),
    "replicate": (2, lambda x: F.pad(x, (1, 1, 1, 0), mode="replicate"), {}),
}


@pytest.mark.parametrize("rule", FIRST, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("name", PADDED)
def test_padding_takes_no_share_of_a_first_layer_rule(name: str, rule: lrp.Rule) -> None:
    dimensions, ahead, options = PADDED[name]
    functions: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    x, weight = random(1, 2, *(4,) * dimensions, seed=11), random(3, 2, *(2,) * dimensions, seed=12)

    def conv(a: Tensor, w: Tensor) -> Tensor:
        return functions[dimensions](a if ahead is None else ahead(a), w, **options)

    heatmap = heatmap_of(lambda x: conv(x, weight).flatten(1).sum(1, keepdim=True), lrp.Composite(first=rule), x, 0)
    torch.testing.assert_close(heatmap, _first_layer(rule, conv, x, weight), rtol=1e-7, atol=1e-9)


def test_averages_over_padding_hand_all_on_to_the_pixels() -> None:
    """Two of four are zeros written ahead, or all of them."""
    x, weight = torch.tensor([[[1.0, 2.0, 3.0]]], dtype=torch.float64), torch.ones(1, 1, 2, dtype=torch.float64)
    padded = lambda x: F.avg_pool1d(F.pad(x, (3, 0)), 2)  # nothing, half of 1, the mean of 2 and 3
    heatmap = heatmap_of(lambda x: F.conv1d(padded(x), weight).flatten(1), lrp.Composite(first=lrp.Flat(0.0)), x, 1)
    torch.testing.assert_close(heatmap, torch.tensor([[[1.5, 0.75, 0.75]]], dtype=torch.float64))
    heatmap = heatmap_of(lambda x: F.conv1d(padded(x), weight).flatten(1), lrp.Composite(first=lrp.Flat(0.0)), x, 0)
    torch.testing.assert_close(heatmap, torch.tensor([[[0.5, 0.0, 0.0]]], dtype=torch.float64))


@pytest.mark.parametrize("rule", FIRST, ids=lambda rule: type(rule).__name__)
def test_padding_takes_nothing_where_it_is_asked_for(rule: lrp.Rule) -> None:
    net = nn.Sequential(nn.ConstantPad2d(1, -0.5), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 3)).double()
    with lrp.record(net, random(2, 2, 4, 4, seed=13)) as tape:
        maps = tape.relevance(0, lrp.Composite(first=rule), at=["0"])
    torch.testing.assert_close(maps["0"], F.pad(maps["input"], (1, 1, 1, 1)))


@pytest.mark.parametrize("padding", ["same", "explicit"])
def test_padding_modes_of_modules_under_a_first_layer_rule(padding: str) -> None:
    for mode in ("zeros", "circular", "reflect", "replicate"):
        layer = nn.Conv2d(1, 2, 2, padding="same" if padding == "same" else 1, padding_mode=mode, bias=False).double()
        x = random(1, 1, 4, 4, seed=13)
        heatmap = heatmap_of(
            lambda x, layer=layer: layer(x).flatten(1).sum(1, keepdim=True), lrp.Composite(first=lrp.Flat(0.0)), x, 0
        )
        torch.testing.assert_close(heatmap.sum(), layer(x).sum())  # each output sees a pixel, and nothing is lost


def test_bounds_per_channel_lie_along_the_channels_of_the_layer() -> None:
    x, weight, low, high = random(2, 4, 3, seed=14), random(5, 3, seed=15), (-1.0, -2.0, -3.0), (4.0, 5.0, 6.0)
    box = lrp.Composite(first=lrp.ZBox(low, high))
    dense = heatmap_of(lambda x: F.linear(x, weight).flatten(1), box, x, 7)
    conv = heatmap_of(
        lambda x: F.conv1d(x, weight.unsqueeze(2)).transpose(1, 2).flatten(1), box, x.transpose(1, 2).contiguous(), 7
    )
    torch.testing.assert_close(dense, conv.transpose(1, 2))
    with pytest.raises(ValueError, match="low has 4 values, the layer's input has 3 channels"):
        heatmap_of(
            lambda x: F.linear(x, weight).flatten(1), lrp.Composite(first=lrp.ZBox((-1.0,) * 4, (1.0,) * 4)), x, 7
        )


# -- attention --------------------------------------------------------------------------------------------------------------------------


def _eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1) @ v


ATTENTIONS = ["grouped", "one head", "broadcast batch", "broadcast heads", "recorded mask"]


@pytest.mark.parametrize(
    "rule", [lrp.Epsilon(1e-3), lrp.EpsilonLayerwise(1e-3), lrp.ZPlus(1e-3)], ids=lambda rule: type(rule).__name__
)
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_fused_attention_is_eager_attention(kind: str, rule: lrp.Rule) -> None:
    width = {"grouped": 8, "one head": 4}.get(kind, 16)
    to_q, to_k, to_v = random(16, 5, seed=16), random(width, 5, seed=17), random(width, 5, seed=18)
    shared = random(1, 4, 6, 4, seed=19)

    def model(x: Tensor, fused: bool) -> Tensor:
        heads = [F.linear(x, w).unflatten(-1, (-1, 4)).transpose(1, 2) for w in (to_q, to_k, to_v)]
        q, k, v = heads
        mask = None
        if kind == "broadcast batch":
            k, v = shared, shared * 2
        if kind == "broadcast heads":
            k, v = k[:, :1], v[:, :1]
        if kind == "recorded mask":
            mask = x[:, None, :, :1] - x[:, None, :, 1:2].transpose(-2, -1)
        groups = q.shape[1] // k.shape[1]
        if not fused:
            grouped = kind in ("grouped", "one head")
            k, v = (t.repeat_interleave(groups, 1) if grouped else t.expand(len(x), 4, -1, -1) for t in (k, v))
            return _eager(q, k, v, mask).transpose(1, 2).flatten(1)
        enable = kind in ("grouped", "one head")
        return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=enable).transpose(1, 2).flatten(1)

    x = random(3, 6, 5, seed=20)
    maps = [heatmap_of(lambda x, fused=fused: model(x, fused), rule, x) for fused in (True, False)]
    torch.testing.assert_close(*maps, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("boolean", [True, False])
def test_rows_that_see_nothing_hand_nothing_on(boolean: bool) -> None:
    """A left-padded batch: queries of padding see no key."""
    seen = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    seen[0, :, :, :2] = False  # the first two tokens of the first sequence are padding: rows 0 and 1 are empty
    mask = seen if boolean else torch.zeros(2, 1, 4, 4, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    to_q, to_k, to_v = (random(8, 5, seed=seed) for seed in (21, 22, 23))

    def model(x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (F.linear(x, w).unflatten(-1, (2, 4)).transpose(1, 2) for w in (to_q, to_k, to_v))
        return F.scaled_dot_product_attention(q, k, v, mask).sum((1, 2))

    x = random(2, 4, 5, seed=24).requires_grad_()
    for rule in (lrp.Epsilon(1e-3), lrp.EpsilonLayerwise(1e-3), lrp.ZPlus(1e-3)):
        heatmap = heatmap_of(lambda x: model(x, mask), rule, x)
        assert bool(heatmap.isfinite().all()) and not bool(heatmap[0, :2].any()) and bool(heatmap[0, 2:].any())
        (gradient,) = torch.autograd.grad(heatmap.square().sum(), x)
        assert bool(gradient.isfinite().all())
        short = x.detach()[:1, 2:]  # the same sequence without its padding
        alone = heatmap_of(lambda x: model(x, torch.ones(1, 1, 2, 2, dtype=torch.bool).tril()), rule, short)
        torch.testing.assert_close(heatmap[:1, 2:].detach(), alone)


@pytest.mark.parametrize(
    "rule",
    [lrp.EpsilonLayerwise(1e-3), lrp.Norm(), lrp.ZPlus(1e-3), lrp.Epsilon(1e-3)],
    ids=lambda rule: type(rule).__name__,
)
def test_infinite_masks_under_rules_that_share_sums(rule: lrp.Rule) -> None:
    keep = torch.ones(4, 4, dtype=torch.bool).tril()
    added = torch.zeros(4, 4, dtype=torch.float64).masked_fill(~keep, -torch.inf)
    finite = torch.zeros(4, 4, dtype=torch.float64).masked_fill(~keep, -1e30)
    to_q, to_k, to_v = (random(4, 5, seed=seed) for seed in (21, 22, 23))

    def model(x: Tensor, mask: Tensor) -> Tensor:
        return _eager(*(F.linear(x, w) for w in (to_q, to_k, to_v)), mask).flatten(1)

    x = random(2, 4, 5, seed=25).requires_grad_()
    maps = [heatmap_of(lambda x, mask=mask: model(x, mask), rule, x, 9) for mask in (added, finite)]
    torch.testing.assert_close(*maps)
    assert bool(torch.autograd.grad(maps[0].square().sum(), x)[0].isfinite().all())
