"""Architectures by name: what is listed can be built, sizes are filled in, and strangers are not recommended."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny_run import invoke
from torch import nn

from isnet.architectures import ArchitectureError, WeightsError, build_architecture, catalogue, construction
from isnet.architectures import catalogue as catalogue_of
from isnet.architectures.catalogue import count_parameters

FITS = {"image_shape": (1, 32, 32), "num_classes": 3}


def test_what_is_listed() -> None:
    found, _ = catalogue("monai:*")
    names = {entry.name: entry for entry in found}
    assert {"monai:DenseNet121", "monai:resnet18", "monai:SEResNet50", "monai:EfficientNetBN"} <= names.keys()
    assert not {"monai:UNet", "monai:get_efficientnet_image_size", "monai:EfficientNetEncoder"} & names.keys()
    assert names["monai:EfficientNetBN"].needs == ("model_name",) and names["monai:resnet18"].needs == ()
    told = invoke("archs", "resnet18", "--parameters")
    assert "monai:resnet18" in told and f"{count_parameters('monai:resnet18'):,}" in told
    refused = invoke("archs", "rsnet18", code=1)
    assert "PATTERN: no architecture fits 'rsnet18'; did you mean resnet18" in refused
    assert catalogue_of("DENSENET121")[0][0].name == "monai:DenseNet121"


@pytest.mark.parametrize("name", ["monai:resnet10", "monai:DenseNet121", "monai:SEResNet50"])
def test_sizes_need_not_be_named(name: str) -> None:
    with torch.device("meta"):
        model = build_architecture(name, **FITS)  # type: ignore[arg-type]
        assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


def test_strangers_are_not_recommended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("needy.py").write_text("import a_strangers_package\n")
    Path("broken.py").write_text("def f(:\n")
    Path("leaving.py").write_text("raise SystemExit(3)\n")
    for name, text in (
        ("resnets:net", "no module resnets in the current folder or among the installed packages"),
        ("needy:net", "No module named 'a_strangers_package'"),
        ("needy.py:net", "No module named 'a_strangers_package'"),
        ("broken.py:f", "SyntaxError"),
        ("leaving.py:f", "SystemExit: 3"),
        ("gone.py:f", "no file"),
    ):
        with pytest.raises(ArchitectureError) as caught:
            build_architecture(name, **FITS)  # type: ignore[arg-type]
        assert text in str(caught.value) and "pip" not in str(caught.value) and "\n" not in str(caught.value), name
    if "timm" not in sys.modules:
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ArchitectureError, match=r"needs the package timm|importing timm failed"):
            build_architecture("timm:resnet18", **FITS)  # type: ignore[arg-type]


def test_factories_of_the_current_folder_and_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from helpers_of_nets import depth\nfrom torch import nn\n"
        "def net(in_channels, num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, depth, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(depth, num_classes))\n"
    )
    folder = tmp_path / "with space"
    folder.mkdir()
    (folder / "nets_of_mine.py").write_text(code)
    (folder / "random.py").write_text(code)  # a name of the standard library
    (folder / "helpers_of_nets.py").write_text("depth = 5\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(folder)
    before = list(sys.path)
    for name in ("nets_of_mine:net", "nets_of_mine.py:net", f"{folder}/random.py:net"):
        assert build_architecture(name, **FITS)[3].in_features == 5  # type: ignore[arg-type, index]
    assert sys.path == before
    assert construction(f"{folder}/random.py:net", **FITS)[0] is None  # type: ignore[arg-type]
    with pytest.raises(ArchitectureError, match="has no callable 'nett'"):
        build_architecture("nets_of_mine:nett", **FITS)  # type: ignore[arg-type]


class _Weights:
    """As torchvision's enumerations of weights."""

    __members__: ClassVar[dict[str, Any]] = {}

    def __class_getitem__(cls, name: str) -> Any:
        return cls.__members__["IMAGENET1K_V1" if name == "DEFAULT" else name]


def test_weights_of_a_library_with_another_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a stand-in of torchvision, which is not installed everywhere."""

    def tinynet(weights: Any = None, num_classes: int = 1000) -> nn.Module:
        assert weights is None, "the head would have to be that of the weights"
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

    trained = tinynet()
    member = types.SimpleNamespace(get_state_dict=lambda **_: trained.state_dict())
    _Weights.__members__ = {"IMAGENET1K_V1": member}
    models = types.ModuleType("torchvision.models")
    tinynet.__annotations__["return"], tinynet.__module__ = nn.Module, "torchvision.models"
    models.tinynet, models.get_model_weights = tinynet, lambda name: _Weights  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    shape: dict[str, Any] = {"image_shape": (3, 16, 16), "num_classes": 3}
    for weights in ("DEFAULT", "IMAGENET1K_V1", "TinyNet_Weights.IMAGENET1K_V1", str(tmp_path / "w.pth")):
        told: list[str] = []
        model = build_architecture("torchvision:tinynet", {"weights": weights}, **shape, tell=told.append)
        assert torch.equal(model[0].weight, trained[0].weight) and "left out 3.weight, 3.bias" in told[0]  # type: ignore[index]
    with pytest.raises(WeightsError, match="has IMAGENET1K_V1, got 'V9'"):
        build_architecture("torchvision:tinynet", {"weights": "V9"}, **shape)
    member.get_state_dict = lambda **_: pytest.fail("a trained run downloads nothing")
    assert build_architecture("torchvision:tinynet", {"weights": "DEFAULT"}, **shape, pretrained=False)
    assert construction("torchvision:tinynet", {"weights": "DEFAULT"}, **shape) == (
        "torchvision.models.tinynet",
        {"num_classes": 3},
    )
