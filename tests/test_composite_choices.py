"""What a composite chooses beside the rules of layers: attention, products, norms, against explicit formulas and lxt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functions import Wrapped, slope
from lxt_block import Lxt
from torch import Tensor, nn

import lrpkernels as lrp

D = torch.float64


class Block(nn.Module):
    """Attention written out or fused, a gated MLP and norms, as in language models."""

    def __init__(self, fused: bool, norm: Callable[[int], nn.Module], act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))
        self.gate, self.up, self.down, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 4)
        self.norm1, self.norm2 = norm(6), norm(6)
        self.fused, self.act = fused, act

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in (q, k, v))
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q @ k.transpose(-2, -1)) * 3**-0.5
            out = F.softmax(scores, -1) @ v
        return out.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.o(self.attend(self.q(h), self.k(h), self.v(h)))
        h = self.norm2(x)
        x = x + self.down(self.act(self.gate(h)) * self.up(h))
        return self.head(x.mean(1))


def _same_relevance(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    assert float(b.detach().abs().max()) > 1e-6
    assert float((a - b).detach().abs().max()) <= tolerance * float(b.detach().abs().max())


def _shared(x: Tensor, parts: int) -> Tensor:
    """x with its gradient divided."""
    return x / parts + (x - x / parts).detach()


class Reference(Block):
    """The same numbers by plain autograd; attention, gates and norms have the gradient that the rule asks for (R = x * gradient)."""

    method = "AttnLRP"

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.method == "CPLRP":
            q, k = q.detach(), k.detach()
        else:
            q, k, v = (_shared(t, n) for t, n in ((q, 4), (k, 4), (v, 2)))
        return super().attend(q, k, v)

    def normed(self, norm: nn.Module, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
        deviation = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        out = centred / deviation.detach() * norm.weight
        return out + norm.bias if isinstance(norm, nn.LayerNorm) else out

    def forward(self, x: Tensor) -> Tensor:
        h = self.normed(self.norm1, x)
        x = x + self.o(self.attend(self.q(h), self.k(h), self.v(h)))
        h = self.normed(self.norm2, x)
        gate, up = self.gate(h), self.up(h)
        shared = _shared(gate * (self.act(gate) / gate).detach() * up, 2)
        product = self.act(gate).detach() * up if self.method == "CPLRP" else shared
        return self.head((x + self.down(product)).mean(1))


def _pair(
    fused: bool, norm: Callable[[int], nn.Module], act: Callable[[Tensor], Tensor], method: str
) -> tuple[Block, Reference]:
    torch.manual_seed(3)
    ours, reference = Block(fused, norm, act).double(), Reference(fused, norm, act).double()
    for p in ours.parameters():
        p.data += 0.3 * torch.randn_like(p)
    reference.load_state_dict(ours.state_dict())
    reference.method = method
    return ours, reference


def rms(size: int) -> nn.Module:
    return nn.RMSNorm(size, eps=1e-5)


def _everywhere(rule: lrp.Rule) -> lrp.Composite:
    return lrp.Composite(default=lrp.Epsilon(0.0), attention=rule, product=rule, norm=rule)


# Sigmoid is a gate here; AttnLRP's paper shares with it, which is the uniform rule.
CHOICES = {
    "default": (lrp.Composite(default=lrp.Epsilon(0.0)), F.silu, "AttnLRP"),
    "AttnLRP": (_everywhere(lrp.AttnLRP()), F.silu, "AttnLRP"),
    "CPLRP": (_everywhere(lrp.CPLRP()), F.silu, "CPLRP"),
    "CPLRP sigmoid": (_everywhere(lrp.CPLRP()), torch.sigmoid, "CPLRP"),
    "uniform sigmoid": (lrp.Composite(default=lrp.Epsilon(0.0), product=lrp.Uniform()), torch.sigmoid, "AttnLRP"),
    "by glob": (lrp.Composite({"*": lrp.CPLRP()}, default=lrp.Epsilon(0.0)), F.silu, "CPLRP"),
}


@pytest.mark.parametrize("norm", [nn.LayerNorm, rms])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("choice", CHOICES)
def test_choices_equal_their_definitions(choice: str, fused: bool, norm: Callable[[int], nn.Module]) -> None:
    composite, act, method = CHOICES[choice]
    net, reference = _pair(fused, norm, act, method)
    x = torch.randn(3, 5, 6, dtype=D)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(reference(leaf)[:, 1].sum(), leaf)[0] * x
    for options in ({}, {"static": True}, {"checkpoint": True}):
        attribution = lrp.LRP(net, composite, **options)
        for _ in range(2):
            logits, heatmap = attribution(x, 1)
            _same_relevance(heatmap, expected, 1e-5)  # both stabilize a / z of activations, each in its own way
    torch.testing.assert_close(logits, net(x))
    with torch.no_grad():
        several = lrp.LRP(net, composite)(x, [0, 1])[1]
    torch.testing.assert_close(several[:, 1], heatmap.detach())


@pytest.mark.parametrize("method", ["AttnLRP", "CPLRP"])
def test_choices_equal_lxt(method: str) -> None:
    net, _ = _pair(False, nn.LayerNorm, F.silu, method)
    theirs = Lxt(net, cp=method == "CPLRP")
    x = torch.randn(3, 5, 6, dtype=D)
    leaf = x.clone().requires_grad_()
    logits = theirs(leaf)
    torch.testing.assert_close(logits, net(x))
    seed = F.one_hot(torch.tensor([1] * 3), 4) * logits.detach()
    (expected,) = torch.autograd.grad(logits, leaf, seed)
    rule = getattr(lrp, method)()
    composite = lrp.Composite(default=lrp.EpsilonLayerwise(1e-12), attention=rule, product=rule, norm=rule)
    with torch.no_grad():
        heatmap = lrp.LRP(net, composite)(x, 1)[1]
    _same_relevance(heatmap, expected, 1e-4)  # lxt stabilizes norms by 1e-6, whatever their sign


def test_one_module_by_its_name_and_the_others_by_the_option() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.MultiheadAttention(6, 2, batch_first=True)
            self.b = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.a(x, x, x, need_weights=False)[0]
            return (x + self.b(x, x, x, need_weights=False)[0]).mean(1)

    torch.manual_seed(0)
    net, x = Two().double().eval(), torch.randn(2, 4, 6, dtype=D)

    def heatmap(composite: lrp.Composite) -> Tensor:
        with torch.no_grad():
            return lrp.LRP(net, composite)(x, 2)[1]

    default = lrp.Epsilon(0.0)
    named = heatmap(lrp.Composite({"a": lrp.CPLRP()}, default=default))
    reverse = heatmap(lrp.Composite({"b": lrp.AttnLRP()}, default=default, attention=lrp.CPLRP()))
    torch.testing.assert_close(named, reverse)
    for other in (lrp.Composite(default=default), lrp.Composite(default=default, attention=lrp.CPLRP())):
        assert float((named - heatmap(other)).abs().max()) > 1e-3
    table = lrp.LRP(net, lrp.Composite({"a": lrp.CPLRP()}, default=default)).explain(x)
    rows = {line.split()[0] + line.split()[1]: line for line in table.splitlines()}
    assert "CPLRP" in rows["aattention"] and "CPLRP" not in rows["battention"] and "CPLRP" not in rows["alinear"]


def test_cp_lrp_gives_no_relevance_to_queries_and_keys() -> None:
    net, _ = _pair(True, nn.LayerNorm, F.silu, "CPLRP")
    x = torch.randn(2, 5, 6, dtype=D)
    with torch.no_grad(), lrp.record(net, x) as tape:
        found = tape.relevance(1, lrp.Composite(default=lrp.Epsilon(0.0), attention=lrp.CPLRP()), at=["q", "k", "v"])
        usual = tape.relevance(1, lrp.Epsilon(0.0), at=["q", "k", "v"])
    assert not found["q"].any() and not found["k"].any()
    torch.testing.assert_close(found["v"], 2 * usual["v"])
    assert usual["q"].any() and usual["k"].any()


class Gates(nn.Module):
    """Elementwise products of every kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(5, 6), nn.Linear(5, 6), kind

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        if self.kind == "glu":
            return F.glu(torch.cat([a, b], -1), -1)
        if self.kind == "plain":
            return a * b
        if self.kind == "broadcast":
            return a * b[:, :1]
        return a * {"sigmoid": torch.sigmoid, "tanh": torch.tanh}[self.kind](b)


