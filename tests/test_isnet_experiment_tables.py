"""Tables of results: what they show, and that those of the documentation are made from the cells in docs/results."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_grid import METHODS, Toy, in_threads

from isnet._files import write_json
from isnet.config import RunConfig
from isnet.experiments import results
from isnet.experiments.cells import Result
from isnet.experiments.grid import run_grid
from isnet.experiments.grid_tables import Column, table
from isnet.experiments.results import current_pages, read_results, results_text, with_tables

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs" / "results"


def result(method: str = "plain", seed: int = 0, **found: Any) -> Result:
    given = {"scores": {}, "moved": {}, "cpu_seconds": 3.0, "steps": 2, "setting": "land", "experiment": "toy", **found}
    code = {"version": "1.0", "sources": f"{seed:016x}"}
    return Result(method=method, seed=seed, settings={}, notes={}, code=code, **given)


def test_a_column_shows_means_deviations_intervals_and_dashes() -> None:
    def scored(value: Any, share: float | None = 0.25) -> dict[str, Any]:
        return {"scores": {"one": {"auc": value, "share": share}, "two": {"share": 0.75}}}

    auc = Column("AUC", ("scores", "one", "auc"), digits=3)
    share = Column("share", ("scores", "*", "share"), 100, 0, " %")
    three = [result(seed=n, **scored(value)) for n, value in enumerate((0.7, 0.8, 0.9))]
    assert (
        auc.text([[one] for one in three], []) == "0.800 ± 0.100"
        and share.text([[one] for one in three], []) == "50 ± 0 %"
    )
    one = result(**scored({"value": 0.7, "low": 0.61, "high": 0.8}))
    assert auc.text([[one]], []) == "0.700 [0.610, 0.800]" and auc.text([[one], [three[2]]], []) == "0.800 ± 0.141"
    assert (
        auc.text([[result(**scored(None))]], []) == "-" and auc.text([[three[0]], [result(**scored(None))]], []) == "-"
    )
    assert share.text([[result(**scored(0.5, None))]], []) == "-" and auc.text([[result()]], []) == "-"
    assert Column("?", ("scores", "one", "auc", "x"), 1).text([[three[0]]], []) == "-"
    # Of each seed the mean of its results counts.
    assert auc.text([[three[0], three[1]], [three[2], three[1]]], []) == "0.800 ± 0.071"
    assert auc.text([[one, three[2]]], []) == "0.800" and auc.text([[one, result()]], []) == "-"
    cost = Column("cost", ("cost",), digits=2, relative_to="plain")
    dear = [[result("dear", cpu_seconds=9)], [result("dear", 1, cpu_seconds=15)]]
    assert cost.text(dear, [result(), result(seed=1)]) == "4.00" and cost.text(dear, []) == "-"
    assert cost.text([[result(steps=0)]], [result()]) == "-"


def test_a_table_has_a_row_for_each_method_of_each_setting() -> None:
    columns = [Column("auc", ("scores", "one", "auc"), 100), Column("cost", ("cost",), digits=1, relative_to="plain")]
    found = [
        result(method, seed, setting=setting, cpu_seconds=cost * factor, scores={"one": {"auc": seed / 10}})
        for setting, cost in (("land", 1), ("water", 4))
        for method, factor in (("plain", 1), ("dear", 2))
        for seed in (1, 3)
    ]
    lines = table(found, columns).splitlines()
    assert lines[0] == "| setting | method | seeds | auc | cost |" and lines[1].count("---") == 5
    assert lines[2:] == [
        "| land | plain | 2 | 20.0 ± 14.1 | 1.0 |",
        "| land | dear | 2 | 20.0 ± 14.1 | 2.0 |",
        "| water | plain | 2 | 20.0 ± 14.1 | 1.0 |",
        "| water | dear | 2 | 20.0 ± 14.1 | 2.0 |",
    ]
    by_seed = table(found, columns, by_seed=True).splitlines()
    assert table([*found, result("new", scores={})], columns, overall="both").splitlines()[6:] == [
        "| land | new | 1 | - | 3.0 |",
        "| both | plain | 2 | 20.0 ± 14.1 | 1.0 |",
        "| both | dear | 2 | 20.0 ± 14.1 | 2.0 |",
    ]
    assert len(by_seed) == 10 and by_seed[3] == "| land | plain | 3 | 30.0 | 1.0 |"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of cells of the toy grid."""
    in_threads(monkeypatch)
    monkeypatch.setattr(results, "EXPERIMENTS", {"toy": Toy})
    for setting in ("water", "land"):
        run_grid(Toy(folder=str(tmp_path / "grid"), seeds=(0, 2), groups=(setting,)), processes=2, progress=False)
    (tmp_path / "results").mkdir()
    (tmp_path / "grid" / "cells").rename(tmp_path / "results" / "toy-quick")
    return tmp_path / "results"


