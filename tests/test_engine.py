"""Recording, targets, hidden layers, errors: the model is left as it was and the answers have the right form."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Functional, Residual, VGGLike, build
from reference import FlexReLU, flex_heatmap, relevance_mode
from torch import Tensor, nn

import lrpkernels as lrp

X = torch.rand(4, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def _snapshot(net: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in net.state_dict().items()}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_model_is_left_as_an_ordinary_forward_pass_leaves_it(name: str, training: bool) -> None:
    net = build(NETWORKS[name]).train(training)
    twin = copy.deepcopy(net)
    modules, parameters = list(net.modules()), list(net.parameters())
    hooks = [(len(m._forward_hooks), len(m._backward_hooks), m.training) for m in modules]
    torch.manual_seed(7)
    expected = twin(X)
    torch.manual_seed(7)
    logits, _ = lrp.LRP(net)(X)
    assert torch.equal(logits, expected), "the forward pass (and its random numbers) must be the model's own"
    for (key, ours), theirs in zip(net.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key
    assert [id(m) for m in net.modules()] == [id(m) for m in modules]
    assert [id(p) for p in net.parameters()] == [id(p) for p in parameters]
    assert [(len(m._forward_hooks), len(m._backward_hooks), m.training) for m in modules] == hooks
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    logits.sum().backward()
    expected = [p.grad for p in net.parameters()]
    twin(X).sum().backward()
    assert all(g is not None for g in expected)


def test_hooks_are_gone_after_a_model_raised() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        lrp.record(Broken(), X)
    assert not torch.nn.modules.module._global_forward_hooks


def test_functional_calls_in_place_activations_and_splits() -> None:
    class Slow(Functional):
        def forward(self, x: Tensor) -> Tensor:
            relu = FlexReLU()
            a, b = relu(self.conv1(x)).chunk(2, 1)
            x = F.max_pool2d(torch.cat((a, relu(self.conv2(b))), dim=1), 2)
            return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    net, slow = build(Functional), build(Slow)
    logits, heatmap = lrp.LRP(net)(X, 1)
    slow_logits, slow_heatmap = flex_heatmap(slow, X, lambda o: o[:, 1].sum(), 1e-2)
    torch.testing.assert_close(logits, slow_logits)
    torch.testing.assert_close(heatmap, slow_heatmap, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("first", [None, lrp.ZBox(0.0, 1.0)], ids=["epsilon", "zbox"])
@pytest.mark.parametrize("kind", [*NETWORKS.values(), Functional], ids=lambda k: k.__name__)
def test_many_targets_equal_one_at_a_time(kind: type[nn.Module], first: lrp.Rule | None) -> None:
    net = build(kind)
    attribution = lrp.LRP(net, lrp.Epsilon(1e-2, first=first))
    per_image = torch.tensor([4, 0, 2, 2])
    single = [attribution(X, c)[1] for c in range(5)]
    every = attribution(X, "all")[1]
    assert every.shape == (4, 5, 3, 12, 12)
    for c in range(5):
        torch.testing.assert_close(every[:, c], single[c], rtol=1e-12, atol=1e-15)
    mixed = attribution(X, [1, per_image])[1]
    torch.testing.assert_close(mixed[:, 0], single[1], rtol=1e-12, atol=1e-15)
    for b, c in enumerate(per_image.tolist()):
        torch.testing.assert_close(mixed[b, 1], single[c][b], rtol=1e-12, atol=1e-15)


def test_gradients_through_many_targets_add_up() -> None:
    net = build(Residual)
    attribution = lrp.LRP(net, lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)))
    attribution(X, "all")[1].square().sum().backward()
    together = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    for c in range(5):
        attribution(X, c)[1].square().sum().backward()
    apart = [p.grad for p in net.parameters() if p.grad is not None]
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_default_target_is_the_highest_logit() -> None:
    net = build(VGGLike)
    logits, heatmap = lrp.LRP(net)(X)
    torch.testing.assert_close(heatmap, lrp.LRP(net)(X, logits.argmax(1))[1])


def test_hidden_layers_by_name() -> None:
    net, slow = build(Residual), build(Residual, FlexReLU)
    kept: dict[str, Tensor] = {}
    slow.layer1.register_forward_hook(lambda m, i, o: kept.update(layer1=o))
    with relevance_mode(1e-2):
        (g,) = torch.autograd.grad(slow(X)[:, 2].sum(), kept["layer1"])
    with lrp.record(net, X) as tape:
        maps = tape.relevance(2, at=["layer1", "bn1"])
        plain = tape.relevance(2)
    assert set(maps) == {"input", "layer1", "bn1"}
    torch.testing.assert_close(maps["layer1"], kept["layer1"] * g, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(maps["input"], plain, rtol=1e-10, atol=1e-14)
    assert maps["bn1"].shape == (4, 6, 6, 6)


def test_zbox_against_its_formula() -> None:
    net = build(Residual)
    with lrp.record(net, X) as tape:
        heatmap = tape.relevance(1, lrp.Epsilon(1e-2, first=lrp.ZBox((0.0, -0.5, 0.1), (1.0, 2.0, 1.5))))
    x = X
    k = net.bn1.weight / (net.bn1.running_var + net.bn1.eps).sqrt()
    W = net.conv1.weight * k.view(-1, 1, 1, 1)
    b = net.bn1.bias - k * net.bn1.running_mean
    low = torch.tensor([0.0, -0.5, 0.1]).double().view(1, 3, 1, 1).expand_as(x)
    high = torch.tensor([1.0, 2.0, 1.5]).double().view(1, 3, 1, 1).expand_as(x)
    conv = lambda a, w: F.conv2d(a, w, None, 2, 2)
    Wp, Wn, bp, bn = W.clamp(min=0), W.clamp(max=0), b.clamp(min=0), b.clamp(max=0)
    z = (
        conv(x, W)
        + b.view(-1, 1, 1)
        - conv(low, Wp)
        - conv(high, Wn)
        - (low.mean() * bp + high.mean() * bn).view(-1, 1, 1)
    )
    z = z + torch.where(z >= 0, 1e-2, -1e-2)

    class Tail(Residual):
        def forward(self, h: Tensor) -> Tensor:
            return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(self.maxpool(h)))), 1))

    tail = build(Tail, FlexReLU)
    h = F.relu(net.bn1(net.conv1(x)))
    _, relevance = flex_heatmap(tail, h, lambda o: o[:, 1].sum(), 1e-2)
    s = relevance / z
    back = lambda w: F.conv_transpose2d(s, w, None, 2, 2, 1)
    expected = x * back(W) - low * back(Wp) - high * back(Wn)
    torch.testing.assert_close(heatmap, expected, rtol=1e-10, atol=1e-11)


def test_no_grad_keeps_no_graph_and_gives_the_same_heatmap() -> None:
    net = build(VGGLike)
    with_graph = lrp.LRP(net)(X, 0)[1]
    with torch.no_grad():
        without = lrp.LRP(net)(X, 0)[1]
    assert with_graph.requires_grad and not without.requires_grad
    torch.testing.assert_close(with_graph, without, rtol=0, atol=0)


def test_a_second_derivative_raises_instead_of_being_wrong() -> None:
    net = build(VGGLike)
    heatmap = lrp.LRP(net)(X, 0)[1]
    (g,) = torch.autograd.grad(heatmap.square().sum(), net.features[0].weight, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(g.square().sum(), net.features[0].weight)


@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        (5, ValueError, "class 5 is out of range, the model has 5 classes"),
        (-1, ValueError, "class -1 is out of range"),
        (torch.tensor([0, 1]), ValueError, r"int64 of shape \[4\]"),
        (torch.tensor([0.0, 1.0, 2.0, 3.0]), ValueError, "int64"),
        ("some", ValueError, "some"),
        ([], ValueError, "empty list"),
        (1.5, TypeError, "float"),
        (lambda o: o.sum(), ValueError, "one scalar per image"),
        (lambda o: torch.ones(4), ValueError, "does not depend on the logits"),
        (lambda o: o[:, 0] / 0, lrp.NonFiniteError, "not finite"),
    ],
)
def test_bad_targets_are_named(target: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        lrp.LRP(build(VGGLike))(X, target)


def test_bad_inputs_and_models_are_named() -> None:
    with pytest.raises(TypeError, match="int64"):
        lrp.LRP(build(VGGLike))(torch.zeros(1, 3, 12, 12, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        lrp.LRP(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="composite"):
        lrp.LRP(build(VGGLike), "epsilon")  # type: ignore[arg-type]
    with lrp.record(build(Residual), X) as tape, pytest.raises(ValueError, match="near matches: layer1"):
        tape.relevance(0, at=["layer1x"])
    with pytest.raises(RuntimeError, match="released"):
        tape.relevance(0)

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 3).double() + self.training

    with pytest.raises(lrp.UnusedInputError, match="Constant"):
        lrp.LRP(Constant())(X)


class _Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


def test_undifferentiable_steps_are_named() -> None:
    class Rounds(_Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.argsort(self.conv(x).mean((2, 3))).double())

    with pytest.raises(lrp.RelevanceError):
        lrp.LRP(Rounds().double())(X)


def test_an_unknown_smooth_function_warns_once_and_uses_its_gradient() -> None:
    class Smooth(_Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.logaddexp(self.conv(x), self.conv(x) * 0.5).mean((2, 3)))

    net = Smooth().double()
    with pytest.warns(UserWarning, match="logaddexp"):
        heatmap = lrp.LRP(net)(X, 0)[1]
    x = X.clone().requires_grad_()
    (g,) = torch.autograd.grad(net(x)[:, 0].sum(), x)
    torch.testing.assert_close(heatmap, X * g, rtol=1e-10, atol=1e-14)
    heatmap.square().sum().backward()
    assert net.conv.weight.grad.abs().sum() > 0


def test_rules_check_their_parameters() -> None:
    with pytest.raises(ValueError, match="eps"):
        lrp.Epsilon(-1.0)
    with pytest.raises(ValueError, match="eps"):
        lrp.Epsilon(float("nan"))
    with pytest.raises(ValueError, match="low must be below high"):
        lrp.ZBox(1.0, 0.0)
    with pytest.raises(ValueError, match="2 values"):
        lrp.LRP(build(VGGLike), lrp.Epsilon(first=lrp.ZBox((0.0, 0.1), 1.0)))(X)


def test_many_targets_within_a_memory_budget_are_the_same() -> None:
    net = build(Residual)
    attribution = lrp.LRP(net)
    torch.testing.assert_close(attribution(X, "all", memory_budget=40_000)[1], attribution(X, "all")[1])
    with lrp.record(net, X) as tape:
        maps = tape.relevance("all", at=["layer1"], memory_budget=1)
        assert maps["layer1"].shape == (4, 5, 6, 3, 3)
    with pytest.raises(ValueError, match="memory_budget"):
        attribution(X, "all", memory_budget=0)


def test_non_finite_activations_are_traced_to_their_layer() -> None:
    net = build(VGGLike)
    net.features[2].weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(lrp.NonFiniteError, match=r"features\.2"), torch.no_grad():
        lrp.LRP(net)(X, 0)