@pytest.mark.parametrize(
    ("kind", "attn", "cp"),
    [
        ("plain", (0.5, 0.5), (0.5, 0.5)),
        ("sigmoid", (1.0, 0.0), (1.0, 0.0)),
        ("glu", (1.0, 0.0), (1.0, 0.0)),
        ("broadcast", (1.0, 0.0), (1.0, 0.0)),
        ("tanh", (0.5, 0.5), (1.0, 0.0)),
    ],
)
def test_shares_of_products(kind: str, attn: tuple[float, float], cp: tuple[float, float]) -> None:
    torch.manual_seed(1)
    net, x = Gates(kind).double(), torch.randn(4, 5, dtype=D)
    rules = {None: attn, lrp.AttnLRP(): attn, lrp.CPLRP(): cp, lrp.Uniform(): (0.5, 0.5)}
    a, b, out = net.a(x), net.b(x), net(x)
    for rule, shares in rules.items():
        with torch.no_grad(), lrp.record(net, x) as tape:
            found = tape.relevance(
                lambda o: o.sum(1), lrp.Composite(default=lrp.EpsilonLayerwise(1e-9), product=rule), at=["a", "b"]
            )
        torch.testing.assert_close(found["a"], out * shares[0], rtol=1e-5, atol=1e-7)
        expected = (out * shares[1]).sum(1, keepdim=True) if kind == "broadcast" else out * shares[1]
        got = found["b"][:, :1] if kind == "broadcast" else found["b"]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert a.shape == b.shape


