"""Which epoch is kept: the rules, the guard that no epoch worse than the class shares passes, and what is told of the choice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from settings import train_config
from torch import Tensor, nn
from torch.utils.data import Dataset

from isnet import ISNetLoss
from isnet.model import ISNet
from isnet.training import fit
from isnet.training.distributed import World
from isnet.training.kept import kept_epoch
from isnet.training.loop import BEST_NAME
from isnet.training.validation import RULES, Watch, epoch_scores, worth


def scores(**changes: Any) -> dict[str, Any]:
    """Validation scores of an epoch that may be kept."""
    found = {"loss": 0.5, "classification": 0.4, "heatmap": 0.6, "prior": math.log(2), "background": 0.25}
    return {**found, "accuracy": 0.8, "balanced_accuracy": 0.8, "auc": 0.9, **changes}


@pytest.mark.parametrize("monitor", list(RULES))
def test_every_rule_refuses_an_epoch_worse_than_the_class_shares(monitor: Any) -> None:
    assert worth(monitor, scores()) is not None
    for classification in (math.log(2), 0.7, 40.0, math.inf, math.nan):
        assert worth(monitor, scores(classification=classification)) is None
    # With validation images of one class that loss is 0, and nothing could be kept.
    assert worth(monitor, scores(prior=0.0)) is not None


def test_values() -> None:
    assert worth("loss", scores()) == 0.5 and worth("classification", scores()) == 0.4
    assert worth("accuracy", scores()) == 0.8 and worth("auc", scores()) == 0.9
    assert worth("balanced", scores()) == pytest.approx(0.8 * 0.75)
    assert worth("balanced", scores(background=None)) == 0.8  # no masks
    assert worth("auc", scores(auc=None)) is None and worth("loss", scores(loss=math.nan)) is None


def test_the_case_that_was_seen() -> None:
    """50 % with a background share of 37 % was kept over 80 % with 25 %, because its heatmap loss was smaller."""
    collapsed = scores(accuracy=0.5, balanced_accuracy=0.5, classification=0.9, heatmap=0.1, loss=0.34, background=0.37)
    good = scores(loss=0.54)
    watch = Watch("loss", None)
    assert [watch.see(worth("loss", epoch)) for epoch in (collapsed, good, collapsed)] == [False, True, False]
    assert watch.best == 0.54


def test_patience_begins_with_the_first_epoch_that_may_be_kept() -> None:
    watch = Watch("auc", 2)
    assert not any(watch.see(None) for _ in range(9)) and not watch.is_over and watch.best is None
    assert watch.see(0.6) and not watch.see(None) and not watch.is_over
    again = Watch("auc", 2)
    again.restore(json.loads(json.dumps(watch.state())))
    assert not again.see(0.5) and again.is_over and again.best == 0.6


def epoch(number: int, score: float | None, best: bool | None = None, **more: Any) -> dict[str, Any]:
    entry = {"kind": "epoch", "epoch": number, "step": 10 * number, "score": score, "validation": scores(), **more}
    return entry if best is None else {**entry, "best": best}


def test_what_was_kept_and_why() -> None:
    log = [epoch(1, 0.9), epoch(2, None, False), epoch(3, 0.4, True), epoch(4, 0.5, False), epoch(5, 0.45, False)]
    kept = kept_epoch([{"kind": "step", "step": 1}, *log], "loss")
    assert kept is not None and (kept.epoch, kept.epochs, kept.step, kept.score, kept.refused) == (3, 5, 30, 0.4, 1)
    assert kept.runner_up == (5, 0.45) and kept.warning is None  # not the warm-up's 0.9
    assert kept.text == (
        "epoch 3 of 5, by loss on the validation images (lowest: 0.4; then epoch 5: 0.45); 1 epoch not considered, no better than the "
        "class shares"
    )
    assert json.loads(json.dumps(kept.to_json()))["runner_up"] == {"epoch": 5, "score": 0.45}


def test_nothing_could_be_kept() -> None:
    kept = kept_epoch([epoch(1, None, False), epoch(2, None, False)], "balanced")
    assert kept is not None and kept.epoch == 2 and kept.score is None
    assert kept.warning is not None and "no epoch had a validation loss below" in kept.warning
    assert "last" in kept.text


def test_without_a_rule_and_without_epochs() -> None:
    kept = kept_epoch([epoch(1, None), epoch(2, None)], None)
    assert kept is not None and kept.epoch == 2 and "nothing chose" in kept.text and kept.warning is None
    assert kept_epoch([{"kind": "step", "step": 3}], "loss") is None and kept_epoch([], None) is None


class Halves(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Images whose left half is brighter in class 1; the mask is that half."""

    def __init__(self, count: int, flip: bool = False, several: bool = False) -> None:
        self.labels = torch.arange(count) % 2
        noise = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(count))
        self.images = 0.3 * noise
        self.images[:, :, :, :2] += 0.6 * self.labels.float().reshape(-1, 1, 1, 1)
        self.masks = torch.zeros(count, 1, 4, 4)
        self.masks[..., :2] = 1
        if flip:
            self.labels = 1 - self.labels
        if several:
            self.labels = torch.stack([self.labels, 1 - self.labels], 1).float()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.images[index], self.labels[index], self.masks[index]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


