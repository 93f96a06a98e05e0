"""Experiment 3 and the experiments on wrong masks at tiny sizes: what a cell trains on, and what it tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_isnet_experiment_xray import chest, phantom  # noqa: F401
from test_isnet_natural_images import objects  # noqa: F401
from typer.testing import CliRunner

from isnet.cli import app
from isnet.cli import experiment as commands
from isnet.experiments import mask_errors_grid as masks
from isnet.experiments import mnist_files, natural, trainings, xray, xray_images
from isnet.experiments.biased_mnist import BiasedMNIST
from isnet.experiments.cells import Cell, read_result
from isnet.experiments.chest_ct import ChestCT
from isnet.experiments.grid import finished, train_cell
from isnet.experiments.grid_tables import table
from isnet.experiments.mask_errors import ERRORS
from isnet.experiments.natural_images import NaturalImages


def tiny_natural(folder: Path) -> natural.NaturalConfig:
    rendering = NaturalImages(images=str(folder / "images"), train=16, test=48, pixels=32)
    return natural.NaturalConfig(folder=str(folder), rendering=rendering, epochs=1, batch_size=4, seeds=(0,))


@pytest.mark.usefixtures("objects")
def test_natural_cells_tell_subgroups_and_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natural, "RESNET18", trainings.NARROW_RESNET)
    monkeypatch.setattr(natural, "_RESAMPLES", 3)
    experiment = tiny_natural(tmp_path)
    cells = [Cell("50 %", "standard", 0), Cell("100 %", "selective with background swap", 0)]
    assert set(cells) < set(experiment.cells()) and Cell("50 %", "background swap", 0) not in experiment.cells()
    for cell in cells:
        experiment.prepare(cell.setting, cell.seed, processes=1, progress=False)
        train_cell(experiment, cell)
    results = [finished(experiment, cell) for cell in cells]
    assert all(result is not None for result in results)
    for result in results:
        assert result is not None
        test = result.scores["test"]
        by_subgroup = {name: found["accuracy"] for name, found in result.scores.items() if name != "test"}
        assert list(by_subgroup) == ["bag, indoors", "bag, outdoors", "shoe, indoors", "shoe, outdoors"]
        values = [figure.value for figure in by_subgroup.values()]  # type: ignore[union-attr]
        assert test["worst"].value == min(values)  # type: ignore[union-attr]
        assert test["accuracy"].value == pytest.approx(sum(values) / 4)  # type: ignore[union-attr]
        assert 0 <= result.moved["other place"]["distance"] <= 1
    weights = {"50 %": (1, 1, 1, 1), "100 %": (1, 0, 0, 1)}
    for result in results:
        assert result is not None
        values = [found["accuracy"].value for name, found in result.scores.items() if name != "test"]  # type: ignore[union-attr]
        expected = sum(w * v for w, v in zip(weights[result.setting], values, strict=True)) / sum(
            weights[result.setting]
        )
        assert result.scores["test"]["average"] == pytest.approx(expected)
    text = table([result for result in results if result], experiment.columns([result for result in results if result]))
    assert "worst" in text.splitlines()[0] and "100 % | selective with background swap" in text
    # The run folder of a cell is one like any other.
    folder = experiment.run_folder(cells[1])
    told = CliRunner().invoke(app, ["evaluate", str(folder), "--no-sensitivity", "--resamples", "0"])
    assert told.exit_code == 0 and "by subgroup" in told.output, told.output
    assert "| bag, outdoors | 12 | 0 |" in told.output and "| average, weighted by training images |" in told.output


def test_natural_settings_are_checked(tmp_path: Path) -> None:
    assert len(natural.preset("quick").cells()) == 1 + 2 * len(natural.METHODS)
    for changes, text in (
        ({"correlations": ("90 %",)}, "correlations: expected one of 50 %, 95 %, 100 %"),
        ({"correlations": ("95 %", "95 %")}, "correlations"),
        ({"methods": ("groupdro",)}, "no groupdro"),
    ):
        with pytest.raises(ValueError, match=text):
            natural.preset("quick", **changes)


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty made-up digits: a stroke each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(60, 28, 28, dtype=torch.uint8)
    images[:, 6:22, 12:16] = torch.randint(150, 255, (60, 1, 1), generator=generator).to(torch.uint8)
    labels = (torch.arange(60) % 10).to(torch.uint8)
    made = mnist_files.MNIST(images.numpy(), labels.numpy(), images.numpy(), labels.numpy(), source="made up")
    for module in ("mnist", "digits"):
        monkeypatch.setattr(f"isnet.experiments.{module}.load_mnist", lambda *args, **more: made)


def tiny_digits(folder: Path) -> masks.DigitMasks:
    return masks.digits(str(folder), train_size=40, test_size=20, warmup=1, epochs=0, batch_size=8)


@pytest.mark.usefixtures("digits")
def test_digits_are_trained_on_the_masks_that_the_error_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_STEPS", 2)
    experiment = tiny_digits(tmp_path)
    assert len(experiment.cells()) == 2 * len(ERRORS)
    sets: dict[str, BiasedMNIST] = {}
    for setting in ERRORS:
        cell = Cell(setting, "background swap", 0)
        experiment.prepare(setting, 0, processes=1, progress=False)
        train = experiment.data(cell, experiment.run_config(cell)).train
        assert isinstance(train, BiasedMNIST)
        sets[setting] = train
    exact, area = sets["exact"], {name: int(found.masks.sum()) for name, found in sets.items()}
    assert area["shrunk by 2"] < area["shrunk by 1"] < area["exact"] < area["grown by 1"] < area["grown by 4"]
    for name, found in sets.items():
        same = (found.masks == exact.masks).flatten(1).all(1) if len(found) == 40 else None
        if name.endswith("left out"):
            lack = round(40 * ERRORS[name].amount / 100)
            assert len(found) == len(found.labels) == len(found.images) == 40 - lack
        elif name.endswith("whole image"):
            assert int((~same).sum()) == round(0.4 * ERRORS[name].amount) and bool(found.masks[~same].all())
        elif name.startswith("segmenter"):
            assert int(same.sum()) >= round(0.4 * ERRORS[name].amount)
            assert bool(found.masks.flatten(1).any(1).all())
        else:
            assert bool(same.all()) == (name == "exact")


@pytest.mark.usefixtures("digits")
def test_digit_cells_tell_the_dice_of_their_masks(tmp_path: Path) -> None:
    experiment, told = tiny_digits(tmp_path), {}
    for setting in ("exact", "moved by 2", "50 % missing, whole image", "50 % missing, left out"):
        cell = Cell(setting, "background swap", 0)
        train_cell(experiment, cell)
        result = finished(experiment, cell)
        assert result is not None and set(result.scores) == {"training masks", "biased", "unbiased", "deceiving"}
        told[setting] = result.scores["training masks"]["dice"]
    assert told["exact"] == told["50 % missing, left out"] == 1
    assert told["50 % missing, whole image"] < told["exact"] and told["moved by 2"] < 1  # type: ignore[operator]
    assert "Dice of the masks" in table([result], experiment.columns([result]))


def test_radiographs_get_a_manifest_of_wrong_masks(
    tmp_path: Path,
    chest: ChestCT,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chests = dict.fromkeys(xray_images.CT_SOURCES, chest)
    monkeypatch.setattr(xray_images, "load_chest_cts", lambda folder, progress: chests)
    monkeypatch.setattr(masks, "_STEPS", 2)
    monkeypatch.setattr(xray, "_RESAMPLES", 2)
    rendering = xray_images.RenderConfig(images=str(tmp_path / "images"), train=8, validation=2, test=2, pixels=32)
    experiment = masks.radiographs(str(tmp_path), rendering=rendering, size=16, warmup=1, epochs=0, batch_size=4)
    dices = {}
    for setting in (
        "exact",
        "grown by 1",
        "25 % missing, whole image",
        "25 % missing, left out",
        "segmenter from 25 %",
    ):
        cell = Cell(setting, "background swap", 0)
        experiment.prepare(setting, 0, processes=1, progress=False)
        config = experiment.run_config(cell)
        assert len(experiment.data(cell, config).train) == (6 if setting.endswith("out") else 8)  # type: ignore[arg-type]
        dices[setting] = masks.manifest_dice(Path(config.data.path), ERRORS[setting])  # type: ignore[union-attr]
    assert dices["exact"] == dices["25 % missing, left out"] == 1
    assert 0 < dices["25 % missing, whole image"] < 1 and 0 < dices["grown by 1"] < 1
    exact, grown = ((tmp_path / "images").rglob(f"masks-{name}-16.csv") for name in ("exact-0", "grown-1"))
    kept, changed = (next(found).read_text().splitlines() for found in (exact, grown))
    differs = [a != b for a, b in zip(kept, changed, strict=True)]
    assert sum(differs) == 8 and all("train" in line for line, other in zip(kept, differs, strict=True) if other)
    cell = Cell("grown by 1", "background swap", 0)
    train_cell(experiment, cell._replace(method="swap warm-up"))
    train_cell(experiment, cell)
    result = read_result(tmp_path / "cells" / f"{cell.key}.json")
    assert result.scores["training masks"]["dice"] == dices["grown by 1"] and len(result.scores) == 7
    assert "Dice" in table([result], experiment.columns([result]))


def test_commands_choose_parts_of_the_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(commands, "run_grid", lambda config, **how: asked.append(config) or ([], 0))

    def invoke(*words: str) -> Any:
        return CliRunner().invoke(app, ["experiment", *words])

    words = [
        "natural",
        "--correlation",
        "95 %",
        "--seed",
        "4",
        "--method",
        "standard",
        "--images",
        "a",
        "--objects",
        "b",
    ]
    assert invoke(*words, "--out", "c").exit_code == 0
    (config,) = asked
    assert config.cells() == [Cell("95 %", "standard", 4)] and config.folder == "c"
    assert (config.rendering.images, config.rendering.objects, config.rendering.train) == ("a", "b", 480)
    assert invoke("masks", "--error", "moved by 2", "--data-folder", "d", "--seeds", "2").exit_code == 0
    assert invoke("masks", "--on", "radiographs", "--error", "exact", "--ct-folder", "e").exit_code == 0
    assert asked[1].cells() == [Cell("moved by 2", name, seed) for seed in (0, 1) for name in masks._DIGITS]
    assert asked[1].data_folder == "d" and asked[2].rendering.ct_folder == "e"
    assert len(asked[2].cells()) == 2 and asked[2].settings == ("exact",)
    assert "errors: expected one of exact" in str(invoke("masks", "--error", "moved").exception)
    assert "correlations: expected one of" in str(invoke("natural", "--correlation", "95").exception)


def test_errors_are_checked() -> None:
    for make in (masks.digits, masks.radiographs):
        with pytest.raises(ValueError, match="errors: expected one of exact, grown by 1"):
            make(errors=("grown by 3",))
    with pytest.raises(ValueError, match="held_out: expected one patient"):
        masks.radiographs(held_out=("lung1", "lung2"))
