"""Image folders for a Lightning trainer, in the order of isnet's own loop."""

from pathlib import Path

import pytest
from run_files import SIDE, squares
from test_isnet_lightning import _quiet, data, trainer  # noqa: F401
from torch import nn

from isnet.lightning import EpochOrder, ISNetDataModule, ISNetModule
from isnet.lightning import data as loading
from isnet.training.distributed import World


def test_images_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ISNetDataModule(squares(tmp_path), size=SIDE, channels=1, batch_size=4, augment={"flip": 0.5}, seed=1)
    assert images.config.classes == ("dark", "light") and images.for_module["image_shape"] == [1, SIDE, SIDE]
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    module, training = ISNetModule(net, isnet=images.for_module["isnet"]), trainer(max_epochs=2)
    training.fit(module, datamodule=images)
    assert "val_background_share" in training.callback_metrics
    (found,) = training.test(module, datamodule=images, verbose=False)
    assert 0 <= found["test_background_share"] <= 1
    orders = []
    for epoch in range(2):
        parts = []
        for world in (World(), World(0, 2), World(1, 2)):
            monkeypatch.setattr(loading, "current_world", lambda world=world: world)
            order = EpochOrder(data(13), 7)
            order.set_epoch(epoch)
            parts.append(list(order))
            assert len(order) == len(parts[-1])
        whole, *shared = parts
        assert [row for pair in zip(*shared, strict=True) for row in pair] == whole[:12]
        orders.append(whole)
    assert orders[0] != orders[1] and sorted(orders[0]) == list(range(13))
