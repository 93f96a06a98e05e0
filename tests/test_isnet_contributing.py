"""A variant, a reader, a kind of image set and a score added by CONTRIBUTING.md's lists alone: a class, and its entry in one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from test_isnet_own_images import SHORT, folder, run  # noqa: F401
from torch import Tensor

from isnet import ISNet
from isnet.data import FileRef, ImageTable, Record, read_image, read_table
from isnet.data.readers import READERS, Picture, Reader
from isnet.data.sets import SETS, ImageSet
from isnet.data.table import DataError
from isnet.scoring.intervals import classification_scores
from isnet.scoring.scores import SCORES, Answers, ClassificationScore, Counts
from isnet.variants import VARIANTS, Explained, Variant


class Runner(Variant):
    """The logit of the class that comes second."""

    def explained(self, logits: Tensor, place: tuple[int, int] | None = None) -> list[Explained]:
        return [Explained(logits.argsort(1, descending=True)[:, 1], self.epsilon())]


class Raw(Reader):
    """Square grey images without a header."""

    suffixes = (".raw",)

    def read(self, file: FileRef, *, scaled: bool) -> Picture:
        pixels = np.frombuffer(file.read(), np.uint8)
        side = int(len(pixels) ** 0.5)
        return Picture(pixels.reshape(side, side), 255)


class Listing(ImageSet):
    """A text file with a line per image: class, image, mask."""

    def takes(self, path: Path) -> bool:
        return path.suffix == ".list"

    def read(self, path: Path, masks: Path | None, labels: Sequence[str]) -> ImageTable:
        if masks is not None or labels:
            raise DataError(f"masks, label: {path} says itself where they are")
        rows = [line.split() for line in path.read_text().splitlines()]
        names = tuple(sorted({row[0] for row in rows}))
        files = [[FileRef(path.parent / name) for name in row[1:]] for row in rows]
        return ImageTable(
            tuple(Record(image, names.index(row[0]), mask) for row, (image, mask) in zip(rows, files, strict=True)),
            names,
        )


class WorstClass(ClassificationScore):
    """Accuracy of the class that does worst."""

    title = "worst class"

    def value(self, answers: Answers, counts: Counts) -> float:
        drawn = answers.right.repeat(counts), answers.truth.repeat(counts)
        return min(float(drawn[0][drawn[1] == name].mean()) for name in np.unique(drawn[1]))


def test_a_variant_is_a_class_and_an_entry(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "runner", Runner)
    run("train", tmp_path / "run", "--data", folder, *SHORT, "--variant", "runner", "--tune", "1")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["network"]["variant"] == "runner"
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3, bias=False)).double()
    x = torch.rand(5, 1, 2, 2).double()
    maps = ISNet(model, "runner", eps=1e-9, input_range=None).train()(x).heatmaps["input"]
    second = model(x).sort(1, descending=True).values[:, 1]
    torch.testing.assert_close(maps.sum((1, 2, 3, 4)), second, rtol=1e-6, atol=1e-6)


def test_a_reader_and_a_kind_of_set_are_a_class_and_an_entry(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []
    for kind in ("images", "masks"):
        for path in (folder / kind / "train").rglob("*.png"):
            pixels = np.rint(255 * read_image(FileRef(path))[0].numpy()).astype(np.uint8)
            path.with_suffix(".raw").write_bytes(pixels.tobytes())
    for path in sorted((folder / "images" / "train").rglob("*.raw")):
        image = path.relative_to(folder)
        lines.append(f"{path.parent.name} {image} {str(image).replace('images', 'masks', 1)}")
    (folder / "set.list").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"expected a folder, a \.csv"):
        read_table(folder / "set.list")
    monkeypatch.setitem(SETS, "listing", Listing())
    monkeypatch.setitem(READERS, "raw", Raw())
    assert len(read_table(folder / "set.list").records) == len(lines) == 24
    assert "24 of 24 images can be used" in run("data", "check", folder / "set.list", "--size", 16)
    run("train", tmp_path / "run", "--data", folder / "set.list", *SHORT)
    # In the other kinds of sets, too: each picture is now there twice.
    assert len(read_table(folder).records) == 36 + 24


def test_a_score_is_a_class_and_an_entry(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORES, "worst_class", WorstClass())
    logits, labels = torch.eye(3)[[0, 1, 1, 2]], torch.tensor([0, 1, 2, 2])
    found = classification_scores(logits, labels, resamples=20)["worst_class"]
    assert found.value == 0.5 and 0 <= found.low <= found.high <= 1
    run("train", tmp_path / "run", "--data", folder, *SHORT)
    table = run("evaluate", tmp_path / "run", "--resamples", "0", "--no-sensitivity")
    assert "| worst class |" in table
    stored = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert 0 <= stored["scores"]["test"][""]["worst_class"]["value"] <= 1
    run("report", tmp_path / "run", "--out", tmp_path / "report.html")
    assert "worst class" in (tmp_path / "report.html").read_text()
