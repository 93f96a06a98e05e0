"""What a model may do beside plain calls: writes, views, overloads, complex numbers, grad modes. References are autograd's."""

from __future__ import annotations

import dataclasses
import gc
import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.utils.checkpoint import checkpoint as recomputed

import lrpkernels as lrp

X = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
MODES: dict[str, Any] = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


class _Net(nn.Module):
    """A dense layer, something between, a dense layer."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.first(x)))


def _reference(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    """Logits, gradient times input, and the gradients of its squares, by autograd on the model."""
    x = x.clone().requires_grad_()
    logits = net(x)
    (g,) = torch.autograd.grad(logits[:, 1].sum(), x, create_graph=True)
    heatmap = x.detach() * g
    names, parameters = zip(*net.named_parameters(), strict=True)
    grads = torch.autograd.grad(heatmap.square().sum() + 0 * logits.sum(), parameters, allow_unused=True)
    return logits.detach(), heatmap.detach(), dict(zip(names, grads, strict=True))


def _same(written: nn.Module, plain: nn.Module, x: Tensor = X, composite: Any = None) -> None:
    """Logits, heatmap and its gradients of ``written`` are those of ``plain``, in every grad mode."""
    logits, heatmap, grads = _reference(plain, x)
    for mode in MODES.values():
        written.zero_grad()
        with mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore", lrp.FallbackWarning)
            found, ours = lrp.LRP(written, composite or lrp.Epsilon(0.0))(x, 1)
        torch.testing.assert_close(found, logits, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(ours, heatmap, rtol=1e-10, atol=1e-13)
        if ours.requires_grad:
            ours.square().sum().backward()
            for name, parameter in written.named_parameters():
                expected = grads[name]
                got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                expected = torch.zeros_like(parameter) if expected is None else expected
                torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12, msg=name)


def _case(write: Callable[[Tensor], Any], plain: Callable[[Tensor], Tensor]) -> Any:
    return write, plain


def _copy_to_view(u: Tensor) -> Tensor:
    y = torch.zeros_like(u)
    y[:, 1:].copy_(u[:, :-1])
    return y + u


def _shifted(u: Tensor) -> Tensor:
    y = torch.zeros_like(u)
    y[:, 1:] = u[:, :-1]
    return y


def _rows(u: Tensor) -> Tensor:
    y = u.new_empty(4, 2)
    for i, column in enumerate(u.unbind(1)):
        y[i] = column * (i + 1)
    return y.T


def _summed(u: Tensor) -> Tensor:
    out = torch.zeros(2, 4, dtype=u.dtype)
    out += u
    out += torch.relu(u)
    return out


def _accumulated(u: Tensor) -> Tensor:
    out = torch.zeros(2, 4, dtype=u.dtype)
    out += torch.relu(u)
    out[:, 1:] += 3 * u[:, 1:]
    return out


def _earlier_view(u: Tensor) -> Tensor:
    u = u * 1
    view, square = u[:, :2], torch.relu(u)
    u.mul_(2)
    return torch.cat([view, u[:, 2:]], 1) + square  # the square has read the old numbers


def _through_two_views(u: Tensor) -> Tensor:
    u = u * 1
    left, right = u[:, :3], u[:, 1:]
    left.mul_(2)
    right.add_(left)
    return u


def _real_part_written(u: Tensor) -> Tensor:
    z = torch.zeros(2, 4, dtype=torch.complex128)
    z.real.copy_(u)
    z.imag[:, 1:] = u[:, 1:]
    z.imag[:, 0].add_(u[:, 0])
    torch.view_as_real(z)[..., 0].mul_(3)
    return z.real + z.imag


def _turned(u: Tensor) -> Tensor:
    u = u * 1
    torch.view_as_complex(u.unflatten(1, (2, 2))).mul_(1j)
    return u


def _changed(z: Tensor, view: Callable[[Tensor], Tensor]) -> Tensor:
    seen = view(z)
    z.mul_(1j)
    return seen.imag + z.imag


def _negated(z: Tensor) -> Tensor:
    seen = z.conj().imag
    z.mul_(1j)
    return 3 * seen + z.imag


def _through_conjugate(z: Tensor) -> Tensor:
    z.conj().mul_(1j)  # z times -1j
    return z.real - z.imag


def _out_in_views(u: Tensor) -> Tensor:
    out = u.new_zeros(4, 4)
    torch.mul(u, 2.0, out=out[:2])
    torch.add(torch.relu(u), 0, out=out[2:])
    return out[:2] + out[2:]


def _real_part(u: Tensor) -> Tensor:
    z = torch.fft.fft(u)
    z.real.relu_()
    return torch.fft.ifft(z).real + z.real


def _real_part_made(u: Tensor) -> Tensor:
    z = torch.fft.fft(u)
    real = torch.relu(z.real)
    return torch.fft.ifft(torch.complex(real, z.imag)).real + real


def _constant_written_again(u: Tensor) -> Tensor:
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=u.dtype)
    left = u.detach() * mask + u * mask.clone() * 0 + u * mask
    with torch.no_grad():
        mask.zero_()
    return left + mask


WRITES: dict[str, Any] = {
    "a real part": _case(_real_part, _real_part_made),
    "setitem, fresh": _case(_shifted, lambda u: F.pad(u[:, :-1], (1, 0))),
    "setitem, recorded": _case(
        lambda u: _set(u * 1, slice(0, 2), u[:, 2:]), lambda u: torch.cat([u[:, 2:], u[:, 2:]], 1)
    ),
    "setitem, mask": _case(lambda u: _set_where(u * 1), lambda u: torch.where(u < 0.1, torch.zeros_like(u), u)),
    "rows of an empty tensor": _case(_rows, lambda u: u * torch.arange(1.0, 5.0, dtype=u.dtype)),
    "copy_ to a view": _case(_copy_to_view, lambda u: F.pad(u[:, :-1], (1, 0)) + u),
    "accumulation": _case(_accumulated, lambda u: torch.relu(u) + 3 * F.pad(u[:, 1:], (1, 0))),
    "sum into zeros": _case(_summed, lambda u: u + torch.relu(u)),
    "view taken earlier": _case(_earlier_view, lambda u: 2 * u + torch.relu(u)),
    "fill_ of a view": _case(lambda u: _filled(u * 1), lambda u: torch.cat([u[:, :2] * 0 + 1, u[:, 2:]], 1)),
    "masked_fill_": _case(lambda u: (u * 1).masked_fill_(u < 0.1, 0.5), lambda u: torch.where(u < 0.1, u * 0 + 0.5, u)),
    "lerp_": _case(lambda u: (u * 1).lerp_(u.flip(1), 0.3), lambda u: 0.7 * u + 0.3 * u.flip(1)),
    "addcmul_": _case(lambda u: (u * 1).addcmul_(u, torch.full_like(u, 2.0)), lambda u: 3 * u),
    "index_add_": _case(
        lambda u: torch.zeros(4, 2, dtype=u.dtype).index_add_(0, torch.tensor([0, 2, 1, 2]), u.T).T,
        lambda u: torch.stack([u[:, 0], u[:, 2], u[:, 1] + u[:, 3], 0 * u[:, 0]], 1),
    ),
    "scatter_": _case(
        lambda u: torch.zeros_like(u).scatter_(1, torch.tensor([[1, 0, 3, 2]] * 2), u), lambda u: u[:, [1, 0, 3, 2]]
    ),
    "list of tensors": _case(lambda u: _foreach([u * 1, u * 2]), lambda u: 6 * u),
    "out=": _case(lambda u: torch.mul(u, 2.0, out=torch.empty(0, dtype=u.dtype)), lambda u: 2 * u),
    "out= the argument": _case(lambda u: _into_itself(u * 1), lambda u: 2 * u),
    "out= of views": _case(_out_in_views, lambda u: 2 * u + torch.relu(u)),
    "aten.mul_.Tensor": _case(
        lambda u: torch.ops.aten.mul_.Tensor(u * 1, torch.full((), 2.0, dtype=u.dtype)), lambda u: 2 * u
    ),
    "aten.relu_.default": _case(lambda u: _relu_in_place(u * 1, torch.ops.aten.relu_.default), torch.relu),
    "aten.relu_": _case(lambda u: _relu_in_place(u * 1, torch.ops.aten.relu_), torch.relu),
    "aten.add.out": _case(lambda u: torch.ops.aten.add.out(u, u, out=torch.empty_like(u)), lambda u: 2 * u),
    "aten.roll": _case(
        lambda u: torch.ops.aten.add.Tensor(u, torch.ops.aten.roll.default(u, [1], [1])), lambda u: u + u.roll(1, 1)
    ),
    "fft": _case(lambda u: torch.fft.fft(u).real + u, lambda u: u @ _FOURIER.real + u),
    "filter": _case(
        lambda u: torch.fft.irfft(torch.fft.rfft(u) * torch.tensor([1, 0.5j, 2], dtype=torch.complex128), n=4),
        lambda u: u @ torch.fft.irfft(torch.fft.rfft(torch.eye(4).double()) * torch.tensor([1, 0.5j, 2]), n=4),
    ),
    "complex product": _case(lambda u: (u * 1j * (1 - 2j)).imag + u, lambda u: 2 * u),
    "complex pairs": _case(lambda u: torch.view_as_real(torch.complex(u, 2 * u)).sum(-1), lambda u: 3 * u),
    "complex magnitude": _case(lambda u: torch.complex(3 * u, 4 * u).abs(), lambda u: 5 * u.abs()),
    "part of complex numbers": _case(_real_part_written, lambda u: 4 * u),
    "complex view of real numbers": _case(_turned, lambda u: torch.stack([-u[:, 1], u[:, 0], -u[:, 3], u[:, 2]], 1)),
    "conjugate read later": _case(
        lambda u: _changed(torch.complex(u, 2 * u), torch.conj), lambda u: torch.complex(-2 * u, -u).imag + u
    ),
    "conjugate written to": _case(lambda u: _through_conjugate(torch.complex(u, 2 * u)), lambda u: 3 * u),
    "negated view": _case(lambda u: _negated(torch.complex(u, 2 * u)), lambda u: -2 * u),
    "roll": _case(lambda u: u + u.roll(1, 1), lambda u: u @ (torch.eye(4) + torch.eye(4).roll(1, 1)).double()),
    "constant written again": _case(_constant_written_again, lambda u: u.detach() * _EVEN + u * _EVEN),
}
_FOURIER = torch.fft.fft(torch.eye(4, dtype=torch.float64))
_EVEN = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)


def _set(u: Tensor, place: slice, part: Tensor) -> Tensor:
    u[:, place] = part
    return u


def _set_where(u: Tensor) -> Tensor:
    u[u < 0.1] = 0.0
    return u


def _filled(u: Tensor) -> Tensor:
    u[:, :2].fill_(1.0)
    return u


def _foreach(tensors: list[Tensor]) -> Tensor:
    torch._foreach_mul_(tensors, 2.0)
    return tensors[0] + tensors[1]


def _into_itself(u: Tensor) -> Tensor:
    torch.mul(u, 2.0, out=u)
    return u


def _relu_in_place(u: Tensor, relu: Any) -> Tensor:
    relu(u)
    return u


@pytest.mark.parametrize("kind", WRITES)
def test_what_a_model_writes_counts_as_what_it_means(kind: str) -> None:
    write, plain = WRITES[kind]
    _same(_Net(write), _Net(plain))


def test_writes_whose_result_depends_on_their_order_in_memory_are_refused() -> None:
    """PyTorch adds overlapping views element by element, each sum reading the one before."""
    with pytest.raises(lrp.VerificationError, match="head"):
        lrp.LRP(_Net(_through_two_views), lrp.Epsilon(0.0))(X, 1)


@pytest.mark.parametrize("kind", ["setitem, fresh", "setitem, mask", "out=", "aten.relu_", "fft", "sum into zeros"])
def test_written_branches_of_a_static_model(kind: str) -> None:
    write, plain = WRITES[kind]
    attribution = lrp.LRP(_Net(write), lrp.Epsilon(0.0), static=True)
    for factor in (1.0, 0.5, 1.5):
        logits, heatmap, _ = _reference(_Net(plain), X * factor)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", lrp.FallbackWarning)
            found, ours = attribution(X * factor, 1)
        torch.testing.assert_close(found, logits, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(ours, heatmap, rtol=1e-10, atol=1e-13)


def test_a_module_that_writes_to_its_result_is_found_by_name() -> None:
    class Writes(nn.Module):
        def forward(self, u: Tensor) -> Tensor:
            y = torch.zeros_like(u)
            y += u
            y[:, 0] = 0
            y.mul_(2)
            return y

    net = nn.Sequential(nn.Linear(4, 4), Writes(), nn.Linear(4, 3)).double()
    with lrp.record(net, X, composite=lrp.Epsilon(0.0), at=["1"]) as tape:
        hidden = tape.relevance(1, lrp.Epsilon(0.0), at=["1"])["1"]
    kept = torch.tensor([0.0, 2.0, 2.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(hidden, net[0](X) * kept * net[2].weight[1])


class _Cached(nn.Module):
    """Keeps numbers of its input in buffers, which the next pass reads."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3).double()
        self.register_buffer("mean", torch.ones(4, dtype=torch.float64))
        self.register_buffer("rows", torch.zeros(2, 4, dtype=torch.float64))
        self.mean: Tensor
        self.rows: Tensor

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(x * self.mean + self.rows.flip(0))
        with torch.no_grad():
            self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
            self.rows[:, 1:] = x[:, 1:] * 2
        return out


