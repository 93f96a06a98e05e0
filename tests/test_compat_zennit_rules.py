"""Rules of the user's own in lrpkernels.compat.zennit: on single modules, as runs of a layer, as code; what cannot be converted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import VGGLike, build
from peers import zennit
from test_compat_zennit import ONE, X, _canonizers, _close, _nets, _relevance
from torch import nn

import lrpkernels as lrp
from lrpkernels.compat import zennit as ours


class _GradTimesInput(ours.Hook):
    def forward(self, module: nn.Module, input: Any, output: Any) -> None:
        self.stored_tensors["input"] = input

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
        return (self.stored_tensors["input"][0] * grad_input[0],)


class _TheirGradTimesInput(zennit.core.Hook):  # type: ignore[misc, name-defined]
    forward, backward = _GradTimesInput.forward, _GradTimesInput.backward


class _Doubled(ours.BasicHook):
    def __init__(self) -> None:
        super().__init__(
            input_modifiers=[lambda x: x, lambda x: x.abs()], param_modifiers=[lambda p, name: p, lambda p, name: p**2],
            output_modifiers=[lambda z: z, torch.tanh], reducer=lambda inputs, g: inputs[0] * g[0] + 0.1 * inputs[1] * g[1],
        )  # fmt: skip


class _TheirDoubled(zennit.core.BasicHook):  # type: ignore[misc, name-defined]
    __init__ = _Doubled.__init__


@pytest.mark.parametrize("theirs", [False, True])
def test_a_rule_written_as_runs_of_the_layer(theirs: bool) -> None:
    net, variant = _nets("residual")
    layers = [*zennit.composites.layer_map_base(), (zennit.types.Linear, _make(zennit.core.BasicHook))]
    expected = _relevance(variant, zennit.composites.LayerMapComposite(layers, canonizers=_canonizers("residual")))
    hook = _make(zennit.core.BasicHook) if theirs else _Doubled()
    _close(_relevance(net, ours.LayerMapComposite([*ours.layer_map_base(), (ours.types.Linear, hook)])), expected)
    assert isinstance(ours.convert(hook), lrp.Rule)


def _make(kind: Any) -> Any:
    made = _Doubled()
    return kind(made.input_modifiers, made.param_modifiers, made.output_modifiers, None, made.reducer)


def test_a_hook_written_as_code_is_registered_module_by_module_with_a_warning() -> None:
    net, variant = _nets("vgg")
    layers = [(zennit.types.Linear, _TheirGradTimesInput())]
    expected = _relevance(variant, zennit.composites.LayerMapComposite(layers))
    for hook in (_GradTimesInput(), _TheirGradTimesInput()):
        with pytest.warns(lrp.FallbackWarning, match="backward"):
            found = _relevance(net, ours.LayerMapComposite([(ours.types.Linear, hook)]))
        _close(found, expected)
        with pytest.raises(TypeError, match="backward"):
            ours.convert(hook)


def test_layers_without_any_rule_follow_the_gradient() -> None:
    net, variant = _nets("vgg")
    names = ("classifier.1", "classifier.3")
    expected = _relevance(variant, zennit.composites.NameMapComposite([(names, zennit.rules.Epsilon())]))
    with pytest.warns(lrp.FallbackWarning, match="plain gradients"):
        found = _relevance(net, ours.NameMapComposite([(names, ours.Epsilon())]))
    _close(found, expected)
    base = ours.LayerMapComposite([*ours.layer_map_base(), (nn.Linear, ours.Epsilon())])
    theirs = zennit.composites.LayerMapComposite(
        [*zennit.composites.layer_map_base(), (nn.Linear, zennit.rules.Epsilon())]
    )
    _close(
        _relevance(net, base), _relevance(variant, theirs)
    )  # with activations that pass relevance on, the engine does it
    empty = ours.Composite()
    x = X.clone().requires_grad_()
    _close(_relevance(net, empty), torch.autograd.grad(net(x), x, ONE)[0])


def test_one_rule_on_one_module() -> None:
    """As zennit, with gradients for the weights, which zennit's rules cut off."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3).double(), X.clone().requires_grad_()
    handle = ours.ZPlus().register(layer)
    output = layer(x)
    (found,) = torch.autograd.grad(output, x, output, create_graph=True)
    handle.remove()
    handle = zennit.rules.ZPlus().register(layer)
    output = layer(x)
    _close(found, torch.autograd.grad(output, x, output)[0])
    handle.remove()
    assert torch.autograd.grad(found.square().sum(), layer.weight)[0].abs().sum() > 0
    relu = nn.ReLU(inplace=True)
    ours.ReLUGuidedBackprop().register(relu)
    z = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    assert torch.autograd.grad(relu(z), z, torch.tensor([1.0, -1.0, 2.0]))[0].tolist() == [0, 0, 2]


