"""A trained run of seconds, shared by the tests of what can be done with one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from run_files import squares
from test_isnet_own_images import SIDE
from typer.testing import CliRunner

from isnet import cli
from isnet.config import ImagesConfig, RunConfig
from isnet.runs import evaluate_run, settled, train_run

ARCH = "test_isnet_own_images:Tiny"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(run, its images): an ISNet of one epoch, evaluated."""
    root = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    data = ImagesConfig(str(squares(root / "set")), size=(SIDE, SIDE), channels=1)
    config = settled(RunConfig(data=data).replaced(arch=ARCH, epochs=1, batch_size=8, c1=1, c2=25, monitor=None))
    run = train_run(root / "run", config, progress=False)
    evaluate_run(run, resamples=20, progress=False)
    yield root / "run", root / "set"


def invoke(*arguments: object, code: int = 0) -> str:
    """What a command prints; of one that fails (code 1, an exception), its text."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.output if not isinstance(result.exception, ValueError | OSError) else str(result.exception)
