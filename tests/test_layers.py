"""Layers beyond convolutions and ReLU: their relevance against formulas, conservation, and gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from functions import slope
from torch import Tensor, nn

import lrpkernels as lrp

EPS = 1e-9


def _x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class _Between(nn.Module):
    """A layer between two dense maps without bias, so that relevance is conserved if the layer conserves it."""

    def __init__(self, layer: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        size = torch.Size(shape).numel()
        self.first, self.shape = nn.Linear(6, size, bias=False).double(), shape
        self.layer = layer
        out = self._middle(_x(2, 6)).shape[1]
        self.last = nn.Linear(out, 3, bias=False).double()

    def _middle(self, x: Tensor) -> Tensor:
        return self.layer(self.first(x).unflatten(1, self.shape)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._middle(x))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu6": F.relu6,
    "relu6-in-place": lambda x: F.relu6(x, inplace=True),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "elu": F.elu,
    "selu": lambda x: F.selu(x, True),
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "sigmoid-method": lambda x: x.sigmoid(),
    "tanh": lambda x: x.tanh_(),
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
    "clamp": lambda x: x.clamp(-0.5, 0.7),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_pass_relevance_on_unchanged(name: str) -> None:
    net, x = _Between(ACTIVATIONS[name], (8,)), _x(3, 6)
    with torch.no_grad(), lrp.record(net, x) as tape:
        maps = tape.relevance(1, lrp.Epsilon(EPS), at=["first"])
        z = net.first(x)
        a = ACTIVATIONS[name](z.clone())
        torch.testing.assert_close(tape.output, net(x))
    torch.testing.assert_close(maps["first"], a * net.last.weight[1], rtol=1e-5, atol=1e-7)


CONSERVING: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "max_pool1d": (lambda x: F.max_pool1d(x, 3, 2), (2, 7)),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), (1, 4, 4, 4)),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, 2), (2, 5, 5)),
    "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x, 3), (2, 7)),
    "fractional_max_pool2d": (lambda x: F.fractional_max_pool2d(x, 2, output_size=3), (2, 6, 6)),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2), (2, 6)),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), (1, 4, 4, 4)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 2), (2, 5, 5)),
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 2), (2, 5)),
    "lp_pool2d": (lambda x: F.lp_pool2d(x.relu() + 0.1 * x, 2.0, 2), (2, 4, 4)),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (2, 3, 3)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (4, 3, 3)),
    "roll": (lambda x: x.roll(1, 2), (2, 3, 3)),
    "stack-unbind": (lambda x: torch.stack(x.unbind(1)[::-1], 1), (3, 4)),
    "where": (lambda x: torch.where(x > 0, x, 0.5 * x), (6,)),
    "split-cat-batch": (lambda x: torch.cat(x.split(1), 0), (4,)),
    "gate": (lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), (3, 3, 3)),
    "gate-alike": (lambda x: x * torch.sigmoid(2 * x), (5,)),
    "product-of-alike": (lambda x: x * x.flip(1), (5,)),
    "quotient": (lambda x: x / x.norm(dim=1, keepdim=True), (5,)),
    "stochastic-depth": (lambda x: x * torch.tensor([1.0, 2.0, 0.0]).double()[: len(x), None], (5,)),
    "new-constants": (lambda x: x * (x.new_ones(1) + torch.zeros_like(x)), (5,)),
    "t-method": (lambda x: x.mT.contiguous(), (3, 2)),
}


@pytest.mark.parametrize("targets", ["one", "all"])
@pytest.mark.parametrize("name", CONSERVING)
def test_layers_conserve_relevance(name: str, targets: str) -> None:
    layer, shape = CONSERVING[name]
    torch.manual_seed(1)
    net = _Between(layer, shape)
    x = _x(3, 6)
    with torch.no_grad():
        logits, heatmap = lrp.LRP(net, lrp.Epsilon(EPS))(x, 1 if targets == "one" else "all")
    if targets == "one":
        torch.testing.assert_close(heatmap.sum(1), logits[:, 1], rtol=1e-6, atol=1e-8)
    else:
        torch.testing.assert_close(heatmap.sum(2), logits, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("make", [nn.AlphaDropout, nn.Dropout, nn.Dropout1d], ids=lambda m: m.__name__)
def test_random_layers_are_never_drawn_twice(make: type[nn.Module]) -> None:
    net = _Between(make(0.5), (4, 5)).train()
    x = _x(3, 6)
    torch.manual_seed(5)
    expected = net(x)
    torch.manual_seed(5)
    with torch.no_grad():
        logits, heatmap = lrp.LRP(net, lrp.Epsilon(EPS))(x, 1)
    torch.testing.assert_close(logits, expected)
    if make is not nn.AlphaDropout:  # whose shift absorbs relevance
        torch.testing.assert_close(heatmap.sum(1), logits[:, 1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm(5), (4, 5)),
        (nn.LayerNorm((4, 5), elementwise_affine=False), (4, 5)),
        (nn.GroupNorm(2, 4), (4, 3, 3)),
        (nn.InstanceNorm2d(4, affine=True), (4, 3, 3)),
        (nn.RMSNorm(5), (4, 5)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
def test_normalizations_hold_the_deviation_constant(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer = layer.double()
    for p in layer.parameters():
        p.data += torch.randn_like(p) * 0.3
    net = _Between(layer, shape)
    x = _x(3, 6)
    with lrp.record(net, x) as tape:
        maps = tape.relevance(1, lrp.Epsilon(EPS), at=["first"])
    z = net.first(x).unflatten(1, shape).detach()
    free = z.clone().requires_grad_()
    # The same function with its deviation held: what autograd then gives is the multiplier.
    dims = {
        nn.LayerNorm: tuple(range(z.dim() - len(getattr(layer, "normalized_shape", ())), z.dim())),
        nn.RMSNorm: (2,),
        nn.InstanceNorm2d: (2, 3),
    }.get(type(layer))
    if isinstance(layer, nn.GroupNorm):
        grouped = z.reshape(3, 2, -1)
        deviation = (grouped.var(2, unbiased=False, keepdim=True) + layer.eps).sqrt()
        y = ((free.reshape(3, 2, -1) - free.reshape(3, 2, -1).mean(2, keepdim=True)) / deviation).view_as(z)
    elif isinstance(layer, nn.RMSNorm):
        y = free / (z.square().mean(dims, keepdim=True) + torch.finfo(torch.float64).eps).sqrt()
    else:
        deviation = (z.var(dims, unbiased=False, keepdim=True) + layer.eps).sqrt()
        y = (free - free.mean(dims, keepdim=True)) / deviation
    weight = getattr(layer, "weight", None)
    if weight is not None:
        y = y * (weight.view(-1, 1, 1) if z.dim() == 4 else weight)
    (g,) = torch.autograd.grad((y.flatten(1) @ net.last.weight[1]).sum(), free)
    torch.testing.assert_close(maps["first"], (z * g).flatten(1), rtol=1e-9, atol=1e-10)


class _Attention(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.embed = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.kind == "module":
            x = x + self.attention(x, x, x, need_weights=False)[0]
        elif self.kind == "function":
            x = x + F.scaled_dot_product_attention(x, x.tanh(), 2 * x, is_causal=True)
        else:
            x = x + torch.softmax(x @ x.tanh().mT / 8**0.5, -1) @ (2 * x)
        return self.head(F.gelu(self.norm(x)).mean(1))


@pytest.mark.parametrize("kind", ["module", "function", "written-out"])
def test_attention_runs_unchanged_and_trains(kind: str) -> None:
    net, x = _Attention(kind).double().eval(), _x(2, 5, 4)
    expected = net(x)
    logits, heatmap = lrp.LRP(net)(x, 1)
    torch.testing.assert_close(logits, expected)
    heatmap.square().sum().backward()
    used = [n for n, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert "embed.weight" in used and (kind != "module" or "attention.in_proj_weight" in used)
    every = lrp.LRP(net)(x, "all")[1]
    torch.testing.assert_close(every[:, 1], heatmap)


def test_attention_formula_equals_its_written_out_form() -> None:
    class Fused(_Attention):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head(F.scaled_dot_product_attention(x, x.tanh(), 2 * x).mean(1))

    class Written(_Attention):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head((torch.softmax(x @ x.tanh().mT / 8**0.5, -1) @ (2 * x)).mean(1))

    x = _x(2, 5, 4)
    maps = [lrp.LRP(kind("").double().eval())(x, 1)[1] for kind in (Fused, Written)]
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-9, atol=1e-12)


def test_attention_dropout_is_refused_by_name() -> None:
    class Drops(_Attention):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(
                F.scaled_dot_product_attention(self.embed(x), self.embed(x), self.embed(x), dropout_p=0.1).mean(1)
            )

    with pytest.raises(lrp.UnsupportedOperationError, match=r"dropout_p=0\.1"):
        lrp.LRP(Drops("").double())(_x(2, 5, 4))


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrised_weights_train_through_the_heatmap(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(wrap(nn.Conv2d(1, 4, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).double().eval()
    x = _x(2, 1, 6, 6).abs()
    _, heatmap = lrp.LRP(net)(x, 1)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).double()
    plain[0].weight.data, plain[0].bias.data = net[0].weight.detach(), net[0].bias.detach()
    plain[3].load_state_dict(net[3].state_dict())
    torch.testing.assert_close(heatmap, lrp.LRP(plain)(x, 1)[1])
    heatmap.square().sum().backward()
    assert all(p.grad is not None for n, p in net.named_parameters() if "original" in n)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "zeros"])
def test_padding_modes_and_even_same_padding(mode: str) -> None:
    torch.manual_seed(0)
    padding: str | int = "same" if mode == "zeros" else 2
    net = nn.Sequential(
        nn.Conv2d(1, 3, 4, padding=padding, padding_mode=mode, bias=False), nn.ReLU(), nn.Flatten()
    ).double()
    x = _x(2, 1, 6, 6).abs()
    with torch.no_grad():
        logits, heatmap = lrp.LRP(net, lrp.Epsilon(1e-12))(x, 7)
    torch.testing.assert_close(logits, net(x))
    torch.testing.assert_close(heatmap.sum((1, 2, 3)), logits[:, 7], rtol=1e-8, atol=1e-9)


def test_gradients_through_activations_and_gates_equal_finite_differences() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.a, self.gate, self.norm, self.b = (
                nn.Conv2d(1, 4, 3),
                nn.Linear(4, 4),
                nn.GroupNorm(2, 4),
                nn.Linear(4, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = F.silu(self.a(x))
            x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
            return self.b(F.gelu(x).mean((2, 3)))

    net, x = Net().double(), _x(2, 1, 6, 6)

    def loss() -> Tensor:
        return lrp.LRP(net, lrp.Epsilon(1e-2))(x, 1)[1].square().sum()

    loss().backward()
    for name, p in net.named_parameters():
        if name.startswith(("norm", "b.bias")):
            continue
        direction = torch.randn_like(p)
        expected = slope(loss, p, direction)
        assert (p.grad * direction).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-8), name


def test_dense_and_single_outputs() -> None:
    torch.manual_seed(0)
    segmenter = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 3, 1, bias=False)
    ).double()
    x = _x(2, 1, 5, 5).abs()
    with torch.no_grad():
        out, heatmap = lrp.LRP(segmenter, lrp.Epsilon(1e-12))(x, 2)
        torch.testing.assert_close(heatmap.sum((1, 2, 3)), out[:, 2].sum((1, 2)), rtol=1e-8, atol=1e-9)
        every = lrp.LRP(segmenter, lrp.Epsilon(1e-12))(x, "all")[1]
        torch.testing.assert_close(every[:, 2], heatmap)
        with pytest.raises(ValueError, match="name a channel"):
            lrp.LRP(segmenter)(x)
        regressor = nn.Sequential(nn.Flatten(), nn.Linear(25, 1, bias=False), nn.Flatten(0)).double()
        value, relevance = lrp.LRP(regressor)(x)
        torch.testing.assert_close(relevance.sum((1, 2, 3)), value)


def test_several_inputs_and_structured_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(3, 4, bias=False), nn.Linear(2, 4, bias=False)

        def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
            return {"scores": (self.a(x) + self.b(y)) * scale}

    net = Two().double()
    x, y = _x(5, 3), _x(5, 2)
    with torch.no_grad():
        out, (rx, ry) = lrp.LRP(net)((x, y), 1, output=lambda o: o["scores"], scale=2.0)
        torch.testing.assert_close(rx.sum(1) + ry.sum(1), out["scores"][:, 1])
        with pytest.raises(TypeError, match="output=lambda"):
            lrp.LRP(net)((x, y), 1)


def test_heatmap_helpers() -> None:
    relevance = _x(2, 3, 4, 4)
    torch.testing.assert_close(lrp.heatmap.sum_channels(relevance), relevance.sum(1))
    assert lrp.heatmap.normalize(relevance).abs().amax((1, 2, 3)).tolist() == [1.0, 1.0]
    torch.testing.assert_close(lrp.heatmap.normalize(relevance, "sum").abs().sum((1, 2, 3)), torch.ones(2).double())
    assert not lrp.heatmap.normalize(torch.zeros(1, 1, 2, 2)).any()
    mask = torch.zeros(2, 1, 4, 4)
    mask[..., :2] = 1
    share = lrp.heatmap.background_share(relevance, mask)
    torch.testing.assert_close(share, relevance[..., 2:].abs().sum((1, 2, 3)) / relevance.abs().sum((1, 2, 3)))
    with pytest.raises(ValueError, match="by must be"):
        lrp.heatmap.normalize(relevance, "min")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mask"):
        lrp.heatmap.background_share(relevance, torch.zeros(2, 1, 3, 3))