def test_a_page_gets_its_tables(kept: Path) -> None:
    page = "# Toy\n<!-- results: toy-quick -->\nold\n<!-- end of results -->\nText.\n"
    page += "<!-- results: toy-quick by seed --><!-- end of results -->\n".replace("--><", "-->\n<")
    made = with_tables(page, kept)
    assert made.startswith("# Toy\n<!-- results: toy-quick -->\n\n| setting |") and "old" not in made
    assert (
        made.index("| land | plain | 2 | 60.0 ± 14.1 |")
        < made.index("| land | guarded | 2 |")
        < made.index("| water |")
    )
    assert "| land | warm-up |" not in made and made.count("Text.\n") == 1 and "| water | taught | 2 | 70.0 |" in made
    assert re.search(r"12 cells, 0 processor minutes of training; code: \d\S* \(sources [0-9a-f]{16}\)\.", made)
    assert with_tables(made, kept) == made
    assert with_tables("nothing", kept.parent / "nowhere") == "nothing"


def test_cells_of_a_method_that_is_gone_stand_last(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toy_grid.METHODS", {name: METHODS[name] for name in METHODS if name != "plain"})
    assert "plain" in results_text(read_results(kept / "toy-quick")).splitlines()[5]


def test_results_that_no_page_can_show(kept: Path) -> None:
    page = "<!-- results: toy-quick -->\n<!-- end of results -->\n" * 2
    (kept.parent / "page.md").write_text("no place")
    with pytest.raises(ValueError, match=r"results: no page has a place .* for toy-quick"):
        current_pages(kept.parent)
    (kept.parent / "page.md").write_text(page[:-10])
    with pytest.raises(ValueError, match=r"page\.md: the page has 2 places"):
        current_pages(kept.parent)
    with pytest.raises(ValueError, match=r"other: expected the cells of one experiment \(toy\), got none"):
        with_tables(page.replace("toy-quick -->", "other -->", 1), kept)
    with pytest.raises(ValueError, match="the page has 2 places for results, of which 1 have an end"):
        with_tables(page.replace("<!-- end of results -->\n", "", 1), kept)
    other = result(experiment="old", scores={"a": {"b": 1}}).model_dump(mode="json")
    write_json(kept / "toy-quick" / "x.json", other)
    with pytest.raises(
        ValueError, match=r"x\.json: expected the name land_plain_0\.json for the cell \(land, plain, seed 0\)"
    ):
        read_results(kept / "toy-quick")
    (kept / "toy-quick" / "x.json").rename(kept / "toy-quick" / "land_plain_0.json")
    with pytest.raises(ValueError, match=r"toy-quick: expected the cells of one experiment \(toy\), got old, toy"):
        read_results(kept / "toy-quick")
    (kept / "toy-quick" / "x.json").write_text("3")
    with pytest.raises(ValueError, match=r"x\.json"):
        read_results(kept / "toy-quick")


def test_the_tables_of_the_documentation_are_current() -> None:
    pages = current_pages(KEPT.parent)
    assert pages and {path: path.read_text() for path in pages} == pages, "python -m isnet.experiments"


def test_cells_that_are_kept_are_small_and_complete() -> None:
    for path in KEPT.glob("*/*"):
        assert path.suffix == ".json" and path.stat().st_size < 2**14
    for folder in KEPT.glob("*"):
        for found in read_results(folder):
            trained = RunConfig.from_json(found.settings).train.seed
            assert found.code["version"] and trained % 1000 == found.seed  # students begin with seed + 1000
            assert not re.search(r"(^|[\"' ])/\w", str(found.model_dump())), "a path of the machine"


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "python")])
    command = [sys.executable, "-m", "isnet.experiments"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.startswith("isnet.experiments: docs: no page here has a place")
