"""The public FasterISNet code's names and weights (isnet.faster_isnet), against numbers recorded from it."""

from __future__ import annotations

import collections
import copy
import json
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from isnet.config import RunConfig
from isnet.config.groups import ImagesConfig
from isnet.faster_isnet import (
    CompoundLoss,
    ISNetFlex,
    add_transition_relus,
    convert_state_dict,
    load_weights,
    read_checkpoint,
    save_run,
)
from isnet.faster_isnet.training import ISNetFlexLgt, ISNetLgt, variant_of
from isnet.runs import load_run
from isnet.training.checkpoints import CheckpointError

DATA = Path(__file__).parent / "data"
CASES: dict[str, dict[str, Any]] = {
    "selective": {"selective": True, "multiple": False},
    "selective_noZb": {"selective": True, "multiple": False, "Zb": False},
    "selective_LDS": {"selective": True, "multiple": False, "HiddenLayerPenalization": True, "layers": ("2", "5")},
    "original": {},
}
LOSSES: dict[str, dict[str, Any]] = {
    "L2_d0.9": {"d": 0.9},
    "hybrid_d0.9": {"d": 0.9, "alternativeForeground": "hybrid"},
    "L1_d0.9": {"d": 0.9, "alternativeForeground": "L1"},
    "hybrid_d1_B3": {"B": 3, "alternativeForeground": "hybrid"},
    "hybrid_d0_E10": {"d": 0, "E": 10, "alternativeForeground": "hybrid"},
    "hybrid_RoIMean": {"d": 0.9, "norm": "RoIMean", "alternativeForeground": "hybrid"},
}


def _recorded(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(DATA / f"fasterisnet_flex_a_bneval_{name}.npz"))


def _network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    ).double()  # fmt: skip


