"""Pictures of heatmaps for the loggers."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from logged_runs import Memory, assert_weights, config_of, memory, trained  # noqa: F401
from test_isnet_training import blobs, train
from torch import nn

from isnet import ISNet
from isnet.config import ImagesConfig, RunConfig
from isnet.training.snapshots import Snapshots


def test_pictures_show_the_network_and_change_nothing(tmp_path: Path, memory: type[Memory]) -> None:
    config = config_of("memory", epochs=5, images_every=2, monitor="accuracy")
    trained(config, tmp_path / "a")
    (run,) = memory.runs
    assert [step for step, _ in run.pictures] == [6, 12, 15]
    shapes = {pixels.shape for _, pixels in run.pictures}
    assert len(shapes) == 1 and shapes.pop()[2] == 3 and run.pictures[0][1].dtype == np.uint8
    assert not np.array_equal(run.pictures[0][1], run.pictures[1][1])
    trained(config_of(epochs=5, monitor="accuracy"), tmp_path / "b")
    assert_weights(tmp_path / "a", tmp_path / "b")
    memory.runs.clear()
    trained(config_of("memory", images_every=0), tmp_path / "c")
    assert memory.runs[0].pictures == []


def test_pictures_of_several_labels_and_of_odd_names() -> None:
    data = [(torch.rand(3, 9, 7), torch.tensor([0.0, 1.0, 1.0]), torch.zeros(1, 9, 7)) for _ in range(3)]
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    settings = RunConfig(data=ImagesConfig("x", classes=("$a$_^", "猫\n", "<b>"))).replaced(loggers=("tensorboard",))
    model.train()
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = Snapshots(settings, {"v": data}, ISNet(model), (0.0, 1.0)).draw(model)  # type: ignore[dict-item]
    assert pixels.std() > 0 and model.training and torch.equal(before, torch.get_rng_state())


def test_a_network_that_cannot_be_explained_is_trained_without_pictures(tmp_path: Path, memory: type[Memory]) -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not torch.is_grad_enabled() and len(x) == 6:
                raise RuntimeError("no heatmaps of me")
            return self.layer(x.mean((1, 2, 3))[:, None])

    with pytest.warns(UserWarning, match="pictures for the loggers cannot be drawn.*no heatmaps of me") as caught:
        train(Strange(), config_of("memory"), data=blobs(48), run_dir=tmp_path, validation={"v": blobs(16)})
    assert len([warning for warning in caught if "pictures" in str(warning.message)]) == 1
    assert memory.runs[0].outcome == "finished" and memory.runs[0].pictures == []
