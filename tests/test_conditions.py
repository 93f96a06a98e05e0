"""Conditions on hidden layers, relevance to start from, keyword inputs and tokens: against masked passes by autograd and by zennit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from networks import NETWORKS, Residual, VGGLike, build
from peers import ZennitResidual, pair, zennit
from reference import FlexReLU, relevance_mode
from torch import Tensor, nn

import lrpkernels as lrp

EPS = 1e-2
X = torch.rand(3, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
# Places by network: in blocks and behind them, ahead of shortcuts and beside them.
PLACES = {
    "vgg": ["features.2", "features.3", "classifier.1"],
    "residual": ["conv1", "bn1", "layer1", "layer1.1.conv2", "layer2.0.bn1", "layer2.1.conv1", "avgpool"],
    "dense": ["stem", "convs.1", "norms.2", "transition.2"],
}


def _close(actual: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    assert actual.shape == expected.shape
    scale = float(expected.detach().abs().max())
    assert scale > 1e-9
    assert float((actual - expected).detach().abs().max()) <= tolerance * scale


@torch.enable_grad()
def _masked(
    slow: nn.Module,
    conditions: dict[str, Any],
    target: int,
    exclude_parallel: bool,
    x: Tensor = X,
    at: str | None = None,
) -> Tensor:
    """The heatmap (or relevance at a module) of one condition: masks on the modified gradient at the modules' outputs, by autograd.

    ``exclude_parallel``: gradients are taken from each module to the one before, so that nothing goes by them.
    """
    kept: dict[str, Tensor] = {}
    handles = [
        slow.get_submodule(name).register_forward_hook(lambda _m, _a, out, name=name: kept.update({name: out}))
        for name in {*conditions, *([at] if at else [])}
    ]
    x = x.clone().requires_grad_()
    logits = slow(x)
    for handle in handles:
        handle.remove()
    order = sorted(conditions, key=lambda n: -_depth(kept[n]))

    def mask(name: str) -> Tensor:
        factors = torch.zeros_like(kept[name])
        factors[:, conditions[name]] = 1.0
        return factors

    wanted = x if at is None else kept[at]
    with relevance_mode(EPS):
        if not exclude_parallel:
            for name in order:
                kept[name].register_hook(lambda g, name=name: g * mask(name))
            (g,) = torch.autograd.grad(logits[:, target].sum(), wanted)
            return (g * wanted).detach()
        tensor, g = logits, torch.zeros_like(logits)
        g[:, target] = 1.0
        for name in order:
            (g,) = torch.autograd.grad(tensor, kept[name], g, retain_graph=True)
            tensor, g = kept[name], g * mask(name)
        if wanted is not tensor:
            (g,) = torch.autograd.grad(tensor, wanted, g)
    return (g * wanted).detach()


def _depth(tensor: Tensor) -> int:
    """How long the longest way back from a tensor is."""
    known: dict[Any, int] = {}

    def depth(node: Any) -> int:
        if node is None:
            return 0
        if node not in known:
            known[node] = 1 + max((depth(n) for n, _ in node.next_functions), default=0)
        return known[node]

    return depth(tensor.grad_fn)


@pytest.mark.parametrize("exclude_parallel", [True, False])
@pytest.mark.parametrize("name", PLACES)
def test_conditions_are_masks_on_relevance_at_the_layers(name: str, exclude_parallel: bool) -> None:
    net, slow = build(NETWORKS[name]), build(NETWORKS[name], FlexReLU)
    for place in PLACES[name]:
        conditions = [{place: [0, 2]}, {place: 1}, {place: torch.tensor([3])}]
        with torch.no_grad(), lrp.record(net, X) as tape:
            maps = tape.relevance(2, lrp.Epsilon(EPS), conditions=conditions, exclude_parallel=exclude_parallel)
            both = tape.relevance([2, 2, 2], lrp.Epsilon(EPS), conditions=conditions, exclude_parallel=exclude_parallel)
            few = tape.relevance(
                2, lrp.Epsilon(EPS), conditions=conditions, exclude_parallel=exclude_parallel, memory_budget=1
            )
        expected = [_masked(slow, {place: c}, 2, exclude_parallel) for c in ([0, 2], [1], [3])]
        _close(maps, torch.stack(expected, 1))
        _close(both, maps)
        _close(few, maps)


@pytest.mark.parametrize("exclude_parallel", [True, False])
def test_conditions_on_several_layers_and_different_ones_in_one_pass(exclude_parallel: bool) -> None:
    net, slow = build(Residual), build(Residual, FlexReLU)
    conditions: list[dict[str, Any]] = [
        {"layer1": [0, 1, 4], "layer2": [2, 3]},
        {"layer2": [2]},
        {},
        {"layer1.0.conv1": [1, 2], "layer2.0": [0, 5, 6]},
        {"layer2": [0, 7], "bn1": [3]},
    ]
    targets = [0, 1, 2, 3, 4]
    options: dict[str, Any] = {"exclude_parallel": exclude_parallel}
    with torch.no_grad(), lrp.record(net, X) as tape:
        maps = tape.relevance(targets, lrp.Epsilon(EPS), conditions=conditions, **options, at=["layer1"])
        shared = tape.relevance(1, lrp.Epsilon(EPS), conditions=conditions, **options)
        for number, (condition, target) in enumerate(zip(conditions, targets, strict=True)):
            _close(maps["input"][:, number], _masked(slow, condition, target, exclude_parallel))
            _close(shared[:, number], _masked(slow, condition, 1, exclude_parallel))
        for number in (0, 1, 2):  # behind the condition's place its own mask counts, too
            hidden = _masked(slow, conditions[number], targets[number], exclude_parallel, at="layer1")
            kept = torch.zeros(6, dtype=torch.float64)
            kept[conditions[number].get("layer1", list(range(6)))] = 1.0
            _close(maps["layer1"][:, number], hidden * kept.view(1, -1, 1, 1))


def test_masks_of_positions_and_images() -> None:
    net = build(VGGLike)
    shape = build(VGGLike).features[:4](X).shape
    one = torch.zeros(shape[-2:], dtype=torch.bool)
    one[3, 4] = True
    each = torch.zeros(3, shape[1], 1, 1, dtype=torch.float64)
    each[0, 1], each[1, 2], each[2, 0] = 1.0, 0.5, 1.0
    with torch.no_grad(), lrp.record(net, X) as tape:
        whole = tape.relevance(0, conditions=[{"features.3": list(range(shape[1]))}])
        _close(whole[:, 0], tape.relevance(0))
        maps = tape.relevance(0, conditions=[{"features.3": one}, {"features.3": ~one}, {"features.3": each}])
        _close(maps[:, 0] + maps[:, 1], whole[:, 0])
        channels = tape.relevance(0, conditions=[{"features.3": c} for c in (1, 2, 0)])
    _close(maps[:, 2], torch.stack([channels[0, 0], 0.5 * channels[1, 1], channels[2, 2]]))


@pytest.mark.parametrize(
    "rule", [lrp.Epsilon(EPS), lrp.EpsilonPlus(), lrp.Gamma(), lrp.AlphaBeta()], ids=lambda r: type(r).__name__
)
def test_channels_add_up_under_every_rule_and_with_a_first_layer_rule(rule: Any) -> None:
    net = build(Residual)
    composite = rule if isinstance(rule, lrp.Composite) else lrp.Composite(default=rule, first=lrp.ZBox(0.0, 1.0))
    for place in ("bn1", "layer1", "layer2.0.conv2"):
        channels = 8 if "2" in place[:6] else 6
        with torch.no_grad(), lrp.record(net, X, composite=composite) as tape:
            plain = tape.relevance(3, composite)
            maps = tape.relevance(
                3, composite, conditions=[{place: c} for c in range(channels)], exclude_parallel=place == "bn1"
            )
            if place in ("bn1", "layer1"):
                _close(maps.sum(1), plain)
            else:  # what goes by the layer is in each of the maps
                rest = tape.relevance(3, composite, conditions=[{place: []}], exclude_parallel=False)
                _close(maps.sum(1) - (channels - 1) * rest[:, 0], plain)


@pytest.mark.parametrize("exclude_parallel", [True, False])
def test_the_same_maps_as_masks_on_zennits_gradients(exclude_parallel: bool) -> None:
    """What zennit-crp 0.6 computes (its package gave the same numbers to 1e-11 when this was written)."""
    net, variant = pair(Residual, ZennitResidual, 1e-12)
    composite = zennit.composites.EpsilonPlus(canonizers=[zennit.canonizers.SequentialMergeBatchNorm()])
    for place in ("layer1", "layer1.0.conv2", "layer2.1.bn1"):
        with torch.no_grad(), lrp.record(net, X) as tape:
            ours = tape.relevance(
                2, lrp.EpsilonPlus(), conditions=[{place: [1, 3]}, {place: 0}], exclude_parallel=exclude_parallel
            )
        for number, channels in enumerate(([1, 3], [0])):
            kept: list[Tensor] = []
            handle = variant.get_submodule(place).register_forward_hook(lambda _m, _a, out, kept=kept: kept.append(out))
            with composite.context(variant) as modified:
                x = X.clone().requires_grad_()
                logits = modified(x)
                handle.remove()
                start = torch.zeros_like(logits)
                start[:, 2] = logits[:, 2].detach()
                mask = torch.zeros_like(kept[0])
                mask[:, channels] = 1.0
                if exclude_parallel:
                    (r,) = torch.autograd.grad(logits, kept[0], start, retain_graph=True)
                    (theirs,) = torch.autograd.grad(kept[0], x, r * mask)
                else:
                    kept[0].register_hook(lambda r, mask=mask: r * mask)
                    (theirs,) = torch.autograd.grad(logits, x, start)
            _close(ours[:, number], theirs, 1e-9)


def test_gradients_of_conditioned_maps_equal_finite_differences() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double().eval()
    x = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    net[1].running_mean.fill_(-0.2)
    for options in ({}, {"checkpoint": True}):

        def loss(options: dict[str, Any] = options) -> Tensor:
            with lrp.record(net, x, composite=lrp.Epsilon(EPS), **options) as tape:
                return tape.relevance(1, lrp.Epsilon(EPS), conditions=[{"0": 0}, {"2": 1}]).square().sum()

        parameters = [net[0].weight, net[1].weight, net[4].weight]
        grads = torch.autograd.grad(loss(), parameters)
        for p, grad in zip(parameters, grads, strict=True):
            flat = p.data.view(-1)
            for i in range(0, p.numel(), 3):
                value = float(flat[i])
                flat[i] = value + 1e-6
                up = loss().item()
                flat[i] = value - 1e-6
                down = loss().item()
                flat[i] = value
                assert abs(float(grad.view(-1)[i]) - (up - down) / 2e-6) < 1e-6


class Beside(nn.Module):
    """Two inputs, each through a layer of its own; `late` runs after `early`, beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late, self.fc = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.early(x), self.late(y)
        return self.fc(torch.relu(a + b))


