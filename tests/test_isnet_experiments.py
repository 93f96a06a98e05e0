"""The experiments at toy size: every method runs, an interrupted experiment goes on, tables say what was measured."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from test_isnet_training import Dying, KilledError
from torch import nn
from typer.testing import CliRunner

from isnet import cli
from isnet.experiments import classes, mnist, xray
from isnet.experiments.baselines import Altered, InputGradients, with_mask
from isnet.experiments.biased_mnist import BiasedMNIST
from isnet.experiments.mnist_files import MNIST
from isnet.experiments.mnist_table import TESTS
from isnet.training.checkpoints import CheckpointError


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few digits of random strokes in place of MNIST."""
    rng = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 10
        images = rng.integers(0, 60, (count, 28, 28))
        images[np.arange(count), 4 + 2 * labels] = 255
        return images.astype(np.uint8), labels.astype(np.uint8)

    few = MNIST(*part(140), *part(40), source="test")
    monkeypatch.setattr(mnist, "load_mnist", lambda *_, **__: few)
    monkeypatch.setattr("isnet.experiments.digits.load_mnist", lambda *_, **__: few)


def toy(folder: Path, **changes: object) -> mnist.MNISTConfig:
    small = {
        "folder": str(folder),
        "train_size": 128,
        "test_size": 30,
        "warmup": 1,
        "epochs": 1,
        "lazy": (2,),
        "marks": ("place",),
        "methods": (),
    }
    return dataclasses.replace(mnist.preset("quick"), **{**small, **changes})


def test_every_method_gives_a_cell(digits: None, tmp_path: Path) -> None:
    config = toy(tmp_path)
    cells = mnist.all_cells(config)
    assert len(cells) == 26
    for cell in cells:
        mnist.train_cell(config, cell)
    rows = mnist.table_rows(config, cells)
    assert [row["method"] for row in rows] == list(mnist.methods(config))
    for row in rows:
        assert all(0 <= row[key][0] <= 100 for key in (*TESTS, "distance", "score")) and row["cost"] > 0
    standard = next(row for row in rows if row["method"] == "standard")
    assert standard["cost"] == 1
    text = mnist.table(rows)
    assert len(text.splitlines()) == 2 + len(rows) and "| place | segmentation, then classification |" in text


def test_a_resumed_cell_counts_what_was_trained_before(
    digits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(100)
    monkeypatch.setattr("isnet.training.loop.time.process_time", lambda: float(next(ticks)))
    costs = []
    for name, killed in (("whole", False), ("killed", True)):
        config = toy(tmp_path / name, epochs=3)
        (cell,) = mnist.all_cells(dataclasses.replace(config, methods=("standard",)))
        if killed:
            with monkeypatch.context() as patch:
                data = mnist.cell_data(mnist.run_config(config, cell), mnist.Method("standard"))
                patch.setattr(mnist, "cell_data", lambda *_, data=data: data._replace(train=Dying(data.train, 300)))
                with pytest.raises(KilledError):
                    mnist.train_cell(config, cell)
            next(ticks)  # the clock of another process
        mnist.train_cell(config, cell)
        result = json.loads((tmp_path / name / "cells" / f"{cell.key}.json").read_text())
        costs.append(result["cpu_seconds"])
    assert costs[0] == costs[1] > 3


def test_tables_are_means_over_seeds(tmp_path: Path) -> None:
    config = toy(tmp_path, seeds=(0, 1), methods=("standard",))
    cells = [mnist.Cell("standard", "place", seed) for seed in (0, 1)]
    for cell, value in zip(cells, (0.5, 0.7), strict=True):
        result = {
            **cell._asdict(),
            "accuracy": dict.fromkeys(TESTS, value),
            "background": 0.2,
            "blind_spot": {"changed": 0.1, "distance": 0.25, "background": 0.2, "score": 0.125},
            "cpu_seconds": 3,
            "steps": 2,
            "settings": mnist.run_config(config, cell).to_json(),
        }
        (tmp_path / "cells").mkdir(exist_ok=True)
        (tmp_path / "cells" / f"{cell.key}.json").write_text(json.dumps(result))
    (row,) = mnist.table_rows(config, cells)
    assert row["biased"] == pytest.approx((60, 100 * 0.02**0.5)) and row["cost"] == 1
    assert "| 60.0 ± 14.1 | 20.0 | 25.0 | 12.5 | 1.00 |" in mnist.table([row])
    assert mnist.run_experiment(config, progress=False) == [row]  # nothing is left to train
    with pytest.raises(
        CheckpointError, match=r"other settings \(schedule.epochs: 2 there, 3 now\); choose another folder"
    ):
        mnist.run_experiment(dataclasses.replace(config, epochs=2), progress=False)
    with pytest.raises(ValueError, match="methods: no magic; there are"):
        mnist.methods(toy(tmp_path, methods=("magic",)))
    with pytest.raises(ValueError, match="preset: expected one of full, quick"):
        mnist.preset("fast")
    with pytest.raises(ValueError, match="marks: expected one of place, texture, photo, got 'label'"):
        toy(tmp_path, marks=("place", "label"))
    with pytest.raises(ValueError, match=r"seeds: expected one or several different numbers, got \[2, 2\]"):
        toy(tmp_path, seeds=(2, 2))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"settings": {"heatmap": {}}}', "an older version's"),
        ('{"accuracy": 1}', "an older version's, which kept no settings"),
        ('{"settings": {"train": {"lrr": 3}}}', "train.lrr: no such option"),
        ("{", "Expecting property name"),
    ],
)
def test_cells_that_cannot_be_read_are_named(tmp_path: Path, content: str, text: str) -> None:
    config = mnist.preset("quick", folder=str(tmp_path), methods=("standard",), marks=("place",))
    path = tmp_path / "cells" / "standard_place_0.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(CheckpointError, match=rf"standard_place_0\.json: {text}.*choose another folder"):
        mnist.run_experiment(config, processes=1)


