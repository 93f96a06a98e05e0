"""lrpkernels.compat.quantus: Quantus' convention for explain functions, and its metrics where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from networks import Residual, VGGLike, build
from torch import nn

import lrpkernels as lrp
from benchmarks.zennit_import import import_zennit
from lrpkernels.compat.quantus import explain

X = np.random.default_rng(0).random((4, 3, 12, 12), dtype=np.float32)
Y = np.array([0, 1, 2, 3])


def heatmap(net: nn.Module, composite: Any, x: Any = X, y: Any = Y) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        found = lrp.LRP(net.eval(), composite).attribute(torch.as_tensor(x), torch.as_tensor(y))
    return found.numpy()


@pytest.mark.parametrize("network", [VGGLike, Residual])
def test_the_convention(network: type[nn.Module]) -> None:
    net = build(network).float()
    expected = heatmap(net, lrp.EpsilonPlus())
    net.train()
    found = explain(model=net, inputs=X, targets=Y)
    assert net.training and isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.sum(1, keepdims=True))
    np.testing.assert_array_equal(
        explain(net, torch.tensor(X), torch.tensor(Y), reduce_axes=(), device="cpu"), expected
    )
    assert explain(net, X, Y, keepdims=False).shape == (4, 12, 12)
    assert explain(net, X, Y, reduce_axes=[-1, -2], keepdims=False).shape == (4, 3)
    np.testing.assert_array_equal(explain(net, X, 2, reduce_axes=()), heatmap(net, lrp.EpsilonPlus(), X, [2] * 4))
    for labels in (Y.astype(np.float64), Y.astype(np.int32), torch.tensor(Y).to(torch.uint8)):
        np.testing.assert_array_equal(explain(net, X, labels, reduce_axes=()), expected)
    np.testing.assert_allclose(explain(net, X.astype(np.float64), Y, reduce_axes=()), expected)
    assert explain(net, X[:0], Y[:0]).shape == (0, 1, 12, 12)
    assert explain(net.double(), X, Y).dtype == np.float64


@pytest.mark.parametrize("method", ["Gradient", "EpsilonPlusFlat", "EpsilonGammaBox", "ZPlus", "GuidedBackprop"])
def test_methods_are_rules_and_presets(method: str) -> None:
    net = build(VGGLike).float()
    expected = heatmap(net, getattr(lrp, method)())
    np.testing.assert_array_equal(explain(net, X, Y, method=method, reduce_axes=()), expected)
    np.testing.assert_array_equal(explain(net, X, Y, composite=getattr(lrp, method)(), reduce_axes=()), expected)


def test_tables_are_not_reduced() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    assert explain(net, X[:, 0, 0, :6], Y).shape == (4, 6)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"methods": "Epsilon"}, TypeError, "unknown option 'methods'; there are method"),
    ({"method": "epsilonplus"}, ValueError, "no rule or preset is called 'epsilonplus'; near matches: EpsilonPlus"),
    ({"method": "Saliency"}, ValueError, "no rule or preset is called 'Saliency'"),
    ({"method": "AttnLRP"}, ValueError, "is called 'AttnLRP'"),
    ({"method": "Rule"}, ValueError, "is called 'Rule'"),
    ({"method": 3}, ValueError, "is called 3"),
    ({"method": "ZPlus", "composite": lrp.ZPlus()}, TypeError, "not both"),
    ({"targets": np.array([0.5, 1, 2, 3])}, ValueError, "targets must hold one class index per image"),
    ({"targets": np.array([0, 1])}, ValueError, r"shape \[4\], or one for all, got torch.int64 of shape \(2,\)"),
    ({"targets": np.eye(4)}, ValueError, "targets must hold one class index"),
    ({"targets": 99}, ValueError, "class 99 is out of range"),
    ({"reduce_axes": (0,)}, ValueError, "reduce_axes must lie between 1 and 3"),
    ({"reduce_axes": (4,)}, ValueError, "reduce_axes must lie between 1 and 3"),
]


@pytest.mark.parametrize(("options", "error", "text"), WRONG, ids=lambda v: repr(v)[:40])
def test_wrong_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        explain(build(VGGLike).float(), X, **{"targets": Y, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_metrics_of_quantus() -> None:
    pytest.importorskip("cv2", reason="Quantus is installed by `make peers`")
    pytest.importorskip("cachetools")
    import_zennit()  # Quantus imports it, and it torchvision
    quantus = pytest.importorskip("quantus")
    net = build(Residual).float()
    given = {"model": net, "x_batch": X, "y_batch": Y, "explain_func": explain}
    quiet = {"disable_warnings": True, "display_progressbar": False}
    sparseness = quantus.Sparseness(**quiet)
    scores = sparseness(**given, explain_func_kwargs={"method": "EpsilonPlus"}, device="cpu")
    maps = explain(net, X, Y, method="EpsilonPlus")
    np.testing.assert_allclose(scores, sparseness(**{**given, "explain_func": None}, a_batch=maps))
    assert scores != sparseness(**given, explain_func_kwargs={"composite": lrp.Gradient()})
    flipping = quantus.PixelFlipping(features_in_step=36, perturb_baseline="black", **quiet)(**given)
    assert np.shape(flipping) == (4, 12)
    assert len(quantus.RandomLogit(num_classes=5, **quiet)(**given)) == 4
    assert len(quantus.MPRT(**quiet)(**given)) > 0