def test_what_stands_beside_a_condition_is_excluded_wherever_it_runs() -> None:
    torch.manual_seed(0)
    net = Beside().double()
    xs = torch.rand(2, 4, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64)
    at = ["early", "late", "fc"]
    with torch.no_grad(), lrp.record(net, xs) as tape:
        plain = tape.relevance(1, at=at)
        conditions: list[Any] = [
            {"early": [0, 1, 2, 3, 4]},
            {"late": [0, 1, 2, 3, 4]},
            {},
            {lrp.input_of("early"): [0, 1, 2, 3]},
        ]
        maps = tape.relevance(1, conditions=conditions, at=at, release=True)
    for number, kept in enumerate(((True, False), (False, True), (True, True), (True, False))):
        for place, alive in zip(("early", "late"), kept, strict=True):
            expected = plain[place] if alive else torch.zeros_like(plain[place])
            torch.testing.assert_close(maps[place][:, number], expected, rtol=1e-12, atol=1e-15)
        for k, alive in enumerate(kept):
            expected = plain["input"][k] if alive else torch.zeros_like(plain["input"][k])
            torch.testing.assert_close(maps["input"][k][:, number], expected, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(maps["fc"][:, number], plain["fc"])


def test_conditions_under_static_calls_and_release() -> None:
    net, calls = build(Residual), lrp.StaticCalls()
    with torch.no_grad(), lrp.record(net, X) as tape:
        expected = tape.relevance(1, conditions=[{"layer1": 2}, {"conv1": 3}])
    for _ in range(3):
        with torch.no_grad(), lrp.record(net, X, composite=lrp.Epsilon(), static=calls) as tape:
            assert torch.equal(tape.relevance(1, conditions=[{"layer1": 2}, {"conv1": 3}], release=True), expected)


def test_conditions_that_do_not_fit_are_named() -> None:
    net = build(Residual)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ([{"layer1": 6}], {}, r"'layer1' has channels 0 to 5 .*got 6"),
        ([{"layer1": [-1]}], {}, "got -1"),
        ([{"layer1": torch.ones(5, 1, 1)}], {}, r"mask of 'layer1' has shape \(5, 1, 1\)"),
        ([{"layer1x": 1}], {}, "near matches: layer1"),
        ([{"layer1": 1}] * 2, {"target": [0, 1, 2]}, "2 conditions with 3 targets"),
        ({"layer1": 1}, {}, "expected a list of dicts"),
        ([{"layer2.0.bn2": 1, "layer2.0.down": 2}], {}, "parallel branches.*exclude_parallel=False"),
        ([{"layer1": 1, lrp.output_of("layer1"): 2}], {}, "named twice"),
    ]
    with torch.no_grad(), lrp.record(net, X) as tape:
        for conditions, options, words in cases:
            with pytest.raises(ValueError, match=words):
                tape.relevance(**{"target": 0, **options}, conditions=conditions)
        with pytest.raises(ValueError, match="no relevance reaches 'layer2'"):
            tape.relevance(start={"layer1": torch.zeros(3, 6, 3, 3, dtype=torch.float64)}, conditions=[{"layer2": 0}])
        tape.relevance(0, conditions=[{"layer2.0.bn2": 1, "layer2.0.down": 2}], exclude_parallel=False)