@pytest.mark.parametrize("monitor", list(RULES))
@pytest.mark.parametrize("several", [False, True], ids=["classes", "labels"])
def test_the_log_says_what_each_rule_needs(monitor: Any, several: bool) -> None:
    data = Halves(24, several=several)
    model = network()
    guarded = ISNet(model, "stochastic", generator=torch.Generator().manual_seed(0))
    found = epoch_scores(
        model, {"val": data, "more": data}, World(), monitor=monitor, isnet=guarded, criterion=ISNetLoss(), p=0.5
    )
    assert set(found["accuracy"]) == set(found["auc"]) == set(found["balanced_accuracy"]) == {"val", "more"}
    values = found["validation"]
    assert values["prior"] == pytest.approx(math.log(2)) and values["auc"] == found["auc"]["val"]
    assert ("heatmap" in values) == RULES[monitor].heatmap_loss and ("background" in values) == (monitor == "balanced")
    assert json.loads(json.dumps(found)) == found


def test_answers_that_are_not_finite_do_not_stop_training() -> None:
    model = network()
    nn.init.constant_(model[3].bias, math.nan)  # type: ignore[arg-type,index]
    found = epoch_scores(model, {"val": Halves(8)}, World(), monitor="auc")
    assert found["auc"] == {"val": None} and "not finite" in found["warnings"][0]["text"]
    assert worth("auc", found["validation"]) is None


@pytest.mark.parametrize("monitor", list(RULES))
def test_training_keeps_no_epoch_on_labels_that_contradict(tmp_path: Path, monitor: Any) -> None:
    """The validation labels are exchanged: the better the network, the worse it is there, and nothing may be kept."""
    config = train_config(epochs=3, batch_size=12, lr=2e-2, monitor=monitor)
    log = fit(
        network(), Halves(48), config, validation={"val": Halves(24, flip=True)}, run_dir=tmp_path, progress=False
    )
    epochs = [entry for entry in log if entry["kind"] == "epoch"]
    refused = [entry["score"] is None for entry in epochs]
    assert refused[-1] and epochs[-1]["accuracy"]["val"] < 0.5
    assert "inverted" in [caution["kind"] for caution in epochs[-1]["warnings"]]
    if all(refused):
        assert not (tmp_path / BEST_NAME).exists()
        kept = kept_epoch(log, monitor)
        assert kept is not None and kept.warning is not None and kept.epoch == 3


@pytest.mark.parametrize("monitor", list(RULES))
def test_training_keeps_the_best_by_each_rule(tmp_path: Path, monitor: Any) -> None:
    config = train_config(epochs=4, batch_size=12, lr=2e-2, monitor=monitor)
    data = {"val": Halves(24)}
    log = fit(network(), Halves(48), config, validation=data, run_dir=tmp_path, progress=False)
    known = [entry for entry in log if entry["kind"] == "epoch" and entry["score"] is not None]
    best = (max if RULES[monitor].rises else min)(entry["score"] for entry in known)
    kept = kept_epoch(log, monitor)
    assert kept is not None and kept.score == best and (tmp_path / BEST_NAME).exists()
