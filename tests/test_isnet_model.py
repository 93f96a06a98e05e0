"""ISNet against numbers recorded from the public FasterISNet code (float64, batch norm with running statistics)."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lrpkernels as lrp
from isnet import ISNet, ISNetLoss, ISNetOutput, selective_score, stochastic_target

DATA = Path(__file__).parent / "data"


def _recorded(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(DATA / f"fasterisnet_flex_a_bneval_{name}.npz"))


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
            def explained(self, logits: Tensor):  # type: ignore[no-untyped-def]
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
    if f"loss__{loss}__total" not in recorded:
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


def test_dual_maps_are_z_plus_and_epsilon_of_the_logit_sum() -> None:
    model = _small().eval()
    net = ISNet(model, "dual", input_range=(0.0, 2.0)).train()
    model.eval()
    x = torch.rand(2, 1, 8, 8)
    maps = net(x).heatmaps["input"]
    for index, rule in enumerate((lrp.ZPlus, lrp.Epsilon)):
        _, expected = lrp.LRP(model, rule(1e-2, first=lrp.ZBox(0.0, 2.0)))(x, lambda o: o.sum(1))
        torch.testing.assert_close(maps[:, index], expected)


def test_heatmaps_can_be_spared_and_looked_at() -> None:
    net = ISNet(_small(), "selective").train()
    x = torch.rand(2, 1, 8, 8)
    assert net(x, heatmaps=False).heatmaps == {}
    before = [m.training for m in net.modules()]
    running = net.model[1].running_mean.clone()
    logits, heatmap = net.explain(x, target=1)
    assert logits.shape == (2, 3) and heatmap.shape == x.shape and not heatmap.requires_grad
    assert [m.training for m in net.modules()] == before
    assert torch.equal(net.model[1].running_mean, running)


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


def test_bad_settings_are_named() -> None:
    model = _small()
    with pytest.raises(ValueError, match="variant must be one of selective, stochastic"):
        ISNet(model, "best")  # type: ignore[arg-type]
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