# -- relevance to start from --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [lrp.Epsilon(EPS), lrp.EpsilonPlus(), lrp.Gamma()], ids=lambda r: type(r).__name__)
def test_starting_from_relevance_goes_on_where_a_pass_has_been(rule: Any) -> None:
    net = build(Residual)
    with torch.no_grad(), lrp.record(net, X) as tape:
        maps = tape.relevance("all", rule, at=["fc", "avgpool", "layer1", "bn1"])
        one = tape.relevance(2, rule, at=["layer1"])
        for place in ("fc", "avgpool", "layer1", "bn1"):
            _close(tape.relevance(composite=rule, start={place: maps[place]}), maps["input"], 1e-9)
        _close(tape.relevance(composite=rule, start=maps["fc"]), maps["input"], 1e-9)
        _close(tape.relevance(composite=rule, start={"layer1": one["layer1"]}), one["input"], 1e-9)
        # relevance at two places adds up, and what starts behind a place is there as well
        both = tape.relevance(composite=rule, start={"layer1": one["layer1"], "fc": maps["fc"][:, 0]}, at=["layer1"])
        _close(both["input"], one["input"] + maps["input"][:, 0], 1e-9)
        _close(both["layer1"], one["layer1"] + maps["layer1"][:, 0], 1e-9)