def test_what_cannot_be_converted_is_named() -> None:
    for wrong in (3, "epsilon", nn.ReLU(), object()):
        with pytest.raises(TypeError, match="expected a rule or composite"):
            ours.convert(wrong)
        with pytest.raises(TypeError, match="composite must be"):
            ours.Gradient(nn.ReLU(), wrong)
    with pytest.raises(ValueError, match="pass the model"):
        ours.convert(ours.Composite(module_map=lambda context, name, module: ours.Pass()))
    with pytest.raises(ValueError, match="alpha"):
        ours.AlphaBeta(1, 1)
    with pytest.raises(TypeError, match="stabilizer"):
        ours.Epsilon("small")
    rule = lrp.ZPlus()
    assert ours.convert(rule) is rule and ours.convert(zennit.rules.Gamma(0.5, 1e-3)) == lrp.Gamma(0.5, 1e-3)
    assert ours.convert(ours.ZBox(0, torch.tensor(2.0))) == lrp.ZBox(0, 2.0, 1e-6, bias=False)
    with pytest.raises(RuntimeError, match="no composite"):
        _ = ours.Gradient(nn.ReLU()).inactive


def test_what_does_not_fit_a_call_is_named() -> None:
    net = build(VGGLike)
    for composite in (None, ours.EpsilonPlus()):
        attributor = ours.Gradient(net, composite)
        with pytest.raises(ValueError, match=r"attr_output.*\(2, 5\), got \(1, 7\)"):
            attributor(X, torch.eye(7)[[1]])
        with pytest.raises(TypeError, match="floating-point"):
            attributor(X.long(), ONE)
    assert "forward" not in vars(net)
    dead = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.raises(ValueError, match="must be 0 where the value there is 0"):
        ours.Gradient(dead, ours.EpsilonPlus())(torch.randn(5, 3), torch.ones(5, 4))
    assert ours.Gradient(net, ours.EpsilonPlus())(X[:0])[1].shape == (0, 3, 12, 12)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 12, 12), (3, 3, 12, 12), (2,), ()])
def test_boxes_of_every_shape(shape: tuple[int, ...]) -> None:
    net, variant = _nets("vgg")
    generator = torch.Generator().manual_seed(1)
    low = -torch.rand(shape, generator=generator, dtype=torch.float64)
    high = 1 + torch.rand(shape, generator=generator, dtype=torch.float64)
    expected = _relevance(variant, zennit.composites.EpsilonGammaBox(low, high))
    _close(_relevance(net, ours.EpsilonGammaBox(low, high)), expected)
    _close(ours.Gradient(net, zennit.composites.EpsilonGammaBox(low, high))(X, ONE)[1], expected)


def test_a_canonizer_of_the_users_own_is_applied() -> None:
    net = build(VGGLike)
    relu = net.get_submodule("features.1")
    canonizer = ours.AttributeCanonizer(lambda name, module: {"forward": torch.tanh} if module is relu else None)
    with ours.EpsilonPlus(canonizers=[ours.CompositeCanonizer([canonizer])]).context(net):
        changed = net(X)
    assert not torch.allclose(changed, net(X)) and "forward" not in vars(relu)
