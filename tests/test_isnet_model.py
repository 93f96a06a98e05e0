"""ISNet against numbers recorded from the public FasterISNet code (float64, batch norm with running statistics)."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrpkernels as lrp
from isnet import (
    ISNet,
    ISNetComposite,
    ISNetDualComposite,
    ISNetLoss,
    ISNetOutput,
    selective_score,
    stochastic_target,
)
from isnet.explanation import heatmaps
from isnet.variants import VARIANTS, PositiveEvidence
from isnet.variants.dual import logit_sum

DATA = Path(__file__).parent / "data"


def _recorded(name: str, form: str = "flex") -> dict[str, np.ndarray]:
    return dict(np.load(DATA / f"fasterisnet_{form}_a_bneval_{name}.npz"))


def _network(recorded: dict[str, np.ndarray]) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    ).double()  # fmt: skip
    state = {}
    for key, value in recorded.items():
        if key.startswith(("param__", "buffer__")):
            state[key.split("__", 1)[1]] = torch.from_numpy(value)
    net.load_state_dict(state)
    return net


def _training(net: ISNet) -> ISNet:
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return net


class _Fixed(ISNet):
    """A Stochastic ISNet whose draw is the recorded one."""

    def draw(self, index: np.ndarray) -> None:
        target = torch.from_numpy(index)
        explained = self._variant.epsilon()

        class Given(type(self._variant)):  # type: ignore[misc]
            def explained(self, logits: Tensor, place: object = None):  # type: ignore[no-untyped-def]
                from isnet.variants import Explained

                return [Explained(target, explained)]

        self._variant = Given(self.eps, self.input_range)


CASES = {
    "selective": ("selective", (0.0, 1.0), ()),
    "selective_noZb": ("selective", None, ()),
    "selective_LDS": ("selective", (0.0, 1.0), ("2", "5")),
    "stochastic": ("stochastic", (0.0, 1.0), ()),
    "original": ("original", (0.0, 1.0), ()),
}
LOSSES = {
    "L2_d0.9": {"foreground": "L2", "d": 0.9},
    "hybrid_d0.9": {"foreground": "hybrid", "d": 0.9},
    "L1_d0.9": {"foreground": "L1", "d": 0.9},
    "hybrid_d1_B3": {"foreground": "hybrid", "d": 1.0, "w_foreground": 3.0},
    "hybrid_d0_E10": {"foreground": "hybrid", "d": 0.0, "e": 10.0},
    "hybrid_RoIMean": {"foreground": "hybrid", "d": 0.9, "normalization": "signed"},
}


def _case(name: str) -> tuple[dict[str, np.ndarray], ISNet]:
    recorded = _recorded(name)
    variant, input_range, layers = CASES[name]
    net = _Fixed(_network(recorded), variant, eps=1e-2, input_range=input_range, layers=layers)  # type: ignore[arg-type]
    if variant == "stochastic":
        net.draw(recorded["explained_index"])
    return recorded, _training(net)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_heatmaps_equal_the_recorded_ones(name: str) -> None:
    recorded, net = _case(name)
    out = net(torch.from_numpy(recorded["x"]))
    np.testing.assert_allclose(out.logits.detach().numpy(), recorded["logits"], rtol=1e-9)
    assert set(out.heatmaps) == {"input", *CASES[name][2]}
    for layer, heatmap in out.heatmaps.items():
        expected = recorded[f"heatmap__{layer}"]
        assert heatmap.shape == expected.shape
        np.testing.assert_allclose(heatmap.detach().numpy(), expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", CASES)
def test_losses_and_parameter_gradients_equal_the_recorded_ones(name: str, loss: str) -> None:
    recorded, net = _case(name)
    layers = ("input", *CASES[name][2])
    bounds = {f"c{i}": {layer: float(recorded[f"C{i}__{layer}"]) for layer in layers} for i in (1, 2)}
    decay = 0.8
    criterion = ISNetLoss(p=0.7, layer_decay=decay, **bounds, **LOSSES[loss])  # type: ignore[arg-type]
    terms = criterion(
        net(torch.from_numpy(recorded["x"])), torch.from_numpy(recorded["y"]), torch.from_numpy(recorded["mask"])
    )
    np.testing.assert_allclose(terms.classification.item(), recorded["loss__CE"], rtol=1e-9)
    for layer in layers:
        np.testing.assert_allclose(terms.layers[layer].loss.item(), recorded[f"loss__{loss}__{layer}"], rtol=1e-9)
    np.testing.assert_allclose(terms.heatmap.item(), recorded[f"loss__{loss}__LDS_dLoss0.8"], rtol=1e-9)
    if loss not in ("L2_d0.9", "hybrid_d0.9"):  # gradients were recorded for these two
        return
    np.testing.assert_allclose(terms.total.item(), recorded[f"loss__{loss}__total"], rtol=1e-9)
    terms.total.backward()
    compared = 0
    for key, parameter in net.model.named_parameters():
        expected = recorded[f"grad__{loss}__{key}"]
        np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
        compared += 1
    assert compared == 7


def _small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def test_evaluation_mode_is_the_classifier_itself() -> None:
    model = _small()
    net = ISNet(model, "selective").eval()
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(net(x), model(x))
    assert set(net.state_dict()) == {f"model.{k}" for k in model.state_dict()}


def test_training_mode_moves_batch_statistics_once_as_the_classifier_does() -> None:
    model = _small()
    twin = copy.deepcopy(model)
    x = torch.rand(4, 1, 8, 8)
    out = ISNet(model, "original", input_range=None).train()(x)
    expected = twin.train()(x)
    torch.testing.assert_close(out.logits, expected, rtol=0, atol=0)
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("variant", "maps"),
    [("selective", 1), ("stochastic", 1), ("original", 3), ("dual", 2), ("gradient_times_input", 1)],
)
def test_every_variant_trains_and_gives_its_number_of_maps(variant: str, maps: int) -> None:
    net = ISNet(_small(), variant, layers=["2"]).train()  # type: ignore[arg-type]
    out = net(torch.rand(2, 1, 8, 8))
    assert isinstance(out, ISNetOutput)
    assert out.heatmaps["input"].shape == (2, maps, 1, 8, 8)
    assert out.heatmaps["2"].shape == (2, maps, 4, 6, 6)
    masks = torch.zeros(2, 1, 8, 8)
    masks[:, :, 2:6, 2:6] = 1
    ISNetLoss()(out, torch.tensor([0, 2]), masks).total.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in net.parameters())


@pytest.mark.parametrize("variant", ["selective", "stochastic", "original", "dual", "gradient_times_input"])
def test_several_labels_change_the_classification_alone(variant: str) -> None:
    masks = torch.zeros(2, 1, 8, 8)
    masks[:, :, 2:6, 2:6] = 1
    out = ISNet(_small(), variant, layers=["2"]).train()(torch.rand(2, 1, 8, 8))  # type: ignore[arg-type]
    labels = torch.tensor([[1, 0, 1], [0, 0, 0]])
    found, single = ISNetLoss(p=0.6)(out, labels, masks), ISNetLoss(p=0.6)(out, torch.tensor([0, 2]), masks)
    assert set(found.layers) == {"input", "2"} and torch.equal(found.heatmap, single.heatmap)
    expected = F.binary_cross_entropy_with_logits(out.logits, labels.float())
    torch.testing.assert_close(found.total, 0.4 * expected + 0.6 * single.heatmap)
    found.total.backward()


@pytest.mark.parametrize("loss", ["L2_d0.9", "hybrid_d0.9"])
def test_dual_heatmaps_and_gradients_equal_the_recorded_ones_in_the_layer_form(loss: str) -> None:
    recorded = _recorded("dual", "block")
    net = _training(ISNet(_network(recorded), "dual", eps=1e-2, form="layerwise"))
    out, model = net(torch.from_numpy(recorded["x"])), net.model
    heatmaps, expected = out.heatmaps["input"], recorded["heatmap__input"]
    np.testing.assert_allclose(heatmaps.detach().numpy(), expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())
    criterion = ISNetLoss(c1=recorded["C1__input"].tolist(), c2=recorded["C2__input"].tolist(), **LOSSES[loss])  # type: ignore[arg-type]
    labels, masks = torch.from_numpy(recorded["y"]), torch.from_numpy(recorded["mask"])
    terms = criterion(out, labels, masks)
    np.testing.assert_allclose(terms.total.item(), recorded[f"loss__{loss}__total"], rtol=1e-9)
    terms.total.backward()
    compared = 0
    for key, parameter in model.named_parameters():
        gradient = recorded[f"grad__{loss}__{key}"]
        if (
            key == "8.bias"
        ):  # the public code detaches it in the explained logits; ours are the model's own, so it learns from both losses
            continue
        np.testing.assert_allclose(parameter.grad.numpy(), gradient, rtol=1e-9, atol=1e-9 * np.abs(gradient).max())
        compared += 1
    assert compared == 6


def test_dual_isnet_gives_the_recorded_maps_up_to_where_the_stabilizer_stands() -> None:
    recorded = _recorded("dual", "block")
    x, expected = torch.from_numpy(recorded["x"]), torch.from_numpy(recorded["heatmap__input"])
    maps = _training(ISNet(_network(recorded), "dual", eps=1e-2))(x).heatmaps["input"].detach()
    deviation = (maps - expected).abs().amax((0, 2, 3, 4)) / expected.abs().amax((0, 2, 3, 4))
    assert deviation[0] < 0.01 and deviation[1] < 0.2


@pytest.mark.parametrize("variant", ["selective", "stochastic", "original", "dual"])
def test_the_layer_form_agrees_with_flex_as_eps_vanishes_and_trains(variant: str) -> None:
    torch.manual_seed(3)
    x, masks = torch.rand(3, 1, 10, 10, dtype=torch.float64), torch.zeros(3, 1, 10, 10)
    masks[..., 2:8, 2:8] = 1
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3),
    ).double()  # fmt: skip

    def maps(form: str, eps: float) -> Tensor:
        options = {"generator": torch.Generator().manual_seed(0), "form": form, "eps": eps}
        net = ISNet(copy.deepcopy(model), variant, **options).train()  # type: ignore[arg-type]
        out = net(x)
        ISNetLoss()(out, torch.tensor([0, 1, 2]), masks).total.backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in net.parameters())
        return out.heatmaps["input"].detach()

    far, near = (
        (maps("layerwise", eps) - maps("flex", eps)).abs().max() / maps("flex", eps).abs().max() for eps in (1e-2, 1e-9)
    )
    assert far > 1e-3 and near < 1e-5


def test_positive_evidence_of_signed_features_pairs_signs_as_the_rule_says() -> None:
    torch.manual_seed(0)
    head = nn.Linear(6, 4).double()
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 6).double(), head)
    x = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    with torch.no_grad(), lrp.record(model, x) as tape:
        found = tape.relevance(logit_sum, PositiveEvidence(1e-2, logits=tape.output), at=["1"])["1"]
    a = model[1](x.flatten(1)).detach()
    assert bool((a < 0).any()) and bool((a > 0).any())
    w, b = head.weight.detach(), head.bias.detach()
    contributions = (a.unsqueeze(1) * w).clamp(min=0)  # [B, K, features]: a+ w+ and a- w-
    evidence = contributions.sum(2) + b.clamp(min=0)
    expected = (contributions * (evidence / (evidence + 1e-2)).unsqueeze(2)).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_heatmaps_can_be_spared_and_looked_at() -> None:
    net = ISNet(_small(), "selective").train()
    x = torch.rand(2, 1, 8, 8)
    assert net(x, heatmaps=False).heatmaps == {}
    before = [m.training for m in net.modules()]
    running = net.model[1].running_mean.clone()
    logits, heatmap = net.explain(x, target=1)
    assert logits.shape == (2, 3) and heatmap.shape == x.shape and not heatmap.requires_grad
    assert [m.training for m in net.modules()] == before
    net.model.training = False  # a module inside may be in another mode than the whole
    net.explain(x)
    assert net.model[1].training and not net.model.training
    assert torch.equal(net.model[1].running_mean, running)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rules_known_ahead_are_those_of_the_passes(variant: str) -> None:
    """What a pass reads is kept for it: ``composites`` must foresee ``explained``, whose rule for the logits knows these."""
    found = VARIANTS[variant](1e-2, (0.0, 1.0), torch.Generator())
    asked = [explained.composite for explained in found.explained(torch.rand(2, 3))]
    assert [getattr(rule, "logits", None) is None for rule in found.composites()] == [True] * len(asked)
    known = [dataclasses.replace(rule, logits=None) if hasattr(rule, "logits") else rule for rule in asked]
    assert found.composites() == known


def test_composites_for_heatmaps_are_the_rules_of_training() -> None:
    model, x = _small().eval(), torch.rand(2, 1, 8, 8)
    dual = VARIANTS["dual"](0.1, (-1.0, 2.0)).composites()[0]
    for composite, rule in (
        (ISNetComposite(0.1, -1.0, 2.0), VARIANTS["selective"](0.1, (-1.0, 2.0)).epsilon()),
        (ISNetDualComposite(0.1, -1.0, 2.0), lrp.ZPlus(0.1, first=dual.first)),
    ):
        assert torch.equal(lrp.LRP(model, composite)(x, 1)[1], lrp.LRP(model, rule)(x, 1)[1])


def test_explanations_are_the_evaluations_whatever_the_variant() -> None:
    model, x = _small(), torch.rand(2, 1, 8, 8)
    expected = heatmaps(model, x, target=2, eps=0.1, input_range=None)
    for variant in VARIANTS:
        found = ISNet(model, variant, eps=0.1, input_range=None).explain(x, 2)  # type: ignore[arg-type]
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_parts_of_a_batch_draw_what_the_whole_would() -> None:
    logits = torch.rand(12, 5)
    whole = stochastic_target(logits, torch.Generator().manual_seed(3))
    part = stochastic_target(logits[4:7], torch.Generator().manual_seed(3), (4, 12))
    assert torch.equal(part, whole[4:7])


def test_stochastic_draws_the_highest_logit_half_of_the_time_and_repeats_with_its_generator() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).expand(20000, 4)
    drawn = stochastic_target(logits, torch.Generator().manual_seed(1))
    counts = torch.bincount(drawn, minlength=4) / 20000
    torch.testing.assert_close(counts, torch.tensor([1 / 6, 1 / 2, 1 / 6, 1 / 6]), atol=0.015, rtol=0)
    assert torch.equal(drawn, stochastic_target(logits, torch.Generator().manual_seed(1)))
    with pytest.raises(ValueError, match="at least 2"):
        stochastic_target(torch.zeros(3, 1))


def test_selective_score_is_the_log_odds_of_the_lowest_class() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.1, 30.0]], dtype=torch.float64)
    p = logits.softmax(1)[[0, 1], [1, 0]]
    torch.testing.assert_close(selective_score(logits), torch.log(p + 1e-2) - torch.log(1 - p + 1e-2))
    torch.testing.assert_close(selective_score(logits, 0.0), torch.log(p / (1 - p)))
    assert selective_score(logits.half()).dtype == torch.float32


@pytest.mark.parametrize("variant", ["selective", "stochastic", "gradient_times_input"])
def test_one_class_is_refused_by_variants_that_compare_classes(variant: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 1))
    with pytest.raises(ValueError, match="at least 2, the model has 1"):
        ISNet(model, variant).train()(torch.rand(2, 1, 5, 5))  # type: ignore[arg-type]


def test_pixels_far_outside_the_input_range_are_refused_in_the_first_training_batch() -> None:
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"lie outside input_range=\(0\.0, 1\.0\)"):
        ISNet(_small()).train()(x * 255)
    assert ISNet(_small(), input_range=None).train()(x * 255).heatmaps
    assert ISNet(_small()).train()(x * 1.1 - 0.05).heatmaps  # as interpolation may overshoot
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    normalized = torch.rand(2, 3, 5, 5) * torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1) - 1
    assert ISNet(net, input_range=((-1.0, -1.0, -1.0), (0.0, 1.0, 3.0))).train()(normalized).heatmaps
    with pytest.raises(ValueError, match="lie outside"):
        ISNet(net, input_range=((-1.0, -1.0, -1.0), (3.0, 1.0, 0.0))).train()(normalized)


def test_bad_settings_are_named() -> None:
    model = _small()
    with pytest.raises(ValueError, match="variant must be one of selective, stochastic"):
        ISNet(model, "best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="form must be one of flex, layerwise, got 'block'"):
        ISNet(model, form="block")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no module 'layer2'"):
        ISNet(model, layers=["layer2"])
    with pytest.raises(ValueError, match="list of module names"):
        ISNet(model, layers="2")
    with pytest.raises(ValueError, match="eps"):
        ISNet(model, eps=-1)
    with pytest.raises(ValueError, match="low must be below high"):
        ISNet(model, input_range=(1.0, 0.0))
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        ISNet(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \[B, K\]"):
        ISNet(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())).train()(torch.rand(1, 1, 5, 5))
