"""The heatmap taken at a hidden layer in place of the input."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, build
from reference import FlexReLU, freeze_batch_norms, relevance_mode
from run_files import squares
from test_isnet_own_images import SIDE
from tiny_run import ARCH
from torch import Tensor, nn

import lrpkernels as lrp
from isnet import ISNet, ISNetLoss, ISNetOutput, selective_score
from isnet.config import ImagesConfig, RunConfig
from isnet.runs import build_network, evaluate_run, settled, train_run
from isnet.training.log import LOG_NAME, read_log
from isnet.training.ranges import RANGES_NAME, load_ranges
from isnet.variants import VARIANTS

X = torch.rand(4, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 4, 2])
MASKS = torch.zeros(4, 1, 12, 12)
MASKS[..., 3:9, 2:7] = 1


def _by_autograd(net: nn.Module, module: nn.Module) -> ISNetOutput:
    """Logits, and R = a G at the output of a module, by modified derivatives that PyTorch differentiates again."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _args, out: seen.append(out))
    logits = net(X)
    handle.remove()
    with relevance_mode(1e-2):
        (g,) = torch.autograd.grad(selective_score(logits).sum(), seen[0], create_graph=True)
    return ISNetOutput(logits, {"layer1": (seen[0] * g).unsqueeze(1)})


@pytest.mark.parametrize("training", [False, True])
def test_heatmap_loss_and_gradients_are_those_of_the_plain_formula(training: bool) -> None:
    model, slow = build(NETWORKS["residual"]), build(NETWORKS["residual"], FlexReLU)
    if training:
        freeze_batch_norms(slow)
    isnet = ISNet(model, supervise="layer1").train()
    model.train(training)
    criterion = ISNetLoss(c1=0.1, c2=0.2)
    out, expected = isnet(X), _by_autograd(slow, slow.layer1)
    assert list(out.heatmaps) == ["layer1"] and out.heatmaps["layer1"].shape == (4, 1, 6, 3, 3)
    torch.testing.assert_close(out.heatmaps["layer1"], expected.heatmaps["layer1"], rtol=1e-9, atol=1e-12)
    terms, by_autograd = (criterion(o, LABELS, MASKS) for o in (out, expected))
    assert list(terms.layers) == ["layer1"] and terms.layers["layer1"].background > 0.01
    terms.total.backward()
    by_autograd.total.backward()
    slow_parameters = dict(slow.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, slow_parameters[name].grad, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [{}, {"static": True}, {"checkpoint": True}, {"form": "layerwise"}], ids=str)
def test_the_heatmap_is_that_of_deep_supervision_bit_for_bit(variant: str, options: dict[str, Any]) -> None:
    model = build(NETWORKS["residual"])
    found = []
    for where in (
        {"supervise": "layer1"},
        {"supervise": "layer1", "layers": ["layer2", "layer1"]},
        {"layers": ["layer2", "layer1"]},
    ):
        net = ISNet(copy.deepcopy(model), variant, generator=torch.Generator(), **where, **options).train()
        for _ in range(2):  # static calls are run again
            assert net.generator is not None
            net.generator.manual_seed(3)
            net.zero_grad()
            out = net(X)
        terms = ISNetLoss()(out, LABELS, MASKS)
        terms.total.backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in net.parameters())
        found.append(out.heatmaps)
    alone, deep, whole = found
    assert (
        list(alone) == ["layer1"] and list(deep) == ["layer1", "layer2"] and set(whole) == {"input", "layer1", "layer2"}
    )
    assert torch.equal(alone["layer1"], whole["layer1"])
    assert torch.equal(deep["layer1"], whole["layer1"]) and torch.equal(deep["layer2"], whole["layer2"])


def test_places_that_cannot_be_supervised_are_named() -> None:
    model = build(NETWORKS["residual"])
    with pytest.raises(ValueError, match=r"supervise: the model has no module 'layer'; near matches: layer\d"):
        ISNet(model, supervise="layer")
    with pytest.raises(ValueError, match="supervise: the model has no module 2"):
        ISNet(model, supervise=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'layer1.0.relu' must run once"):
        ISNet(model, supervise="layer1.0.relu").train()(X)
    with pytest.raises(
        ValueError, match=r"cannot be laid on the relevance at 'fc', \(4, 1, 5\); supervise modules that"
    ):
        ISNetLoss()(ISNet(model, supervise="fc").train()(X), LABELS, MASKS)
    model.unused = nn.Conv2d(3, 2, 1)
    with pytest.raises(ValueError, match="ran 0 times"):
        ISNet(model, supervise="unused").train()(X)


def test_in_evaluation_it_is_the_classifier_and_is_explained_at_the_input() -> None:
    model = build(NETWORKS["residual"])
    net = ISNet(model, supervise="layer2").eval()
    assert torch.equal(net(X), model(X))
    assert net.explain(X, 1)[1].shape == X.shape
    assert torch.equal(net.explain(X, 1)[1], ISNet(model).explain(X, 1)[1])
    with torch.no_grad():
        assert torch.equal(lrp.LRP(model)(X, 1)[0], model(X))


def test_a_run_measures_its_ranges_there_and_is_scored_at_the_input(tmp_path: Path) -> None:
    data = ImagesConfig(str(squares(tmp_path / "set")), size=(SIDE, SIDE), channels=1)
    config = settled(
        RunConfig(data=data).replaced(arch=ARCH, epochs=1, tune=1, batch_size=8, supervise="second", log_every=1)
    )
    run = train_run(tmp_path / "run", config, progress=False)
    assert list(load_ranges(tmp_path / "run" / RANGES_NAME)) == ["second"]
    entries = [entry for entry in read_log(tmp_path / "run" / LOG_NAME) if entry.get("layers")]
    assert entries and all(list(entry["layers"]) == ["second"] for entry in entries)
    found = evaluate_run(run, resamples=20, progress=False)
    assert all(0 <= share <= 1 for share in found["background_attention"].values())
    with pytest.raises(ValueError, match="no module 'layer9'"):
        build_network(config.replaced(supervise="layer9"))