def test_starting_inside_a_block_is_the_layer_alone() -> None:
    net = build(Residual)
    with torch.no_grad(), lrp.record(net, X) as tape, lrp.record(net.conv1, X) as alone:
        z = net.conv1(X)
        r = torch.randn_like(z)
        for rule in (lrp.EpsilonLayerwise(EPS), lrp.ZPlus(EPS), lrp.Epsilon(EPS)):
            _close(tape.relevance(composite=rule, start={"conv1": r}), alone.relevance(composite=rule, start=r))
        (g,) = torch.autograd.functional.vjp(net.conv1, X, r / z)[1:]
        _close(tape.relevance(composite=lrp.Epsilon(EPS), start={"conv1": r}), X * g)


def test_relevance_that_cannot_be_started_from_is_named() -> None:
    net = build(Residual)
    with torch.no_grad(), lrp.record(net, X) as tape:
        ones = torch.ones(3, 6, 6, 6, dtype=torch.float64)
        for start, options, words in (
            ({"relu": ones}, {}, r"relevance at 'relu' must be 0 where the value there is 0"),
            ({"layer1": ones[:, :3]}, {}, r"shape \(3, 6, 3, 3\)"),
            (ones, {}, r"the output must have shape \(3, 5\)"),
            (torch.ones(3, 5).double(), {"target": 1}, "takes the place of a target"),
        ):
            with pytest.raises(ValueError, match=words):
                tape.relevance(start=start, **options)


