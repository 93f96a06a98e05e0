"""The grid of an experiment: what is missing is trained, in order, within its time; results of other settings are refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_grid
from toy_grid import Toy, in_threads

from isnet.experiments import code_version
from isnet.experiments.cells import Cell, Method, Scores
from isnet.experiments.grid import finished, run_grid, train_cell
from isnet.experiments.trainings import TrainingsError
from isnet.training.checkpoints import CheckpointError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    in_threads(monkeypatch)
    return Toy(folder=str(tmp_path / "grid"), seeds=(0, 2))


def trained(toy: Toy) -> list[str]:
    """Which cells were trained since the last call."""
    return [line.partition(" after ")[0] for line in toy.said() if not line.startswith("prepare")]


def test_what_is_missing_is_trained_and_what_it_comes_after_before(toy: Toy) -> None:
    results, left = run_grid(toy, processes=1, progress=False)
    assert left == 0 and [(r.setting, r.method, r.seed) for r in results] == [
        (setting, method, seed)
        for seed in (0, 2)
        for setting in ("land", "water")
        for method in ("plain", "guarded", "taught")
    ]
    said = toy.said()
    assert said[:6] == [
        "prepare land 0",
        "land, plain, seed 0 after None",
        "land, warm-up, seed 0 after None",
        "land, guarded, seed 0 after land_warm-up_0",
        "land, taught, seed 0 after land_guarded_0",
        "prepare water 0",
    ]
    assert len(said) == 4 * 5
    text = (Path(toy.folder) / "table.md").read_text()
    assert text == Toy.table(results) and "| land | plain | 2 | 60.0 ± 14.1 |" in text
    assert "| water | taught | 2 | 70.0 |" in (Path(toy.folder) / "seeds.md").read_text()
    assert run_grid(toy, processes=1, progress=False) == (results, 0) and not toy.said()


def test_a_cell_says_what_made_it(toy: Toy) -> None:
    (result, *_), _ = run_grid(toy, processes=2, progress=False)
    stored = json.loads((Path(toy.folder) / "cells" / "land_plain_0.json").read_text())
    assert stored == result.model_dump(mode="json")
    assert stored["settings"]["train"]["lr"] == 1e-3 and "folder" not in stored["settings"]["data"]
    assert stored["notes"] == {"images": "", "rival": "", "after": None, "size": 3}
    assert re.fullmatch("[0-9a-f]{16}", stored["code"]["sources"]) and stored["code"]["version"]
    taught = json.loads((Path(toy.folder) / "cells" / "land_taught_2.json").read_text())
    assert taught["settings"]["network"]["weights"] == "guarded" and taught["notes"]["after"] == "guarded"


def test_the_hash_of_the_sources_follows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.py").write_text("x = 1\n")
    monkeypatch.setattr(code_version, "_ROOTS", {"isnet": tmp_path / "a", "lrpkernels": tmp_path / "b"})
    first = code_version.code_version.__wrapped__()
    assert "commit" not in first  # not tracked
    (tmp_path / "b" / "one.py").write_bytes(b"x = 1\r\n")
    assert code_version.code_version.__wrapped__() == first
    (tmp_path / "b" / "one.py").write_text("x = 2\n")
    assert code_version.code_version.__wrapped__()["sources"] != first["sources"]


def test_a_part_of_the_grid(toy: Toy) -> None:
    part = dataclasses.replace(toy, methods=("taught",), groups=("water",), seeds=(5,))
    results, _ = run_grid(part, processes=3, progress=False)
    assert [r.cell for r in results] == [Cell("water", "taught", 5)]
    assert trained(part) == [f"water, {name}, seed 5" for name in ("warm-up", "guarded", "taught")]
    # The whole then trains only what is missing.
    run_grid(dataclasses.replace(toy, seeds=(5,)), processes=1, progress=False)
    assert [line for line in trained(toy) if line.startswith("water")] == ["water, plain, seed 5"]


def test_a_run_that_others_go_on_from_is_trained_again_if_it_is_gone(toy: Toy) -> None:
    part = dataclasses.replace(toy, groups=("land",), seeds=(0,))
    run_grid(part, processes=1, progress=False)
    trained(part)
    (part.run_folder(Cell("land", "guarded", 0)) / "last.safetensors").unlink()
    (part.run_folder(Cell("land", "warm-up", 0)) / "last.safetensors").unlink()
    run_grid(part, processes=1, progress=False)
    assert not trained(part)  # nobody needs them
    (Path(part.folder) / "cells" / "land_taught_0.json").unlink()
    run_grid(part, processes=1, progress=False)
    assert trained(part) == [f"land, {name}, seed 0" for name in ("warm-up", "guarded", "taught")]


def test_no_cell_begins_after_its_time(toy: Toy) -> None:
    slow = dataclasses.replace(toy, seconds=0.3, methods=("plain",))
    assert run_grid(slow, processes=1, hours=0, progress=False) == ([], 4)
    assert not slow.said() and not (Path(slow.folder) / "table.md").exists()
    results, left = run_grid(slow, processes=1, hours=0.1 / 3600, progress=False)
    assert (len(results), left) == (1, 3) and len(trained(slow)) == 1
    results, left = run_grid(slow, processes=2, progress=False)
    assert (len(results), left) == (4, 0) and len(trained(slow)) == 3


def test_a_cell_that_fails_stops_only_what_waits_for_it(toy: Toy) -> None:
    broken = dataclasses.replace(toy, broken="warm-up", groups=("land",), seeds=(0,))
    with pytest.raises(
        TrainingsError, match=r"^1 of 4 trainings failed: land, warm-up, seed 0: ValueError: no convergence"
    ):
        run_grid(broken, processes=1, progress=False)
    assert trained(broken) == ["land, plain, seed 0", "land, warm-up, seed 0"]
    many = dataclasses.replace(toy, broken="plain", methods=("plain",), seeds=(3, 4))
    with pytest.raises(TrainingsError, match=r"^4 of 4 trainings failed: (.*no convergence; ){3}and 1 more$"):
        run_grid(many, processes=1, progress=False)
    toy.said()
    assert finished(broken, Cell("land", "plain", 0)) is not None
    run_grid(dataclasses.replace(broken, broken=""), processes=1, progress=False)
    assert trained(broken) == [f"land, {name}, seed 0" for name in ("warm-up", "guarded", "taught")]


def test_results_of_other_settings_are_refused(toy: Toy) -> None:
    run_grid(toy, processes=1, progress=False)
    for change, text in (({"lr": 0.5}, "train.lr: 0.001 there, 0.5 now"), ({"size": 4}, "size: 3 there, 4 now")):
        with pytest.raises(
            CheckpointError, match=rf"land_plain_0.json is of other settings \({text}\); choose another"
        ):
            run_grid(dataclasses.replace(toy, **change), processes=1, progress=False)  # type: ignore[arg-type]
    # So is what a cell came after, if that is still there.
    teacher = Path(toy.folder) / "cells" / "land_warm-up_0.json"
    teacher.write_text(teacher.read_text().replace('"size": 3', '"size": 5'))
    with pytest.raises(CheckpointError, match=r"land_warm-up_0\.json is of other settings"):
        run_grid(toy, processes=1, progress=False)
    teacher.unlink()
    run_grid(toy, processes=1, progress=False)
    assert not teacher.exists()
    # Where things lie may change; an option that is newer than the cell has its default there.
    path = Path(toy.folder) / "cells" / "land_plain_0.json"
    stored = json.loads(path.read_text())
    del stored["settings"]["files"], stored["settings"]["loss"]["layer_decay"]
    path.write_text(json.dumps(stored))
    assert finished(toy, Cell("land", "plain", 0)) is not None


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda stored: "{", "no JSON"),
        (lambda stored: "[]", "valid dictionary"),
        (lambda stored: json.dumps({**stored, "steps": -3}), "steps: Input should be greater than or equal to 0"),
        (lambda stored: json.dumps({**stored, "seed": 1}), "of another cell (toy: land, plain, seed 1)"),
        (lambda stored: json.dumps({**stored, "experiment": "mnist"}), "of another cell (mnist: land"),
        (lambda stored: json.dumps({**stored, "blind": 3}), "blind: Extra inputs are not permitted"),
        (lambda stored: json.dumps({**stored, "settings": {"train": {"lrr": 3}}}), "train.lrr: no such option"),
        (lambda stored: json.dumps({**stored, "settings": {"heatmap": {}}}), "an older version's"),
        (lambda stored: json.dumps({**stored, "settings": {"data": 3}}), "settings.data: Input should"),
        (lambda stored: json.dumps({**stored, "scores": {"a": {"accuracy": "high"}}}), "scores.a.accuracy"),
    ],
)
def test_cells_that_cannot_be_read_are_named(toy: Toy, spoil: Callable[[dict[str, object]], str], text: str) -> None:
    part = dataclasses.replace(toy, methods=("plain",), groups=("land",))
    run_grid(part, processes=1, progress=False)
    path = Path(toy.folder) / "cells" / "land_plain_0.json"
    path.write_text(spoil(json.loads(path.read_text())))
    with pytest.raises(CheckpointError) as caught:
        run_grid(part, processes=1, progress=False)
    told = str(caught.value)
    assert told.count("land_plain_0.json") == 1 and text in told and "another folder" in told and "\n" not in told


def test_grids_that_cannot_be_run(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    for change, text in (
        ({"methods": ("magic",)}, "methods: no magic; there are plain, guarded, taught"),
        ({"methods": ("warm-up",)}, "methods: no warm-up; there are"),
        ({"seeds": (2, 2)}, r"seeds: expected one or several different numbers, got \[2, 2\]"),
        ({"seeds": ()}, "seeds: expected one or several"),
    ):
        with pytest.raises(ValueError, match=text):
            dataclasses.replace(toy, **change)
    for how, text in (
        ({"hours": float("nan")}, "hours: expected a number >= 0, got nan"),
        ({"processes": 0}, "processes"),
    ):
        with pytest.raises(ValueError, match=text):
            run_grid(toy, progress=False, **how)  # type: ignore[arg-type]
    (Path(toy.folder).parent / "file").touch()
    with pytest.raises(OSError, match=r"folder \(--out\): .*file.* cannot be written"):
        run_grid(dataclasses.replace(toy, folder=str(Path(toy.folder).parent / "file")), progress=False)
    for name, method, text in (
        ("odd", Method({"learning_rate": 3}), "learning_rate: no such option"),
        ("odd", Method({"heatmap_every": 0}), "heatmap_every: expected >= 1, got 0"),
        ("odd", Method(after="nobody"), "after: odd comes after 'nobody', which is no method"),
        ("odd", Method(after="odd"), "after: odd comes after 'odd', which is no method, or comes after it"),
        ("plain!", Method(), "two of the methods .* have the same file name"),
    ):
        monkeypatch.setattr(toy_grid, "METHODS", {"plain": Method(), name: method})
        with pytest.raises(ValueError, match=text):
            run_grid(toy, processes=1, progress=False)
        assert not toy.said()
    with pytest.raises(ValueError, match=r"rival: expected one of .*segmented.*, got 'magic'"):
        Method(rival="magic")
    with pytest.raises(ValueError, match="handed: teacher gets the run of another method, whose name is missing"):
        Method(handed="teacher")
    with pytest.raises(ValueError, match="cpu_seconds"):
        Scores(steps=3)  # type: ignore[call-arg]


RUN = """
import signal
import sys
from toy_grid import Toy
from isnet.experiments.grid import run_grid

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
    run_grid(Toy(folder=sys.argv[1], seconds=float(sys.argv[2])), processes=2, progress=False)
"""


def test_a_grid_in_processes_that_is_stopped_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(RUN)
    paths = [str(ROOT), str(ROOT / "python"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    toy = Toy(folder=str(tmp_path / "grid"))
    command = [sys.executable, str(tmp_path / "run.py"), toy.folder]
    job = subprocess.Popen([*command, "1000"], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    said = Path(toy.folder) / "said.txt"
    while not (said.exists() and "plain" in said.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    assert job.wait(timeout=30) != 0  # at once, though its trainings take 1000 s
    assert len(trained(toy)) in (1, 2) and not list(Path(toy.folder).glob("cells/*"))
    part = dataclasses.replace(toy, groups=("land",), seeds=(0,), methods=("guarded",))
    results, _ = run_grid(part, processes=2, progress=False)
    assert trained(part) == ["land, warm-up, seed 0", "land, guarded, seed 0"] and len(results) == 1
    train_cell(part, Cell("land", "plain", 0))
    assert finished(toy, Cell("land", "plain", 0)) is not None