@pytest.mark.parametrize("mode", MODES)
def test_buffers_are_written_as_without_a_recording(mode: str) -> None:
    net, other = _Cached(), _Cached()
    for factor in (1.0, 2.0):
        with MODES[mode](), lrp.record(net, X * factor, composite=lrp.Epsilon()) as tape:
            heatmap = tape.relevance(1)
        mean = other.mean.clone()
        with torch.no_grad():
            other(X * factor)
        for name, buffer in other.named_buffers():
            torch.testing.assert_close(net.get_buffer(name), buffer, msg=name)
        torch.testing.assert_close(heatmap.detach(), X * factor * mean * net.head.weight[1].detach())
    with pytest.raises(lrp.UnsupportedOperationError, match=r"static: .*outlives the pass"):
        lrp.record(_Cached(), X, static=lrp.StaticCalls())


class _FrozenTrunk(nn.Module):
    """A convolutional trunk under no_grad, trainable layers behind it, and one ahead of it if asked."""

    def __init__(self, ahead: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ahead = nn.Conv2d(3, 3, 1).double() if ahead else None
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(True))
        self.trunk = self.trunk.double().eval()
        self.body, self.head = nn.Linear(64, 5).double(), nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.ahead is None else self.ahead(x)
        with torch.no_grad():
            x = self.trunk(x)
        return self.head(self.body(x.flatten(1)).relu())


