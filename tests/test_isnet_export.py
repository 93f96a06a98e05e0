"""Exports answer as the run does, and load where neither package of ours can be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import invoke, tiny  # noqa: F401

import isnet
from isnet.export import FORMATS, ExportError, export_run
from isnet.export import run as export_module
from isnet.export.card import plain
from isnet.export.preprocess import preprocess
from isnet.runs import load_run

Tiny = tuple[Path, Path]

# Runs in the folder of an export: what the card says, with our packages out of reach.
ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("isnet", "lrpkernels"):
            raise ImportError(name + " is out of reach")
sys.meta_path.insert(0, Blocked())
import numpy, torch
images = torch.from_numpy(numpy.load(sys.argv[1]))
{usage}
numpy.save(sys.argv[2], numpy.asarray(torch.as_tensor(logits).detach()))
"""


@pytest.mark.parametrize("format", list(FORMATS))
def test_exports_load_without_us(tiny: Tiny, tmp_path: Path, format: str) -> None:
    run, out = tiny[0], tmp_path / "exported"
    assert "largest difference of a logit" in invoke("export", run, "--format", format, "--out", out)
    kind = FORMATS[format]
    settings = json.loads((out / kind.preprocessing).read_text())
    assert settings["classes"] == ["dark", "light"] and settings["image"]["height"] == 16 and settings["mean"] is None
    card = (out / kind.card).read_text()
    assert "| test | all | AUC |" in card and " to " in card and "of the absolute LRP relevance lies outside" in card
    assert "not a medical device" in card and "To be filled in" in card and kind.usage in card
    images = torch.rand(5, 1, 16, 16)
    np.save(tmp_path / "in.npy", images.numpy())
    # The network of these tests lives beside tests of ours: a module of its own stands for the user's.
    (tmp_path / "alone").mkdir()
    source = (Path(__file__).parent / "test_isnet_own_images.py").read_text()
    tiny_class = source[source.index("class Tiny(") : source.index("def bright(")]
    (tmp_path / "alone" / "test_isnet_own_images.py").write_text(f"from torch import Tensor, nn\n\n\n{tiny_class}")
    done = subprocess.run(
        [sys.executable, "-c", ALONE.replace("{usage}", kind.usage), tmp_path / "in.npy", tmp_path / "out.npy"],
        cwd=out,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "alone"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        expected = load_run(run).model(images).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)


def test_the_preprocessing_of_exports_is_ours(tiny: Tiny, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pictures = {
        "grey.png": rng.integers(0, 256, (20, 31), dtype=np.uint8),
        "colour.png": rng.integers(0, 256, (40, 12, 3), dtype=np.uint8),
        "deep.png": rng.integers(0, 2**16, (16, 16), dtype=np.uint16),
    }
    net = isnet.load(tiny[0])
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / name)
        for resize in ("stretch", "pad"):
            net._images = net._images.__class__(**{**vars(net._images), "resize": resize})
            settings = {**export_module.preprocessing(net.config), "resize": resize}
            torch.testing.assert_close(preprocess(tmp_path / name, settings), net.preprocess(tmp_path / name))


def test_what_cannot_be_exported(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = load_run(tiny[0]), tmp_path / "out"
    assert "--format: expected onnx, torchscript," in invoke("export", tiny[0], "--format", "onxx", code=1)
    (out / "mine").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="is not empty"):
        export_run(run, FORMATS["torchscript"], out)
    with pytest.raises(FileExistsError, match="is no export, and is left as it is"):
        export_run(run, FORMATS["torchscript"], out, overwrite=True)
    assert (out / "mine").is_dir()

    class Otherwise(type(FORMATS["torchscript"])):  # type: ignore[misc]
        def load(self, what: object, folder: Path) -> object:
            return lambda images: run.model(images) + 0.01

    with pytest.raises(ExportError, match=r"a logit differs by 0\.01 .*nothing was written"):
        export_run(run, Otherwise(), tmp_path / "new")
    assert not (tmp_path / "new").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    # Without its data: random images, and a card that says so.
    monkeypatch.setattr(export_module, "run_data", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
    found = export_run(run, FORMATS["torchscript"], tmp_path / "random")
    assert found.images == "3 random images"
    assert "not there any more" in (tmp_path / "random" / "model_card.md").read_text()
    export_run(run, FORMATS["state-dict"], tmp_path / "random", overwrite=True)
    assert not (tmp_path / "random" / "model.ts").exists()


def test_a_network_that_depends_on_its_numbers_is_refused_in_one_line(tiny: Tiny, tmp_path: Path) -> None:
    run = load_run(tiny[0])
    forward = run.model.forward
    run.model.forward = lambda x: forward(x) if float(x.detach().sum()) > 0 else forward(-x)  # type: ignore[method-assign]
    with pytest.raises(ExportError, match="TorchExport: this network cannot be exported") as caught:
        export_run(run, FORMATS["torch-export"], tmp_path / "new")
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()


def test_texts_of_users_in_markdown() -> None:
    assert plain("a|b\n<script>") == "a\\|b \\<script\\>"