def test_the_reference_has_no_marks_and_segmented_images_no_background(digits: None, tmp_path: Path) -> None:
    config = toy(tmp_path)
    for name, what in (("trained without marks", "marks"), ("segmentation, then classification", "background")):
        method = mnist.methods(config)[name]
        data = mnist.cell_data(mnist.run_config(config, mnist.Cell(name, "place", 0)), method)
        if what == "marks":
            assert isinstance(data.train, BiasedMNIST) and bool((data.train.marks == -1).all())
            biased = mnist.cell_data(
                mnist.run_config(config, mnist.Cell("standard", "place", 0)), mnist.Method("standard")
            ).train
            assert torch.equal(data.train.labels, biased.labels)
            assert torch.equal(data.train.images * data.train.masks, biased.images * biased.masks)
        else:
            assert isinstance(data.train, Altered)
            image, _, mask = data.train[3]
            assert bool((image[mask == 0] == 0).all()) and bool((image[mask > 0] > 0).any())


def test_hard_setting(digits: None, tmp_path: Path) -> None:
    """A photograph behind faint strokes, masks that are off, in training, at the tests and for the reference alike."""
    config = toy(tmp_path, marks=("photo",))
    cells = mnist.all_cells(config)
    assert len(cells) == 25 and "trained without marks" not in {cell.method for cell in cells}
    cell = mnist.Cell("trained without bias", "photo", 0)
    run = mnist.run_config(config, cell)
    assert (run.data.mark, run.data.mask, run.data.imprecise, run.data.ink) == ("photo", "digit", 2, 0.6)
    reference = mnist.cell_data(run, mnist.methods(config)[cell.method])
    biased = mnist.cell_data(run, mnist.Method("standard"))
    assert isinstance(reference.train, BiasedMNIST) and isinstance(biased.train, BiasedMNIST)
    assert torch.equal(reference.train.masks, biased.train.masks)
    assert torch.equal(biased.train.marks, biased.train.labels)
    assert 0 < (reference.train.marks == reference.train.labels).float().mean() < 0.3
    assert list(reference.tests) == list(TESTS)


def test_methods_set_what_they_are_called_after(tmp_path: Path) -> None:
    config = toy(tmp_path)
    settings = {name: mnist.run_config(config, mnist.Cell(name, "place", 0)) for name in mnist.methods(config)}
    assert settings["selective after warm-up, automatic P"].loss.balance == "auto"
    assert all(name in settings for name in mnist.PRESETS["quick"].methods if name != "selective after warm-up, K = 4")
    swap = settings["selective with background swap, K = 4"]
    assert (swap.schedule.warmup, swap.schedule.warmup_background, swap.schedule.keep_replacing) == (1, "swap", True)
    assert swap.loss.heatmap_every == 4
    assert not settings["dual after swap warm-up"].schedule.keep_replacing
    assert settings["background noise"].schedule.warmup_background == "noise"


def test_input_gradients_are_penalised_outside_the_mask() -> None:
    torch.manual_seed(0)
    network = InputGradients(nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).double(), strength=2.0)
    images, labels, masks = torch.rand(2, 1, 3, 3).double(), torch.tensor([0, 2]), torch.zeros(2, 1, 3, 3).double()
    masks[:, :, 0] = 1
    given = torch.cat([images, masks], 1)
    loss = network.loss(network(given), labels)
    expected = nn.functional.cross_entropy(network.model(images), labels)
    for image, mask in zip(images, masks, strict=True):
        image = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(torch.log_softmax(network.model(image), 1).sum(), image)
        expected = expected + 2.0 / 2 * (gradient[0] * (1 - mask)).square().sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert network.model[1].weight.grad is not None
    assert torch.equal(network.eval()(given), network.model(images))


def test_mask_channel(digits: None, tmp_path: Path) -> None:
    data = mnist.cell_data(
        mnist.run_config(toy(tmp_path), mnist.Cell("standard", "place", 0)), mnist.Method("standard")
    ).train
    image, label, mask = Altered(data, with_mask)[1]
    assert torch.equal(image, torch.cat([data[1][0], mask])) and label == data[1][1]


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


def test_seeds_marks_and_background_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    for experiment in (mnist, xray):
        monkeypatch.setattr(experiment, "run_experiment", lambda config, **_: asked.append(config) or [])
        monkeypatch.setattr(experiment, "table", lambda rows: "")
    chosen = ["--seeds", "3", "--warmup-background", "smooth"]
    marks = ["--mark", "place", "--mark", "photo"]
    for options in (["mnist", *chosen, *marks], ["xray", *chosen]):
        for method, methods in (("all", ()), ("Dual ISNet", ("Dual ISNet",))):
            assert CliRunner().invoke(cli.app, ["experiment", *options, "--method", method]).exit_code == 0
            assert (asked[-1].seeds, asked[-1].warmup_background) == ((0, 1, 2), "smooth")
            assert asked[-1].methods == methods
    assert asked[0].marks == ("place", "photo")
    for name in ("mnist", "xray"):
        failed = CliRunner().invoke(cli.app, ["experiment", name, "--warmup-background", "pink"])
        assert (
            "warmup_background: expected one of noise, smooth, swap, got 'pink'"
            in str(failed.exception) + failed.output
        )


def test_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli.app, ["experiment", "classes", "--out", str(tmp_path), "--count", "2", "--repeats", "1"]
    )
    assert result.exit_code == 0 and "| selective |" in result.output, result.output
