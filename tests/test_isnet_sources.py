"""What isnet predict takes for images in folders, patterns and manifests, and which mask belongs to which."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_isnet_predict import CLASSES, rows
from tiny_run import invoke, tiny  # noqa: F401

from isnet.data import DataError
from isnet.data.sources import UNKNOWN, read_sources

pydicom = pytest.importorskip("pydicom")
Tiny = tuple[Path, Path]


def picture(path: Path, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16), value, np.uint8)).save(path)
    return path


def names(sources: object) -> list[str]:
    return [Path(str(record.image)).name for record in sources.records]  # type: ignore[attr-defined]


def test_the_content_says_what_an_image_is(tmp_path: Path) -> None:
    scan = Path(pydicom.data.get_testdata_file("CT_small.dcm", download=False))
    (tmp_path / "study").mkdir()
    for name in ("IM0001", "1.2.840.113", "b.dcm", "c.IMA", "DICOMDIR"):
        shutil.copy(scan, tmp_path / "study" / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    found = read_sources([tmp_path], CLASSES)
    assert names(found) == ["1.2.840.113", "IM0001", "b.dcm", "c.IMA"]  # DICOMDIR lists the files of a medium
    assert any("1 file left out" in note and "notes.txt" in note for note in found.notes)
    assert any("without a target" in note and "gone.png" in note for note in found.notes)
    matched = read_sources([f"{tmp_path}/*/I*", f"{tmp_path}/n*", f"{tmp_path}/**/b*"][::2], CLASSES)
    assert names(matched) == ["IM0001", "b.dcm"]
    mixed = read_sources([f"{tmp_path}/**/[In]*"], CLASSES)
    assert names(mixed) == ["IM0001"] and "notes.txt" in mixed.notes[0]


def test_links_and_hidden_files(tmp_path: Path) -> None:
    picture(tmp_path / "far" / "a.png")
    picture(tmp_path / "near" / ".hidden.png")
    (tmp_path / "near" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "loop").symlink_to(tmp_path / "near")
    found = read_sources([tmp_path / "near"], CLASSES)
    assert names(found) == ["a.png"] and any("not followed" in note for note in found.notes)


def test_masks_of_flat_folders_files_and_patterns(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        picture(tmp_path / "pictures" / folder / "x.png")
        picture(tmp_path / "outlines" / folder / "x_mask.png")
    picture(tmp_path / "outlines" / "c" / "y.png")
    outlines = tmp_path / "outlines"
    for source in (tmp_path / "pictures", f"{tmp_path}/pictures/*/*.png"):
        found = read_sources([source], CLASSES, masks=outlines)
        assert [str(r.mask) for r in found.records] == [str(outlines / f / "x_mask.png") for f in "ab"], source
    one = read_sources([tmp_path / "pictures" / "a" / "x.png"] * 2, CLASSES, masks=outlines / "a")
    assert [str(record.mask) for record in one.records] == [str(outlines / "a" / "x_mask.png")] * 2
    none = read_sources([tmp_path / "pictures"], CLASSES, masks=outlines / "c")
    assert not any(r.mask for r in none.records) and any("no image has a mask" in note for note in none.notes)
    own = picture(tmp_path / "flat" / "p.png").parent
    picture(own / "masks" / "p.png")
    assert [str(r.mask) for r in read_sources([own], CLASSES).records] == [str(own / "masks" / "p.png")]


@pytest.mark.parametrize("sources", [("a", "b"), ("a/x.png", "b/x.png")])
def test_a_mask_is_of_one_image(tmp_path: Path, sources: tuple[str, ...]) -> None:
    for folder in ("a", "b", "masks"):
        picture(tmp_path / folder / "x.png")
    with pytest.raises(DataError, match="the mask of two images"):
        read_sources([tmp_path / name for name in sources], CLASSES, masks=tmp_path / "masks")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("image,label\na.png,light\nb.png,\n", "utf-8"),
        ("image;label\na.png;light\nb.png;\n", "utf-8-sig"),
        (" Image \tLABEL\na.png\t light \nb.png\t\n", "utf-16"),
        ("sep=|\nimage|label\na.png|light\nb.png|\n", "utf-8"),
    ],
)
def test_manifests_are_read_as_in_training(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "labels.CSV").write_text(text, encoding=encoding)
    found = read_sources([tmp_path / "labels.CSV"], CLASSES)
    assert names(found) == ["a.png", "b.png"] and [record.label for record in found.records] == [1, UNKNOWN]


@pytest.mark.parametrize(
    "text", ['image\n"x', "image\n\0\n", "image,mask\n,\nx.png,\n,m.png\n", "picture\nx.png\n", ""]
)
def test_broken_manifests_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"m\.csv"):
        read_sources([path], CLASSES)


def test_what_a_command_tells(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = tiny
    picture(tmp_path / "in" / "fine.png")
    (tmp_path / "in" / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    told = invoke("predict", run, "in", "--out", "p.csv")
    assert "Note: 1 file left out" in told and "p.csv: 1 image, " in told
    assert invoke("predict", run, "in", "--out", "q.csv", "--quiet") == ""
    (tmp_path / "in" / "broken.png").write_text("no picture")
    told = invoke("predict", run, "in", "--out", "r.csv", "--quiet", code=1)
    assert told.startswith("1 image has an error") and len(told.splitlines()) == 1
    assert "object at" not in rows(Path("r.csv"))[0]["error"]


def test_pictures_replace_no_others(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = tiny
    monkeypatch.chdir(tmp_path)
    image = picture(tmp_path / "a.png")
    invoke("predict", run, image, "--out", "p.csv", "--heatmaps", "maps")
    (before,) = Path("maps").iterdir()
    kept = before.read_bytes()
    picture(image, 200)
    assert "maps is not empty" in invoke("predict", run, image, "--out", "q.csv", "--heatmaps", "maps", code=1)
    assert before.read_bytes() == kept and not Path("q.csv").exists() and not Path("q.csv.parts").exists()
    invoke("predict", run, image, "--out", "q.csv", "--heatmaps", "maps", "--overwrite")
    assert before.read_bytes() != kept


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--out", "a.png/x.csv"), "--out: a.png/x.csv cannot be written"),
        (("--out", "/proc/x.csv"), "--out: /proc/x.csv cannot be written"),
        (("--out", "p.csv", "--heatmaps", "a.png"), "pictures: a.png"),
        (("--out", "."), "is a folder"),
    ],
)
def test_places_that_take_no_file_are_refused_before_the_work(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(Path("a.png"))
    told = invoke("predict", tiny[0], "a.png", *options, code=1)
    assert text in told and "Errno" not in told
