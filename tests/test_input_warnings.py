"""Rules say when their inputs make no sense: pixels outside of a box, training mode, NaN, integers."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Residual, VGGLike, build
from torch import Tensor, nn

import isnet
import lrpkernels as lrp
from lrpkernels.errors import InputWarning, NonFiniteError


def pixels(low: float, high: float, seed: int = 0) -> Tensor:
    """Images whose pixels reach both ends of a range."""
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return low + (high - low) * (x - x.amin()) / (x.amax() - x.amin())


def explained(rule: lrp.Rule, x: Tensor, **options: Any) -> Tensor:
    heatmap: Tensor = lrp.LRP(build(VGGLike), lrp.Epsilon(first=rule), **options).attribute(x, 1)
    return heatmap


CHANNELS = ([-2.1, -2.0, -1.8], [2.2, 2.4, 2.6])
NORMALISED = torch.stack([pixels(low, high)[:, c] for c, (low, high) in enumerate(zip(*CHANNELS, strict=True))], 1)

OUTSIDE: dict[str, tuple[lrp.ZBox, Tensor]] = {
    "bytes": (lrp.ZBox(0, 1), pixels(0, 255)),
    "normalised": (lrp.ZBox(), NORMALISED),
    "signed": (lrp.ZBox(0, 1), pixels(-1, 1)),
    "unsigned in a box of bytes' range": (lrp.ZBox(-1, 0), pixels(0, 1)),
    "one channel": (lrp.ZBox([-2.1, -2.0, 0.0], [2.2, 2.4, 2.6]), NORMALISED),
    "a single pixel": (lrp.ZBox(0, 1), pixels(0, 1).index_fill(3, torch.tensor([5]), 1.2)),
    "tensors": (lrp.ZBox(torch.zeros(3, 12, 12), torch.ones(3, 12, 12)), pixels(0, 2)),
    "zero and a tensor": (lrp.ZBox(0.0, torch.ones(3)), pixels(-1, 1)),
}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("options", [{}, {"static": True}, {"checkpoint": True}], ids=str)
def test_pixels_outside_of_the_box(name: str, options: dict[str, bool]) -> None:
    rule, x = OUTSIDE[name]
    rule = copy.deepcopy(rule)
    with pytest.warns(InputWarning, match="ZBox: the layer's input, in .* leaves the rule's range, low=") as caught:
        explained(rule, x, **options)
    (text,) = [str(w.message) for w in caught if w.category is InputWarning]
    assert f"[{float(x.min()):.3g}, {float(x.max()):.3g}]" in text and "(0 - mean) / std" in text and "\n" not in text
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        explained(rule, x, **options)  # once for a rule


INSIDE: dict[str, tuple[lrp.ZBox, Tensor]] = {
    "numbers": (lrp.ZBox(0, 1), pixels(0, 1)),
    "overshooting interpolation": (lrp.ZBox(0, 1), pixels(-0.05, 1.05)),
    "channels": (lrp.ZBox(*CHANNELS), NORMALISED),
    "tensors": (lrp.ZBox(torch.zeros(3, 12, 12), torch.ones(3, 12, 12)), pixels(0, 1)),
    "wide": (lrp.ZBox(-5, 5), NORMALISED),
    "constant": (lrp.ZBox(0, 1), torch.zeros_like(NORMALISED)),
    "no images": (lrp.ZBox(0, 1), pixels(0, 255)[:0]),
}


@pytest.mark.parametrize("name", INSIDE)
def test_pixels_inside_of_the_box(name: str) -> None:
    rule, x = INSIDE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        found = explained(rule, x)
    assert found.shape == x.shape
    assert rule == pickle.loads(pickle.dumps(rule)) and hash(rule) == hash(copy.deepcopy(rule))


class Padded(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.conv, self.fc, self.value = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), value

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(F.pad((x - 0.5) / 0.25, (2,) * 4, value=self.value))).mean((2, 3)))


def test_the_range_is_that_of_what_the_layer_reads() -> None:
    """A model that normalises its pixels itself, and pads them by a number outside of the range, which is no pixel."""
    net = Padded(-100.0).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        lrp.LRP(net, lrp.Epsilon(first=lrp.ZBox(-2, 2))).attribute(pixels(0, 1), 1)
    with pytest.warns(InputWarning, match=r"in \[-2, 2\] leaves|in \[-100, 2\] leaves|\[-2, 2\], leaves"):
        lrp.LRP(net, lrp.Epsilon(first=lrp.ZBox(0, 1))).attribute(pixels(0, 1), 1)
    hidden = lrp.Composite({"features.2": lrp.ZBox(-0.001, 0.001)}, default=lrp.EpsilonLayerwise(1e-6))
    with pytest.warns(InputWarning, match="ZBox: the layer's input"):
        lrp.LRP(build(VGGLike), hidden).attribute(pixels(0, 1), 1)


def test_isnet_training_warns_of_nothing() -> None:
    net = isnet.ISNet(build(Residual).float(), variant="selective")
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        net.train()(pixels(-0.02, 1.02).float())
        net.explain(pixels(0, 1).float(), 1)
    assert net.training


class Dropped(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.fc = layer, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(x))


class DropPath(nn.Identity):
    drop_prob = 0.1


TRAINING: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "dropout": (lambda: nn.Dropout(0.5), r"layer \(Dropout\) drops at random"),
    "alpha dropout": (lambda: nn.AlphaDropout(0.5), r"layer \(AlphaDropout\) drops at random"),
    "batch norm": (lambda: nn.BatchNorm1d(6), r"layer \(BatchNorm1d\) uses the statistics of this batch"),
    "stochastic depth": (DropPath, r"layer \(DropPath\) drops at random"),
    "rrelu": (nn.RReLU, r"layer \(RReLU\) drops at random"),
    "no dropout": (lambda: nn.Dropout(0.0), None),
    "layer norm": (lambda: nn.LayerNorm(6), None),
    "batch norm without statistics": (lambda: nn.BatchNorm1d(6, track_running_stats=False), None),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training_mode(name: str) -> None:
    make, text = TRAINING[name]
    net, x = Dropped(make()), torch.randn(4, 6)
    attribution = lrp.LRP(net.train(), check=False)
    for call in (lambda: attribution(x, 1), lambda: lrp.LRP(net, check=False).attribute(x, 1)):
        if text is None:
            with warnings.catch_warnings():
                warnings.simplefilter("error", InputWarning)
                call()
        else:
            with pytest.warns(
                InputWarning, match=f"the model is in training mode: {text}; call model.eval()"
            ) as caught:
                call()
            assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        attribution(x, 1)  # once for an object
        lrp.LRP(net.eval())(x, 1)
        net.layer.train()  # on purpose, as for Monte Carlo dropout
        lrp.LRP(net, check=False)(x, 1)
        with lrp.record(net.train(), x, check=False) as tape:  # what training uses
            tape.relevance(1)


def test_values_that_are_no_numbers() -> None:
    net, x = build(VGGLike), pixels(0, 1)
    x[1, 2, 3, 4], x[1, 2, 3, 5] = float("nan"), float("inf")
    for call in (lambda: lrp.LRP(net)(x, 1), lambda: lrp.LRP(net, lrp.EpsilonPlus()).attribute(x, 1)):
        with pytest.raises(
            NonFiniteError,
            match=r"input 0 holds 2 numbers that are NaN or infinite, of 864, the first at index \(1, 2, 3, 4\)",
        ):
            call()
    clean = lrp.LRP(net).attribute(x[:1], 1)
    assert bool(torch.isfinite(clean).all())


WRONG: list[tuple[Any, str]] = [
    (torch.zeros(2, 3, 12, 12, dtype=torch.uint8), r"got dtype torch.uint8; x.float\(\) / 255"),
    (np.zeros((2, 3, 12, 12)), r"got ndarray; torch.from_numpy\(x\)"),
    (torch.zeros(2, 3, 12, 12, dtype=torch.int64), "got dtype torch.int64"),
    (torch.zeros(2, 3, 12, 12, dtype=torch.bool), "got dtype torch.bool"),
    (torch.zeros(2, 3, 12, 12, dtype=torch.complex64), "got dtype torch.complex64"),
    ([[0.0]], "got list"),
]


@pytest.mark.parametrize(("x", "text"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_inputs_of_other_kinds(x: Any, text: str) -> None:
    with pytest.raises(TypeError, match=f"input 0 must be a floating-point tensor, {text}") as caught:
        lrp.LRP(build(VGGLike))(x, 1)
    assert "\n" not in str(caught.value)


def test_gradients_need_not_be_on() -> None:
    """Frozen parameters, inputs without gradients, no_grad and inference mode: the same heatmap, without a warning."""
    net, x = build(VGGLike), pixels(0, 1)
    expected = lrp.LRP(net).attribute(x.clone().requires_grad_(), 1).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [lrp.LRP(net.requires_grad_(False)).attribute(x, 1)]
        with torch.no_grad():
            found.append(lrp.LRP(net).attribute(x, 1))
        with torch.inference_mode():
            found.append(lrp.LRP(net).attribute(x, 1))
    assert all(torch.equal(heatmap, expected) for heatmap in found)
