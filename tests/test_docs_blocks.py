"""Every Python block of README and documentation runs as it is printed (those of two pages in tests of their own)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from doc_blocks import ROOT, blocks, run
from run_files import squares
from tiny_run import ARCH
from torch import nn

from isnet.config import ImagesConfig, RunConfig
from isnet.runs import settled, train_run

OWN_TESTS = {
    "coming_from_captum.md",
    "coming_from_zennit.md",
    "after_training.md",
    "runs.md",
    "loggers.md",
}  # the third and fourth below
PAGES = [
    page
    for page in sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
    if page.name not in OWN_TESTS and blocks(page)
]


@pytest.fixture
def given() -> dict[str, object]:
    """What pages call the reader's own: a network, images, labels and masks."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
    )
    x, mask = torch.rand(2, 3, 32, 32), torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:24, 8:24] = 1
    with torch.no_grad():
        model(x)
    return {"model": model.eval(), "x": x, "mask": mask, "images": x, "masks": mask, "labels": torch.tensor([0, 1])}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.filterwarnings("ignore")
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, given: dict[str, object]) -> None:
    if page.name == "pictures.md":  # it normalises as for ImageNet
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        given["x"] = (given["x"] - mean) / std  # type: ignore[operator]
    run(page, tmp_path, given)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_block_is_left_out_here(page: Path) -> None:
    for block in blocks(page):
        assert block.runs, f"{page.name}, line {block.line}: not run ({block.comment})"


@pytest.mark.filterwarnings("ignore")
def test_pages_about_a_trained_run(tmp_path: Path) -> None:
    images = squares(tmp_path / "set")
    for kind in ("images", "masks"):
        for split in (images / kind).iterdir():
            for folder, name in zip(sorted(split.iterdir()), ("normal", "pneumonia"), strict=True):
                folder.rename(split / name)
    data = ImagesConfig(str(images), size=(16, 16), channels=1)
    config = settled(RunConfig(data=data).replaced(arch=ARCH, epochs=1, batch_size=8, c1=1, c2=25, monitor=None))
    trained = train_run(tmp_path / "runs" / "guarded", config, progress=False)
    shutil.copy(next((images / "images").rglob("*.png")), tmp_path / "scan.png")
    names, _ = run(ROOT / "docs" / "after_training.md", tmp_path)
    assert names["net"].classes == ("normal", "pneumonia")
    shutil.copytree(tmp_path / "runs" / "guarded", tmp_path / "RUN")
    run(ROOT / "docs" / "runs.md", tmp_path, {"model": trained.model})