def _epsilon_by_hand(net: _FrozenTrunk, x: Tensor, eps: float) -> Tensor:
    """The multiplier form of the epsilon rule, layer by layer, the trunk's own numbers being constants."""
    trunk, weights = net.trunk, net.trunk[0].weight.detach()
    start = x if net.ahead is None else net.ahead(x)
    with torch.no_grad():
        first = trunk[:3](start)
        second = F.relu(trunk[3](first))
        k = trunk[1].weight / (trunk[1].running_var + trunk[1].eps).sqrt()
    hidden = net.body(second.flatten(1)).relu()
    g = net.head.weight[1] * hidden / (hidden + eps)
    g = (g @ net.body.weight).view_as(second) * second / (second + eps)
    g = F.conv_transpose2d(g, trunk[3].weight.detach()) * first / (first + eps)
    g = F.conv_transpose2d(g * k[:, None, None], weights)
    if net.ahead is not None:
        g = F.conv_transpose2d(g, net.ahead.weight)
    return x * g


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("pixels_learn", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_trunk_without_gradients_has_none_and_the_rest_exact_ones(
    ahead: bool, pixels_learn: bool, static: bool
) -> None:
    net, x = _FrozenTrunk(ahead), torch.rand(2, 3, 8, 8, dtype=torch.float64).requires_grad_(pixels_learn)
    attribution = lrp.LRP(net, lrp.Epsilon(1e-2), static=static)
    for _ in range(2 if static else 1):
        net.zero_grad()
        heatmap = attribution(x, 1)[1]
        heatmap.square().sum().backward()
    expected = _epsilon_by_hand(net, x, 1e-2)
    torch.testing.assert_close(heatmap, expected)
    wanted = {n: p for n, p in net.named_parameters() if not n.startswith("trunk") and not n.endswith("bias")}
    grads = torch.autograd.grad(expected.square().sum(), wanted.values())
    for (name, parameter), grad in zip(wanted.items(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, msg=name)
    assert all(p.grad is None for p in net.trunk.parameters()) and torch.is_grad_enabled()


class _Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 3).double() for _ in range(3))

    def forward(self, *inputs: Tensor) -> Tensor:
        return sum(part(x) for part, x in zip(self.parts, inputs, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("static", [False, True])
def test_one_tensor_given_twice_has_two_shares(static: bool) -> None:
    net, other = _Sum(), torch.rand(2, 4, dtype=torch.float64)
    attribution = lrp.LRP(net, lrp.Epsilon(0.0), static=static)
    for inputs in ((X, X, other), (X, other, X), (X, X, X)):
        maps = attribution(inputs, 1)[1]
        for part, x, heatmap in zip(net.parts, inputs, maps, strict=True):
            torch.testing.assert_close(heatmap, x * part.weight[1])


def test_a_tensor_given_by_keyword_as_well_is_not_explained_there() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return x * scale

    for x in (X, X.clone().requires_grad_(), X.clone().requires_grad_() * 1):
        heatmap = lrp.LRP(Scaled())(x, 1, scale=x)[1]  # the gate rule would halve it
        assert torch.equal(heatmap[:, 1], X[:, 1] ** 2) and not heatmap[:, [0, 2, 3]].any()


def test_tensors_of_inference_mode_are_explained_outside_of_it() -> None:
    with torch.inference_mode():
        x = X * 2
        x = x.clone()
        net = _Net(lambda u: u.roll(1, 1) + u.new_ones(4))
    with torch.no_grad():
        ours = lrp.LRP(net, lrp.Epsilon(0.0))(x, 1)[1]
    weights = net.head.weight[1].roll(-1, 0) @ net.first.weight
    torch.testing.assert_close(ours, (2 * X * weights).detach())


def test_vmap_is_refused_in_every_mode_but_not_for_constants() -> None:
    def over_rows(u: Tensor) -> Tensor:
        return u + torch.vmap(lambda row: row.roll(1, 0))(u)

    def over_places(u: Tensor) -> Tensor:
        return torch.vmap(lambda place: u[:, place] * 2, out_dims=1)(torch.arange(4))

    for mode in MODES.values():
        for function in (over_rows, over_places):
            with mode(), pytest.raises(lrp.UnsupportedOperationError, match="vmap"):
                lrp.LRP(_Net(function))(X, 1)
    mask = torch.arange(4.0, dtype=torch.float64)
    _same(_Net(lambda u: u * torch.vmap(lambda place: place * 1.0)(mask)), _Net(lambda u: u * mask))


class _Failing(nn.Module):
    """Fails in the middle of its forward pass, in the way that it is told."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second, self.head = (nn.Linear(4, n).double() for n in (4, 4, 3))
        self.seen: list[weakref.ref[Tensor]] = []
        if how == "hook":
            self.second.register_forward_hook(lambda *_: [][1])
        if how == "pre-hook":
            self.second.register_forward_pre_hook(lambda *_: [][1])

    def forward(self, x: Tensor) -> Any:
        u = self.first(x).relu()
        self.seen.append(weakref.ref(u))
        if self.how == "interrupt":
            raise KeyboardInterrupt
        if self.how == "nested":
            lrp.LRP(nn.Linear(5, 2).double())(x, 1)
        if self.how == "no rule":
            u = torch.heaviside(u, u)
        if self.how == "generator":
            return (part for part in self.head(self.second(u)))
        return self.head(self.second(u))


@dataclasses.dataclass(frozen=True)
class _Broken(lrp.Epsilon):
    def linear(self, layer: Any, g: Any) -> Tensor:
        raise IndexError("a rule that fails")


FAILURES: dict[str, Callable[[Any], Any]] = {
    "interrupt": lambda call: call(1),
    "hook": lambda call: call(1),
    "pre-hook": lambda call: call(1),
    "nested": lambda call: call(1),
    "no rule": lambda call: call(1),
    "generator": lambda call: call(1),
    "target": lambda call: call(99),
    "callable": lambda call: call(lambda logits: [][1]),
    "rule": lambda call: call(1),
    "backward": lambda call: _failing_backward(call(1)[1]),
}


def _failing_backward(heatmap: Tensor) -> None:
    heatmap.register_hook(lambda grad: [][1])
    heatmap.square().sum().backward()


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("how", FAILURES)
def test_nothing_is_left_of_a_pass_that_failed(how: str, static: bool, checkpoint: bool) -> None:
    net = _Failing(how)
    composite = lrp.Composite({"second": _Broken()}) if how == "rule" else lrp.Epsilon()
    attribution = lrp.LRP(net, composite, static=static, checkpoint=checkpoint)
    hooks = len(_global_forward_hooks) + len(_global_forward_pre_hooks)
    recomputed(
        torch.relu, X, use_reentrant=False
    )  # PyTorch imports its compiler at the first one, which keeps the frames below it
    gc.disable()  # reference counts alone must do
    try:
        for _ in range(3):
            with pytest.raises((IndexError, RuntimeError, KeyboardInterrupt, ValueError, TypeError)) as failure:
                FAILURES[how](lambda target: attribution(X, target))
            failure.value.__traceback__ = None
            del failure
            assert [reference() for reference in net.seen] == [None] * len(net.seen)
    finally:
        gc.enable()
    assert torch.overrides._len_torch_function_stack() == 0 and torch.is_grad_enabled()
    assert len(_global_forward_hooks) + len(_global_forward_pre_hooks) == hooks
    net.how = ""
    if how in ("interrupt", "nested", "generator"):
        assert attribution(X, 1)[0].shape == (2, 3)


def test_a_tape_that_nobody_closed_goes_with_its_last_reference() -> None:
    net = _Failing("")
    gc.disable()
    try:
        tape = lrp.record(net, X)
        tape.relevance(1)
        del tape
        assert net.seen[0]() is None
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised while an object goes
@pytest.mark.parametrize("static", [False, True])
def test_an_interrupt_at_any_step_leaves_no_mode_and_no_hook(static: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    files = ("recorder.py", "replay.py", "overrides.py", "tape.py")
    step = stop = 0

    def interrupt(frame: Any, event: str, arg: Any) -> Any:
        nonlocal step
        if not frame.f_code.co_filename.endswith(files) or frame.f_code.co_name in ("__del__", "clear"):
            return None  # nobody hears what is raised while an object goes
        step += event == "line"
        if event == "line" and step == stop:
            raise KeyboardInterrupt
        return interrupt

    while stop < 3000:
        step, stop = 0, stop + 1
        attribution = lrp.LRP(net, static=static)
        watching = sys.gettrace()  # coverage, perhaps
        sys.settrace(interrupt)
        try:
            attribution(X, 1)
            if step < stop:
                break
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(watching)
        stack = torch.overrides._get_current_function_mode_stack()
        assert not [mode for mode in stack if mode.recording is not None]
        assert not _global_forward_hooks and not _global_forward_pre_hooks
        assert torch.is_grad_enabled()
    assert step < stop and stop > 300  # all have been tried
    assert torch.overrides._len_torch_function_stack() == 0