def _state(recorded: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {k.split("__", 1)[1]: torch.tensor(v) for k, v in recorded.items() if k.startswith(("param__", "buffer__"))}


def _training(net: nn.Module) -> nn.Module:
    net.train()
    net.get_submodule("model.1").eval()
    return net


@pytest.mark.parametrize("name", CASES)
def test_heatmaps_equal_the_recorded_ones(name: str) -> None:
    recorded = _recorded(name)
    net = _training(ISNetFlex(load_weights(_network(), _state(recorded)), **CASES[name]))
    out = net(torch.from_numpy(recorded["x"]), runLRPFlex=True)
    np.testing.assert_allclose(out["output"].detach().numpy(), recorded["logits"], rtol=1e-9)
    keys = [key for key in recorded if key.startswith("heatmap__")]
    assert {f"heatmap__{layer}" for layer in out["LRPFlex"]} == set(keys)
    for key in keys:
        heatmap = out["LRPFlex"][key.removeprefix("heatmap__")].detach().numpy()
        np.testing.assert_allclose(heatmap, recorded[key], rtol=1e-9, atol=1e-12 * np.abs(recorded[key]).max())


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_gradients_equal_the_recorded_ones(loss: str) -> None:
    recorded = _recorded("selective")
    net = _training(ISNetFlex(load_weights(_network(), _state(recorded)), selective=True, multiple=False))
    out = net(torch.from_numpy(recorded["x"]), runLRPFlex=True)
    y, mask = torch.from_numpy(recorded["y"]).long(), torch.from_numpy(recorded["mask"])
    cuts = {"cutFlex": float(recorded["C1__input"]), "cut2Flex": float(recorded["C2__input"])}
    found = CompoundLoss(out, y, mask, tuneCut=True, **cuts, **LOSSES[loss])
    torch.testing.assert_close(found["classification"].item(), float(recorded["loss__CE"]), rtol=1e-6, atol=0)
    torch.testing.assert_close(found["LRPFlex"].item(), float(recorded[f"loss__{loss}__input"]), rtol=1e-5, atol=0)
    totals = found["mapAbsFlex"]["input"].numpy()
    np.testing.assert_allclose(totals, recorded["tune_abs_total"], rtol=1e-6)
    if f"grad__{loss}__0.weight" in recorded:
        (0.3 * found["classification"] + 0.7 * found["LRPFlex"]).backward()
        for name, parameter in net.get_submodule("model").named_parameters():
            expected = recorded[f"grad__{loss}__{name}"]
            np.testing.assert_allclose(parameter.grad, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_labels_are_explained() -> None:
    net = ISNetFlex(_network(), multiple=False, explainLabels=True).eval()
    both = ISNetFlex(net.model, multiple=False, selective=True, explainLabels=True).eval()
    x, labels = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.tensor([3, 1])
    every = ISNetFlex(net.model).eval()(x, runLRPFlex=True)["LRPFlex"]["input"]
    found = net(x, runLRPFlex=True, labels=labels)["LRPFlex"]["input"]
    torch.testing.assert_close(found[:, 0], every[[0, 1], labels].detach())
    assert not found.requires_grad
    assert both(x, runLRPFlex=True, labels=labels[:, None])["LRPFlex"]["input"].shape == (2, 1, 3, 8, 8)
    with pytest.raises(ValueError, match="labels"):
        net(x, runLRPFlex=True)
    assert net(x)["LRPFlex"] is None and net.returnBackbone() is net.model


@pytest.mark.parametrize("flags", [{"selective": True}, {"multiple": False}, {"explainLabels": True}])
def test_flags_that_contradict_each_other_are_refused(flags: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        ISNetFlex(_network(), **flags)


# What stands ahead of the classifier's names, and copies of its first layer beside them.
PREFIXES = [
    "",
    "model.",
    "model.model.",
    "module.model.",
    "classifierDNN.",
    "module.classifierDNN.",
    "net.module.model.",
    "DenseNet.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_weights_under_every_prefix(prefix: str) -> None:
    plain = _state(_recorded("selective"))
    state = {f"{prefix}{name}": value for name, value in plain.items()}
    state |= {f"{prefix.removesuffix('model.')}ZbModule.layer.weight": plain["0.weight"].clone()}
    state |= {f"LRPBlock.model.{name}": value.clone() for name, value in plain.items()}
    state = dict(reversed(state.items()))
    net = load_weights(_network(), collections.OrderedDict(state))
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, plain[name])


def test_a_head_behind_dropout_and_a_missing_counter() -> None:
    class Net(nn.Module):
        def __init__(self, dropout: bool) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.fc: nn.Module = nn.Linear(4, 2)
            if dropout:
                self.fc = nn.Sequential(nn.Dropout(), self.fc)

    theirs = Net(True)
    state = {f"model.{k}": v for k, v in theirs.state_dict().items() if "tracked" not in k}
    ours = load_weights(Net(False), state)
    torch.testing.assert_close(ours.get_parameter("fc.weight"), theirs.get_parameter("fc.1.weight"))
    torch.testing.assert_close(
        load_weights(Net(True), state).get_parameter("fc.1.bias"), theirs.get_parameter("fc.1.bias")
    )


WRONG = [
    (lambda state: {**state, "model.8.weight": torch.zeros(7, 32)}, "shape \\(7, 32\\).*number of classes"),
    (lambda state: {**state, "model.9.weight": torch.rand(3, 3)}, "'model.9.weight'.*no place"),
    (lambda state: {k: v for k, v in state.items() if "4.bias" not in k}, "no entry 'model.4.bias'"),
    (lambda state: {"head.weight": torch.zeros(2)}, "no entry ends in"),
    (lambda state: {}, "no entry ends in"),
]


@pytest.mark.parametrize(("change", "text"), WRONG)
def test_weights_of_another_network_are_refused(change: Any, text: str) -> None:
    state = {f"model.{name}": value for name, value in _state(_recorded("selective")).items()}
    with pytest.raises(ValueError, match=text):
        convert_state_dict(change(state), _network())


class _Settings:
    """A Python object in a checkpoint."""


def test_files(tmp_path: Path) -> None:
    state = {f"model.model.{name}": value for name, value in _state(_recorded("selective")).items()}
    path = tmp_path / "lightning.ckpt"
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": {"P": 0.7, "cut": 1}, "global_step": 7}, path)
    assert set(read_checkpoint(path)) == set(state)
    torch.testing.assert_close(
        load_weights(_network(), path)(torch.ones(2, 3, 8, 8).double()).shape, torch.Size([2, 5])
    )
    torch.save({"state_dict": state, "hyper_parameters": {"model": _Settings()}}, path)
    with pytest.raises(CheckpointError, match=r"Python objects.*torch\.save"):
        read_checkpoint(path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=str(path)):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="expected a state dict"):
        read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="none"):
        read_checkpoint(tmp_path / "none")


def test_a_run_from_their_weights(tmp_path: Path) -> None:
    state = {f"classifierDNN.{name}": value for name, value in _state(_recorded("selective")).items()}
    config = RunConfig(data=ImagesConfig("x", classes=tuple("abcde"), size=(8, 8), channels=3)).replaced(
        arch="test_isnet_faster_isnet:make", variant="selective"
    )
    folder = save_run(tmp_path / "run", state, config)
    run = load_run(folder)
    assert json.loads((folder / "config.json").read_text())["network"]["variant"] == "selective"
    assert not run.model.training
    torch.testing.assert_close(run.model.state_dict()["0.weight"], state["classifierDNN.0.weight"].float())
    with pytest.raises(FileExistsError):
        save_run(folder, state, config)
    save_run(folder, state, config, overwrite=True)


def make(**_: Any) -> nn.Module:
    return _network().float()


def test_transitions_of_a_densenet_get_their_relu() -> None:
    body = nn.Sequential(
        collections.OrderedDict(norm=nn.BatchNorm2d(3), relu=nn.ReLU(), conv=nn.Conv2d(3, 4, 1), pool=nn.AvgPool2d(2))
    )
    net = nn.Sequential(collections.OrderedDict(transition1=body)).eval()
    x = torch.rand(1, 3, 4, 4)
    before, changed = net(x).detach(), add_transition_relus(add_transition_relus(copy.deepcopy(net)))
    assert [name for name, _ in changed.get_submodule("transition1").named_children()] == [
        "norm",
        "relu",
        "conv",
        "relu2",
        "pool",
    ]
    assert set(changed.state_dict()) == set(net.state_dict())
    assert float(changed(x).detach().min()) >= 0 > float(before.min())
    with pytest.raises(ValueError, match="expected a DenseNet"):
        add_transition_relus(nn.Sequential(nn.ReLU()))


MODULES: list[tuple[Any, dict[str, Any], str]] = [
    (ISNetFlexLgt, {"selective": True, "P": {0: 0.5, 1: 0.9}, "dropLr": [1]}, "selective"),
    (ISNetFlexLgt, {"randomLogit": True, "optim": "Adam", "clip": None}, "stochastic"),
    (ISNetFlexLgt, {"multiple": True, "heat": False}, "original"),
    (ISNetLgt, {"multiple": False, "rule": "z+e", "randomLogit": True, "cut": [1, 1], "cut2": [25, 25]}, "dual"),
    (ISNetLgt, {"nesterov": True}, "original"),
]


@pytest.mark.parametrize(("make_module", "options", "variant"), MODULES)
def test_lightning_modules_train(make_module: Any, options: dict[str, Any], variant: str, tmp_path: Path) -> None:
    model = _network().float()
    module = make_module(**{"model" if make_module is ISNetFlexLgt else "baseModel": model}, **options)
    assert module.network.variant == variant and module.network.model is model
    before = copy.deepcopy(model.state_dict())
    masks = (torch.rand(8, 1, 8, 8) > 0.5).float()
    batches = DataLoader(TensorDataset(torch.rand(8, 3, 8, 8), masks, torch.arange(8) % 5), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, batches, batches)
    assert not torch.equal(before["0.weight"], model.state_dict()["0.weight"])
    if "P" in options:
        assert module.criterion.p == 0.9
    assert "val_accuracy" in trainer.callback_metrics


def test_flags_of_the_lightning_modules() -> None:
    for arguments, text in (
        ({}, "expected one of"), ({"selective": True, "multiple": True}, "expected one of"), ({"selective": True, "rule": "z+e"}, "Dual"),
        ({"selective": True, "rule": "AB"}, "'e' or 'z\\+e'"), ({"explainLabels": True}, "ISNetFlex"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            variant_of(**{"selective": False, "multiple": False, "randomLogit": False, **arguments})
    with pytest.raises(ValueError, match="optim"):
        ISNetFlexLgt(_network(), selective=True, optim="Lion")
    with pytest.raises(ValueError, match="give the network"):
        ISNetFlexLgt(selective=True)
    with pytest.raises(ValueError, match="layers="):
        ISNetFlex(_network(), HiddenLayerPenalization=True)
