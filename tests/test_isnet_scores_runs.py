"""evaluate and compare on tests of every awkward kind: what is written is JSON, what is told has no nan, and nothing is guessed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from isnet.config import ImagesConfig, RunConfig
from isnet.runs import Run, RunData, evaluate_run
from isnet.runs.compare import compare_runs, comparison_lines
from isnet.runs.tables import (
    HEADLINE,
    class_rows,
    confusion_rows,
    finding,
    headline,
    markdown,
    most_confused,
    score_rows,
    score_table,
    score_text,
    sensitivity_table,
    titles,
    warnings_of,
)
from isnet.scoring.decisions import class_table, confusion, roc_curves
from isnet.scoring.paired import class_differences, compare, paired_difference
from isnet.scoring.scores import answers_of


class Images(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Random images with these labels."""

    contents = "the same"

    def __init__(self, labels: Tensor, **attributes: Any) -> None:
        self.labels = labels
        self.images = torch.rand(len(labels), 1, 6, 6, generator=torch.Generator().manual_seed(1))
        self.masks = torch.zeros(len(labels), 1, 6, 6)
        self.masks[..., :3] = 1
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.images[index], self.labels[index], self.masks[index]


def made(folder: Path, classes: int, seed: int = 0, **data: Any) -> Run:
    folder.mkdir()
    names = tuple(f"class {n}" for n in range(classes))
    config = RunConfig(data=ImagesConfig("x", size=(6, 6), channels=1, classes=names, **data), name=folder.name)
    torch.manual_seed(seed)
    return Run(
        folder, config, nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, classes)).eval()
    )


ODD: dict[str, tuple[Images, int]] = {
    "one image": (Images(torch.tensor([1])), 2),
    "two images": (Images(torch.tensor([0, 1])), 2),
    "one class": (Images(torch.ones(12, dtype=torch.int64)), 3),
    "a class without images": (Images(torch.arange(20) % 2), 3),
    "thirty classes": (Images(torch.arange(60) % 30), 30),
    "a hundred and twenty classes": (Images(torch.arange(120)), 120),
    "no masks": (Images(torch.arange(12) % 2, masked=[]), 2),
    "masks of one class": (Images(torch.arange(12) % 2, masked=[1, 3, 5]), 2),
    "few masks": (Images(torch.arange(12) % 2, masked=[0, 5, 7]), 2),
    "labels": (Images((torch.arange(24).reshape(12, 2) % 3 == 0).float()), 2),
    "one label": (Images((torch.arange(12) % 3 == 0).float()[:, None]), 1),
    "labels that do not vary": (Images(torch.tensor([[0.0, 1.0]]).expand(8, 2).clone()), 2),
    "an image with every label and one with none": (Images(torch.tensor([[1.0, 1, 1], [0, 0, 0]])), 3),
    "groups": (Images(torch.arange(48) % 2, groups=[f"p{n // 4}" for n in range(48)]), 2),
    "three groups": (Images(torch.arange(12) % 2, groups=[f"p{n // 4}" for n in range(12)]), 2),
    "sources": (Images(torch.arange(12) % 2, sources=["one", "|other\n"] * 6), 2),
}


@pytest.mark.parametrize("kind", ODD)
def test_evaluate_and_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    images, classes = ODD[kind]
    several = images.labels.dim() == 2
    runs = [made(tmp_path / name, classes, seed, multi_label=several) for seed, name in enumerate("ab")]
    data = RunData(images, {}, {"test": images})
    for run in runs:
        evaluate_run(run, data, resamples=5, progress=False)
        stored = (run.folder / "evaluation.json").read_text()
        assert "NaN" not in stored and "Infinity" not in stored
    rows = score_rows(runs)
    assert list(headline(rows)[0])[2:] == [titles()[key] for key in HEADLINE]
    tables = [
        score_table(rows),
        sensitivity_table(rows),
        class_rows(rows[0], "test"),
        confusion_rows(rows[0], "test") or [],
    ]
    told = "".join(markdown(table) for table in tables)
    told += finding(rows[0], "test") + "".join(warnings_of(rows)) + "".join(most_confused(rows[0], "test"))
    monkeypatch.setattr("isnet.runs.compare.run_data", lambda _: data)
    told += "\n".join(comparison_lines(compare_runs(*runs, resamples=5), "a", "b"))
    assert "nan" not in told and "None" not in told
    assert len(markdown(score_table(rows)).splitlines()) == 2 + len(score_table(rows))
    if len(images) < 10:
        assert warnings_of(rows)