def test_norms_may_pass_relevance_on_unchanged() -> None:
    """R at a norm's input is R at its output, also through a bias, at zeros, and from there on into a layer."""
    torch.manual_seed(2)
    for norm in (nn.LayerNorm(6), nn.RMSNorm(6), nn.GroupNorm(2, 6), nn.InstanceNorm1d(6, affine=True)):
        for p in norm.parameters():
            p.data += torch.randn_like(p)
        shape = (3, 6, 4) if isinstance(norm, nn.InstanceNorm1d) else (3, 6)
        net = nn.Sequential(
            nn.Linear(shape[-1], shape[-1]), norm, nn.Flatten(), nn.Linear(shape[-1] * (6 if len(shape) == 3 else 1), 2)
        ).double()
        x = torch.randn(shape, dtype=D)
        with torch.no_grad(), lrp.record(net, x) as tape:
            composite = lrp.Composite(default=lrp.EpsilonLayerwise(1e-2), norm=lrp.Pass())
            found = tape.relevance(1, composite, at=["0", "1"])
            plain = tape.relevance(1, lrp.EpsilonLayerwise(1e-2), at=["0", "1"])
        torch.testing.assert_close(found["0"], found["1"])
        torch.testing.assert_close(found["1"], plain["1"])
        z = net[0](x)
        s = found["0"] / (z + 1e-2 * torch.where(z >= 0, 1.0, -1.0))
        torch.testing.assert_close(found["input"], x * (s @ net[0].weight))


@pytest.mark.parametrize("choice", ["CPLRP", "uniform sigmoid"])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_choices_equal_finite_differences(choice: str, fused: bool) -> None:
    composite, act, method = CHOICES[choice]
    net, _ = _pair(fused, nn.LayerNorm, act, method)
    x, weights = torch.randn(2, 4, 6, dtype=D), torch.randn(2, 4, 6, dtype=D)

    def loss(**options: bool) -> Tensor:
        return (lrp.LRP(net, composite, **options)(x, 1)[1] * weights).sum()

    grads = torch.autograd.grad(loss(), list(net.parameters()), allow_unused=True)
    again = torch.autograd.grad(loss(checkpoint=True), list(net.parameters()), allow_unused=True)
    for (name, p), grad, other in zip(net.named_parameters(), grads, again, strict=True):
        direction = torch.randn_like(p)
        expected = slope(loss, p, direction)
        got = 0.0 if grad is None else (grad * direction).sum().item()
        assert abs(got - expected) <= 1e-5 * max(1.0, abs(expected)), f"{name}: {got} against {expected}"
        torch.testing.assert_close(other, grad)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: lrp.Composite(attention=lrp.ZPlus()), "attention must be a rule of this operation"),
        (lambda: lrp.Composite(norm=lrp.Uniform()), "norm must be a rule of this operation"),
        (lambda: lrp.Composite(product="uniform"), "product must be a rule of this operation"),  # type: ignore[arg-type]
        (lambda: lrp.Composite(default=lrp.CPLRP()), "default must be a rule of layers"),
        (lambda: lrp.Composite(first=lrp.AttnLRP()), "first must be a rule of layers"),
        (lambda: lrp.LRP(nn.Linear(1, 1), lrp.CPLRP()), "rule of layers"),
    ],
)
def test_rules_that_do_not_fit_their_option_are_refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        make()


def test_modified_gradients_refuse_rules_that_yield_relevance() -> None:
    with pytest.raises(ValueError, match="multiply_by_inputs"):
        lrp.Composite({"0": lrp.Flat()}, multiply_by_inputs=False)


