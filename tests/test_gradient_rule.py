"""``Gradient``: x * G is autograd's gradient times input, layer by layer, at hidden layers, in both modes, and trainable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import lrpkernels as lrp
from benchmarks.library_networks import NETWORKS, build
from lrpkernels.engine.target import select_logits


class Fn(nn.Module):
    """A function between two convolutions and a dense layer."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module, width: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.LazyLinear(4)
        self.parts, self.function = nn.ModuleList(parts), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x), *self.parts).flatten(1))


def _gelu_by_erf(u: Tensor) -> Tensor:
    return u * 0.5 * (1 + torch.erf(u / 2**0.5))


def _squeeze_excite(u: Tensor) -> Tensor:
    return u * u.mean((2, 3), keepdim=True).sigmoid()


def _attention(u: Tensor) -> Tensor:
    tokens = u.flatten(2)
    scores = tokens @ tokens.transpose(1, 2) / 4
    return scores.softmax(-1) @ tokens


def _masked_attention(u: Tensor) -> Tensor:
    q, k, v = (part.flatten(2).unflatten(1, (2, 1)) for part in u.split(2, 1))
    mask = torch.zeros(1, 1, dtype=u.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)


ACTIVATIONS = (
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.hardtanh, F.hardshrink, F.softshrink,
    F.tanhshrink, F.softsign, F.softplus, F.logsigmoid, torch.tanh, torch.sigmoid, F.hardsigmoid, torch.abs, torch.square, torch.exp,
    torch.sin, torch.cos, torch.erf, torch.atan,
)  # fmt: skip
KINDS: dict[str, Callable[[], nn.Module]] = {
    **{f.__name__: lambda f=f: Fn(f) for f in ACTIVATIONS},
    "clamp": lambda: Fn(lambda u: u.clamp(-0.2, 0.4)),
    "power": lambda: Fn(lambda u: (u * u + 1) ** -0.5 + 1 / (2 + u.abs())),
    "sqrt and log": lambda: Fn(lambda u: (u.abs() + 0.1).sqrt() + (u.abs() + 1).log()),
    "rrelu": lambda: Fn(lambda u, layer: layer(u), nn.RReLU()),
    "prelu": lambda: Fn(lambda u, layer: layer(u), nn.PReLU(6)),
    "alpha dropout": lambda: Fn(lambda u, layer: layer(u), nn.AlphaDropout(0.4)),
    "dropout": lambda: Fn(lambda u, layer: layer(u), nn.Dropout(0.4)),
    "batch norm, ReLU": lambda: Fn(lambda u, norm: norm(u).relu(), nn.BatchNorm2d(6)),
    "batch norm alone": lambda: Fn(lambda u, norm: norm(u.tanh()).relu(), nn.BatchNorm2d(6)),
    "batch norm without affine": lambda: Fn(lambda u, norm: norm(u), nn.BatchNorm2d(6, affine=False)),
    "instance norm": lambda: Fn(lambda u, norm: norm(u), nn.InstanceNorm2d(6, affine=True)),
    "group norm": lambda: Fn(lambda u, norm: norm(u), nn.GroupNorm(2, 6)),
    "layer norm": lambda: Fn(lambda u, norm: norm(u.movedim(1, -1)), nn.LayerNorm(6)),
    "rms norm": lambda: Fn(lambda u, norm: norm(u.movedim(1, -1)), nn.RMSNorm(6)),
    "normalize": lambda: Fn(lambda u: F.normalize(u, dim=1)),
    "local response norm": lambda: Fn(lambda u, norm: norm(u), nn.LocalResponseNorm(3)),
    "max pool": lambda: Fn(lambda u: F.max_pool2d(u, 3, 2, 1)),
    "adaptive max pool": lambda: Fn(lambda u: F.adaptive_max_pool2d(u, 3)),
    "average pool": lambda: Fn(lambda u: F.avg_pool2d(u, 2)),
    "Lp pool": lambda: Fn(lambda u: F.lp_pool2d(u.exp(), 2.0, 2)),
    "mean": lambda: Fn(lambda u: u.mean((2, 3))),
    "softmax": lambda: Fn(lambda u: u.softmax(1)),
    "log softmax": lambda: Fn(lambda u: u.log_softmax(1)),
    "gate": lambda: Fn(_squeeze_excite),
    "product": lambda: Fn(lambda u: u * u.flip(1)),
    "GELU written out": lambda: Fn(_gelu_by_erf),
    "GLU": lambda: Fn(lambda u: F.glu(u, 1)),
    "quotient": lambda: Fn(lambda u: u / (1 + u.square().sum(1, keepdim=True))),
    "residual sum": lambda: Fn(lambda u: u.relu() - 0.3 * u + u.roll(1, 2)),
    "matrix product": lambda: Fn(_attention),
    "fused attention": lambda: Fn(_masked_attention),
    "maximum": lambda: Fn(lambda u: torch.maximum(u, u.flip(1)).amax(2)),
    "cat and slices": lambda: Fn(lambda u: torch.cat([u[:, 1:], u.relu()], 1)[:, :, ::2]),
    "unknown": lambda: Fn(lambda u: torch.logaddexp(u, u.flip(2))),
    "cumulative sum": lambda: Fn(lambda u: u.cumsum(2)),
    "interpolate": lambda: Fn(lambda u: F.interpolate(u, scale_factor=1.5, mode="bilinear")),
    "transposed convolution": lambda: Fn(lambda u, layer: layer(u).relu(), nn.ConvTranspose2d(6, 4, 3, 2)),
}  # fmt: skip


