"""Accuracy by subgroup, class and source: by hand, for several labels, and through evaluate, compare, report and card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_isnet_scores_runs import Images, made

from isnet.export.card import _subgroups
from isnet.runs import Run, RunData, evaluate_run
from isnet.runs.compare import compare_runs, comparison_lines
from isnet.runs.evaluation_file import Evaluation
from isnet.runs.report import write_report
from isnet.runs.tables import finding, headline, score_rows, subgroup_rows
from isnet.scoring.subgroups import subgroup_differences, subgroup_scores

NAMES = ("land", "water")
# 40 images of two classes from two sources; the answers are right on 20, 15, 1 and 4 of 20, 20, 10 and 10.
LABELS = torch.tensor([0] * 20 + [1] * 20 + [0] * 10 + [1] * 10)
SOURCES = ["forest"] * 20 + ["lake"] * 30 + ["forest"] * 10
RIGHT = [1] * 20 + [1] * 15 + [0] * 5 + [1] + [0] * 9 + [1] * 4 + [0] * 6


def answers(right: list[int]) -> torch.Tensor:
    given = torch.where(torch.tensor(right) > 0, LABELS, 1 - LABELS)
    return torch.nn.functional.one_hot(given, 2).float()


def test_worst_subgroup_and_average_weighted_by_training_images() -> None:
    training = torch.tensor([0] * 95 + [1] * 95 + [0] * 5 + [1] * 5), ["forest"] * 95 + ["lake"] * 100 + ["forest"] * 5
    found = subgroup_scores(answers(RIGHT), LABELS, SOURCES, NAMES, training=training)
    assert found is not None
    assert [
        (one["subgroup"], one["images"], one["trained_on"], round(one["accuracy"]["value"], 9)) for one in found["all"]
    ] == [
        ("land, forest", 20, 95, 1.0),
        ("land, lake", 10, 5, 0.1),
        ("water, forest", 10, 5, 0.4),
        ("water, lake", 20, 95, 0.75),
    ]
    assert found["worst"]["subgroup"] == "land, lake"
    low, high = (found["worst"]["accuracy"][end] for end in ("low", "high"))
    assert 0 <= low <= 0.1 < high < 0.5
    assert found["average"] == pytest.approx((95 * 1.0 + 95 * 0.75 + 5 * 0.1 + 5 * 0.4) / 200)


def test_subgroups_need_several_sources_and_ten_images_to_be_the_worst() -> None:
    assert subgroup_scores(answers(RIGHT), LABELS, ["one"] * 60, NAMES) is None
    assert subgroup_differences(answers(RIGHT), answers(RIGHT), LABELS, ["one"] * 60, NAMES) == {}
    few = subgroup_scores(answers(RIGHT), LABELS, ["lake"] * 50 + ["", *["forest"] * 9], NAMES)
    assert few is not None and few["average"] is None
    assert [one["subgroup"] for one in few["all"]][1:3] == ["water, (no source)", "water, forest"]
    assert few["worst"]["subgroup"] == "land, lake"  # 21 of 30; the nine from the forest are worse, but too few
    alone = subgroup_scores(answers(RIGHT), LABELS, [str(row) for row in range(60)], NAMES, resamples=0)
    assert alone is not None and alone["worst"] is None and len(alone["all"]) == 60
    assert json.loads(json.dumps(alone, allow_nan=False)) == alone
    # The training images come from other sources.
    other = subgroup_scores(answers(RIGHT), LABELS, SOURCES, NAMES, training=(LABELS, ["sea"] * 60))
    assert other is not None and other["average"] is None and other["all"][0]["trained_on"] == 0


def test_several_labels_are_judged_one_by_one() -> None:
    labels = torch.tensor([[1.0, 0], [1, 1], [0, 1], [0, 0]]).repeat(10, 1)
    logits = torch.where(labels > 0, 1.0, -1.0)
    sources = ["a", "b", "a", "b"] * 10
    logits[::4, 1] = 1  # wrongly present in the first of four: source a, without the second label
    found = subgroup_scores(logits, labels, sources, ("x", "y"), training=(labels, sources))
    assert found is not None and len(found["all"]) == 8
    accuracy = {one["subgroup"]: one["accuracy"]["value"] for one in found["all"]}
    assert {name for name, value in accuracy.items() if value < 1} == {"without y, a"}
    assert found["worst"]["subgroup"] == "without y, a" and found["worst"]["accuracy"]["value"] == 0
    assert found["average"] == pytest.approx(70 / 80)


def labelled(**attributes: object) -> Images:
    return Images(LABELS, sources=SOURCES, groups=[""] * 60, **attributes)


def scored(folder: Path, seed: int, train: Images | None) -> tuple[Run, RunData]:
    run, test = made(folder, 2, seed), labelled()
    data = RunData(train or test, {}, {"test": test})
    evaluate_run(run, data, resamples=20)
    return run, data


def test_evaluate_report_and_card_name_the_worst_subgroup(tmp_path: Path) -> None:
    run, data = scored(tmp_path / "a", 0, labelled())
    Evaluation.model_validate_json((run.folder / "evaluation.json").read_text())
    (row,) = score_rows([run])
    *rows, average = subgroup_rows(row, "test")
    assert [one["training images"] for one in rows].count("20") == 2 and len(rows) == 4
    assert average["class, source"] == "average, weighted by training images"
    values = [float(one["accuracy"].split()[0]) for one in rows]
    assert values == sorted(values)
    total = sum(value * int(one["images"]) for value, one in zip(values, rows, strict=True)) / 60
    assert total == pytest.approx(row.accuracy["test"] / 100, abs=2e-3)
    assert float(average["accuracy"]) == pytest.approx(total, abs=2e-3)  # trained on what it is tested with
    worst = rows[0]["class, source"]
    assert f"“{worst}”" in finding(row, "test") and f"“{worst}”" in headline([row])[0]["accuracy of the worst subgroup"]
    write_report(tmp_path / "report.html", [run], data)
    assert f">{worst}</th>" in (tmp_path / "report.html").read_text()
    assert worst in _subgroups(row.evaluation)[0]


def test_training_images_are_unknown_where_only_tests_were_read(tmp_path: Path) -> None:
    run, _ = scored(tmp_path / "a", 0, None)
    (row,) = score_rows([run])
    assert {one["training images"] for one in subgroup_rows(row, "test")[:-1]} == {"-"}
    assert subgroup_rows(row, "test")[-1]["accuracy"] == "-"


def test_one_source_changes_no_table(tmp_path: Path) -> None:
    run, test = made(tmp_path / "a", 2), Images(LABELS)
    evaluate_run(run, RunData(test, {}, {"test": test}), resamples=0)
    (row,) = score_rows([run])
    assert row.evaluation["subgroups"] == {} and subgroup_rows(row, "test") == []
    assert "worst" not in finding(row, "test") and list(headline([row])[0])[-1] != "accuracy of the worst subgroup"
    assert _subgroups(row.evaluation) == []


def test_compare_tells_the_difference_of_each_subgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, data = scored(tmp_path / "a", 0, labelled())
    second, _ = scored(tmp_path / "b", 1, labelled())
    monkeypatch.setattr("isnet.runs.compare.run_data", lambda run: data)
    found = compare_runs(first, second, resamples=50)["test"]["subgroups"]
    values = [{one["subgroup"]: one["accuracy"]["value"] for one in row.evaluation["subgroups"]["test"]["all"]}
              for row in score_rows([first, second])]  # fmt: skip
    assert {name: score.value for name, score in found.items()} == pytest.approx(
        {name: values[1][name] - values[0][name] for name in values[0]}
    )
    lines = list(comparison_lines(compare_runs(first, second, resamples=50), "a", "b"))
    assert sum("accuracy of “class" in line for line in lines) == 4
