"""The experiment on biased MNIST at toy size: every method runs, and sets what it is called after."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from test_isnet_training import Dying, KilledError
from toy_grid import few_digits, in_threads

from isnet.experiments import mnist
from isnet.experiments.baselines import RIVALS, Altered
from isnet.experiments.biased_mnist import BiasedMNIST
from isnet.experiments.cells import Cell
from isnet.experiments.grid import finished, run_grid, train_cell
from isnet.runs import RunData


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    few_digits(monkeypatch)


def toy(folder: Path, **changes: object) -> mnist.MNISTConfig:
    small = {
        "folder": str(folder),
        "train_size": 128,
        "test_size": 30,
        "warmup": 1,
        "epochs": 1,
        "marks": ("place",),
        "methods": (),
    }
    return dataclasses.replace(mnist.preset("quick"), **{**small, **changes})


def data_of(config: mnist.MNISTConfig, cell: Cell) -> RunData:
    data = config.data(cell, config.run_config(cell))
    return RIVALS[mnist.METHODS[cell.method].rival].data(data)


def test_every_method_gives_a_cell(digits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy(tmp_path)
    cells = config.cells()
    assert len(cells) == 34 and [cell.method for cell in cells] == list(mnist.METHODS)
    for cell in cells:
        train_cell(config, cell)
    in_threads(monkeypatch)
    results, left = run_grid(config, progress=False)
    assert left == 0 and [result.cell for result in results] == cells
    for result in results:
        assert list(result.scores) == list(mnist.TESTS)
        for scores in result.scores.values():
            assert all(0 <= value <= 1 for value in scores.values())  # type: ignore[operator]
        assert 0 <= result.moved["deceiving"]["score"] <= result.moved["deceiving"]["distance"] <= 1
        assert result.cpu_seconds > 0 and result.steps == 2 * (128 // 40)
    text = mnist.MNISTConfig.table(results)
    assert len(text.splitlines()) == 2 + len(cells) and "| place | segmentation, then classification | 1 |" in text
    assert next(line for line in text.splitlines() if "| standard |" in line).endswith("| 1.00 |")
    assert text == (tmp_path / "table.md").read_text()


def test_a_resumed_cell_counts_what_was_trained_before(
    digits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(100)
    monkeypatch.setattr("isnet.training.loop.time.process_time", lambda: float(next(ticks)))
    results = []
    for name, killed in (("whole", False), ("killed", True)):
        config = toy(tmp_path / name, epochs=3)
        (cell,) = dataclasses.replace(config, methods=("dual after warm-up",)).cells()
        if killed:
            with monkeypatch.context() as patch:
                data = data_of(config, cell)
                dying = data._replace(train=Dying(data.train, 300))
                patch.setattr(mnist.MNISTConfig, "data", lambda *_, dying=dying: dying)
                with pytest.raises(KilledError):
                    train_cell(config, cell)
            next(ticks)  # the clock of another process
        train_cell(config, cell)
        results.append(finished(config, cell))
    assert results[0] is not None and results[0] == results[1] and results[0].cpu_seconds > 3


def test_the_reference_has_no_marks_and_segmented_images_no_background(digits: None, tmp_path: Path) -> None:
    config = toy(tmp_path)
    reference = data_of(config, Cell("place", "trained without marks", 0)).train
    biased = data_of(config, Cell("place", "standard", 0)).train
    assert isinstance(reference, BiasedMNIST) and isinstance(biased, BiasedMNIST)
    assert bool((reference.marks == -1).all())
    assert torch.equal(reference.labels, biased.labels)
    assert torch.equal(reference.images * reference.masks, biased.images * biased.masks)
    data = data_of(config, Cell("place", "segmentation, then classification", 0))
    for part in (data.train, data.tests["deceiving"]):
        assert isinstance(part, Altered)
        image, _, mask = part[3]
        assert bool((image[mask == 0] == 0).all()) and bool((image[mask > 0] > 0).any())


def test_hard_setting(digits: None, tmp_path: Path) -> None:
    """A photograph behind faint strokes, masks that are off, in training, at the tests and for the reference alike."""
    config = toy(tmp_path, marks=("photo",))
    cells = config.cells()
    assert len(cells) == 33 and "trained without marks" not in {cell.method for cell in cells}
    cell = Cell("photo", "trained without bias", 0)
    run = config.run_config(cell)
    assert (run.data.mark, run.data.mask, run.data.imprecise, run.data.ink) == ("photo", "digit", 2, 0.6)  # type: ignore[attr-defined]
    reference, biased = data_of(config, cell), data_of(config, cell._replace(method="standard"))
    assert isinstance(reference.train, BiasedMNIST) and isinstance(biased.train, BiasedMNIST)
    assert torch.equal(reference.train.masks, biased.train.masks)
    assert torch.equal(biased.train.marks, biased.train.labels)
    assert 0 < (reference.train.marks == reference.train.labels).float().mean() < 0.3
    assert list(reference.tests) == list(mnist.TESTS)


def test_methods_set_what_they_are_called_after(tmp_path: Path) -> None:
    config = toy(tmp_path)
    settings = {name: config.run_config(Cell("place", name, 0)) for name in mnist.METHODS}
    assert settings["selective after warm-up, automatic P"].loss.balance == "auto"
    assert all(name in settings for name in mnist.PRESETS["quick"].methods)
    swap = settings["selective with background swap, K = 4"]
    assert (swap.schedule.warmup, swap.schedule.warmup_background, swap.schedule.keep_replacing) == (1, "swap", True)
    assert swap.loss.heatmap_every == 4 and swap.network.variant == "selective"
    assert not settings["dual after swap warm-up"].schedule.keep_replacing
    noise = settings["background noise"].schedule
    assert noise.warmup_background == "noise" and noise.keep_replacing
    assert all(run.schedule.warmup + run.schedule.epochs == 2 for run in settings.values())


def test_presets_that_are_refused(tmp_path: Path) -> None:
    for change, text in (
        ({"marks": ("place", "label")}, "marks: expected one of place, texture, photo, got 'label'"),
        ({"marks": ("place", "place")}, "marks: expected one or several different marks"),
        ({"warmup_background": "pink"}, "warmup_background: expected one of noise, smooth, swap, got 'pink'"),
    ):
        with pytest.raises(ValueError, match=text):
            toy(tmp_path, **change)
    with pytest.raises(ValueError, match="preset: expected one of full, quick, got 'fast'"):
        mnist.preset("fast")
