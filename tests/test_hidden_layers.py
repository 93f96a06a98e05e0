"""Relevance at hidden layers: asking for it never changes the pass, and what comes back is what the rules there imply."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, build
from torch import Tensor, nn

import lrpkernels as lrp

torch.manual_seed(0)
X = torch.rand(4, 3, 12, 12, dtype=torch.float64)
RULES: list[Any] = [
    lrp.Epsilon(1e-2),
    lrp.EpsilonLayerwise(1e-2),
    lrp.ZPlus(1e-2),
    lrp.AlphaBeta(2.0, 1.0),
    lrp.Gamma(0.25),
    lrp.Norm(),
    lrp.EpsilonPlus(),
    lrp.EpsilonAlpha2Beta1(),
]
FIRST: list[Any] = [lrp.ZBox(0.0, 1.0), lrp.Flat(), lrp.WSquare()]


def _close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)


def _places(net: nn.Module) -> list[Any]:
    """Every place of every module that runs once."""
    ran: dict[str, int] = {}
    handles = [
        m.register_forward_hook(lambda _m, _a, _o, name=name: ran.update({name: ran.get(name, 0) + 1}))
        for name, m in net.named_modules()
    ]
    net(X)
    for handle in handles:
        handle.remove()
    found: list[Any] = []
    for name, times in ran.items():
        for call in range(times):
            found += [lrp.input_of(name, call), lrp.output_of(name, call)]
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("name", NETWORKS)
def test_asking_never_changes_the_pass(name: str, rule: Any) -> None:
    net = build(NETWORKS[name])
    places = _places(net)
    with torch.no_grad(), lrp.record(net, X) as tape:
        plain = tape.relevance(1, rule)
        maps = tape.relevance(1, rule, at=places)
    assert torch.equal(maps["input"], plain)
    assert all(bool(torch.isfinite(r).all()) for place in places for r in _tuple(maps[place]))
    with torch.no_grad(), lrp.record(net, X, composite=rule, at=places) as tape:  # only what is read is kept
        again = tape.relevance(1, rule, at=places)
    assert torch.equal(again["input"], plain)
    for place in places:
        for a, b in zip(_tuple(maps[place]), _tuple(again[place]), strict=True):
            assert torch.equal(a, b)


def _tuple(r: Any) -> tuple[Tensor, ...]:
    return r if isinstance(r, tuple) else (r,)


@pytest.mark.parametrize("rule", [lrp.Epsilon(1e-2), lrp.ZPlus(1e-2), lrp.Gamma()], ids=lambda r: type(r).__name__)
def test_asking_never_changes_gradients(rule: Any) -> None:
    net = build(NETWORKS["residual"])
    found = []
    for at in (None, ["conv1", "bn1", "layer1.0.conv2", "layer1.0.bn2"]):
        net.zero_grad()
        with lrp.record(net, X, composite=rule, at=at or ()) as tape:
            maps = tape.relevance(2, rule, at=at)
            (maps if at is None else maps["input"]).square().sum().backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        _close(a, b)


def _smallest() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.uniform_(0.2, 1.0)
        net[1].running_mean.fill_(0.3)
        net[1].running_var.fill_(2.0)
    return net


def test_epsilon_inside_a_block_is_the_gradient_of_the_modified_pass() -> None:
    net, x = _smallest(), torch.tensor([[[[1.0, -2.0]]]], dtype=torch.float64)
    conv, norm, _, _, dense = net
    v = conv(x).detach().requires_grad_()
    z = norm(v)
    u = torch.relu(z)
    g_u = dense.weight[1].view_as(u)
    g_z = g_u * u / (u + 1e-2)
    (g_v,) = torch.autograd.grad(z, v, g_z)
    with torch.no_grad(), lrp.record(net, x) as tape:
        maps = tape.relevance(1, lrp.Epsilon(1e-2), at=["0", "1", "2", lrp.input_of("1"), lrp.input_of("2")])
    _close(maps["2"], (u * g_u).detach())
    for place, value, g in (("1", z, g_z), ("0", v, g_v)):
        _close(maps[place], (value * g).detach())
    _close(maps[lrp.input_of("1")], maps["0"])
    _close(maps[lrp.input_of("2")], maps["1"])


@pytest.mark.parametrize("rule", [lrp.EpsilonLayerwise(0.1), lrp.ZPlus(0.1), lrp.AlphaBeta(), lrp.Gamma(0.5, 0.1)])
def test_other_rules_inside_a_block_take_the_batch_norm_as_a_layer_of_its_own(rule: Any) -> None:
    net = _smallest()
    x = torch.tensor([[[[1.0, -2.0]]], [[[0.5, 3.0]]]], dtype=torch.float64)
    with torch.no_grad(), lrp.record(net, x) as tape:
        maps = tape.relevance(1, rule, at=["0", "1", "2"])
        behind = net[1:]
        with lrp.record(behind, net[0](x)) as rest:  # a batch norm that reads the input stands alone
            _close(maps["0"], rest.relevance(1, rule))
        assert torch.equal(maps["1"], maps["2"])  # a ReLU passes relevance on unchanged


@pytest.mark.parametrize("first", FIRST, ids=lambda r: type(r).__name__)
def test_places_at_and_ahead_of_a_first_layer_rule(first: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.conv, self.norm = nn.Identity(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.relu, self.fc = nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.part(x[..., :6] * 1.0), x[..., 6:]], -1)
            return self.fc(self.relu(self.norm(self.conv(x))).mean((2, 3)))

    torch.manual_seed(3)
    net = Net().double().eval()
    rule = lrp.Composite(first=first)
    with torch.no_grad(), lrp.record(net, X) as tape:
        plain = tape.relevance(1, rule)
        maps = tape.relevance(1, rule, at=["part", "norm", "relu"])
        assert torch.equal(maps["input"], plain)
        assert torch.equal(maps["norm"], maps["relu"])  # its own factor is not applied
        _close(maps["part"], plain[..., :6])
        assert float(plain.abs().max()) > 1e-5
        with pytest.raises(ValueError, match=r"at: 'conv' lies inside conv -> batch_norm -> relu.*'norm'"):
            tape.relevance(1, rule, at=["conv"])


def test_places_are_differentiable_and_equal_finite_differences() -> None:
    net = _smallest()
    x = torch.tensor([[[[1.0, -2.0]]], [[[0.5, 3.0]]]], dtype=torch.float64)
    parameters = [*net[0].parameters(), net[1].weight, net[4].weight]

    def loss(rule: Any) -> Tensor:
        with lrp.record(net, x, composite=rule, at=["0", "1"]) as tape:
            maps = tape.relevance([0, 1], rule, at=["0", "1"])
        return maps["0"].square().sum() + maps["1"].pow(3).sum()

    rule = lrp.Epsilon(0.1)
    grads = torch.autograd.grad(loss(rule), parameters)
    step = 1e-6
    for p, grad in zip(parameters, grads, strict=True):
        for i in range(p.numel()):
            flat = p.data.view(-1)
            value = float(flat[i])
            flat[i] = value + step
            up = loss(rule).item()
            flat[i] = value - step
            down = loss(rule).item()
            flat[i] = value
            assert abs(float(grad.view(-1)[i]) - (up - down) / (2 * step)) < 1e-6


class Pair(nn.Module):
    """A module that takes a tensor, a list and a keyword, and returns a tuple with something else in it."""

    def forward(self, x: Tensor, more: list[Tensor], *, scale: Tensor) -> tuple[Tensor, Tensor, int]:
        return x + more[0], x * 2.0 - scale, 7


class UsesPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.pair, self.out = nn.Linear(3, 4), Pair(), nn.Linear(8, 2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        a, b, _ = self.pair(x, [x.sin()], scale=x.cos())
        return self.out(self.relu(torch.cat([self.relu(a), b], 1)))


@pytest.mark.parametrize("static", [False, True])
def test_modules_of_several_inputs_and_outputs(static: bool) -> None:
    torch.manual_seed(1)
    net = UsesPair().double()
    x = torch.randn(5, 3, dtype=torch.float64)
    calls = lrp.StaticCalls() if static else None
    at = ["pair", lrp.input_of("pair"), lrp.input_of("relu", call=1), lrp.output_of("relu", call=0)]
    rule = lrp.Epsilon(1e-2)
    for _ in range(2):
        with torch.no_grad(), lrp.record(net, x, composite=rule, at=at, static=calls) as tape:
            maps = tape.relevance(1, rule, at=at)
    with torch.no_grad():
        h = net.fc(x)
        a, b = h + h.sin(), h * 2.0 - h.cos()
        cat = torch.cat([a.relu(), b], 1)
        u = cat.relu()
        g = net.out.weight[1].expand_as(u) * u / (u + 1e-2)
        g_a = g[:, :4] * a.relu() / (a.relu() + 1e-2)
        g_b = g[:, 4:]
    for actual, expected in zip(maps["pair"], (a * g_a, b * g_b), strict=True):
        _close(actual, expected)
    _close(maps[lrp.input_of("relu", call=1)], cat * g)
    _close(maps[lrp.output_of("relu", call=0)], a.relu() * g[:, :4])
    # of x as the module read it, its relevance is that of the value, whoever reads it
    read = maps[lrp.input_of("pair")]
    assert [r.shape for r in read] == [(5, 4)] * 3
    _close(read[1], h.sin() * g_a)
    _close(read[2], h.cos() * -g_b)


def test_what_does_not_fit_is_named() -> None:
    net = build(NETWORKS["residual"])
    with torch.no_grad(), lrp.record(net, X) as tape:
        for at, words in (
            ("layer1.input", r"no module 'layer1.input'.*input_of"),
            ("layer1.0.relu", r"'layer1.0.relu' must run once.*2 times.*output_of\('layer1.0.relu', call=0\)"),
            (lrp.output_of("layer1.0.relu", call=2), "ran 2 times"),
        ):
            with pytest.raises(ValueError, match=words):
                tape.relevance(1, at=[at])
        for at, words in (([3], "a module's name"), ("layer1", "expected a list of places, got 'layer1'")):
            with pytest.raises(TypeError, match=words):
                tape.relevance(1, at=at)
    with pytest.raises(ValueError, match="near matches: layer1"):
        lrp.record(net, X, composite=lrp.Epsilon(), at=["layer1x"])


def test_a_module_of_two_names_is_found_by_both() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).double()
    net.add_module("again", net[0])
    x = torch.rand(2, 4, dtype=torch.float64)
    with torch.no_grad(), lrp.record(net, x, composite=lrp.Epsilon(), at=[lrp.output_of("again", 1)]) as tape:
        maps = tape.relevance(1, lrp.Epsilon(), at=[lrp.output_of("again", 1), lrp.output_of("0", 0)])
    z = net[0](x).relu()
    g = net[0].weight[1] * z / (z + 1e-2)
    _close(maps[lrp.output_of("0", 0)], (g * net[0](x)).detach())
    _close(maps[lrp.output_of("again", 1)][:, 1], net[0](z)[:, 1].detach())


@pytest.mark.parametrize("training", [False, True])
def test_logits_in_the_middle_of_a_block(training: bool) -> None:
    """The explained output may be read by a ReLU behind it, or by a batch norm that merges with its layer."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 2, 12), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            z = self.conv(x)
            return {"z": z, "y": F.relu(self.norm(z))}

    torch.manual_seed(2)
    net = Net().double().train(training)
    alone = copy.deepcopy(net.conv)
    with torch.no_grad(), lrp.record(net, X) as tape:
        maps = tape.relevance(lambda z: z[:, 1, 0, 0], at=["norm", "conv"], output=lambda out: out["z"])
        _close(maps["input"], lrp.LRP(alone)(X, lambda z: z[:, 1, 0, 0])[1])
        _close(maps["conv"], alone(X) * torch.tensor([0.0, 1.0]).view(1, 2, 1, 1))
        assert not maps["norm"].any()
