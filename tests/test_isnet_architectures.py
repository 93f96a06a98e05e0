"""Architectures by name, and the arguments they get."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from isnet import architectures
from isnet.config.texts import pairs

SHAPE = (1, 40, 40)


def test_sizes_are_filled_in_under_the_librarys_names() -> None:
    model = architectures.build_architecture(
        "monai:DenseNet121",
        {"init_features": 8, "growth_rate": 4, "block_config": [1, 1, 1, 1]},
        image_shape=SHAPE,
        num_classes=7,
    )
    assert list(model.eval()(torch.zeros(2, *SHAPE)).shape) == [2, 7]


def test_any_callable_is_an_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def tiny(width, num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
        " nn.Linear(width, num_classes))\n"
        "def nothing():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = architectures.build_architecture("my_nets:tiny", {"width": 5}, image_shape=SHAPE, num_classes=4)
    assert model[3].out_features == 4
    for name, arguments, text in (
        ("my_nets:nothing", {}, "expected a torch.nn.Module, got int"),
        ("my_nets:other", {}, "has no callable 'other'"),
        ("my_nets:tiny", {"depth": 2}, r"cannot be built with \(num_classes=4, depth=2\)"),
        ("my_nets:tiny", {"width": 5, "num_classes": 3}, r"expected logits of shape \[1, 4\]"),
    ):
        with pytest.raises(architectures.ArchitectureError, match=text):
            architectures.build_architecture(name, arguments, image_shape=SHAPE, num_classes=4)
    with pytest.raises(architectures.ArchitectureError, match=r"does not run on images of shape \[3, 40, 40\]"):
        architectures.build_architecture("my_nets:tiny", {"width": 5}, image_shape=(3, 40, 40), num_classes=4)


def test_a_missing_module_is_named() -> None:
    with pytest.raises(
        architectures.ArchitectureError, match="no module no_such_package in the current folder or among"
    ):
        architectures.build_architecture("no_such_package.nets:net", image_shape=SHAPE, num_classes=2)


def test_arguments_are_json_or_text() -> None:
    assert pairs(["a=1", "b=[1, 2]", "c=basic", "d=true", "e=x=y"]) == {
        "a": 1,
        "b": [1, 2],
        "c": "basic",
        "d": True,
        "e": "x=y",
    }
    for wrong in ("=1", "a", {"a": object()}, {"a": float("nan")}):
        with pytest.raises(ValueError, match=r"KEY=VALUE|values that JSON has"):
            pairs(wrong)


# ---- the demonstration
