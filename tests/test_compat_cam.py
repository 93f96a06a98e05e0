"""lrpkernels.compat.cam: pytorch-grad-cam's call, targets and heatmaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Residual, VGGLike, build
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.compat.cam import LRPCAM, ClassifierOutputTarget

X = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
TARGETS = [ClassifierOutputTarget(c) for c in (4, 0, 2)]


def scaled(maps: Tensor) -> np.ndarray[Any, Any]:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low).clamp(min=1e-30)).numpy()


@pytest.mark.parametrize("network", [VGGLike, Residual])
def test_relevance_of_the_input(network: type[nn.Module]) -> None:
    net = build(network).float()
    found = LRPCAM(model=net)(input_tensor=X, targets=TARGETS)
    with torch.no_grad():
        relevance = lrp.LRP(net.eval(), lrp.EpsilonPlus()).attribute(X, torch.tensor([4, 0, 2]))
    assert found.dtype == np.float32 and found.shape == (3, 12, 12)
    np.testing.assert_allclose(found, scaled(relevance.sum(1).clamp(min=0)), atol=1e-6)
    assert found.min() == 0 and found.max() == 1


def test_relevance_of_layers() -> None:
    net = build(Residual).float().train()
    rule = lrp.EpsilonLayerwise(1e-6)
    with LRPCAM(model=net, target_layers=[net.layer1, net.layer2], composite=rule) as cam:
        found = cam(input_tensor=X, targets=TARGETS)
        assert cam.outputs.shape == (3, 5)
    assert net.training and cam.outputs is None and not any(m._forward_hooks for m in net.modules())
    net.eval()
    with torch.no_grad(), lrp.record(net, X) as tape:
        maps = tape.relevance(torch.tensor([4, 0, 2]), rule, at=["layer1", "layer2"])
    parts = [scaled(maps[name].sum(1).clamp(min=0)) for name in ("layer1", "layer2")]
    sizes = [F.interpolate(torch.tensor(p)[:, None], (12, 12), mode="bilinear")[:, 0] for p in parts]
    np.testing.assert_allclose(found, scaled(torch.stack(sizes).mean(0)), atol=1e-5)
    highest = LRPCAM(net, [net.layer2])(X)
    answers = [ClassifierOutputTarget(int(c)) for c in net(X).argmax(1)]
    np.testing.assert_array_equal(highest, LRPCAM(net, [net.layer2])(X, answers))
    reused = LRPCAM(net, [net.layer1[0].relu])(X)  # it runs twice
    assert reused.shape == (3, 12, 12) and np.isfinite(reused).all()


class Probability:
    """A target of somebody else's, without a base class."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        return torch.softmax(model_output, -1)[self.category]


def test_targets_are_callables() -> None:
    net = build(VGGLike).float()
    found = LRPCAM(net)(X, [Probability(4), lambda output: output[0] - output[1], ClassifierOutputTarget(2)])
    for i, target in enumerate((Probability(4), lambda output: output[0] - output[1], ClassifierOutputTarget(2))):
        np.testing.assert_allclose(found[i : i + 1], LRPCAM(net)(X[i : i + 1], [target]), atol=1e-5)
    assert repr(TARGETS[0]) == "ClassifierOutputTarget(4)"


class Dense(nn.Module):
    """Logits at every position, and a global answer by the mask of the target."""

    def __init__(self, dimensions: int = 2) -> None:
        super().__init__()
        conv = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.body, self.head = conv(3, 6, 3, padding=1), conv(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x)))


def test_segmentation_and_volumes() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(12, 12)
    mask[2:5, 2:5] = 1
    net = Dense()
    found = LRPCAM(net)(X, [lambda output: (output[1] * mask).sum()] * 3)
    assert found.shape == (3, 12, 12) and found[:, 6:, 6:].max() == 0  # nothing far from the mask
    volumes = LRPCAM(Dense(3), composite=lrp.Epsilon())(torch.rand(2, 3, 6, 6, 6), [lambda output: output[1].sum()] * 2)
    assert volumes.shape == (2, 6, 6, 6)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.block, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return self.fc(F.gelu(self.block(tokens)).mean(1))


def test_tokens_are_reshaped() -> None:
    net = Tokens()
    with pytest.raises(ValueError, match=r"'block' returns \[3, 9, 8\], expected 2 dimensions of positions"):
        LRPCAM(net, [net.block])(X)
    found = LRPCAM(net, [net.block], lambda r: r.transpose(1, 2).unflatten(2, (3, 3)))(X)
    assert found.shape == (3, 12, 12)


def test_smoothing() -> None:
    net = build(VGGLike).float()
    cam = LRPCAM(net)
    found = cam(X, TARGETS, aug_smooth=True)
    parts = [cam(X * s, TARGETS) for s in (0.9, 1.0, 1.1)] + [
        cam(X.flip(3) * s, TARGETS)[..., ::-1] for s in (0.9, 1.0, 1.1)
    ]
    np.testing.assert_allclose(found, np.mean(parts, 0), atol=1e-6)


WRONG: list[tuple[Callable[[nn.Module], Any], type[Exception], str]] = [
    (lambda net: LRPCAM(net)(X, TARGETS, eigen_smooth=True), ValueError, "eigen_smooth: not for relevance"),
    (
        lambda net: LRPCAM(net)(X, TARGETS[:2]),
        ValueError,
        "targets: expected a list with one per image, 3, or None, got 2",
    ),
    (lambda net: LRPCAM(net)(X, TARGETS[0]), ValueError, "got one callable"),
    (lambda net: LRPCAM(net)(X[0]), Exception, ""),
    (lambda net: LRPCAM(net)(X.numpy()), ValueError, "input_tensor must be a tensor of images .* got ndarray"),
    (lambda net: LRPCAM(net)(X[0, 0]), ValueError, r"input_tensor must be a tensor of images .* got \[12, 12\]"),
    (lambda net: LRPCAM(net, [nn.ReLU()]), ValueError, "target_layers: ReLU is no module of this model"),
    (lambda net: LRPCAM(net, ["features"]), ValueError, "target_layers: str is no module"),
    (lambda net: LRPCAM(net, net.features), TypeError, "target_layers must be a list of modules, got Sequential"),
    (lambda net: LRPCAM(net, net.features[0]), TypeError, "target_layers must be a list of modules"),
    (lambda net: LRPCAM(net, [net.classifier])(X), ValueError, r"'classifier' returns \[3, 5\]"),
    (lambda net: LRPCAM(net)(X, [ClassifierOutputTarget(9)] * 3), IndexError, "9"),
]


@pytest.mark.parametrize(("call", "error", "text"), WRONG, ids=[text[:30] for _, _, text in WRONG])
def test_wrong_arguments(call: Callable[[nn.Module], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(build(VGGLike).float())


def test_a_map_without_relevance_is_zero() -> None:
    net = build(VGGLike).float()
    found = LRPCAM(net)(torch.zeros_like(X), TARGETS)
    assert found.shape == (3, 12, 12) and np.isfinite(found).all() and found.max() == 0
    assert LRPCAM(net)(X[:0], []).shape == (0, 12, 12)