class WrittenOut(nn.Module):
    """RMS norm as language models write it, or squeeze-and-excite."""

    def __init__(self, excite: bool) -> None:
        super().__init__()
        self.a, self.b, self.squeeze, self.excite = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 6), excite

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.excite:
            return self.b(x * torch.sigmoid(self.squeeze(x).mean(-1, keepdim=True)))
        return self.b(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


def test_a_norm_that_is_written_out_follows_the_rule_of_norms() -> None:
    torch.manual_seed(8)
    net, x = WrittenOut(excite=False).double(), torch.randn(3, 5, dtype=D)

    def found(net: nn.Module, **choices: lrp.Rule) -> Tensor:
        composite = lrp.Composite(default=lrp.Epsilon(0.0), **choices)
        with torch.no_grad():
            heatmap: Tensor = lrp.LRP(net, composite)(x, 1)[1]
        return heatmap

    usual = found(net)
    torch.testing.assert_close(found(net, product=lrp.Uniform()), usual)
    torch.testing.assert_close(found(net, norm=lrp.Pass()), usual)
    excite = WrittenOut(excite=True).double()
    assert float((found(excite, product=lrp.Uniform()) - found(excite)).abs().max()) > 1e-3


SPELLINGS: dict[str, Any] = {
    "times": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),
    "over": lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt(),
    "over, of a product": lambda x: torch.div(x, torch.sqrt(torch.mean(x * x, -1, keepdim=True) + 1e-5)),
    "F.rms_norm": lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-5),
    "F.normalize": lambda x: F.normalize(x, dim=-1),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_a_norm_are_one_norm(spelling: str) -> None:
    torch.manual_seed(9)
    net = nn.Sequential(nn.Linear(5, 6), Wrapped(SPELLINGS[spelling]), nn.Linear(6, 3)).double()
    x = torch.randn(3, 5, dtype=D)
    z = net[0](x)
    factor = (net[1](z) / z).detach()
    gradient = torch.autograd.functional.jacobian(lambda x: net(x)[:, 1].sum(), x)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        passed = lrp.LRP(net, lrp.Composite(default=lrp.Epsilon(0.1), norm=lrp.Pass()))(x, 1)[1]
        exact = lrp.LRP(net, lrp.Composite(default=lrp.Epsilon(0.1), norm=lrp.Gradient()))(x, 1)[1]
        torch.testing.assert_close(exact, x * gradient)
        flat = lrp.LRP(net, lrp.Composite({"2": lrp.Flat(0.0)}, default=lrp.Epsilon(0.1)))(x, 1)[1]
        # Pass: R itself reaches the layer ahead. Else the norm takes R over its output, times its factor.
        r = net[1](z) * net[2].weight[1]
        torch.testing.assert_close(passed, x * (r / (z + 0.1 * torch.where(z >= 0, 1.0, -1.0)) @ net[0].weight))
        share = net(x)[:, 1:2] / 6
        torch.testing.assert_close(flat, x * ((share / net[1](z) * factor) @ net[0].weight))


def test_types_of_modules_choose_for_what_they_call() -> None:
    net, _ = _pair(False, nn.LayerNorm, F.silu, "CPLRP")
    x = torch.randn(2, 5, 6, dtype=D)
    default = lrp.Epsilon(0.0)
    same = [
        ({Block: lrp.CPLRP()}, {"*": lrp.CPLRP()}),
        ({nn.LayerNorm: lrp.Pass()}, {"norm*": lrp.Pass()}),
        ({nn.LayerNorm: lrp.Gradient()}, {"norm*": lrp.Gradient()}),
    ]
    with torch.no_grad():
        usual = lrp.LRP(net, default)(x, 1)[1]
        for by_type, by_name in same:
            found, other = (
                lrp.LRP(net, lrp.Composite(rules, default=default))(x, 1)[1] for rules in (by_type, by_name)
            )
            torch.testing.assert_close(found, other)
            assert float((found - usual).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "mask", [torch.ones(3, 3), torch.tensor([1.0, 0.5, 2.0]), torch.full((), -0.5)], ids=["ones", "row", "number"]
)
def test_attention_weights_times_a_constant_are_still_weights(mask: Tensor) -> None:
    class Masked(nn.Module):
        def __init__(self, detach: bool) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.q, self.k, self.v, self.head = (nn.Linear(4, 4).double() for _ in range(4))
            self.detach = detach

        def forward(self, x: Tensor) -> Tensor:
            weights = (self.q(x) @ self.k(x).transpose(-2, -1)).softmax(-1)
            weights = weights.detach() if self.detach else weights
            return self.head((weights * mask.double()) @ self.v(x)).sum(1)

    x = torch.randn(2, 3, 4, dtype=D, generator=torch.Generator().manual_seed(6))
    composite = lrp.Composite(default=lrp.Epsilon(0.0), attention=lrp.CPLRP())
    x.requires_grad_()
    (g,) = torch.autograd.grad(Masked(True)(x)[:, 1].sum(), x)
    _same_relevance(lrp.LRP(Masked(False), composite)(x.detach(), 1)[1], x.detach() * g)
