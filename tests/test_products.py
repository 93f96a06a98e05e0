"""Products with constants follow the rule chosen as dense layers do, checked with explicit matrices; operands that depend share alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.errors import FallbackWarning

BATCH = 3


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


W, V, U = _random(4, 5, seed=1), _random(5, 4, seed=2), _random(BATCH, 2, 5, seed=3)
SQUARE, ROW, KERNEL = _random(4, 4, seed=4), _random(4, seed=5), _random(2, 9, seed=6)

# What maps x (3, 5, 4) to something: the way it is written.
PRODUCTS: dict[str, Callable[[Tensor], Tensor]] = {
    "x @ W": lambda x: x @ W,
    "W @ x": lambda x: W @ x,
    "matmul(W, x)": lambda x: torch.matmul(W, x),
    "vector @ x": lambda x: _random(5, seed=7) @ x,
    "x @ vector": lambda x: x @ ROW,
    "images mixed": lambda x: SQUARE[:BATCH, :BATCH] @ x.flatten(1),
    "columns are images": lambda x: (V.t() @ x[:, :, 0].t()).t(),
    "bmm": lambda x: torch.bmm(U, x),
    "bmm, x first": lambda x: torch.bmm(x, _random(BATCH, 4, 6, seed=8)),
    "x broadcast": lambda x: torch.matmul(x.unsqueeze(1), _random(2, 4, 3, seed=9)),
    "linear": lambda x: F.linear(x, V),
    "linear of a weight": lambda x: F.linear(V, x[:, 0]).t(),
    "einsum": lambda x: torch.einsum("bij,jk->bik", x, W),
    "einsum over channels": lambda x: torch.einsum("oi,bij->boj", W, x),
    "einsum, two constants": lambda x: torch.einsum("bij,jk,kl->bil", x, W, V),
    "einsum, implicit": lambda x: torch.einsum("bij,jk", x, W),
    "einsum, ellipsis": lambda x: torch.einsum("...j,jk->...k", x, W),
    "einsum, summed constant": lambda x: torch.einsum("bij,jk->bi", x, W),
    "einsum, summed input": lambda x: torch.einsum("bij,jk->bk", x, W),
    "einsum, weight per image": lambda x: torch.einsum("bij,bki->bjk", x, U),
    "einsum, diagonal": lambda x: torch.einsum("bii,ij->bj", x[:, :4], SQUARE),
    "einsum, lists": lambda x: torch.einsum(x, [0, 1, 2], W, [2, 3], [0, 3, 1]),
    "einsum, one list": lambda x: torch.einsum("bij,jk->bki", [x, W]),
    "tensordot": lambda x: torch.tensordot(x, W, dims=([2], [0])),
    "tensordot, two": lambda x: torch.tensordot(x, _random(5, 4, 3, seed=10)),
    "tensordot, W first": lambda x: torch.tensordot(W, x, dims=([1], [1])).movedim(1, 0),
    "inner": lambda x: torch.inner(x, V),
    "outer": lambda x: torch.outer(x.flatten(), ROW).view(BATCH, -1),
    "tensordot, dims in a tensor": lambda x: torch.tensordot(x, W, dims=torch.tensor([[2], [0]])),
    "einsum, permuted": lambda x: torch.einsum("bij->bji", x) @ V,
    "einsum, diagonal alone": lambda x: torch.einsum("bii->bi", x[:, :4]) @ SQUARE,
    "multi_dot": lambda x: torch.linalg.multi_dot([x[:, 0], W, V]),
    "bilinear": lambda x: F.bilinear(x, _random(BATCH, 5, 2, seed=11), _random(3, 4, 2, seed=12)),
    "unfold": lambda x: KERNEL @ F.unfold(x.unsqueeze(1), 3, padding=1),
    "unfold, W last": lambda x: F.unfold(x.unsqueeze(1), 3).transpose(1, 2) @ KERNEL.t(),
}
BIAS: dict[str, Callable[[Tensor], Tensor]] = {
    "addmm": lambda x: torch.addmm(_random(5, seed=13), x[:, 0], W),
    "addmm, scaled": lambda x: torch.addmm(_random(BATCH, 5, seed=13), x[:, 0], W, beta=0.5, alpha=2.0),
    "addmm, W first": lambda x: torch.addmm(_random(4, 1, seed=13), W, x[:, :, 0].t()).t(),
    "addmm, no bias": lambda x: torch.addmm(torch.full((5,), torch.nan, dtype=torch.float64), x[:, 0], W, beta=0),
    "addmv": lambda x: torch.addmv(_random(BATCH, seed=13), x[:, 0], ROW).unsqueeze(1) * torch.ones(1, 2),
    "baddbmm": lambda x: torch.baddbmm(_random(BATCH, 2, 4, seed=14), U, x, alpha=0.5),
    "linear": lambda x: F.linear(x, V, _random(5, seed=15)),
}  # fmt: skip
RULES = {
    "z+": lrp.ZPlus(1e-3),
    "gamma": lrp.Gamma(0.5, 1e-3),
    "alpha-beta": lrp.AlphaBeta(2.0, 1.0, 1e-3),
    "layer form": lrp.EpsilonLayerwise(1e-3),
}


def _signed(eps: float, d: Tensor) -> Tensor:
    return d + torch.where(d >= 0, eps, -eps)


def _share(contributions: Tensor, bias: Tensor, relevance: Tensor, eps: float) -> Tensor:
    return (contributions * (relevance / _signed(eps, contributions.sum(1) + bias)).unsqueeze(1)).sum(0)


def _expected(name: str, matrix: Tensor, bias: Tensor, a: Tensor, relevance: Tensor) -> Tensor:
    """Each rule by its definition, on the contributions a_j w_jk of an explicit matrix (outputs x inputs)."""
    c, eps = matrix * a, 1e-3
    if name == "layer form":
        return _share(c, bias, relevance, eps)
    up = _share(c.clamp(min=0), bias.clamp(min=0), relevance, eps)
    if name == "z+":
        return up
    if name == "alpha-beta":
        return 2 * up - _share(c.clamp(max=0), bias.clamp(max=0), relevance, eps)
    z = (c.sum(1) + bias).unsqueeze(1)
    favoured = torch.where(z >= 0, c.clamp(min=0), c.clamp(max=0))
    favoured_bias = torch.where(z[:, 0] >= 0, bias.clamp(min=0), bias.clamp(max=0))
    return _share(c + 0.5 * favoured, bias + 0.5 * favoured_bias, relevance, eps)


class Model(nn.Module):
    """[ReLU ->] the product -> all its elements, the logits."""

    def __init__(self, product: Callable[[Tensor], Tensor], rectified: bool) -> None:
        super().__init__()
        self.product, self.rectified = product, rectified

    def forward(self, x: Tensor) -> Tensor:
        return self.product(torch.relu(x) if self.rectified else x).reshape(BATCH, -1)


def _check(product: Callable[[Tensor], Tensor], rule: str, rectified: bool) -> None:
    x, model = _random(BATCH, 5, 4, seed=20), Model(product, rectified)
    a = torch.relu(x) if rectified else x
    size = a.numel()
    matrix = torch.autograd.functional.jacobian(product, a).reshape(-1, size)  # type: ignore[no-untyped-call]
    bias = product(torch.zeros_like(a)).flatten()
    composite = lrp.Composite({nn.Linear: RULES[rule]}, default=lrp.Norm(1e-12))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        logits, heatmap = lrp.LRP(model, composite)(x, [0, 1])
    torch.testing.assert_close(logits, product(a).reshape(BATCH, -1))
    for t in range(2):
        start = torch.zeros_like(logits)
        start[:, t] = logits[:, t]
        expected = _expected(rule, matrix, bias, a.flatten(), start.flatten()).reshape(a.shape)
        torch.testing.assert_close(heatmap[:, t], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rectified", [False, True], ids=["signed", "rectified"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_with_constants_is_a_linear_layer(name: str, rule: str, rectified: bool) -> None:
    _check(PRODUCTS[name], rule, rectified)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", BIAS)
def test_what_is_added_in_the_same_call_is_its_bias(name: str, rule: str) -> None:
    _check(BIAS[name], rule, False)


@pytest.mark.parametrize("first", [lrp.ZBox(-4.0, 4.0), lrp.Flat(), lrp.WSquare()], ids=repr)
@pytest.mark.parametrize("written", ["W @ x", "einsum over channels"])
def test_first_layer_rules_at_a_product(written: str, first: lrp.Rule) -> None:
    class Dense(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            product = PRODUCTS[written](x) if written != "dense" else F.linear(x.transpose(1, 2), W).transpose(1, 2)
            return product.flatten(1)

    x, dense = _random(BATCH, 5, 4, seed=20), Dense()
    composite = lrp.Composite(first=first)
    heatmap = lrp.LRP(dense, composite)(x, 1)[1]
    written = "dense"
    torch.testing.assert_close(heatmap, lrp.LRP(dense, composite)(x, 1)[1])
    assert float(heatmap.abs().sum()) > 0


def test_a_convolution_as_unfold_and_product_follows_z_plus_as_the_convolution_does() -> None:
    class Two(nn.Module):
        def __init__(self, unfolds: bool) -> None:
            super().__init__()
            self.unfolds = unfolds

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(x).unsqueeze(1)
            if not self.unfolds:
                return F.relu(F.conv2d(x, KERNEL.view(2, 1, 3, 3), padding=1)).flatten(1)
            return F.relu((KERNEL @ F.unfold(x, 3, padding=1)).view(BATCH, 2, 5, 4)).flatten(1)

    x = _random(BATCH, 5, 4, seed=20)
    for rule in (lrp.ZPlus(), lrp.Epsilon(), lrp.Composite(default=lrp.ZPlus(), first=lrp.Flat())):
        maps = [lrp.LRP(Two(unfolds), rule)(x, 7)[1] for unfolds in (False, True)]
        torch.testing.assert_close(*maps)


@pytest.mark.parametrize(
    "form", ["einsum", "multi_dot", "bilinear", "linear", "conv", "elementwise", "elementwise, nested"]
)
def test_n_operands_that_depend_on_the_input_get_an_nth_each(form: str) -> None:
    class Several(nn.Module):
        def forward(self, *given: Tensor) -> Tensor:
            if form == "einsum":
                return torch.einsum("bi,bi,bj->bj", *given)
            if form == "multi_dot":
                return torch.linalg.multi_dot([given[0], given[1].t(), given[2]])
            if form == "bilinear":
                return F.bilinear(given[0], given[1], given[2][:, :, None] * torch.ones(4, dtype=torch.float64))
            if form.startswith("elementwise"):
                x, y, z = given
                return x * y * z if form == "elementwise" else z * (y * x)
            if form == "conv":
                return F.conv1d(given[0].unsqueeze(1), given[1][:, None, :2])[:, :, 0]
            return F.linear(given[0], given[1])

    n = 2 if form in ("linear", "conv") else 3
    given = (_random(4, 4, seed=1), _random(4, 4, seed=2), _random(4, 4, seed=3))[:n]
    logits, maps = lrp.LRP(Several(), lrp.ZPlus())(given, 1)
    for heatmap in maps:
        torch.testing.assert_close(heatmap.sum(), logits[:, 1].sum() / n)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("form", ["W @ x", "einsum", "addmm"])
def test_gradients_of_a_products_parameters_equal_finite_differences(form: str, rule: lrp.Rule) -> None:
    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.shift = nn.Parameter(W.clone()), nn.Parameter(_random(BATCH, 5, seed=9))

        def forward(self, x: Tensor) -> Tensor:
            if form == "addmm":
                return torch.relu(torch.addmm(self.shift, x[:, 0], self.weight))
            return torch.relu(
                self.weight @ x if form == "W @ x" else torch.einsum("bij,jk->bki", x, self.weight)
            ).flatten(1)

    x, model = _random(BATCH, 5, 4, seed=20), Trained()
    attribution = lrp.LRP(model, rule)

    def loss() -> Tensor:
        return (attribution(x, 2)[1] * _random(BATCH, 5, 4, seed=21)).sum()

    for parameter in model.parameters():
        if parameter is model.shift and form != "addmm":
            continue
        (gradient,) = torch.autograd.grad(loss(), parameter)
        direction = _random(*parameter.shape, seed=22)
        with torch.no_grad():
            ends = []
            for step in (1e-6, -2e-6):
                parameter.add_(direction, alpha=step)
                ends.append(float(loss()))
            parameter.add_(direction, alpha=1e-6)
        expected = (ends[0] - ends[1]) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_products_in_static_passes() -> None:
    class Parametrised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(W.clone())

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bij,jk->bki", torch.relu(x), self.weight).flatten(1)

    model = Parametrised()
    attribution = lrp.LRP(model, lrp.ZPlus(), static=True)
    for seed in (1, 2):
        x = _random(BATCH, 5, 4, seed=seed)
        torch.testing.assert_close(attribution(x, 1)[1], lrp.LRP(model, lrp.ZPlus())(x, 1)[1])


@pytest.mark.parametrize("layer", ["linear", "conv", "transposed conv"])
def test_a_bias_made_from_the_input_is_a_branch(layer: str) -> None:
    class Conditioned(nn.Module):
        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            if layer == "linear":
                return F.linear(x, V, shift[0, :, 0]).flatten(1)
            conv, weight = (F.conv1d, W[:, :, None]) if layer == "conv" else (F.conv_transpose1d, V[:, :, None])
            return conv(x, weight, shift[0, :4, 0], padding=1).flatten(1)

    x, shift = _random(BATCH, 5, 4, seed=20), _random(BATCH, 5, 4, seed=21)
    logits, maps = lrp.LRP(Conditioned(), lrp.Epsilon(0.0))((x, shift), 1)
    torch.testing.assert_close(maps[0].sum() + maps[1].sum(), logits[:, 1].sum())
    assert float(maps[1].abs().sum()) > 0


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
@pytest.mark.parametrize(
    "rule", [lrp.Epsilon(1e-2), lrp.ZPlus(), lrp.EpsilonLayerwise(1e-2)], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize("static", [False, True])
def test_sparse_matrices_are_constants_like_dense_ones(layout: torch.layout, rule: lrp.Rule, static: bool) -> None:
    class Graph(nn.Module):
        def __init__(self, edges: Tensor) -> None:
            super().__init__()
            self.register_buffer("edges", edges)
            self.weight = nn.Parameter(_random(5, 3, seed=31))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu((self.edges @ torch.relu(x).t()).t()) @ self.weight

    edges = _random(5, 5, seed=32) * (_random(5, 5, seed=33) > 0)
    sparse, dense = Graph(edges.to_sparse(layout=layout)), Graph(edges)
    attribution = lrp.LRP(sparse, rule, static=static)
    for seed in (34, 35):
        x = _random(4, 5, seed=seed)
        logits, heatmap = attribution(x, 1)
        expected = lrp.LRP(dense, rule)(x, 1)
        torch.testing.assert_close((logits, heatmap), expected)
