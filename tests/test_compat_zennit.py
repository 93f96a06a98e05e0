"""lrpkernels.compat.zennit against the installed zennit: composites, contexts, attributors; rules and hooks of the user's own."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import Dense, Functional, Residual, VGGLike, build
from peers import ZennitDense, ZennitResidual, pair, zennit
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.compat import zennit as ours

X = torch.rand(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
ONE = torch.eye(5, dtype=torch.float64)[[1, 1]]
NETWORKS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "vgg": (VGGLike, VGGLike),
    "residual": (Residual, ZennitResidual),
    "dense": (Dense, ZennitDense),
}
BOX = {"low": -0.5, "high": 1.5}


def _close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    scale = float(expected.detach().abs().max())
    assert found.shape == expected.shape and scale > 1e-9
    assert float((found - expected).detach().abs().max()) <= tolerance * scale


def _relevance(net: nn.Module, composite: Any, start: Tensor = ONE, x: Tensor = X) -> Tensor:
    with composite.context(net) as modified:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(modified(x), x, start)[0]


def _gradient(net: nn.Module) -> Tensor:
    x = X.clone().requires_grad_()
    return torch.autograd.grad(net(x), x, ONE)[0]


def _canonizers(network: str) -> list[Any]:
    return [] if network == "dense" else [zennit.canonizers.SequentialMergeBatchNorm()]


def _nets(network: str) -> tuple[nn.Module, nn.Module]:
    return pair(*NETWORKS[network], norm_eps=1e-15)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ours.COMPOSITES)
def test_composites_equal_zennits(name: str, network: str) -> None:
    net, variant = _nets(network)
    options: dict[str, Any] = {"canonizers": _canonizers(network), **(BOX if "box" in name else {})}
    theirs = zennit.composites.COMPOSITES[name](**options)
    expected = _relevance(variant, theirs)
    _close(_relevance(net, ours.COMPOSITES[name](**options)), expected)
    _close(ours.Gradient(net, theirs)(X, ONE)[1], expected)
    native = ours.convert(theirs)
    assert isinstance(native, lrp.Composite)
    _close(ours.Gradient(net, native)(X, ONE)[1], expected)
    _close(ours.Gradient(net, native, attr_output=lambda output: ONE)(X)[1], expected)


# Each as zennit's module or ours has it: rules that the engine has, and those that are carried out as runs of the layer.
RULES: dict[str, Callable[[Any, Any], Any]] = {
    "epsilon": lambda r, s: r.Epsilon(1e-3),
    "epsilon, root mean square": lambda r, s: r.Epsilon(s(1e-3, norm_scale=True)),
    "epsilon, clipped": lambda r, s: r.Epsilon(s(1e-1, clip=True)),
    "epsilon without bias": lambda r, s: r.Epsilon(1e-3, "bias"),
    "z+": lambda r, s: r.ZPlus(1e-3, ["bias"]),
    "z+, function": lambda r, s: r.ZPlus(lambda z: z + 1e-2),
    "alpha-beta": lambda r, s: r.AlphaBeta(3.0, 2.0),
    "alpha-beta, clipped": lambda r, s: r.AlphaBeta(2, 1, s(1e-3, clip=True)),
    "gamma": lambda r, s: r.Gamma(0.5, zero_params="bias"),
    "gamma, clipped": lambda r, s: r.Gamma(0.3, s(1e-3, clip=True)),
    "norm": lambda r, s: r.Norm(),
    "norm, clipped": lambda r, s: r.Norm(s(1e-3, clip=True)),
    "flat": lambda r, s: r.Flat(),
    "w^2": lambda r, s: r.WSquare(s(1e-3, clip=True)),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", RULES)
def test_rules_equal_zennits(rule: str, network: str) -> None:
    net, variant = _nets(network)

    def composite(package: Any, rules: Any, types: Any, stabilizer: Any, **options: Any) -> Any:
        dense = (nn.Linear, rules.Epsilon(1e-3))
        base = package.layer_map_base(1e-5)
        return package.LayerMapComposite([*base, (types.Convolution, RULES[rule](rules, stabilizer)), dense], **options)

    theirs = composite(
        zennit.composites, zennit.rules, zennit.types, zennit.core.Stabilizer, canonizers=_canonizers(network)
    )
    expected = _relevance(variant, theirs)
    _close(_relevance(net, composite(ours, ours, ours.types, ours.Stabilizer)), expected)
    _close(ours.Gradient(net, theirs)(X, ONE)[1], expected)
    several = lrp.record(net, X)
    native = ours.convert(theirs, net)
    start = torch.stack([ONE, 2 * ONE], 1)
    _close(several.relevance(start=start, composite=native)[:, 1], 2 * expected)


def test_maps_of_names_types_and_both() -> None:
    net, variant = _nets("residual")

    def each(package: Any, rules: Any, types: Any) -> list[Any]:
        names = [(("conv1",), rules.WSquare()), (("layer1.0.conv1", "layer1.0.conv2"), rules.Gamma(0.5))]
        layers = [*package.layer_map_base(), (types.Linear, rules.Epsilon(1e-2))]
        first = [(types.Convolution, rules.Flat())]
        by_name, by_type = package.NameMapComposite(names), package.LayerMapComposite(layers)
        special = package.SpecialFirstLayerMapComposite(layers, first)
        return [
            package.NameLayerMapComposite(names, layers),
            package.MixedComposite([by_name, by_type]),
            package.MixedComposite([by_type, by_name]),
            package.MixedComposite([by_name, special]),
            special,
        ]

    for mine, theirs in zip(
        each(ours, ours, ours.types), each(zennit.composites, zennit.rules, zennit.types), strict=True
    ):
        theirs.canonizers = _canonizers("residual")
        expected = _relevance(variant, theirs)
        _close(_relevance(net, mine), expected)
        _close(ours.Gradient(net, theirs)(X, ONE)[1], expected)
        if isinstance(mine, ours.MixedComposite) and hasattr(mine.composites[-1], "first_map"):
            with pytest.raises(ValueError, match="pass it"):
                ours.convert(mine)
        else:
            _close(ours.Gradient(net, ours.convert(mine))(X, ONE)[1], expected)


@pytest.mark.parametrize(
    "name", ["epsilon_plus", "epsilon_alpha2_beta1_flat", "epsilon_gamma_box", "excitation_backprop"]
)
def test_batch_norms_are_merged_with_and_without_a_canonizer_and_stand_apart_if_asked_for(name: str) -> None:
    net, variant = _nets("residual")
    options: dict[str, Any] = BOX if "box" in name else {}
    theirs, composite = zennit.composites.COMPOSITES[name], ours.COMPOSITES[name](**options)
    merged = _relevance(variant, theirs(canonizers=_canonizers("residual"), **options))
    apart = _relevance(variant, theirs(**options))
    _close(_relevance(net, composite), merged)
    canonizers = [ours.SequentialMergeBatchNorm(), ours.ResNetCanonizer()]
    _close(_relevance(net, ours.COMPOSITES[name](canonizers=canonizers, **options)), merged)
    _close(ours.Gradient(net, ours.convert(composite, net, merge=False))(X, ONE)[1], apart)
    assert float((merged - apart).abs().max()) > 0.1 * float(apart.abs().max())  # they are different questions
    with pytest.raises(ValueError, match="pass the model"):
        ours.convert(composite, merge=False)


def test_plain_sums_and_functions_need_nothing() -> None:
    net = build(Functional)
    with torch.no_grad():
        logits = net(X)
    found = _relevance(net, ours.EpsilonPlus(), logits)
    _close(found, lrp.LRP(net, lrp.EpsilonPlus())(X, lambda z: z.sum(1))[1])


class _Hidden:
    """The outputs of all modules, with their gradients."""

    def __init__(self, net: nn.Module) -> None:
        self.outputs: dict[nn.Module, Tensor] = {}
        self.handles = [module.register_forward_hook(self.store) for module in net.modules()]

    def store(self, module: nn.Module, input: Any, output: Tensor) -> None:
        self.outputs[module] = output
        output.retain_grad()


def test_hidden_relevance_is_the_retained_gradient() -> None:
    net, variant = _nets("vgg")
    found: list[list[Tensor]] = []
    for package, model in ((ours, net), (zennit.composites, variant)):
        gradient = ours.Gradient if package is ours else zennit.attribution.Gradient
        with gradient(model, package.EpsilonPlusFlat()) as attributor:
            hidden = _Hidden(model)
            attributor(X, ONE)
        for handle in hidden.handles:
            handle.remove()
        found.append([hidden.outputs[module].grad for module in model.modules()])  # type: ignore[misc]
    for mine, theirs in zip(*found, strict=True):
        _close(mine, theirs)


def test_submodules_called_by_themselves_follow_their_rules() -> None:
    net = build(VGGLike)
    with ours.EpsilonPlus().context(net):
        x = X.clone().requires_grad_()
        output = net.get_submodule("classifier")(net.get_submodule("features")(x))
        _close(torch.autograd.grad(output, x, ONE)[0], _relevance(net, ours.EpsilonPlus()))


def test_a_relevance_with_its_graph_has_exact_gradients() -> None:
    net = build(VGGLike)
    x = X.clone().requires_grad_()
    parameters = [x, *net.parameters()]
    with ours.Gradient(net, ours.EpsilonPlus(1e-2), create_graph=True) as attributor:
        output, relevance = attributor(x)
        with attributor.inactive():
            loss = relevance[:, :, :6].abs().sum() + output.square().sum()
            found = torch.autograd.grad(loss, parameters)
    with lrp.record(net, x) as tape:
        expected_map = tape.relevance(start=tape.output, composite=lrp.EpsilonPlus(1e-2))
        loss = expected_map[:, :, :6].abs().sum() + tape.output.square().sum()
        expected = torch.autograd.grad(loss, parameters)
    for mine, theirs in zip(found, expected, strict=True):
        _close(mine, theirs, 1e-12)


@pytest.mark.parametrize("composite", [None, "epsilon_plus", "guided_backprop"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Gradient", {}), ("SmoothGrad", {"noise_level": 0.2, "n_iter": 4}), ("IntegratedGradients", {"n_iter": 5}),
        ("IntegratedGradients", {"n_iter": 3, "baseline_fn": lambda x: 0.5 * torch.ones_like(x)}),
        ("Occlusion", {"window": 4, "stride": 2}), ("Occlusion", {"window": (6, 5), "stride": (3, 2)}),
    ],
)  # fmt: skip
def test_attributors_equal_zennits(name: str, options: dict[str, Any], composite: str | None) -> None:
    net, variant = _nets("vgg")
    results = []
    for attributors, composites, model in ((ours, ours, net), (zennit.attribution, zennit.composites, variant)):
        made = None if composite is None else composites.COMPOSITES[composite]()
        torch.manual_seed(3)
        with getattr(attributors, name)(model, made, attr_output=lambda output: output * ONE, **options) as attributor:
            results.append(attributor(X.clone()))
    (output, found), (their_output, expected) = results
    _close(output, their_output)
    _close(found, expected, 1e-7)  # their path is in float32


def test_grad_modes_of_the_caller_do_not_matter() -> None:
    net, expected = build(VGGLike), _relevance(build(VGGLike), ours.EpsilonPlus())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            _close(ours.Gradient(net, ours.EpsilonPlus())(X, ONE)[1], expected)
            with ours.EpsilonPlus().context(net):
                assert not net(X).requires_grad


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 5)

    def forward(self, u: Tensor, v: Tensor, scale: float = 1.0, **more: Any) -> dict[str, Tensor]:
        hidden = torch.relu(self.a(u) + self.b(v))
        return {"logits": scale * self.c(hidden), "hidden": hidden}


def test_several_inputs_and_outputs() -> None:
    net = build(lambda make_relu: _Two())  # type: ignore[arg-type]
    u, v = (torch.randn(2, n, dtype=torch.float64).requires_grad_() for n in (4, 3))
    expected = lrp.record(net, (u, v)).relevance(
        start=ONE, composite=ours.convert(ours.EpsilonPlus(), net), output=lambda out: out["logits"]
    )
    with ours.EpsilonPlus().context(net):
        for output in (net(u, v), net(u, v=v), net(u, v, 1.0), net(u=u, v=v, scale=1.0, extra=3)):
            for mine, theirs in zip(torch.autograd.grad(output["logits"], (u, v), ONE), expected, strict=True):
                _close(mine, theirs)
        output = net(u.detach(), v)
        _close(torch.autograd.grad(output["logits"], v, ONE)[0], expected[1])
        hidden = net(u, v)["hidden"]
        assert torch.autograd.grad(hidden, u, hidden.detach())[0].shape == u.shape


def test_nothing_is_left_behind() -> None:
    net, composite, other = build(VGGLike), ours.EpsilonPlus(), ours.GuidedBackprop()
    expected = _relevance(net, composite)
    with composite.context(net):
        assert composite.handles and len(composite.hook_refs) == 9
        with pytest.raises(RuntimeError, match="size"):  # the model fails
            net(torch.rand(1, 2, 3, dtype=torch.float64).requires_grad_())
        with other.context(net):  # the last one counts
            found = _gradient(net)
        _close(found, _relevance(build(VGGLike), other))
        _close(
            lrp.LRP(net, lrp.EpsilonPlus())(X.clone().requires_grad_(), 1)[1],
            lrp.LRP(build(VGGLike), lrp.EpsilonPlus())(X, 1)[1],
        )
        x = X.clone().requires_grad_()
        output = net(x)
        gone = weakref.ref(output)
        _close(torch.autograd.grad(output, x, ONE)[0], expected)
        del output
        gc.collect()
        assert gone() is None
    assert "forward" not in vars(net) and not composite.handles
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert not torch.allclose(_gradient(net), expected)


def test_hooks_of_the_root_run_once() -> None:
    net, calls = build(VGGLike), []
    net.register_forward_hook(lambda module, input, output: calls.append(output.shape))
    _relevance(net, ours.EpsilonPlus())
    assert calls == [torch.Size([2, 5])]
