"""The LightningModule takes the steps that a loop written by hand takes."""

import copy
import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from isnet import ISNet, ISNetLoss
from isnet.lightning import ISNetModule

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(12, 1, 8, 8)
    masks[..., 2:6, 2:6] = 1
    return TensorDataset(torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 3, masks)


def network() -> ISNet:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return ISNet(nn.Sequential(*layers))


def by_hand(net: ISNet, loss: ISNetLoss, every: int) -> nn.Module:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=1e-2)
    for index, (images, labels, masks) in enumerate(DataLoader(data(), batch_size=4)):
        terms = loss(net.train()(images, heatmaps=(index + 1) % every == 0), labels, masks)
        optimizer.zero_grad()
        (0.4 * terms.classification + 0.6 * every * terms.heatmap).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("every", [1, 2])
def test_same_weights_as_by_hand(every: int) -> None:
    net, loss = network(), ISNetLoss(p=0.6)
    expected = by_hand(copy.deepcopy(net), loss, every)
    module = ISNetModule(net, loss, lr=0.01, heatmap_every=every)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about data loader processes
        trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", **QUIET)
        trainer.fit(module, DataLoader(data(), batch_size=4), DataLoader(data(), batch_size=4))
    for ours, theirs in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert {"train_loss", "val_loss", "val_accuracy"} <= set(trainer.callback_metrics)
    images: Tensor = data().tensors[0]
    assert torch.equal(module.eval()(images), net.eval()(images))


def test_heatmap_steps_are_counted_over_epochs_and_interruptions(tmp_path: Path) -> None:
    """Three batches an epoch, the heatmap on every fourth step."""
    steps: list[bool] = []

    class Counting(ISNetLoss):
        def forward(self, out: Any, *rest: Any) -> Any:
            steps.append(bool(out.heatmaps))
            return super().forward(out, *rest)

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about data loader processes, and a checkpoint within the folder of another
        for epochs, checkpoint in ((1, None), (3, tmp_path / "one.ckpt")):
            module = ISNetModule(network(), Counting(), heatmap_every=4)
            trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", **quiet)
            trainer.fit(module, DataLoader(data(), batch_size=4), ckpt_path=checkpoint)
            trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert steps == [False, False, False, True, False, False, False, True, False]


class Told(TensorDataset):
    """Notes the epoch in which each item was asked for."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        seen.append(self.epoch)
        return super().__getitem__(index)


seen: list[int] = []


def test_the_training_set_is_told_the_epoch() -> None:
    loader = DataLoader(Told(*data().tensors), batch_size=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", **QUIET)
        trainer.fit(ISNetModule(network(), ISNetLoss()), loader)
    assert seen == 12 * [0] + 12 * [1] + 12 * [2]


def test_faulty_settings() -> None:
    with pytest.raises(ValueError, match=r"heatmap_every >= 1, got 0\.1 and 0"):
        ISNetModule(network(), ISNetLoss(), lr=0.1, heatmap_every=0)
