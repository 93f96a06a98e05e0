"""A trained run of seconds, shared by the tests of what can be done with one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_isnet_own_images import SIDE
from typer.testing import CliRunner

from isnet import cli
from isnet.config import ImagesConfig, RunConfig
from isnet.runs import evaluate_run, settled, train_run

ARCH = "test_isnet_own_images:Tiny"


def write_images(root: Path) -> Path:
    """Grey images: a bright or dark square tells the class; masks around it."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(("dark", "light")):
            for number in range(count):
                pixels = rng.integers(0, 90, (SIDE, SIDE), dtype=np.uint8)
                pixels[5:11, 5:11] = 120 + 120 * label
                mask = np.zeros((SIDE, SIDE), np.uint8)
                mask[4:12, 4:12] = 255
                for kind, content in (("images", pixels), ("masks", mask)):
                    path = root / kind / split / name / f"{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(content).save(path)
    return root


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(run, its images): an ISNet of one epoch, evaluated."""
    root = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    data = ImagesConfig(str(write_images(root / "set")), size=(SIDE, SIDE), channels=1)
    config = settled(RunConfig(data=data).replaced(arch=ARCH, epochs=1, batch_size=8, c1=1, c2=25))
    run = train_run(root / "run", config, progress=False)
    evaluate_run(run, resamples=20, progress=False)
    yield root / "run", root / "set"


def invoke(*arguments: object, code: int = 0) -> str:
    """What a command prints; of one that fails (code 1, an exception), its text."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.output if not isinstance(result.exception, ValueError | OSError) else str(result.exception)
