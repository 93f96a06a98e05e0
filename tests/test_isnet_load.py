"""isnet.load, the weights that a run begins with, and what its defaults follow from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import squares
from safetensors.torch import save_file
from test_isnet_own_images import Tiny as Net
from tiny_run import ARCH, invoke, tiny  # noqa: F401
from torch import nn

import isnet
from isnet.architectures import WeightsError, load_weights, read_weights
from isnet.runs import load_config

Tiny = tuple[Path, Path]


def test_a_loaded_run(tiny: Tiny) -> None:
    net = isnet.load(tiny[0])
    assert net.classes == ("dark", "light") and not net.model.training and str(net.device) == "cpu"
    path = tiny[1] / "images" / "test" / "light" / "0.png"
    image = net.preprocess(path)
    assert image.shape == (1, 1, 16, 16) and image.dtype == torch.float32
    pixels = np.asarray(Image.open(path))
    for same in (str(path), pixels, Image.open(path), torch.from_numpy(pixels.copy()), pixels.astype(np.float32) / 255):
        assert torch.equal(net.preprocess(same), image)
    assert torch.allclose(net.preprocess(pixels.astype(np.uint16) * 257), image)
    assert net.preprocess(np.stack([pixels] * 3, -1)).shape == (1, 1, 16, 16)
    one = net.predict(path)
    assert one.answer == max(one.probabilities, key=one.probabilities.__getitem__)
    for same in (*net.predict([path, pixels]), *net.predict(image)):  # batches round differently
        assert same.answer == one.answer and same.probabilities == pytest.approx(one.probabilities, abs=1e-6)
    found = net.explain(path, target="dark")
    assert found.target == "dark" and found.heatmap.shape == (1, 16, 16) and found.prediction == one
    assert torch.equal(found.image, image[0]) and net.explain(image).target == one.answer
    assert len(repr(net)) < 300 and "Tiny" in repr(net)
    net.classes = ("<b>", "light")
    assert "&lt;b&gt;" in net._repr_html_() and "<b>" not in net._repr_html_()


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (np.zeros((4, 4, 2)), "expected \\[H, W\\] or \\[H, W, C\\]"),
        (np.zeros(4), "got shape \\[4\\]"),
        (np.full((4, 4), 2.0), "must lie in \\[0, 1\\]"),
        (np.full((4, 4), np.nan), "must lie in \\[0, 1\\]"),
        (np.zeros((4, 4), np.int64), "expected 8- or 16-bit numbers"),
        (np.zeros((0, 4), np.uint8), "got shape"),
        (torch.zeros(2, 4, 4), "\\[C, H, W\\]"),
        ({"x": 1}, "got dict"),
        ("missing.png", "missing.png: no such file"),
        (torch.zeros(1, 3, 16, 16), "preprocessed batch"),
        ([], "expected at least one"),
    ],
)
def test_images_that_are_none(tiny: Tiny, image: Any, text: str) -> None:
    net = isnet.load(tiny[0])
    with pytest.raises(ValueError, match=text):
        net.predict(image)


def test_unknown_names_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="target: expected the name of a class, one of dark, light, got 'x'"):
        isnet.load(tiny[0]).explain(tiny[1] / "images" / "test" / "dark" / "0.png", target="x")
    with pytest.raises(ValueError, match="device: expected auto, cpu, cuda or cuda:N, got 'mps'"):
        isnet.load(tiny[0], device="mps")
    assert "--device: expected auto, cpu, cuda or cuda:N, got 'gpu'" in invoke(
        "predict", tiny[0], "x", "--device", "gpu", code=1
    )
    with pytest.raises(AttributeError, match="no attribute 'lood'"):
        isnet.lood  # noqa: B018


def test_isnet_alone_imports_no_runs() -> None:
    code = "import sys, isnet; assert 'isnet.runs' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_run_needs_the_weights_of_its_factory_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file of the current folder, with a state that the factory itself loads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISNET_TRUST", "nets.py")
    torch.save({"model": Net().state_dict()}, "w.pt")
    Path("nets.py").write_text(
        "import torch\nfrom test_isnet_own_images import Tiny\n"
        "def net(in_channels, num_classes, weights='w.pt'):\n"
        "    model = Tiny(in_channels, num_classes)\n    model.load_state_dict(torch.load(weights)['model'])\n    return model\n"
    )
    squares(tmp_path / "set")
    options = ["--epochs", 1, "--batch-size", 8, "--channels", 1, "--size", 16, "--c1", 1, "--c2", 25, "--quiet"]
    invoke("train", "run", "--data", "set", "--arch", "nets.py:net", *options)
    before = isnet.load("run").predict("set/images/test/dark/0.png")
    Path("w.pt").unlink()
    assert isnet.load("run").predict("set/images/test/dark/0.png") == before
    monkeypatch.delenv("ISNET_TRUST")
    with pytest.raises(ValueError, match=r"nets\.py:net"):
        isnet.load("run")
    assert isnet.load("run", trust="nets.py:net").predict("set/images/test/dark/0.png") == before


def test_the_variant_follows_the_masks(tmp_path: Path) -> None:
    data = squares(tmp_path / "set")
    options = [
        "--epochs",
        1,
        "--lr",
        "1e-30",
        "--batch-size",
        8,
        "--arch",
        ARCH,
        "--channels",
        1,
        "--size",
        16,
        "--data",
        data,
    ]
    told = invoke("train", tmp_path / "run", *options, "--dry-run")
    assert "Variant: selective (training images have masks); without a warm-up" in told and "Device: cpu" in told
    assert "Variant" not in invoke("train", tmp_path / "run", *options, "--variant", "dual", "--dry-run")
    assert "; dual" in invoke("train", tmp_path / "run", *options, "--variant", "dual", "--dry-run")
    shutil.rmtree(data / "masks")
    told = invoke("train", tmp_path / "run", *options)
    assert "Variant: standard (no training image has the mask that an ISNet needs)" in told
    assert load_config(tmp_path / "run").network.variant == "standard"
    assert "--decay: to be used with an ISNet" in invoke("train", tmp_path / "new", *options, "--decay", 0.5, code=1)


STATE = Net().state_dict()


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "network.model.", "_orig_mod.", "module._orig_mod.", "net.0."]
)
def test_prefixes_are_taken_off(prefix: str) -> None:
    state = {f"{prefix}{name}": value for name, value in STATE.items()}
    beside = {"criterion.c1": torch.ones(1)} if prefix.endswith(("model.", "net.0.")) else {}
    model = Net()
    assert load_weights(model, {**state, **beside}, "w", 2) == ()
    assert all(torch.equal(value, STATE[name]) for name, value in model.state_dict().items())


def test_files_of_weights(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    for name, content in (
        ("bare", STATE),
        ("nested", {"epoch": 3, "state_dict": STATE}),
        ("deep", {"model": {"state_dict": STATE}}),
    ):
        torch.save(content, tmp_path / f"{name}.pt")
        assert read_weights(tmp_path / f"{name}.pt").keys() == STATE.keys()
    assert read_weights(tmp_path / "w.safetensors").keys() == STATE.keys()
    torch.save(Net(), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 20)
    for name, text in (
        ("module.pt", "holds more than tensors"),
        ("list.pt", "holds no state_dict, but list"),
        ("empty.pt", "cannot be read"),
        ("broken.safetensors", "is not a whole safetensors file"),
        ("gone.pt", "no file"),
        ("", "is a folder; name a file"),
    ):
        with pytest.raises(WeightsError, match=text):
            read_weights(tmp_path / name)


def test_a_head_of_other_classes_is_left_out_and_nothing_else() -> None:
    model = Net(num_classes=5)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    assert load_weights(model, STATE, "w", 5) == ("head.weight", "head.bias")
    found = model.state_dict()
    assert torch.equal(found["head.weight"], fresh["head.weight"]) and torch.equal(
        found["first.0.weight"], STATE["first.0.weight"]
    )
    for state, text in (
        ({name: value for name, value in STATE.items() if name != "second.0.bias"}, "it lacks second.0.bias"),
        ({**STATE, "third.weight": torch.ones(2)}, "the model has no third.weight"),
        ({**STATE, "second.0.bias": torch.ones(3)}, r"other shapes: second.0.bias \[3\], not \[8\]"),
        ({**STATE, "first.0.bias": torch.full((6,), torch.nan)}, "not finite: first.0.bias"),
    ):
        with pytest.raises(WeightsError, match=text):
            load_weights(Net(), state, "w", 2)


def test_training_begins_with_weights(tiny: Tiny, tmp_path: Path) -> None:
    run, data = tiny
    options = [
        "--data",
        data,
        "--arch",
        ARCH,
        "--channels",
        1,
        "--size",
        16,
        "--batch-size",
        8,
        "--epochs",
        1,
        "--lr",
        "1e-30",
    ]
    invoke("train", tmp_path / "run", *options, "--variant", "standard", "--weights", run / "best.safetensors")
    ours, theirs = isnet.load(tmp_path / "run").model.state_dict(), isnet.load(run).model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    refused = invoke("train", tmp_path / "new", *options, "--weights", tmp_path / "other.pt", code=1)
    assert "does not fit the model: it lacks" in refused and not (tmp_path / "new").exists()
