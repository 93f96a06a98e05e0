"""Tape checkpointing: the numbers of a step without it, from less memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from memory_peak import peak_bytes
from networks import NETWORKS, build
from torch import Tensor, nn

import isnet
import lrpkernels as lrp
from lrpkernels.graph import Recipe
from lrpkernels.layers.activation import Relu

X = torch.rand(3, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
COMPOSITES: dict[str, Any] = {
    "epsilon": lrp.Epsilon(1e-2),
    "epsilon and box": lrp.Epsilon(1e-2, first=lrp.ZBox(0.0, 1.0)),
    "z+": lrp.ZPlus(1e-2, first=lrp.ZBox(0.0, 1.0)),
    "EpsilonPlus": lrp.EpsilonPlus(),
    "EpsilonGammaBox": lrp.EpsilonGammaBox(0.0, 1.0, stabilizer=1e-2),
}
HIDDEN = {"vgg": "features.4", "residual": "layer1.1", "dense": "transition.1", "depthwise": "body.3"}


def _gradients(
    net: nn.Module, run: Callable[[], tuple[Tensor, list[Tensor]]]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Heatmaps, and the gradients of a loss on them and the logits."""
    net.zero_grad()
    torch.manual_seed(0)  # dropout
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    logits, maps = run()
    (logits.square().sum() + sum(m.abs().sum() + m.square().sum() for m in maps)).backward()
    for name, buffer in net.named_buffers():
        buffer.data.copy_(before[name])
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return [logits.detach(), *(m.detach() for m in maps)], grads