def test_runs_compared_with_themselves_do_not_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(torch.arange(30) % 3)
    monkeypatch.setattr("isnet.runs.compare.run_data", lambda _: RunData(images, {}, {"test": images}))
    run = made(tmp_path / "a", 3)
    lines = list(comparison_lines(compare_runs(run, run, resamples=9), "a", "a"))
    order = ["AUC of", "balanced accuracy of", "relevance in the background of", "answers changed by", "accuracy of"]
    assert [next(key for key in order if line.startswith(f"test test: {key}")) for line in lines[:5]] == order
    assert all("+0.0" in line for line in lines[:5]) and "McNemar's p = 1 (right by both" in lines[5]
    assert len(lines) == 9 and "AUC of “class 2” against the rest" in lines[8]


def test_a_network_whose_answers_are_not_finite(tmp_path: Path) -> None:
    images = Images(torch.arange(12) % 2)
    run = made(tmp_path / "run", 2)
    nn.init.constant_(run.model[3].bias, math.inf)  # type: ignore[arg-type,index]
    with pytest.raises(
        ValueError, match=r"run, test test: logits: expected finite numbers, got NaN or infinity for 12 of 12"
    ):
        evaluate_run(run, RunData(images, {}, {"test": images}), progress=False)
    assert not (run.folder / "evaluation.json").exists()


def test_decisions() -> None:
    logits = torch.tensor([[2.0, 1, 0], [2, 1, 0], [0, 2, 1], [0, 1, 2]])
    answers = answers_of(logits, torch.tensor([0, 1, 1, 1]))
    assert confusion(answers) == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    first, second, third = class_table(answers, ("a", "b", "c"))
    assert (first["images"], first["recall"], first["precision"], first["specificity"]) == (
        1,
        1,
        0.5,
        pytest.approx(2 / 3),
    )
    assert second["auc"] == pytest.approx(1 - 0.5 / 3) or 0 <= second["auc"] <= 1
    assert (third["images"], third["recall"], third["precision"], third["auc"]) == (0, None, 0, None)
    curves = roc_curves(answers, ("a", "b", "c"))
    assert list(curves) == ["a", "b"]
    for curve in curves.values():
        for rates in curve.values():
            assert rates[0] == 0 and rates[-1] == 1 and rates == sorted(rates)


def test_decisions_of_labels() -> None:
    truth = torch.tensor([[1.0, 0], [0, 0], [1, 1]])
    answers = answers_of(torch.tensor([[1.0, 1], [1, -1], [-1, 1]]), truth)
    assert confusion(answers) == [[[0, 1], [1, 1]], [[1, 1], [0, 1]]]
    assert [row["recall"] for row in class_table(answers, ("a", "b"))] == [0.5, 1.0]


def test_stored_curves_stay_small() -> None:
    count = 5000
    logits = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    (curve, _) = roc_curves(answers_of(logits, torch.arange(count) % 2), ("a", "b")).values()
    assert len(curve["true_positive_rate"]) <= 101 and curve["false_positive_rate"][-1] == 1
    assert len(json.dumps(curve)) < 3000


def test_differences_by_class_add_up_for_two_networks() -> None:
    labels = torch.arange(90) % 3
    a = torch.nn.functional.one_hot(labels, 3).float()
    b = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
    found = class_differences(a, b, labels, ("x", "y", "z"), resamples=20)
    whole = compare(a, b, labels, resamples=20)
    assert sum(score.value for score in found.values()) / 3 == pytest.approx(whole["auc_difference"].value)
    assert all(score.low <= score.value <= score.high < 0 for score in found.values())
    assert sum(whole["right"].values()) == 90
    assert paired_difference(lambda _: 0.0, lambda _: 0.25, 5, resamples=3) == (0.25, 0.25, 0.25)


def test_cells() -> None:
    assert score_text("auc", None) == score_text("auc", {"value": None, "low": None, "high": None}) == "-"
    assert score_text("auc", {"value": 0.5, "low": 0.25, "high": 1.0}) == "0.500 (0.250 to 1.000)"
    assert score_text("background", {"value": 0.0316, "low": None, "high": None}) == "3.2 %"
    assert markdown([]) == "" and markdown([{"a|b": "x\ny"}]) == "| a\\|b |\n| --- |\n| x y |\n"
