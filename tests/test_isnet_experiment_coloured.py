"""Digits whose colour tells the class: what the sets show, and a toy grid with teacher and students."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_grid import few_digits, in_threads

from isnet.experiments import coloured
from isnet.experiments.coloured_mnist import HUES, TESTS, ColouredConfig, ColouredMNIST, load_coloured
from isnet.experiments.grid import run_grid
from isnet.runs import load_run

DIGITS = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
LABELS = np.arange(40) % 10


def colour_of(data: ColouredMNIST) -> torch.Tensor:
    """The colour of each digit, by its brightest pixel."""
    brightest = data.images.amax(1).flatten(1).argmax(1)
    found = data.images.flatten(2)[torch.arange(len(data)), :, brightest]
    return found / found.amax(1, keepdim=True)


def test_colours() -> None:
    sets = {name: ColouredMNIST(DIGITS, LABELS, name, seed=1) for name in ("own", "shifted", "random", "grey", "any")}  # type: ignore[arg-type]
    labels = sets["own"].labels
    torch.testing.assert_close(colour_of(sets["own"]), HUES[labels])
    torch.testing.assert_close(colour_of(sets["shifted"]), HUES[(labels + 1) % 10])
    torch.testing.assert_close(colour_of(sets["grey"]), torch.ones(40, 3))
    index = torch.cdist(colour_of(sets["random"]), HUES).argmin(1)
    torch.testing.assert_close(colour_of(sets["random"]), HUES[index])
    assert 0 < int((index == labels).sum()) < 15
    assert len(torch.unique(colour_of(sets["any"]), dim=0)) == 40
    shape = sets["own"].images.amax(1)
    assert all(torch.equal(data.images.amax(1) > 0, shape > 0) for data in sets.values())
    assert torch.equal(sets["own"].masks[:, 0] > 0, shape > 0)
    assert sets["own"].contents != sets["grey"].contents and len(sets["own"]) == 40
    image, label, mask = sets["own"][3]
    assert image.shape == (3, 28, 28) and int(label) == 3 and mask.shape == (1, 28, 28)
    assert torch.equal(sets["own"].__getitems__([3])[0][0], image)
    with pytest.raises(ValueError, match="colours: expected one of own, shifted, random, grey, any, got 'blue'"):
        ColouredMNIST(DIGITS, LABELS, "blue")  # type: ignore[arg-type]


def test_splits_share_no_digit_and_tests_show_the_same_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    few_digits(monkeypatch)
    data = load_coloured(ColouredConfig(train_size=100, test_size=20, validation=0.1), seed=3)
    (validation,) = data.validation.values()
    assert (len(data.train), len(validation)) == (90, 10)  # type: ignore[arg-type]
    shapes = [{bytes(image.amax(0).numpy()) for image, _, _ in part} for part in (data.train, validation)]  # type: ignore[attr-defined]
    assert not shapes[0] & shapes[1]
    assert list(data.tests) == list(TESTS) and {len(test) for test in data.tests.values()} == {20}  # type: ignore[arg-type]
    assert len({test.contents for test in data.tests.values()}) == 4  # type: ignore[attr-defined]
    assert not load_coloured(ColouredConfig(train_size=100, test_size=20, validation=0.0)).validation


def test_every_method_gives_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_digits(monkeypatch)
    in_threads(monkeypatch)
    quick = coloured.preset("quick")
    assert set(quick.methods) <= set(coloured.METHODS) and quick.seeds == (0,)
    config = dataclasses.replace(
        quick, folder=str(tmp_path), train_size=100, test_size=20, epochs=1, seeds=(0,), methods=()
    )
    results, left = run_grid(config, processes=1, progress=False)
    assert left == 0 and [result.method for result in results] == list(coloured.METHODS)
    for result in results:
        assert list(result.scores) == list(TESTS) and all(0 <= s["accuracy"] <= 1 for s in result.scores.values())  # type: ignore[operator]
    text = (tmp_path / "table.md").read_text()
    assert "| maps of the grey teacher |" in text and "shifted" in text
    run = load_run(tmp_path / "runs" / "colour_maps_0")
    teacher = load_run(tmp_path / "runs" / "colour_teacher-digits-in-any-colour_0")
    assert run.config.distill.teacher == str(teacher.folder)
    assert (run.config.train.seed, teacher.config.train.seed) == (
        1000,
        0,
    )  # other weights to begin with, the same digits
    assert torch.equal(run.model.fc.weight, teacher.model.fc.weight)  # type: ignore[union-attr, arg-type]
    assert run_grid(config, processes=1, progress=False)[0] == results
