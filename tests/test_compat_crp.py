"""lrpkernels.compat.crp: conditions as zennit-crp has them, against masked passes by zennit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Residual
from peers import ZennitResidual, pair, zennit
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.compat import zennit as ours
from lrpkernels.compat.crp import ChannelConcept, CondAttribution

X = torch.rand(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
CANONIZERS = [zennit.canonizers.SequentialMergeBatchNorm()]


def _nets() -> tuple[nn.Module, nn.Module]:
    return pair(Residual, ZennitResidual, norm_eps=1e-15)


def _close(found: Tensor, expected: Tensor) -> None:
    expected = expected.detach()
    scale = float(expected.abs().max())
    assert found.shape == expected.shape and scale > 1e-9
    assert float((found - expected).abs().max()) <= 1e-9 * scale


def _masked(
    net: nn.Module, x: Tensor, condition: dict[str, Any], parallel: bool = False, recorded: str = "relu"
) -> Any:
    """Heatmap [B, H, W] by zennit: the relevance at each named layer is masked; without ``parallel`` it goes from layer to layer."""
    kept: dict[str, Tensor] = {}
    layers = [name for name in condition if name != "y"]
    with zennit.composites.EpsilonPlusFlat(canonizers=CANONIZERS).context(net) as modified:
        handles = [
            net.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: kept.update({name: out}))
            for name in [*layers, recorded]
        ]
        x = x.clone().requires_grad_()
        logits = modified(x)
        for handle in handles:
            handle.remove()
        start = torch.zeros_like(logits)
        start[:, condition["y"]] = logits[:, condition["y"]].detach()
        current = logits
        for name in layers:
            mask = torch.zeros_like(kept[name])
            mask[:, condition[name]] = 1
            if parallel:
                kept[name].register_hook(lambda g, mask=mask: g * mask)
            else:
                start = torch.autograd.grad(current, kept[name], start, retain_graph=True)[0] * mask
                current = kept[name]
        found = torch.autograd.grad(current, [x, kept[recorded]], start)
    return found[0].sum(1), found[1], logits.detach()


CONDITIONS: list[list[dict[str, Any]]] = [
    [{"layer1": [2], "y": [3]}],
    [{"layer1": [2], "y": [3]}, {"layer1": [0, 4], "y": [1, 2]}, {"layer2.1.conv1": [3], "layer1": [1], "y": [0]}],
    [{"y": [1]}, {"y": [4]}, {"layer2": [5], "y": [4]}],
]


@pytest.mark.parametrize("conditions", CONDITIONS)
@pytest.mark.parametrize(
    "composite", [ours.EpsilonPlusFlat(), zennit.composites.EpsilonPlusFlat(), lrp.EpsilonPlusFlat()]
)
def test_every_condition_for_every_image(conditions: list[dict[str, Any]], composite: Any) -> None:
    net, variant = _nets()
    found = CondAttribution(net)(X.clone().requires_grad_(), conditions, composite, record_layer=["relu"])
    expected = [_masked(variant, X, condition) for condition in conditions]
    for field, index in (("heatmap", 0), ("prediction", 2)):
        _close(getattr(found, field), torch.stack([e[index] for e in expected], 1).flatten(0, 1))
    _close(found.relevances["relu"], torch.stack([e[1] for e in expected], 1).flatten(0, 1))
    assert set(found.activations) == set(found.relevances) == {"relu", *(k for c in conditions for k in c if k != "y")}
    assert not found.heatmap.requires_grad


def test_one_condition_for_each_image() -> None:
    net, variant = _nets()
    conditions: list[dict[str, Any]] = [{"layer1": [2], "y": [3]}, {"layer2": [1, 2], "y": [0]}]
    found = CondAttribution(net)(X, conditions, ours.EpsilonPlusFlat(), record_layer=["relu"])
    for row, condition in enumerate(conditions):
        heatmap, relevance, _ = _masked(variant, X[row : row + 1], condition)
        _close(found.heatmap[row], heatmap[0])
        _close(found.relevances["relu"][row], relevance[0])


def test_parallel_branches_count_if_asked_for() -> None:
    net, variant = _nets()
    condition = {"layer1.1.conv1": [2], "y": [3]}
    attribution = CondAttribution(net)
    counted, dropped = (
        attribution(X[:1], [condition], ours.EpsilonPlusFlat(), exclude_parallel=exclude) for exclude in (False, True)
    )
    _close(counted.heatmap, _masked(variant, X[:1], condition, parallel=True)[0])
    _close(dropped.heatmap, _masked(variant, X[:1], condition)[0])


def test_conditions_add_up_and_are_generated_in_groups() -> None:
    net, _ = _nets()
    attribution, composite = CondAttribution(net), ours.EpsilonPlus()
    conditions = [{"layer1": [channel], "y": [1]} for channel in range(6)]
    whole = attribution(X[:1], [{"y": [1]}], composite).heatmap
    parts = [part.heatmap for part in attribution.generate(X[:1], conditions, composite, batch_size=4, verbose=False)]
    assert [len(part) for part in parts] == [4, 2]
    _close(torch.cat(parts).sum(0, keepdim=True), whole)


@pytest.mark.parametrize("given", [lambda output: 2 * output, 1, None])
def test_where_relevance_starts(given: Any) -> None:
    net, _ = _nets()
    attribution, composite = CondAttribution(net), ours.EpsilonPlus()
    found = attribution(
        X, [{"layer1": [2]}], composite, start_layer="layer2", init_rel=given if callable(given) else None
    )
    with lrp.record(net, X) as tape, torch.no_grad():
        hidden = tape.values_at("layer2")[0].tensor
        start = (2 if callable(given) else 1) * hidden
        expected = tape.relevance(
            start={"layer2": start}, composite=ours.convert(composite, net), conditions=[{"layer1": 2}]
        )
    _close(found.heatmap, expected[:, 0].sum(1))
    _close(found.prediction, hidden)
    at_output = attribution(X, [{"y": [2]}], composite, init_rel=given)
    plain = attribution(X, [{"y": [2]}], composite)
    factor = plain.prediction[:, 2].reciprocal() if given == 1 else torch.full((2,), 2.0 if callable(given) else 1.0)
    _close(at_output.heatmap, plain.heatmap * factor[:, None, None])


def test_without_a_composite_it_is_the_masked_gradient() -> None:
    net, _ = _nets()
    found = CondAttribution(net)(X[:1], [{"layer1": [2], "y": [3]}])
    x, kept = X[:1].clone().requires_grad_(), {}
    net.get_submodule("layer1").register_forward_hook(lambda m, a, out: kept.update({"h": out}))
    logits = net(x)
    (g,) = torch.autograd.grad(logits[:, 3], kept["h"], logits[:, 3].detach(), retain_graph=True)
    g[:, [0, 1, 3, 4, 5]] = 0
    _close(found.heatmap, torch.autograd.grad(kept["h"], x, g)[0].sum(1))


def test_concepts() -> None:
    r = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    summed = r.sum((2, 3))
    _close(ChannelConcept.attribute(r, abs_norm=False), summed)
    _close(ChannelConcept.attribute(r), summed / summed.abs().sum(1, keepdim=True))
    masked = ChannelConcept.mask_rf(1, {2: [0, 4]})(r)
    assert torch.equal(masked[0], r[0]) and int((masked[1] != 0).sum()) == 2 and masked[1, 2, 1, 1] == r[1, 2, 1, 1]
    net, _ = _nets()
    by_neuron = CondAttribution(net)(
        X[:1],
        [{"layer1": {2: list(range(9))}, "y": [3]}],
        ours.EpsilonPlus(),
        mask_map={"layer1": ChannelConcept.mask_rf},
    )
    _close(by_neuron.heatmap, CondAttribution(net)(X[:1], [{"layer1": [2], "y": [3]}], ours.EpsilonPlus()).heatmap)


@pytest.mark.parametrize(
    ("conditions", "options", "text"),
    [
        ([], {}, "expected a list"), ([{"layer1": [2]}], {}, "where relevance starts"),
        ([{"layer1": [77], "y": [1]}], {}, "has 6 channels"),
        ([{"layr1": [1], "y": [1]}], {}, "no module 'layr1'"), ([{"layer1": [1]}], {"start_layer": "layer2"}, "composite of relevance"),
    ],
)  # fmt: skip
def test_wrong_conditions_are_refused(conditions: list[dict[str, Any]], options: dict[str, Any], text: str) -> None:
    net, _ = _nets()
    with pytest.raises(ValueError, match=text):
        CondAttribution(net)(X, conditions, **options)