# -- keyword inputs and tokens ------------------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    """Embeddings with positions, a convolution over the sequence, a logit for every token at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(11, 6), nn.Embedding(7, 6)
        self.conv, self.head = nn.Conv1d(6, 8, 3, padding=1), nn.Linear(8, 11)

    def forward(
        self, ids: Tensor | None = None, inputs_embeds: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        x = self.embed(ids.view(len(ids), -1)) if inputs_embeds is None else inputs_embeds
        x = x + self.positions(torch.arange(x.shape[1]))
        x = x if mask is None else x * mask.unsqueeze(-1)
        return {"logits": self.head(torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2))}


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("rule", [lrp.Epsilon(EPS), lrp.ZPlus(EPS), lrp.Epsilon(EPS, first=lrp.ZPlus(EPS))], ids=str)
def test_tokens_are_explained_through_their_embeddings(rule: lrp.Rule, static: bool) -> None:
    torch.manual_seed(1)
    net = Tagger().double()
    ids = torch.randint(0, 11, (3, 5))
    mask = torch.ones(3, 5, dtype=torch.float64)
    mask[0, 3:] = 0
    embeds = net.embed(ids).detach()
    targets: Sequence[Any] = [
        (-1, 7),
        (torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])),
        lambda out: out[:, 2, 1] * 2.0,
    ]
    one = lrp.LRP(net, rule, static=static)
    expected = [
        lrp.LRP(net, rule)({"inputs_embeds": embeds}, target, mask=mask)[1]["inputs_embeds"]
        for target in (
            lambda out: out[:, -1, 7],
            lambda out: torch.stack([out[b, b, b + 3] for b in range(3)]),
            lambda out: out[:, 2, 1] * 2.0,
        )
    ]
    if not static:  # tensors as keyword arguments are refused there
        maps = one({"inputs_embeds": embeds}, targets, mask=mask)[1]["inputs_embeds"]
        _close(maps, torch.stack(expected, 1))
        with lrp.record(net, {"ids": ids}, mask=mask) as tape:
            found = tape.relevance(targets, rule, at=["embed", lrp.input_of("head")])
        _close(found["embed"], torch.stack(expected, 1))
        _close(found["input"]["ids"], torch.stack(expected, 1).sum(-1))
        assert found["input"]["ids"].shape == (3, 3, 5)
    for _ in range(2):
        logits, tokens = one(ids, targets)
        _close(tokens, one({"inputs_embeds": embeds}, targets)[1]["inputs_embeds"].sum(-1))
        torch.testing.assert_close(logits["logits"], net(ids)["logits"])


def test_inputs_that_do_not_fit_are_named() -> None:
    net = Tagger().double()
    ids = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"'mask' must be a floating-point tensor, got dtype torch\.bool"):
        lrp.record(net, {"ids": ids, "mask": ids == 0})
    with pytest.raises(TypeError, match="mask is given both"):
        lrp.record(net, {"ids": ids, "mask": torch.ones(2, 5)}, mask=None)
    with lrp.record(net, ids) as tape:
        for target, words in (
            ([(1, 2, 3)], "2 indices for shape"),
            ([(5, 2)], "index 5 is out of range, dimension 1 .* 5 entries"),
            ([(0, torch.tensor([1, 11]))], "class 11 is out of range"),
        ):
            with pytest.raises(ValueError, match=words):
                tape.relevance(target)


def test_transformers_from_token_ids_and_from_embeddings() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=3
    )
    net = transformers.BertForSequenceClassification(config).double().eval()
    ids = torch.randint(0, 30, (2, 6))
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    embeds = net.bert.embeddings.word_embeddings(ids).detach()
    with torch.no_grad():
        logits, tokens = lrp.LRP(net)({"input_ids": ids}, [0, 2], attention_mask=mask)
        _, features = lrp.LRP(net)({"inputs_embeds": embeds}, [0, 2], attention_mask=mask)
    assert logits.logits.shape == (2, 3) and tokens["input_ids"].shape == (2, 2, 6)
    _close(tokens["input_ids"], features["inputs_embeds"].sum(-1))
