"""Arguments and files that do not fit are refused by name, in one line."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import isnet
from isnet.architectures import ArchitectureError, build_architecture
from isnet.data import FileRef, UnreadableFileError, read_image
from isnet.training.ranges import load_ranges

FITS = {"image_shape": (1, 8, 8), "num_classes": 3}


def test_heatmaps_of_too_few_dimensions() -> None:
    with pytest.raises(ValueError, match=r"heatmaps must have shape \[B, M, C, H, W\], got \(2, 8, 8\)"):
        isnet.HeatmapLoss()(torch.rand(2, 8, 8), torch.ones(2, 1, 8, 8))


def test_images_of_other_channels_and_pixels_that_are_not_finite(tmp_path: Path) -> None:
    pixels = np.ones((4, 4), dtype=np.float32)
    Image.fromarray(pixels).save(tmp_path / "fine.tiff")
    with pytest.raises(ValueError, match="channels: expected 1 or 3, got 2"):
        read_image(FileRef(tmp_path / "fine.tiff"), channels=2)
    pixels[1, 1] = np.inf
    Image.fromarray(pixels).save(tmp_path / "infinite.tiff")
    with pytest.raises(UnreadableFileError, match=r"infinite\.tiff: cannot be read .*pixels are not finite"):
        read_image(FileRef(tmp_path / "infinite.tiff"))


def test_ranges_that_are_not_finite(tmp_path: Path) -> None:
    found = {"input": isnet.training.ranges.NaturalRange((1.0,), (25.0,), (5.0,), (2.0,), 10)}
    isnet.training.ranges.save_ranges(tmp_path / "ranges.json", found)
    assert load_ranges(tmp_path / "ranges.json") == found
    content = (tmp_path / "ranges.json").read_text().replace("25.0", "Infinity")
    (tmp_path / "ranges.json").write_text(content)
    assert json.loads(content)
    with pytest.raises(ValueError, match=r"ranges\.json: .*not finite"):
        load_ranges(tmp_path / "ranges.json")


class Plain(nn.Module):
    """A classifier whose constructor takes what it takes by any keyword."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


def _needs_a_package(**_: int) -> nn.Module:
    raise ImportError("needs the package of somebody else")


def test_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("toy_architectures")
    module.Plain, module.missing, module.number = Plain, _needs_a_package, 3
    monkeypatch.setitem(sys.modules, "toy_architectures", module)
    assert build_architecture("toy_architectures:Plain", **FITS)(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(ArchitectureError, match="toy_architectures:missing: needs the package of somebody else"):
        build_architecture("toy_architectures:missing", **FITS)
    with pytest.raises(ArchitectureError, match="toy_architectures has no callable 'number'"):
        build_architecture("toy_architectures:number", **FITS)