def _alike(net: nn.Module, run: Callable[[bool], tuple[Tensor, list[Tensor]]], tolerance: float = 1e-12) -> None:
    values, expected = _gradients(net, lambda: run(False))
    again, found = _gradients(net, lambda: run(True))
    assert all(torch.equal(a, b) for a, b in zip(values, again, strict=True))
    assert expected.keys() == found.keys() and len(found) > 2
    scale = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in found.items():
        assert float((gradient - expected[name]).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", NETWORKS)
def test_heatmaps_and_gradients_are_those_without_checkpointing(name: str, composite: str, training: bool) -> None:
    net, rules = build(NETWORKS[name]).train(training), COMPOSITES[composite]

    def run(checkpoint: bool) -> tuple[Tensor, list[Tensor]]:
        with lrp.record(net, X, composite=rules, at=[HIDDEN[name]], checkpoint=checkpoint) as tape:
            maps = tape.relevance("all", rules, at=[HIDDEN[name]], release=True)
            return tape.output, list(maps.values())

    _alike(net, run)


@pytest.mark.parametrize("variant", ["selective", "dual", "original"])
@pytest.mark.parametrize("name", ["residual", "dense"])
def test_isnet_steps(name: str, variant: Any) -> None:
    model = build(NETWORKS[name]).train()

    def run(checkpoint: bool) -> tuple[Tensor, list[Tensor]]:
        net = isnet.ISNet(model, variant, layers=[HIDDEN[name]], checkpoint=checkpoint)
        out = net.train()(X)
        return out.logits, list(out.heatmaps.values())

    _alike(model, run)


@pytest.mark.parametrize("composite", ["epsilon and box", "z+"])
@pytest.mark.parametrize("name", NETWORKS)
def test_under_autocast(name: str, composite: str) -> None:
    net, x = build(NETWORKS[name]).float(), X.float()

    def run(checkpoint: bool) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast("cpu", torch.bfloat16):
            logits, heatmap = lrp.LRP(net, COMPOSITES[composite], checkpoint=checkpoint)(x, [0, 3])
        return logits.float(), [heatmap]

    # Whether a batch norm's input is there decides which of two equal formulas gives a bfloat16 gradient.
    _alike(net, run, tolerance=2**-8)


# Bytes at the peak of a plain step while z+ and the layer form still saved s of every layer beside the multiplier.
SAVES_ALL = {
    ("residual", "selective"): 7_075_808,
    ("residual", "dual"): 9_705_552,
    ("dense", "selective"): 37_327_584,
    ("dense", "dual"): 55_616_312,
}


@pytest.mark.parametrize("variant", ["selective", "dual"])
@pytest.mark.parametrize("name", ["residual", "dense"])
def test_a_step_takes_less_memory_and_leaves_none(name: str, variant: Any) -> None:
    model, x = build(NETWORKS[name]).train(), X.repeat(2, 1, 4, 4)

    def step(checkpoint: bool) -> None:
        model.zero_grad()
        out = isnet.ISNet(model, variant, checkpoint=checkpoint).train()(x)
        (out.logits.square().sum() + out.heatmaps["input"].abs().sum()).backward()

    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    (most, left), (less, less_left) = (peak_bytes(lambda c=c: step(c)) for c in (False, True))
    assert less < most and less < 0.95 * SAVES_ALL[name, variant], (less, most)
    assert max(left, less_left) <= 2 * gradients  # their new tensors, the old ones' bytes not yet taken off


@pytest.mark.parametrize("composite", ["epsilon and box", "z+"])
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_left_to_the_garbage_collector(name: str, composite: str) -> None:
    net = build(NETWORKS[name]).train()

    def step() -> None:
        logits, heatmap = lrp.LRP(net, COMPOSITES[composite], checkpoint=True)(X, "all")
        (logits.sum() + heatmap.abs().sum()).backward()

    step()
    gc.freeze()
    gc.disable()
    try:
        gc.set_debug(gc.DEBUG_SAVEALL)
        step()
        gc.collect()
        held = [type(found).__name__ for found in gc.garbage if isinstance(found, Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.unfreeze()
    assert not held


def test_without_gradients_there_is_nothing_to_checkpoint() -> None:
    net = build(NETWORKS["dense"])
    with torch.no_grad():
        plain, small = (lrp.LRP(net, checkpoint=checkpoint)(X, 1)[1] for checkpoint in (False, True))
    assert torch.equal(plain, small)


class _DenseBlock(nn.Module):
    """Batch norm and ReLU of concatenations, as a DenseNet has them, and of a convolution's output."""

    def __init__(self, growth: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(3 + i * growth) for i in range(layers))
        self.convs = nn.ModuleList(nn.Conv2d(3 + i * growth, growth, 3, padding=1) for i in range(layers))
        self.norm, self.head = nn.BatchNorm2d(3 + layers * growth), nn.Linear(3 + layers * growth, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            parts.append(conv(torch.relu(norm(torch.cat(parts, 1)))))
        return self.head(torch.relu_(self.norm(torch.cat(parts, 1))).mean((2, 3)))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_what_norms_and_relus_make_of_concatenations_is_made_again(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net, x = _DenseBlock().double().train(training), X.repeat(1, 1, 3, 3)

    def run(checkpoint: bool) -> tuple[Tensor, list[Tensor]]:
        with lrp.record(net, x, composite=COMPOSITES["epsilon"], checkpoint=checkpoint) as tape:
            heatmap = tape.relevance(1, COMPOSITES["epsilon"], release=True)
            return tape.output, [heatmap]

    _alike(net, run)

    def step() -> None:
        logits, maps = run(True)
        torch.autograd.grad(logits.square().sum() + maps[0].abs().sum(), list(net.parameters()))

    less, left = peak_bytes(step)
    monkeypatch.setattr(Relu, "recipe", lambda self: None)
    more, _ = peak_bytes(step)
    assert left <= 0 and more - less > 0.07 * more, (less, more, left)


def test_backward_twice_makes_the_same_again() -> None:
    net = build(NETWORKS["dense"]).train()
    with lrp.record(net, X, composite=COMPOSITES["epsilon"], checkpoint=True) as tape:
        loss = tape.relevance("all", COMPOSITES["epsilon"], release=True).square().sum() + tape.output.square().sum()
    parameters = list(net.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_is_made_again_is_let_go_of_when_backward_ends() -> None:
    net = build(NETWORKS["dense"]).train()
    with lrp.record(net, X, composite=COMPOSITES["epsilon"], checkpoint=True) as tape:
        loss = tape.relevance("all", COMPOSITES["epsilon"], release=True).square().sum() + tape.output.square().sum()
    loss.backward()
    assert not Recipe._made.latest


def test_released_values_are_refused_to_a_later_pass() -> None:
    net = build(NETWORKS["dense"])
    with lrp.record(net, X, composite=COMPOSITES["epsilon"], checkpoint=True) as tape:
        tape.relevance(1, COMPOSITES["epsilon"], release=True)
        with pytest.raises(RuntimeError, match="release"):
            tape.relevance(1, COMPOSITES["epsilon"])