def _made(kind: str, train: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    model = KINDS[kind]().double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        model(x)  # lazy layers
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    return model.train(train), x


def _close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    scale = max(float(expected.detach().abs().max()), 1e-30)
    assert float((found - expected).detach().abs().max()) <= tolerance * scale


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_hands_on_its_gradient_at_input_and_hidden_layer(kind: str, train: bool) -> None:
    model, x = _made(kind, train)
    leaf, hidden = x.clone().requires_grad_(), []
    handle = model.first.register_forward_hook(lambda module, args, out: hidden.append(out))
    torch.manual_seed(7)
    expected = torch.autograd.grad(model(leaf)[:, 2].sum(), [leaf, *hidden])
    handle.remove()
    torch.manual_seed(7)
    with torch.no_grad(), lrp.record(model, x, composite=lrp.Gradient(), at=["first"]) as tape:
        found = tape.relevance(2, lrp.Gradient(), at=["first"])
    _close(found["input"], x * expected[0])
    _close(found["first"], hidden[0].detach() * expected[1])


@pytest.mark.parametrize(
    "kind", ["batch norm, ReLU", "layer norm", "gate", "fused attention", "prelu", "quotient", "tanh"]
)
def test_several_targets_share_a_pass(kind: str) -> None:
    model, x = _made(kind, train=True)
    with torch.no_grad():
        together = lrp.LRP(model, lrp.Gradient())(x, "all")[1]
        for target in range(4):
            _close(together[:, target], lrp.LRP(model, lrp.Gradient())(x, target)[1])


@pytest.mark.parametrize("checkpoint", [False, True], ids=["plain", "recompute"])
@pytest.mark.parametrize(
    "kind", ["batch norm, ReLU", "layer norm", "gate", "fused attention", "prelu", "quotient", "tanh", "GLU"]
)
def test_a_loss_on_the_map_has_the_gradients_of_double_backward(kind: str, checkpoint: bool) -> None:
    model, x = _made(kind, train=True)
    parameters = dict(model.named_parameters())
    leaf = x.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the only one with a second derivative
        (gradient,) = torch.autograd.grad(model(leaf)[:, 2].sum(), leaf, create_graph=True)
    loss = (x * gradient).square().sum()
    expected = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    _, heatmap = lrp.LRP(model, lrp.Gradient(), checkpoint=checkpoint)(x, 2)
    found = torch.autograd.grad(heatmap.square().sum(), list(parameters.values()), allow_unused=True)
    largest = max(float(g.abs().max()) for g in expected if g is not None)
    for name, reference, own in zip(parameters, expected, found, strict=True):
        reference = torch.zeros_like(parameters[name]) if reference is None else reference
        own = torch.zeros_like(reference) if own is None else own
        assert float((own - reference).abs().max()) <= 1e-10 * largest, name


def test_single_layers_may_follow_their_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    z = model[0](x)
    composite = lrp.Composite({nn.Linear: lrp.EpsilonLayerwise(0.0, bias=False), "1": lrp.Gradient()})
    heatmap = lrp.LRP(model, composite)(x, 1)[1]
    # The last layer's share without its bias, then tanh's own derivative, then the first layer's share without its bias.
    multiplier = model[2].weight[1] * model(x)[:, 1:2] / (model(x)[:, 1:2] - model[2].bias[1]) * (1 - z.tanh().square())
    expected = x * ((multiplier * z / (z - model[0].bias)) @ model[0].weight)
    _close(heatmap, expected)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_libraries_agrees_with_autograd(name: str, train: bool) -> None:
    model, x = build(name)
    model.train(train)
    x = torch.cat([x, torch.rand_like(x)])
    leaf = x.clone().requires_grad_()
    torch.manual_seed(1)
    expected = x * torch.autograd.grad(select_logits(model(leaf), None)[:, 1].sum(), leaf)[0]
    torch.manual_seed(1)
    with torch.no_grad():
        _close(lrp.LRP(model, lrp.Gradient())(x, 1)[1], expected)
